"""Floods of what each alone is allowed. Others are served, and no process takes more memory than it may."""

import http.client
import socket
import sqlite3
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import grpc
import pytest
from certificates import Authority
from e2e.processes import Role, until
from faults import crowd, figures
from faults.crowd import Site
from http2_frames import DATA, END_STREAM, Connection, Frame, call, message, window

from ordersys.core import fields
from ordersys.core.v1 import order_pb2, product_pb2

SOON = 5.0
"""Seconds in which anybody else is answered meanwhile."""
MOST_MB = 400
"""How much a process may grow: its calls in flight 256 MiB, untaken answers 128 MiB (core/rpc/limits.py), a little."""
READS_SECONDS = 60.0
"""The same behind the largest pages or bodies, a hundred or a thousand at once, which are all read before."""
LITTLE_MB = 100
"""The same for what takes no place among the calls in flight."""

PLACE = "/ordersys.core.v1.ProductService/PlaceOrder"
WATCH = "/ordersys.core.v1.OrderService/WatchOrders"
LIST = "/ordersys.core.v1.OrderService/ListOrders"
EVENTS = 500


class Target:
    """Every service, the API over TLS; what each has grown since the last look."""

    def __init__(self, site: Site, api: Role, context: ssl.SSLContext) -> None:
        self.site = site
        self.context = context
        self.roles = {"order": site.roles[0], "product": site.roles[1], "api": api}
        self._before: dict[str, int] = {}

    def begin(self) -> None:
        for name, role in self.roles.items():
            # The peak is set back to what is held now (https://man7.org/linux/man-pages/man5/proc.5.html).
            Path(f"/proc/{role.pid}/clear_refs").write_text("5")
            self._before[name] = peak(role)

    def grown(self) -> dict[str, int]:
        assert all(role.running for role in self.roles.values())
        return {name: peak(role) - self._before[name] for name, role in self.roles.items()}

    def is_served(self) -> float:
        """Everybody answers an honest caller; how many seconds the slowest took."""
        seconds = []
        for ask in (
            lambda: self.site.client.get_product("1"),
            lambda: self.site.client.list_orders(page_size=1),
            self.page,
        ):
            began = time.monotonic()
            ask()
            seconds.append(time.monotonic() - began)
        return max(seconds)

    def page(self) -> None:
        address = self.site.backend.api_address
        with closing(http.client.HTTPSConnection(address, timeout=60, context=self.context)) as connection:
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200


def peak(role: Role) -> int:
    lines = Path(f"/proc/{role.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    authority = Authority.at(tmp_path_factory.mktemp("authority"))
    pair = authority.issue("api")
    tls = {"ORDERSYS_API_TLS_CERT_FILE": pair.cert, "ORDERSYS_API_TLS_KEY_FILE": pair.key}
    with crowd.site("embedded", tmp_path_factory.mktemp("flood")) as site:
        api = site.backend.start("api", ORDERSYS_API_RATE_LIMIT="off", **tls).ready()
        site.stock("1", 100_000)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: site.client.place_order("c-1", [("1", 1)] * 10), range(EVENTS)))
        target = Target(site, api, ssl.create_default_context(cafile=authority.ca))
        target.is_served()
        yield target


@pytest.fixture
def target(running: Target) -> Iterator[Target]:
    running.begin()
    yield running
    running.site.backend.show()
    running.is_served()


def bounded(target: Target, most: int, soon: float = SOON, **flood: int) -> None:
    """The others are served while the flood is on, and nobody grows by more than so many MB."""
    slowest = max(target.is_served() for _ in range(5))
    grown = target.grown()
    figures.record("flood", "embedded", **flood, slowest_answer=slowest, most_grown_mb=max(grown.values()))
    assert slowest < soon
    assert max(grown.values()) < most, grown


def dialled(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_a_flood_of_connections(target: Target) -> None:
    backend = target.site.backend
    with ExitStack() as opened:
        for address in (backend.product_address, backend.order_address, backend.api_address):
            for _ in range(1500):
                opened.enter_context(dialled(address))
        bounded(target, LITTLE_MB, connections=4500)


def test_a_flood_of_half_open_handshakes(target: Target) -> None:
    hello = client_hello()
    with ExitStack() as opened:
        for number in range(1500):
            half = opened.enter_context(dialled(target.site.backend.api_address))
            half.sendall(hello[: -1 if number % 2 else None])
        bounded(target, LITTLE_MB, half_open_handshakes=1500)


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def test_a_flood_of_watches_that_nobody_reads(target: Target) -> None:
    with ExitStack() as opened:
        for _ in range(20):
            slow = opened.enter_context(Connection(target.site.backend.order_address, window(0)))
            for number in range(100):
                slow.send(call(2 * number + 1, WATCH), Frame(DATA, END_STREAM, 2 * number + 1, message(0)))
        bounded(target, MOST_MB, watches=2000)


def test_a_flood_of_pages_that_nobody_takes(target: Target) -> None:
    request = order_pb2.ListOrdersRequest(page_size=1000).SerializeToString()
    body = b"\0" + len(request).to_bytes(4, "big") + request
    with ExitStack() as opened:
        for _ in range(20):
            slow = opened.enter_context(Connection(target.site.backend.order_address, window(0)))
            for number in range(50):
                slow.send(call(2 * number + 1, LIST), Frame(DATA, END_STREAM, 2 * number + 1, body))
        bounded(target, MOST_MB, READS_SECONDS, untaken_pages=1000)


def test_a_flood_of_requests_that_do_not_end(target: Target) -> None:
    with ExitStack() as opened:
        for _ in range(900):
            slow = opened.enter_context(Connection(target.site.backend.product_address))
            for number in (1, 3):  # as much as a connection may hold that nobody has read
                slow.send(call(number, PLACE))
                slow.data(number, message(30_000, of=60_000))
        bounded(target, MOST_MB, requests_without_end=1800)


def test_a_flood_of_metadata(target: Target) -> None:
    with ExitStack() as opened:
        for _ in range(40):
            slow = opened.enter_context(Connection(target.site.backend.product_address))
            for number in range(100):
                slow.send(call(2 * number + 1, PLACE, headers=60))
        bounded(target, 2 * LITTLE_MB, calls_with_metadata=4000)


def test_a_flood_of_the_largest_orders_while_the_database_is_held(target: Target) -> None:
    wide = "\U0001f600" * fields.MAX_ID
    line = order_pb2.OrderLine(product_id=wide, quantity=1)
    body = product_pb2.PlaceOrderRequest(customer_id=wide, lines=[line] * fields.MAX_LINES).SerializeToString()
    held = sqlite3.connect(target.site.backend.home / "product.db", isolation_level=None)
    with closing(held), ExitStack() as opened:
        held.execute("BEGIN IMMEDIATE")
        channels = [opened.enter_context(channel(target.site.addresses[0], number)) for number in range(10)]
        calls = [channels[number % 10].unary_unary(PLACE).future(body, timeout=60) for number in range(3500)]
        until(lambda: any(each.done() for each in calls), "the first are refused")
        bounded(target, MOST_MB, largest_orders=len(calls))
        # A caller who is refused while it still sends may see the reset before the reason: gRPC repeats both.
        assert {each.code() for each in calls} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert max(target.grown().values()) < MOST_MB


def channel(address: str, number: int) -> grpc.Channel:
    """A connection of its own: those with the same options share one."""
    return grpc.insecure_channel(address, options=[("number", number)])


def test_a_flood_of_the_largest_bodies_at_once(target: Target) -> None:
    body = b'{"customer_id": "c-1", "lines": [' + b"{}," * 80_000 + b"{}]}"
    address = target.site.backend.api_address

    def post(_: int) -> int:
        with closing(http.client.HTTPSConnection(address, timeout=60, context=target.context)) as connection:
            connection.request("POST", "/api/v1/orders", body, {"Content-Type": "application/json"})
            return connection.getresponse().status

    with ThreadPoolExecutor(100) as pool:
        posts = [pool.submit(post, number) for number in range(150)]
        bounded(target, MOST_MB, READS_SECONDS, largest_bodies=len(posts))
        assert {each.result() for each in posts} == {400}
    assert max(target.grown().values()) < MOST_MB
