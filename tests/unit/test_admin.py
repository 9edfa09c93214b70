"""The admin port: what it answers, whom it refuses, and that nobody can hold it up."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ordersys.core import errors
from ordersys.core.watch import admin
from ordersys.core.watch.admin import AdminServer
from ordersys.core.watch.metrics import Registry
from ordersys.core.watch.readiness import State


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def server(registry: Registry) -> Iterator[AdminServer]:
    running = AdminServer("127.0.0.1:0", registry)
    running.start()
    yield running
    running.stop()


def ask(
    server: AdminServer, path: str, method: str = "GET", body: bytes | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(server.address, timeout=20)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def raw(server: AdminServer, request: bytes) -> bytes:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


# --- answers --------------------------------------------------------------------------------------------------------


def test_metrics_are_shown_in_the_format_that_is_asked_for(server: AdminServer, registry: Registry) -> None:
    registry.counter("ordersys_things", "Things").inc(3)
    status, headers, body = ask(server, "/metrics")
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "text/plain")
    assert b"ordersys_things_total 3.0" in body
    host, _, port = server.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.request("GET", "/metrics?x=1", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert connection.getresponse().headers["Content-Type"].startswith("application/openmetrics-text")
    connection.close()


def test_it_is_alive_before_it_is_ready(server: AdminServer) -> None:
    assert ask(server, "/healthz")[::2] == (200, b'{"status":"ok"}\n')
    assert ask(server, "/readyz")[::2] == (503, b'{"status":"not_ready","checks":{}}\n')


@pytest.mark.parametrize(
    ("state", "status", "word"),
    [
        (State({"database": True, "broker": True}, ()), 200, "ready"),
        (State({"database": True, "broker": False}, ()), 200, "degraded"),
        (State({"database": False, "broker": True}, ("database",)), 503, "not_ready"),
    ],
)
def test_readyz_says_what_was_found(server: AdminServer, state: State, status: int, word: str) -> None:
    server.state = lambda: state
    answered, headers, body = ask(server, "/readyz")
    assert (answered, headers["Content-Type"], headers["Cache-Control"]) == (status, "application/json", "no-store")
    assert json.loads(body) == {**state.document(), "status": word}


def test_head_is_get_without_the_body(server: AdminServer) -> None:
    status, headers, body = ask(server, "/healthz", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "16", b"")


# --- refusals -------------------------------------------------------------------------------------------------------


def test_only_get_and_head_and_a_body_does_not_hide_the_answer(server: AdminServer) -> None:
    status, headers, _ = ask(server, "/metrics", "POST", b"x" * 1_000_000)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert ask(server, "/metrics", "DELETE")[0] == 405


def test_there_is_nothing_else(server: AdminServer) -> None:
    assert ask(server, "/")[::2] == (404, b"there are /metrics, /healthz and /readyz\n")


@pytest.mark.parametrize(
    "request_", [b"nonsense\r\n\r\n", b"GET /metrics\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"GET /" + b"x" * 100_000]
)
def test_what_is_no_request_is_refused(server: AdminServer, request_: bytes) -> None:
    assert raw(server, request_).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert ask(server, "/healthz")[0] == 200


def test_a_fault_of_ours_shows_nothing_of_the_inside(server: AdminServer, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> State:
        raise ZeroDivisionError("secret")

    server.state = broken
    status, _, body = ask(server, "/readyz")
    assert (status, body) == (500, b"internal error; the log says why\n")
    assert "secret" in caplog.text


def test_a_metric_that_cannot_be_read_does_not_end_the_server(server: AdminServer, registry: Registry) -> None:
    registry.gauge("ordersys_broken", "Broken").set_function(lambda: 1 / 0)
    assert ask(server, "/metrics")[0] == 500
    assert ask(server, "/healthz")[0] == 200


# --- who holds it up ------------------------------------------------------------------------------------------------


def test_clients_that_say_nothing_hold_nobody_up(server: AdminServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "SECONDS", 0.5)
    host, _, port = server.address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=20) for _ in range(admin.MAX_CONNECTIONS - 1)]
    try:
        assert ask(server, "/healthz")[0] == 200
        for each in silent:
            each.sendall(b"GET /healthz HTTP/1.1\r\n")  # and never the end of it
        assert [each.recv(1) for each in silent] == [b""] * len(silent)
    finally:
        for each in silent:
            each.close()


def test_more_connections_than_it_takes_are_closed_and_the_others_are_answered(
    server: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "SECONDS", 20.0)
    host, _, port = server.address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=20) for _ in range(admin.MAX_CONNECTIONS)]
    until_open(server, admin.MAX_CONNECTIONS)
    assert raw(server, b"") == b""
    for each in silent:
        each.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        each.shutdown(socket.SHUT_WR)
    for each in silent:
        assert each.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
        each.close()
    until_open(server, 0)
    assert ask(server, "/healthz")[0] == 200


def test_stopping_waits_for_nobody(registry: Registry) -> None:
    server = AdminServer("127.0.0.1:0", registry)
    server.start()
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as silent:
        until_open(server, 1)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < admin.SECONDS - 1
        assert silent.recv(1) == b""
    assert not [thread for thread in threading.enumerate() if thread is server._thread]


def until_open(server: AdminServer, count: int) -> None:
    deadline = time.monotonic() + 20
    while server._open != count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- where it listens -----------------------------------------------------------------------------------------------


def test_a_taken_port_is_refused_or_any_other_is_taken(server: AdminServer, registry: Registry) -> None:
    with pytest.raises(errors.UsageError, match=f"the admin port cannot listen on {server.address}: .*in use"):
        AdminServer(server.address, registry).start()
    other = AdminServer(server.address, registry, elsewhere=True)
    other.start()
    try:
        assert other.address != server.address
        assert ask(other, "/healthz")[0] == 200
    finally:
        other.stop()


@pytest.mark.parametrize("bind", ["192.0.2.1:0", "nonsense"])
def test_an_address_that_is_not_ours_is_refused(registry: Registry, bind: str) -> None:
    with pytest.raises(errors.UsageError, match="the admin port cannot listen on "):
        AdminServer(bind, registry, elsewhere=True).start()


def test_it_listens_on_ipv6_too(registry: Registry) -> None:
    server = AdminServer("[::1]:0", registry)
    try:
        server.start()
    except errors.UsageError as error:
        pytest.skip(f"no IPv6 here: {error}")
    try:
        assert server.address.startswith("[::1]:")
        assert ask(server, "/healthz")[0] == 200
    finally:
        server.stop()
