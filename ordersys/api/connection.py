"""One connection of the API: it takes a thread when a whole request head has come in, and not a moment earlier.

Until then it waits among the idle ones, in the middle of a TLS handshake or of a head too: whoever says nothing, or
drips, costs a descriptor and some memory, both bounded, and nobody else's time.
"""

import errno
import io
import logging
import math
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from cheroot import makefile
from cheroot import server as http

from ordersys.api import problems
from ordersys.api.tls import Tls, reason

if TYPE_CHECKING:
    from ordersys.api.server import Server

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 32 * 1024  # of all headers: several tokens fit; each idle connection may hold so much
_RECORD = 16 * 1024  # what TLS encrypts at once (RFC 8446 section 5.1)
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a client may take; in seconds where nothing else is said."""

    idle: float = 10.0  # a client that sends or takes nothing for so long is dropped
    request: float = 15.0  # a handshake, and then a request, may take so long to arrive, however steadily it does
    slowest: int = 16 * 1024  # bytes per second: who takes an answer slower than this holds a thread for nothing
    linger: float = 2.0  # how long what is left of a refused body is taken and dropped


class Request(http.HTTPRequest):
    conn: "Connection"

    def read_request_headers(self) -> bool:
        """Refuse a body whose length is in doubt (RFC 9112 section 6.3)."""
        if not super().read_request_headers():  # type: ignore[no-untyped-call]
            return False
        length = self.inheaders.get(b"Content-Length", b"0")
        if not length.isdigit() or (self.chunked_read and b"Content-Length" in self.inheaders):
            self.simple_response("400 Bad Request", "Content-Length must be one number, and stand without chunks")
            return False
        return True

    def send_headers(self) -> None:
        """Answer the last request of this connection when its body was not read, or came in chunks.

        Cheroot would read what is left into memory, or take it for the next request.
        """
        if getattr(self.rfile, "remaining", 1):
            self.close_connection = self.conn.lingers = True
        super().send_headers()

    def simple_response(self, status: str, msg: str = "") -> None:
        """Cheroot's own refusals in the form of all others; the connection is closed after each."""
        self.close_connection = self.conn.lingers = True
        self.conn.refuse(int(status[:3]), msg)


class _Reading(socket.SocketIO):
    """Reads that all end before a deadline: a request that drips in must not keep a thread."""

    deadline = math.inf

    def readinto(self, buffer: Any) -> int | None:
        left = self.deadline - time.monotonic()
        timeout = self._sock.gettimeout()  # type: ignore[attr-defined]
        if timeout is None or left < timeout:
            self._sock.settimeout(max(left, 0.001))  # type: ignore[attr-defined]
        with _plain_errors():
            return super().readinto(buffer)


class _Reader(makefile.StreamReader):
    """Cheroot's reader of a connection, on reads that know a deadline, and able to take only what is there."""

    _read_buf: bytes
    _read_pos: int

    def __init__(self, sock: socket.socket, size: int) -> None:
        self.reading = _Reading(sock, "rb")
        self._sock = sock
        super(makefile.StreamReader, self).__init__(self.reading, size)
        self.bytes_read = 0

    def fill(self) -> bool:
        """Take what has come, without waiting and no more than a head may have; False when no more will come."""
        before = self._sock.gettimeout()
        self._sock.settimeout(0)
        try:
            while len(head := self._head()) <= MAX_HEADER_BYTES:
                more = self._sock.recv(_RECORD)
                if not more:
                    return False
                self._read_buf, self._read_pos = head + more, 0
        except _NOT_YET:
            return True
        except OSError:
            return False
        finally:
            self._sock.settimeout(before)
        return True

    def has_head(self) -> bool:
        """Whether there is a whole head, or one that is to be refused as it is."""
        head = self._head()
        first = head.find(b"\n")
        broken = first >= 0 and head[first - 1 : first] != b"\r"
        return broken or b"\r\n\r\n" in head or len(head) > MAX_HEADER_BYTES

    def has_data(self) -> bool:
        """Whether there is something to be read that the selector does not see: here, or decrypted."""
        return self.has_head() or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0)

    def has_any(self) -> bool:
        return bool(self._head())

    def _head(self) -> bytes:
        return self._read_buf[self._read_pos :]


class _Writer:
    """Writes whole pieces; raises TimeoutError for a client that takes too little of one."""

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        self._sock = sock
        self._patience = patience
        self.bytes_written = 0

    def write(self, piece: bytes) -> int:
        idle = self._patience.idle
        deadline = time.monotonic() + idle + len(piece) / self._patience.slowest
        rest = memoryview(piece)
        while rest:
            self._sock.settimeout(max(0.001, min(idle, deadline - time.monotonic())))
            with _plain_errors():
                rest = rest[self._sock.send(rest[: 4 * _RECORD]) :]
        self.bytes_written += len(piece)
        return len(piece)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What TLS raises as cheroot knows it from a plain socket: it would log the rest as a fault of ours."""
    try:
        yield
    except TimeoutError as error:
        raise TimeoutError("timed out") from error
    except ssl.SSLError as error:
        raise ConnectionResetError(errno.ECONNRESET, str(error)) from error


class Connection(http.HTTPConnection):
    RequestHandlerClass = Request
    server: "Server"
    rfile: _Reader
    wfile: _Writer

    def __init__(self, server: "Server", sock: socket.socket, _makefile: Any = None) -> None:
        super().__init__(server, sock, self._file)
        self.secure = False  # the TLS handshake is over
        self.lingers = False
        self._late: float | None = None  # when what is arriving must have arrived; None = nothing is arriving
        server.opened(self)

    def communicate(self) -> bool:
        """Take what has come, and answer a request whose head is whole; True when more may follow."""
        if self._late is None:
            self._late = time.monotonic() + self.server.patience.request
        self.socket.settimeout(0)
        if self.server.tls is not None and not self.secure:
            try:
                if not self._shake_hands(self.server.tls):
                    return time.monotonic() < self._late
            except OSError as error:
                self._late = None
                self._part(error)
                return False
        more = self.rfile.fill()
        if not self.rfile.has_head():
            if not self.rfile.has_any():
                self._late = None
            return more and (self._late is None or time.monotonic() < self._late)
        self.socket.settimeout(self.server.patience.idle)
        self.rfile.reading.deadline, self._late = self._late, None
        return bool(super().communicate())  # type: ignore[no-untyped-call]

    def gone(self) -> bool:
        """Whether the client has closed its side: whoever streams would not notice otherwise."""
        return not self.rfile.fill()

    def refuse(self, number: int, detail: str) -> None:
        """Answer what is no request with a problem; the connection is closed after it."""
        with suppress(OSError):  # the client has gone
            self.wfile.write(_refusal(number, detail))

    def close(self) -> None:
        """Closing on unread bytes resets the connection, and the client may never see why (RFC 9112 section 9.6)."""
        if self._late is not None:
            self._give_up()
        with suppress(OSError, ValueError):  # gone, or not that far
            if self.secure:
                self.socket.settimeout(0)
                self.socket.unwrap()  # it says that nothing is missing (RFC 8446 section 6.1)
        if self.lingers:
            deadline = time.monotonic() + self.server.patience.linger
            with suppress(OSError):  # the client has gone, or sends nothing more
                self.socket.shutdown(socket.SHUT_WR)
                self.socket.settimeout(self.server.patience.linger)
                while time.monotonic() < deadline and _raw(self.socket):
                    pass
        with suppress(OSError):
            super().close()
        self.server.closed(self)

    def _shake_hands(self, tls: Tls) -> bool:
        """Go on with the handshake, without waiting; True when it is over, OSError when it has failed."""
        if not isinstance(self.socket, ssl.SSLSocket):
            if not self.socket.recv(1, socket.MSG_PEEK):
                raise ssl.SSLZeroReturnError("it said nothing")
            self.socket = tls.wrap(self.socket)
        try:
            self.socket.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        self.rfile, self.wfile = self._file(self.socket, "rb"), self._file(self.socket, "wb")
        self.secure = True
        self._late = time.monotonic() + self.server.patience.request
        return True

    def _part(self, error: OSError) -> None:
        """Say why the handshake failed: in the log, and to who did not know that TLS is spoken here."""
        quiet = isinstance(error, ssl.SSLZeroReturnError | ssl.SSLEOFError | ConnectionError)  # probes do that
        logger.log(
            logging.DEBUG if quiet else logging.WARNING, "TLS handshake with %s failed: %s", self.peer, reason(error)
        )
        with suppress(OSError):
            if getattr(error, "reason", "") == "HTTP_REQUEST":
                socket.socket.send(self.socket, _refusal(400, "this port speaks HTTPS: say https://"))
            self.socket.shutdown(socket.SHUT_WR)
            _raw(self.socket)

    def _give_up(self) -> None:
        """What has begun to arrive came to no end in time."""
        if self.secure or self.server.tls is None:
            with suppress(OSError):
                self.socket.settimeout(0)  # nobody waits for this client any more
                self.socket.send(_refusal(408, "the request did not arrive in time"))
        else:
            logger.warning("TLS handshake with %s failed: it did not end in time", self.peer)

    def _file(self, sock: socket.socket, mode: str, size: int = io.DEFAULT_BUFFER_SIZE) -> Any:
        return _Reader(sock, size) if "r" in mode else _Writer(sock, self.server.patience)

    @property
    def peer(self) -> str:
        return f"{self.remote_addr}:{self.remote_port}"


def _raw(sock: socket.socket) -> bytes:
    """What came last, as it came."""
    return socket.socket.recv(sock, 64 * 1024)


def _refusal(number: int, detail: str) -> bytes:
    code = problems.code_of(number)
    body = problems.document(code, detail, number).encode()
    fields = {"http.response.status_code": number, "event.outcome": "failure", "error.code": code}
    logger.info("refused what is no request: %d, %s", number, detail, extra={"ecs": fields})
    head = (
        f"HTTP/1.1 {number} {HTTPStatus(number).phrase}\r\nContent-Type: {problems.CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
