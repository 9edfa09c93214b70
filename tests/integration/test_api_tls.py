"""The API over TLS: who is let in, who is told why not, and that nobody waits for a client that says nothing."""

import http.client
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from certificates import EXPIRED, Authority
from flask import Flask, Response, request

from ordersys.api import http as api_http
from ordersys.api.connection import Patience
from ordersys.api.server import GONE, ApiServer
from ordersys.api.tls import Tls
from ordersys.core import errors
from ordersys.core.tls import Files

SETTINGS = ("api_tls_client_ca_file", "api_tls_cert_file", "api_tls_key_file")
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""How a TLS handshake begins (RFC 8446 section 4.1.2)."""
REFUSED = (ssl.SSLError, ConnectionError)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.at(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.at(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def pair(authority: Authority) -> Files:
    return authority.issue("server")


def tls_of(pair: Files, client_ca: str = "") -> Tls:
    return Tls(Files(client_ca, pair.cert, pair.key, SETTINGS))


def trusting(authority: Authority, own: Files | None = None) -> ssl.SSLContext:
    """What a client needs that trusts this authority, and shows a certificate of its own."""
    context = ssl.create_default_context(cafile=authority.ca)
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return context


class App:
    """Says hello, takes what it is given, and streams until the client has left."""

    def __init__(self) -> None:
        self.flask = Flask("over-tls")
        self.flask.config["MAX_CONTENT_LENGTH"] = 1_000_000
        api_http.register(self.flask, ())
        self.streams = 0
        self.flask.add_url_rule("/", "hello", lambda: {"secure": request.is_secure, "body": len(request.get_data())})
        self.flask.add_url_rule("/", "take", lambda: {"body": len(request.get_data())}, methods=["POST"])
        self.flask.add_url_rule("/big", "big", lambda: Response(b"x" * 5_000_000))
        self.flask.add_url_rule("/stream", "stream", lambda: Response(self._stream(request.environ[GONE])))

    def _stream(self, gone: Callable[[], bool]) -> Iterator[bytes]:
        self.streams += 1
        try:
            yield b"data: subscribed\n\n"
            while not gone():
                time.sleep(0.01)
        finally:
            self.streams -= 1


@contextmanager
def served(
    tls: Tls | None, app: App | None = None, *, threads: int = 16, patience: Patience | None = None
) -> Iterator[ApiServer]:
    server = ApiServer((app or App()).flask, "127.0.0.1:0", threads, tls=tls, patience=patience)
    server.start()
    try:
        yield server
    finally:
        server.stop(1)


def dialled(server: ApiServer) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def connection(server: ApiServer, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection(server.address, timeout=20, context=context)


def ask(server: ApiServer, context: ssl.SSLContext, path: str = "/", body: bytes | None = None) -> Any:
    with closing(connection(server, context)) as client:
        client.request("POST" if body is not None else "GET", path, body)
        return json.loads(client.getresponse().read())


def shown(server: ApiServer, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection is shown."""
    with context.wrap_socket(dialled(server), server_hostname="localhost") as client:
        return int(client.getpeercert()["serialNumber"], 16)  # type: ignore[index, arg-type]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


# --- who is let in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_requests_are_answered_and_connections_used_again(
    authority: Authority, pair: Files, version: ssl.TLSVersion
) -> None:
    context = trusting(authority)
    context.minimum_version = context.maximum_version = version
    with served(tls_of(pair)) as server, closing(connection(server, context)) as client:
        for number in range(3):
            client.request("POST", "/", b"x" * 200_000 * number)
            answer = client.getresponse()
            assert json.loads(answer.read()) == {"body": 200_000 * number}
            assert client.sock is not None  # http.client drops it when the server said close
        client.request("GET", "/big")
        assert len(client.getresponse().read()) == 5_000_000
        assert client.sock.version() == version.name.replace("_", ".", 1).replace("v1_", "v1.")  # type: ignore[attr-defined]


def test_tls_before_1_2_is_refused(authority: Authority, pair: Files, caplog: pytest.LogCaptureFixture) -> None:
    context = trusting(authority)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with served(tls_of(pair)) as server, pytest.raises(ssl.SSLError):
        ask(server, context)
    assert "TLS handshake with 127.0.0.1:" in caplog.text
    assert "failed: it speaks no TLS 1.2 or later" in caplog.text


def test_a_client_with_the_right_certificate_is_let_in(authority: Authority, pair: Files) -> None:
    own = authority.issue("client")
    with served(tls_of(pair, authority.ca)) as server:
        assert ask(server, trusting(authority, own)) == {"secure": True, "body": 0}


@pytest.mark.parametrize("wrong", ["missing", "of another CA", "expired"])
def test_a_client_without_the_right_certificate_is_refused_with_the_reason_in_the_log(
    authority: Authority, stranger: Authority, pair: Files, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    own, reason = {
        "missing": (None, "it shows no certificate"),
        "of another CA": (stranger.issue("client"), "is refused: unable to get local issuer certificate"),
        "expired": (authority.issue("late", EXPIRED), "is refused: certificate has expired"),
    }[wrong]
    with served(tls_of(pair, authority.ca)) as server:
        with pytest.raises(REFUSED):  # with TLS 1.3 a client hears of it when it reads
            ask(server, trusting(authority, own))
        until(lambda: reason in caplog.text)
        assert ask(server, trusting(authority, authority.issue("right"))) == {"secure": True, "body": 0}
    lines = [each for each in caplog.records if "handshake" in each.getMessage()]
    assert [each.levelno for each in lines] == [logging.WARNING]
    assert not any(each.exc_info for each in caplog.records)


# --- who speaks something else --------------------------------------------------------------------------------------


def test_plain_http_is_told_that_this_port_speaks_https(pair: Files, caplog: pytest.LogCaptureFixture) -> None:
    with served(tls_of(pair)) as server:
        with closing(http.client.HTTPConnection(server.address, timeout=20)) as client:
            client.request("GET", "/")
            answer = client.getresponse()
            assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json")
            assert "HTTPS" in json.loads(answer.read())["detail"]
        until(lambda: "failed: it speaks HTTP without TLS" in caplog.text)
    assert not any(each.exc_info for each in caplog.records)


@pytest.mark.parametrize("said", [b"", b"\x16", HELLO + bytes(600), b"\x00" * 5000, b"noise\r\n\r\n"], ids=repr)
def test_noise_and_silence_end_without_a_traceback_and_hurt_nobody(
    authority: Authority, pair: Files, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with served(tls_of(pair), patience=Patience(idle=0.5)) as server, dialled(server) as client:
        client.sendall(said)
        try:
            while client.recv(1000):
                pass
        except ConnectionError:
            pass  # it has hung up on us
        assert ask(server, trusting(authority)) == {"secure": True, "body": 0}
    assert not any(each.exc_info for each in caplog.records)


def test_noise_after_the_handshake_ends_without_a_traceback(
    authority: Authority, pair: Files, caplog: pytest.LogCaptureFixture
) -> None:
    with served(tls_of(pair)) as server:
        with trusting(authority).wrap_socket(dialled(server), server_hostname="localhost") as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1")
            socket.socket.sendall(client, b"noise that is no record")
            with pytest.raises(REFUSED):
                client.recv(1000)
        assert ask(server, trusting(authority)) == {"secure": True, "body": 0}
    assert not any(each.exc_info for each in caplog.records)


# --- nobody waits for a client that says nothing ----------------------------------------------------------------------


@pytest.mark.parametrize("over", ["TLS", "TCP"])
def test_many_silent_and_dripping_clients_hold_no_thread(authority: Authority, pair: Files, over: str) -> None:
    app, tls = App(), tls_of(pair) if over == "TLS" else None
    drip = HELLO if tls else b"GET / HTTP/1.1\r\nX-Y: "
    with served(tls, app, threads=2) as server, ExitStack() as opened:
        slow = [opened.enter_context(dialled(server)) for _ in range(50)]
        stopping = threading.Event()

        def drips() -> None:
            while not stopping.wait(0.02):
                for each in slow:
                    with suppress(ConnectionError):  # it was given up: on a slow machine this goes on for long enough
                        each.sendall(drip[:1])

        for each in slow[:25]:
            each.sendall(drip)
        dripping = threading.Thread(target=drips)
        dripping.start()
        try:
            for _ in range(5):
                began = time.monotonic()
                if tls:
                    assert ask(server, trusting(authority)) == {"secure": True, "body": 0}
                else:
                    with closing(http.client.HTTPConnection(server.address, timeout=20)) as client:
                        client.request("GET", "/")
                        assert client.getresponse().status == 200
                assert time.monotonic() - began < 5  # one of them would hold both threads for longer
        finally:
            stopping.set()
            dripping.join()


def test_a_handshake_that_does_not_end_is_given_up(pair: Files, caplog: pytest.LogCaptureFixture) -> None:
    with served(tls_of(pair), patience=Patience(request=0.5)) as server, dialled(server) as client:
        began = time.monotonic()
        client.sendall(HELLO)
        with suppress(*REFUSED):
            while time.monotonic() - began < 10:  # a byte now and then keeps it from being silent
                client.sendall(b"\0")
                time.sleep(0.05)
        assert time.monotonic() - began < 8
        until(lambda: "failed: it did not end in time" in caplog.text)


def test_a_request_that_drips_in_over_tls_is_timed_out(authority: Authority, pair: Files) -> None:
    with (
        served(tls_of(pair), patience=Patience(request=0.5)) as server,
        trusting(authority).wrap_socket(dialled(server), server_hostname="localhost") as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(0.6)
        client.sendall(b"X: y\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 408")


def test_an_answer_that_nobody_takes_frees_its_thread(authority: Authority, pair: Files) -> None:
    patience = Patience(idle=0.3, slowest=100_000_000)
    with served(tls_of(pair), threads=1, patience=patience) as server, ExitStack() as opened:
        client = opened.enter_context(trusting(authority).wrap_socket(dialled(server), server_hostname="localhost"))
        for _ in range(20):
            client.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(20).startswith(b"HTTP/1.1 200")
        assert ask(server, trusting(authority)) == {"secure": True, "body": 0}


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", ["with a word", "without a word"])
def test_a_stream_over_tls_notices_that_its_client_has_left(authority: Authority, pair: Files, leaves: str) -> None:
    app = App()
    with served(tls_of(pair), app) as server:
        client = trusting(authority).wrap_socket(dialled(server), server_hostname="localhost")
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        until(lambda: app.streams == 1)
        if leaves == "with a word":
            with suppress(ssl.SSLError):  # the end of the stream may come after our own close_notify
                client.unwrap()
        client.close()
        until(lambda: app.streams == 0)


def test_a_stream_ends_with_a_word_so_that_nothing_can_be_cut_off_unseen(authority: Authority, pair: Files) -> None:
    with (
        served(tls_of(pair)) as server,
        trusting(authority).wrap_socket(
            dialled(server), server_hostname="localhost", suppress_ragged_eofs=False
        ) as client,
    ):
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while client.recv(1000):  # an end without a close_notify would raise SSLEOFError
            pass


# --- certificates that change ---------------------------------------------------------------------------------------


def test_a_new_certificate_is_shown_to_new_connections_and_the_old_ones_go_on(tmp_path: Path) -> None:
    authority, app = Authority.at(tmp_path), App()
    pair, trusted = authority.issue("server"), trusting(authority)
    with served(tls_of(pair), app) as server, closing(connection(server, trusted)) as kept:
        kept.request("GET", "/")
        kept.getresponse().read()
        stream = trusted.wrap_socket(dialled(server), server_hostname="localhost")
        stream.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: app.streams == 1)
        before = shown(server, trusted)
        authority.issue("server")
        assert shown(server, trusted) != before
        kept.request("GET", "/")
        assert kept.getresponse().status == 200
        assert app.streams == 1
        stream.close()


@pytest.mark.parametrize("broken", ["no certificate", "another key", "expired", "gone"])
def test_a_broken_new_certificate_leaves_the_old_in_use_and_is_said_once(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority.at(tmp_path)
    pair, trusted = authority.issue("server"), trusting(authority)
    with served(tls_of(pair)) as server:
        before = shown(server, trusted)
        match broken:
            case "no certificate":
                Path(pair.cert).write_text("nothing")
            case "another key":
                Path(pair.key).write_bytes(Path(authority.issue("other").key).read_bytes())
            case "expired":
                authority.issue("server", EXPIRED)
            case _:
                Path(pair.cert).unlink()
        for _ in range(3):
            assert shown(server, trusted) == before
        warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "ORDERSYS_API_TLS_" in warnings[0]
        authority.issue("server")
        assert shown(server, trusted) != before


@pytest.mark.parametrize(
    ("ca", "cert", "key", "complaint"),
    [
        ("", "server.crt", "", "ORDERSYS_API_TLS_CERT_FILE is set and ORDERSYS_API_TLS_KEY_FILE is not"),
        ("", "", "server.key", "ORDERSYS_API_TLS_KEY_FILE is set and ORDERSYS_API_TLS_CERT_FILE is not"),
        ("ca.crt", "", "", "ORDERSYS_API_TLS_CLIENT_CA_FILE is set and ORDERSYS_API_TLS_CERT_FILE is not"),
        ("", "nothing.crt", "server.key", "ORDERSYS_API_TLS_CERT_FILE: cannot read"),
        ("", "server.key", "server.key", "ORDERSYS_API_TLS_CERT_FILE: .* holds no certificate"),
        ("", "server.crt", "server.crt", "ORDERSYS_API_TLS_KEY_FILE: .* holds no private key"),
        ("", "server.crt", "other.key", "ORDERSYS_API_TLS_KEY_FILE: .* is not the key of the certificate"),
        ("server.key", "server.crt", "server.key", "ORDERSYS_API_TLS_CLIENT_CA_FILE: .* holds no certificate"),
    ],
)
def test_files_that_are_missing_or_wrong_are_named_by_their_setting(
    tmp_path: Path, ca: str, cert: str, key: str, complaint: str
) -> None:
    authority = Authority.at(tmp_path)
    authority.issue("server")
    authority.issue("other")
    files = Files(*[str(tmp_path / each) if each else "" for each in (ca, cert, key)], SETTINGS)
    with pytest.raises(errors.UsageError, match=complaint):
        Tls(files)


# --- what the app makes of it ---------------------------------------------------------------------------------------


def test_strict_transport_security_is_said_over_tls_and_not_for_localhost(authority: Authority, pair: Files) -> None:
    def said(connection: http.client.HTTPConnection, host: str) -> str | None:
        with closing(connection):
            connection.request("GET", "/", headers={"Host": host})
            return connection.getresponse().headers["Strict-Transport-Security"]

    with served(tls_of(pair)) as secure, served(None) as plain:
        assert said(connection(secure, trusting(authority)), "shop.example") == "max-age=31536000"
        assert said(connection(secure, trusting(authority)), "localhost:8080") is None
        assert said(http.client.HTTPConnection(plain.address), "shop.example") is None
