"""How the gateway is served: cheroot, on threads of this process (docs/decisions/0001-wsgi-server.md)."""

import logging
import math
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from cheroot import makefile, wsgi
from cheroot import server as http
from flask import Flask

from ordersys.api import problems
from ordersys.core import errors

logger = logging.getLogger(__name__)

IDLE_SECONDS = 10  # a client that sends or takes nothing for so long is dropped
REQUEST_SECONDS = 15.0  # how long a request may take to arrive, however steadily it does
MAX_IDLE_CONNECTIONS = 1000
MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 8 * 1024 * 1024  # the app's own limit is lower; this one bounds what a chunk may claim
LINGER_SECONDS = 2.0  # how long what is left of a refused body is taken and dropped
_LATE_SECONDS = 0.5
SOCKET = "ordersys.socket"
"""Where the WSGI environment holds the connection: whoever streams looks there whether the client is still there."""


class ApiServer:
    """A WSGI server on threads of its own; `address` is known once it has started.

    A streaming response holds one of the `threads` as long as it lasts.
    """

    def __init__(self, app: Flask, bind: str, threads: int = 64) -> None:
        self._bind = bind
        self._host, _, port = bind.rpartition(":")
        self.address = bind
        self._server = _Server(
            (self._host.strip("[]"), int(port)),
            app,
            numthreads=threads,
            max=threads,
            server_name="ordersys",
            request_queue_size=1024,
            timeout=IDLE_SECONDS,
        )
        self._server.gateway = _Gateway

    def start(self) -> None:
        """Return when requests are answered; raises UsageError when the address is taken or is not this machine's."""
        listening: Future[None] = Future()
        # What a daemon thread starts is a daemon too: a request that never ends does not hold up the exit.
        threading.Thread(target=self._run, args=(listening,), name="api", daemon=True).start()
        listening.result()
        self.address = f"{self._host}:{self._server.bind_addr[1]}"

    def stop(self, grace: float) -> None:
        """Take no new connections and give the requests in flight `grace` seconds; what runs on is left behind."""
        self._server.shutdown_timeout = grace
        stopping = threading.Thread(target=self._server.stop, name="api-stop", daemon=True)
        stopping.start()
        stopping.join(grace + _LATE_SECONDS)
        if stopping.is_alive():
            logger.warning("the API left requests behind that did not end within %.1f s", grace)

    def _run(self, listening: "Future[None]") -> None:
        try:
            self._server.prepare()
        except (OSError, ValueError, OverflowError) as error:
            listening.set_exception(errors.UsageError(f"cannot listen on {self._bind}: {error}"))
            return
        listening.set_result(None)
        self._server.serve()


class _Request(http.HTTPRequest):
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
        number = int(status[:3])
        body = problems.document(problems.code_of(number), msg, number).encode()
        logger.info("refused what is no request: %s", body.decode())
        head = (
            f"HTTP/1.1 {number} {HTTPStatus(number).phrase}\r\nContent-Type: {problems.CONTENT_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        self.close_connection = self.conn.lingers = True
        with suppress(OSError):  # the client has gone
            self.conn.wfile.write(head.encode() + body)


class _Gateway(wsgi.Gateway_10):
    def get_environ(self) -> Any:
        return {**super().get_environ(), SOCKET: self.req.conn.socket}  # type: ignore[no-untyped-call]


class _Timed(socket.SocketIO):
    """Reads that all end before a deadline: a request that drips in must not keep a thread."""

    deadline = math.inf

    def readinto(self, buffer: Any) -> int | None:
        left = self.deadline - time.monotonic()
        if left < IDLE_SECONDS:
            self._sock.settimeout(max(left, 0.001))  # type: ignore[attr-defined]
        return super().readinto(buffer)


class _Reader(makefile.StreamReader):
    """Cheroot's reader of a connection, on reads that know a deadline."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        self.timed = _Timed(sock, "rb")
        super(makefile.StreamReader, self).__init__(self.timed, size)
        self.bytes_read = 0


def _file(sock: socket.socket, mode: str, size: int) -> Any:
    return _Reader(sock, size) if "r" in mode else makefile.StreamWriter(sock, mode, size)


class _Connection(http.HTTPConnection):
    RequestHandlerClass = _Request
    lingers = False

    def __init__(self, server: "_Server", sock: socket.socket, _makefile: Any = None) -> None:
        super().__init__(server, sock, _file)

    def communicate(self) -> bool:
        """Answer one request; True when another may follow."""
        self.socket.settimeout(IDLE_SECONDS)
        self.rfile.timed.deadline = time.monotonic() + REQUEST_SECONDS
        return bool(super().communicate())  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Closing on unread bytes resets the connection, and the client may never see why (RFC 9112 section 9.6)."""
        if self.lingers:
            deadline = time.monotonic() + LINGER_SECONDS
            with suppress(OSError):  # the client has gone, or sends nothing more
                self.socket.shutdown(socket.SHUT_WR)
                self.socket.settimeout(LINGER_SECONDS)
                while time.monotonic() < deadline and self.socket.recv(64 * 1024):
                    pass
        super().close()


class _Server(wsgi.Server):
    """Cheroot with our limits and our log."""

    ConnectionClass = _Connection
    keep_alive_conn_limit = MAX_IDLE_CONNECTIONS
    max_request_header_size = MAX_HEADER_BYTES
    max_request_body_size = MAX_BODY_BYTES
    expiration_interval = 0.25  # also how long a stop may go unnoticed, in seconds

    def process_conn(self, conn: _Connection) -> None:
        """Only a connection that has sent something gets a thread; a new one first waits among the idle ones."""
        idle = self._connections  # type: ignore[attr-defined]
        if conn.last_used is None and idle.can_add_keepalive_connection:
            idle.put(conn)
        else:
            super().process_conn(conn)

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        logger.log(level, msg, exc_info=traceback)

    @staticmethod
    def bind_socket(socket_: socket.socket, bind_addr: tuple[str, int]) -> socket.socket:
        """Cheroot forgets the socket when its address is taken."""
        try:
            bound: socket.socket = wsgi.Server.bind_socket(socket_, bind_addr)  # type: ignore[no-untyped-call]
        except BaseException:
            socket_.close()
            raise
        return bound
