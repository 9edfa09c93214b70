"""Row 16: rubbish, floods, slow and silent clients on the ports; the others are served, and memory stays bounded."""

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from e2e.processes import Role, until
from faults import crowd, figures
from faults.crowd import Site

from ordersys.api.connection import Patience
from ordersys.core import errors
from ordersys.core.rpc import status
from ordersys.core.v1 import product_pb2

PATIENCE = Patience()
CLIENTS = 300
"""Silent or slow ones: several times the threads of the REST API, and less than the open files a process may have."""
SOON = 5.0
"""Seconds in which anybody else is answered meanwhile: much less than a client that holds a thread would keep it."""
MORE_MB = 60
"""How much a process may grow, whatever is thrown at it."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
PING = b"\0\0\x08\x06\0\0\0\0\0rubbish!"
POST = b"POST /api/v1/orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNK = b"fffff\r\n" + b"x" * 0xFFFFF + b"\r\n"
NOISE = random.Random(16).randbytes(5_000)  # noqa: S311 - the same every time

ON_GRPC = {
    "noise": NOISE,
    "nothing but zeros": bytes(100_000),
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "half a preface": PREFACE[:10],
    "noise after the preface": PREFACE + NOISE,
    "a frame of 16 MB": PREFACE + b"\xff\xff\xff\0\0\0\0\0\x01" + NOISE,
    "a flood of settings": PREFACE + SETTINGS * 20_000,
    "a flood of pings": PREFACE + SETTINGS + PING * 20_000,
    "resets of streams that are none": PREFACE
    + SETTINGS
    + b"".join(b"\0\0\x04\x03\0" + number.to_bytes(4) + b"\0\0\0\x08" for number in range(1, 10_001, 2)),
}
ON_HTTP = {
    "noise": (NOISE, 400),
    "HTTP/2": (PREFACE + SETTINGS, 505),
    "nothing but zeros": (bytes(100_000) + b"\r\n\r\n", 414),
    "a path without end": (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n", 414),
    "20,000 headers": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", 413),
    "a body of 5 MB": (POST + b"Content-Length: 5000000\r\n\r\n" + b"x" * 5_000_000, 413),
    "a body of any size": (POST + b"Content-Length: 99999999999999999999\r\n\r\n{}", 413),
    "a body of less than nothing": (POST + b"Content-Length: -5\r\n\r\n{}", 400),
    "2 MB in chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK * 2 + b"0\r\n\r\n", 413),
    "a chunk of no size": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
}


@dataclass(frozen=True)
class Target:
    """Every service, and how much memory each has held at most before it was hurt."""

    site: Site
    roles: dict[str, Role]
    before: dict[str, int]

    def grown(self) -> dict[str, int]:
        """By how many MB each has grown; none has ended."""
        assert all(role.running for role in self.roles.values())
        return {name: megabytes(role) - self.before[name] for name, role in self.roles.items()}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with crowd.site("embedded", tmp_path_factory.mktemp("garbage")) as site:
        api = site.backend.start("api").ready()
        everybody_is_served(site)
        roles = {"product": site.roles[1], "order": site.roles[0], "api": api}
        yield Target(site, roles, {name: megabytes(role) for name, role in roles.items()})


@pytest.fixture
def site(target: Target) -> Iterator[Site]:
    yield target.site
    target.site.backend.show()
    everybody_is_served(target.site)
    assert max(target.grown().values()) < MORE_MB, target.grown()


def megabytes(role: Role) -> int:
    """The most memory it has held so far (https://man7.org/linux/man-pages/man5/proc_pid_status.5.html)."""
    lines = Path(f"/proc/{role.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))


def everybody_is_served(site: Site) -> float:
    """Each port answers an honest caller; how many seconds the slowest took."""
    seconds = []
    for ask in (
        lambda: site.client.get_product("1"),
        lambda: site.client.list_orders(page_size=1),
        lambda: healthy(site),
    ):
        began = time.monotonic()
        ask()
        seconds.append(time.monotonic() - began)
    return max(seconds)


def healthy(site: Site) -> None:
    with closing(http.client.HTTPConnection(site.backend.api_address, timeout=2 * PATIENCE.request)) as connection:
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200


def dialled(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def say(address: str, rubbish: bytes) -> bytes:
    """What comes back until nothing more does for a moment, or the other side closes."""
    with dialled(address) as connection:
        heard = []
        try:
            connection.sendall(rubbish)
            connection.settimeout(1)
            while piece := connection.recv(65_536):
                heard.append(piece)
        except (TimeoutError, ConnectionError):
            pass  # it has nothing more to say, or has hung up on us: both are its right
        return b"".join(heard)


def test_row_16_rubbish_on_the_grpc_ports(site: Site) -> None:
    for address in (*site.addresses, site.backend.order_address):
        for rubbish in ON_GRPC.values():
            say(address, rubbish)
            assert everybody_is_served(site) < SOON
    figures.record(16, "embedded", rubbish_on_grpc=2 * len(ON_GRPC), crashes=0)


def test_row_16_calls_that_no_client_makes_get_a_clear_error(site: Site) -> None:
    path = "/ordersys.core.v1.ProductService/PlaceOrder"
    large = product_pb2.PlaceOrderRequest(customer_id="x" * 100_000_000).SerializeToString()
    with grpc.insecure_channel(site.addresses[0], options=[("grpc.max_send_message_length", -1)]) as channel:

        def told(body: bytes, method: str = path, **more: Any) -> errors.OrdersysError:
            call = channel.unary_unary(method)
            with pytest.raises(grpc.RpcError) as refused:
                call(body, timeout=30, **more)
            return status.from_call(refused.value, "here")

        for body in (b"\xff" * 100, b"\x00", b"\x0a\xff\xff\xff\xff\x0f", NOISE):
            refused = told(body)
            assert isinstance(refused, errors.InvalidArgument)
            assert [each.field for each in refused.violations] == ["request"]
        assert "too large" in told(large[:5_000_000]).message
        assert told(large, compression=grpc.Compression.Gzip).code in ("invalid_argument", "unavailable")  # 0.1 MB sent
        assert "UNIMPLEMENTED" in told(b"", "/ordersys.core.v1.ProductService/NoSuch").message
        assert "metadata" in told(b"", metadata=[("x", "y" * 30_000)]).message
        assert told(b"", metadata=[("traceparent", "y" * 300), ("x-bin", b"\0\xff")]).code == "invalid_argument"  # type: ignore[list-item]
    assert everybody_is_served(site) < SOON


def test_row_16_rubbish_on_the_http_port_is_a_problem(site: Site) -> None:
    for name, (rubbish, expected) in ON_HTTP.items():
        head, _, body = say(site.backend.api_address, rubbish).partition(b"\r\n\r\n")
        assert b"Content-Type: application/problem+json" in head, (name, head)
        problem = json.loads(body)
        assert (head.split()[1].decode(), problem["status"]) == (str(expected), expected), name
        assert problem["code"] in ("invalid_argument", "payload_too_large")
        assert everybody_is_served(site) < SOON
    figures.record(16, "embedded", rubbish_on_http=len(ON_HTTP), crashes=0)


@contextmanager
def many(addresses: Sequence[str], count: int = CLIENTS) -> Iterator[list[socket.socket]]:
    """So many connections to each."""
    with ExitStack() as opened:
        yield [opened.enter_context(dialled(address)) for address in addresses for _ in range(count)]


def test_row_16_silent_connections_keep_nobody_waiting(site: Site) -> None:
    with many([*site.addresses, site.backend.order_address, site.backend.api_address]) as silent:
        slowest = max(everybody_is_served(site) for _ in range(10))
    assert slowest < SOON
    figures.record(16, "embedded", silent_connections=len(silent), slowest_answer=slowest)


class Dripping:
    """Sends the same few bytes over every connection, again and again, while the block runs."""

    def __init__(self, connections: Sequence[socket.socket], drop: bytes) -> None:
        self._connections = connections
        self._drop = drop
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.hung_up = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.5):
            refused = 0
            for connection in self._connections:
                try:
                    connection.sendall(self._drop)
                except OSError:
                    refused += 1
            self.hung_up = refused


def test_row_16_requests_that_drip_in_keep_nobody_waiting_and_have_an_end(site: Site) -> None:
    with many([site.backend.api_address]) as slow, Dripping(slow, b"X-More: to come\r\n") as dripping:
        for connection in slow:
            connection.sendall(POST)
        slowest = max(everybody_is_served(site) for _ in range(10))
        until(lambda: dripping.hung_up == len(slow), "the slow clients are dropped", 4 * PATIENCE.request)
    assert slowest < SOON
    figures.record(16, "embedded", dripping_requests=len(slow), slowest_answer=slowest)


def test_row_16_calls_that_drip_in_keep_nobody_waiting(site: Site, target: Target) -> None:
    with many([*site.addresses, site.backend.order_address]) as slow, Dripping(slow, PREFACE[:1]):
        slowest = max(everybody_is_served(site) for _ in range(10))
    assert slowest < SOON
    figures.record(16, "embedded", dripping_calls=len(slow), slowest_answer=slowest)
    figures.record(16, "embedded", **{f"{name}_grew_mb": grown for name, grown in target.grown().items()})
