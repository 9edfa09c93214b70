"""The gateway over real HTTP and real gRPC: sockets, threads and the two protocols between."""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from api_fakes import FakeOrders, FakeProducts, an_order, listening
from flask import Flask, Response

from ordersys.api import server as api_server
from ordersys.api.app import create_app
from ordersys.api.connection import Patience
from ordersys.api.server import ApiServer
from ordersys.core import errors
from ordersys.core.rpc.channel import Channel

BODY: dict[str, Any] = {"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 2}]}
ORDERS = "/api/v1/orders"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def products() -> FakeProducts:
    return FakeProducts()


@pytest.fixture
def orders() -> FakeOrders:
    return FakeOrders()


@pytest.fixture
def gateway(products: FakeProducts, orders: FakeOrders) -> Iterator[ApiServer]:
    with listening(products, orders) as (product_address, order_address):
        product_channel, order_channel = Channel(product_address, retry=False), Channel(order_address, retry=False)
        server = ApiServer(create_app(product_channel, order_channel), "127.0.0.1:0")
        server.start()
        yield server
        server.stop(5)
        product_channel.close()
        order_channel.close()


@contextmanager
def served(app: Flask, threads: int = 64, patience: Patience | None = None) -> Iterator[ApiServer]:
    server = ApiServer(app, "127.0.0.1:0", threads, patience=patience)
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


def ask(
    server: ApiServer, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of one request on a connection of its own."""
    connection = http.client.HTTPConnection(server.address, timeout=20)
    try:
        encoded = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request(method, path, encoded, {**(JSON if encoded else {}), **(headers or {})})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), json.loads(response.read())
    finally:
        connection.close()


def say(server: ApiServer, raw: bytes) -> bytes:
    """Everything that is answered to these bytes until the server closes the connection."""
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(raw)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    return answer


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


# --- through both protocols -----------------------------------------------------------------------------------------


def test_an_order_travels_there_and_back(gateway: ApiServer) -> None:
    status, headers, placed = ask(gateway, "POST", ORDERS, BODY, {"Idempotency-Key": "k-1"})
    assert (status, headers["ETag"], headers["Location"]) == (201, '"1"', f"{ORDERS}/{placed['id']}")
    assert placed["total"] == {"currency": "EUR", "amount": 9998}
    assert ask(gateway, "POST", ORDERS, BODY, {"Idempotency-Key": "k-1"})[2] == placed
    assert ask(gateway, "GET", f"{ORDERS}/{an_order(7).id}")[2]["id"] == an_order(7).id
    assert ask(gateway, "GET", "/api/data")[2] == {"message": "1 product, 10 units"}
    assert ask(gateway, "GET", "/healthz")[0] == 200


REUSED = {"Idempotency-Key": "used"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("POST", ORDERS, b"{", {}, 400, "invalid_argument"),
        ("POST", ORDERS, {**BODY, "customer_id": 1}, {}, 400, "invalid_argument"),
        ("GET", "/api/v1/products/9", None, {}, 404, "product_not_found"),
        ("GET", f"{ORDERS}/9", None, {}, 404, "order_not_found"),
        ("GET", "/nothing", None, {}, 404, "not_found"),
        ("DELETE", ORDERS, None, {}, 405, "method_not_allowed"),
        ("POST", ORDERS, {**BODY, "lines": [{"product_id": "1", "quantity": 11}]}, {}, 409, "insufficient_stock"),
        ("POST", ORDERS, b"x" * 400_000, {}, 413, "payload_too_large"),
        ("POST", ORDERS, b"x" * (api_server.MAX_BODY_BYTES + 1), {}, 413, "payload_too_large"),
        ("POST", "/nothing", b"x" * 400_000, {}, 404, "not_found"),
        ("POST", ORDERS, BODY, {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ("POST", ORDERS, {**BODY, "customer_id": "other"}, REUSED, 422, "idempotency_key_reused"),
    ],
    ids=lambda value: value[:10] if isinstance(value, bytes) else None,
)
def test_each_refusal_arrives_as_a_problem(
    gateway: ApiServer, method: str, path: str, body: Any, headers: dict[str, str], status: int, code: str
) -> None:
    ask(gateway, "POST", ORDERS, BODY, REUSED)
    got, answered, problem = ask(gateway, method, path, body, headers)
    assert (got, problem["status"], problem["code"]) == (status, status, code)
    assert answered["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.Unauthenticated("?"), 401, "unauthenticated"),
        (errors.PermissionDenied("?"), 403, "permission_denied"),
        (errors.InvalidTransition.of("7", "shipped", "cancelled"), 409, "invalid_transition"),
        (errors.VersionConflict.of("7", 1, 2), 409, "version_conflict"),
        (errors.Unavailable("busy", 2.5), 503, "unavailable"),
        (ZeroDivisionError("secret"), 500, "internal"),
    ],
    ids=str,
)
def test_what_a_service_raises_arrives_as_a_problem(
    gateway: ApiServer, orders: FakeOrders, error: Exception, status: int, code: str
) -> None:
    orders.failure = error
    got, headers, problem = ask(gateway, "GET", f"{ORDERS}/7")
    assert (got, problem["code"]) == (status, code)
    assert headers.get("Retry-After") == ("3" if status == 503 else None)
    assert "secret" not in json.dumps(problem)


def test_a_service_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as taken:  # bound but not listening: nobody answers there, and nobody else can
        taken.bind(("127.0.0.1", 0))
        channel = Channel(f"127.0.0.1:{taken.getsockname()[1]}", retry=False)
        with served(create_app(channel, channel, deadline=1.0)) as server:
            status, headers, problem = ask(server, "GET", "/api/data")
        channel.close()
    assert (status, problem["code"], headers["Retry-After"]) == (503, "unavailable", "1")
    assert "127.0.0.1" not in problem["detail"]


def test_a_service_that_hangs_is_unavailable_within_the_deadline(products: FakeProducts, orders: FakeOrders) -> None:
    products.before_answer = lambda: asyncio.sleep(30)
    with listening(products, orders) as (product_address, order_address):
        channels = Channel(product_address), Channel(order_address)
        with served(create_app(*channels, deadline=0.3)) as server:
            begun = time.monotonic()
            status, _, problem = ask(server, "GET", "/api/data")
        assert (status, problem["code"]) == (503, "unavailable")
        assert time.monotonic() - begun < 5
        for channel in channels:
            channel.close()


def test_fifty_requests_at_once_are_in_the_services_at_once(gateway: ApiServer, products: FakeProducts) -> None:
    inside: set[object] = set()
    everybody = asyncio.Event()

    async def wait_for_the_others() -> None:
        inside.add(object())
        if len(inside) == 50:
            everybody.set()
        await everybody.wait()

    products.before_answer = wait_for_the_others
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda n: ask(gateway, "POST", ORDERS, BODY, {"Idempotency-Key": f"k-{n}"}), range(50)))
    assert [status for status, _, _ in answers] == [201] * 50
    assert len({order["id"] for _, _, order in answers}) == 50


# --- starting and stopping ------------------------------------------------------------------------------------------


def test_port_0_becomes_a_real_port(gateway: ApiServer) -> None:
    host, _, port = gateway.address.rpartition(":")
    assert (host, int(port) > 0) == ("127.0.0.1", True)


def test_an_ipv6_address_is_served_too() -> None:
    server = ApiServer(hello(), "[::1]:0")
    server.start()
    assert server.address.startswith("[::1]:")
    assert ask(server, "GET", "/")[0] == 200
    server.stop(1)


def test_an_address_that_is_taken_is_named(gateway: ApiServer) -> None:
    with pytest.raises(errors.UsageError, match=f"cannot listen on {gateway.address}: .*in use"):
        ApiServer(hello(), gateway.address).start()


@pytest.mark.parametrize("bind", ["192.0.2.1:0", "no-such-host.invalid:0", "a..b:0", "127.0.0.1:99999"])
def test_an_address_that_is_not_ours_is_named(bind: str) -> None:
    with pytest.raises(errors.UsageError, match=f"cannot listen on {bind}: "):
        ApiServer(hello(), bind).start()


def test_a_request_in_flight_is_finished_before_the_stop(products: FakeProducts, orders: FakeOrders) -> None:
    arrived = threading.Event()

    async def slow() -> None:
        arrived.set()
        await asyncio.sleep(1)

    products.before_answer = slow
    with listening(products, orders) as (product_address, order_address), ThreadPoolExecutor(1) as pool:
        channels = Channel(product_address), Channel(order_address)
        server = ApiServer(create_app(*channels), "127.0.0.1:0")
        server.start()
        answer = pool.submit(ask, server, "POST", ORDERS, BODY)
        assert arrived.wait(10)
        begun = time.monotonic()
        server.stop(10)
        assert time.monotonic() - begun < 5  # as soon as it was answered, not when the grace is over
        assert answer.result(10)[0] == 201
        with pytest.raises(ConnectionRefusedError):
            ask(server, "GET", "/healthz")
        for channel in channels:
            channel.close()


def test_a_request_that_does_not_end_cannot_hold_up_the_stop() -> None:
    app, release, arrived = hello(), threading.Event(), threading.Event()

    @app.get("/stuck")
    def stuck() -> str:
        arrived.set()
        release.wait(30)
        return "{}"

    server = ApiServer(app, "127.0.0.1:0")
    server.start()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask, server, "GET", "/stuck")
        assert arrived.wait(10)
        begun = time.monotonic()
        server.stop(0.5)
        assert time.monotonic() - begun < 3
        release.set()


def test_a_connection_that_only_waits_does_not_hold_up_the_stop() -> None:
    server = ApiServer(hello(), "127.0.0.1:0")
    server.start()
    connection = http.client.HTTPConnection(server.address)
    connection.request("GET", "/")
    connection.getresponse().read()
    begun = time.monotonic()
    server.stop(10)
    assert time.monotonic() - begun < 3
    connection.close()


def test_it_can_stand_beside_another_in_one_process() -> None:
    with served(hello("one")) as one, served(hello("two")) as two:
        assert [ask(each, "GET", "/")[2] for each in (one, two)] == [{"name": "one"}, {"name": "two"}]


# --- streams --------------------------------------------------------------------------------------------------------


def test_open_streams_do_not_starve_requests_and_end_when_their_client_leaves() -> None:
    app, open_streams = hello(), set()

    @app.get("/stream")
    def stream() -> Response:
        def events() -> Iterator[bytes]:
            me = object()
            open_streams.add(me)
            try:
                while True:
                    yield b"data: x\n\n"
                    time.sleep(0.05)
            finally:
                open_streams.discard(me)

        return Response(events(), mimetype="text/event-stream")

    with served(app) as server, ExitStack() as clients:
        host, _, port = server.address.rpartition(":")
        for _ in range(40):
            client = clients.enter_context(socket.create_connection((host, int(port)), timeout=10))
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")  # while it runs: nothing waits for its end
        with ThreadPoolExecutor(20) as pool:
            assert [each[0] for each in pool.map(lambda _: ask(server, "GET", "/"), range(100))] == [200] * 100
        assert len(open_streams) == 40
        clients.close()
        until(lambda: not open_streams)


# --- the wire -------------------------------------------------------------------------------------------------------


def test_a_connection_is_used_again(gateway: ApiServer) -> None:
    connection = http.client.HTTPConnection(gateway.address, timeout=10)
    for _ in range(3):
        connection.request("POST", ORDERS, json.dumps(BODY), JSON)
        assert connection.getresponse().read().startswith(b'{"id":')
        assert connection.sock is not None  # http.client drops it when the server said close
    connection.close()


def test_a_body_in_chunks_is_read(gateway: ApiServer) -> None:
    body = json.dumps(BODY).encode()
    status, headers, _ = ask(gateway, "POST", ORDERS, iter([body[:10], body[10:]]), JSON)
    assert (status, headers["Connection"]) == (201, "close")


def test_a_body_in_chunks_that_is_too_large_is_refused(gateway: ApiServer) -> None:
    status, _, problem = ask(gateway, "POST", ORDERS, iter([b"x" * 65536] * 40), JSON)
    assert (status, problem["code"]) == (413, "payload_too_large"), problem


POST = b"POST /api/v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
NEXT = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /%zz HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nBig: " + b"x" * 100_000 + b"\r\n\r\n",
        POST + b"Content-Length: two\r\n\r\n{}",
        POST + b"Content-Length: -2\r\n\r\n{}" + NEXT,
        POST + b"Content-Length: 5_0\r\n\r\n{}" + NEXT,
        POST + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT,
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + NEXT,
        POST + b"Transfer-Encoding: chunked\r\n\r\nnot a size\r\n" + NEXT,
        POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n" + NEXT,
    ],
    ids=lambda raw: repr(raw[-30:]),
)
def test_what_is_not_a_request_is_refused_once_and_the_connection_closed(gateway: ApiServer, raw: bytes) -> None:
    head, _, body = say(gateway, raw).partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
    assert b"Content-Type: application/problem+json" in head
    problem = json.loads(body)  # one answer and nothing behind it: NEXT was not taken for a request
    assert problem["code"] in ("invalid_argument", "payload_too_large")
    assert ask(gateway, "GET", "/healthz")[0] == 200


def test_what_is_left_of_an_unread_body_is_not_taken_for_a_request(gateway: ApiServer) -> None:
    smuggled = b"%x\r\n%s\r\n0\r\n\r\n" % (len(NEXT), NEXT)
    answer = say(gateway, b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + smuggled + NEXT)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("started", [b"", b"GET /healthz HTTP/1.1\r\nHo", POST + b"Content-Length: 50\r\n\r\n{"])
def test_a_client_that_says_nothing_more_is_dropped(started: bytes) -> None:
    with listening(FakeProducts(), FakeOrders()) as addresses:
        channels = [Channel(each) for each in addresses]
        with served(create_app(*channels), patience=Patience(idle=0.3)) as server:
            begun = time.monotonic()
            answer = say(server, started)
            assert time.monotonic() - begun < 8  # the default is 10
            assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 400")) if started else answer == b""
        for channel in channels:
            channel.close()


FEW_FILES = """
import logging, resource, sys
from flask import Flask
from ordersys.api.server import ApiServer

logging.basicConfig(level=logging.INFO)
app = Flask("few-files")
app.add_url_rule("/", "hello", lambda: {"name": "few"})
server = ApiServer(app, "127.0.0.1:0", 8)
server.start()
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
print(server.address, flush=True)
sys.stdin.read()
"""


def test_when_no_more_files_can_be_opened_the_longest_silent_connection_makes_room() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FEW_FILES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().decode().strip()
        host, _, port = address.rpartition(":")
        with ExitStack() as opened:
            for _ in range(200):
                opened.enter_context(socket.create_connection((host, int(port)), timeout=20))
            connection = http.client.HTTPConnection(address, timeout=20)
            connection.request("GET", "/")
            assert json.loads(connection.getresponse().read()) == {"name": "few"}
            connection.close()
        _, complaints = process.communicate(timeout=20)
    assert b"cannot take a connection now: Too many open files" in complaints
    assert b"Traceback" not in complaints


def test_beyond_the_most_connections_the_longest_silent_one_goes_and_the_others_stay() -> None:
    with served(hello(), threads=2) as server, ExitStack() as opened:
        server._server.most_open = 10
        host, _, port = server.address.rpartition(":")
        silent = [opened.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(10)]
        for _ in range(3):
            assert ask(server, "GET", "/")[0] == 200
        assert silent[0].recv(1) == b""
        silent[9].sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert silent[9].recv(100).startswith(b"HTTP/1.1 200")


def hello(name: str = "hello") -> Flask:
    app = Flask(name)
    app.add_url_rule("/", "hello", lambda: {"name": name})
    return app
