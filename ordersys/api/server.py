"""How the gateway is served: cheroot, on threads of this process (docs/decisions/0001-wsgi-server.md)."""

import errno
import logging
import select
import socket
import threading
import time
from concurrent.futures import Future
from typing import Any

from cheroot import connections, wsgi
from flask import Flask

from ordersys.api.connection import MAX_HEADER_BYTES, Connection, Patience
from ordersys.api.tls import Tls
from ordersys.core import errors

logger = logging.getLogger(__name__)

MAX_IDLE_CONNECTIONS = 1000  # beside those at work; each may hold a head, and over TLS some 30 KiB more
MAX_BODY_BYTES = 512 * 1024  # the app's own limit is lower; this one bounds a chunk, which is read as a whole
_LATE_SECONDS = 0.5
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
GONE = "ordersys.gone"
"""Where the WSGI environment holds the function that says whether the client has left."""


class ApiServer:
    """A WSGI server on threads of its own; `address` is known once it has started.

    A streaming response holds one of the `threads` as long as it lasts.
    """

    def __init__(
        self, app: Flask, bind: str, threads: int = 64, *, tls: Tls | None = None, patience: Patience | None = None
    ) -> None:
        self._bind = bind
        self._host, _, port = bind.rpartition(":")
        self.address = bind
        self._server = Server(
            (self._host.strip("[]"), int(port)),
            app,
            numthreads=threads,
            max=threads,
            server_name="ordersys",
            request_queue_size=1024,
        )
        self._server.gateway = _Gateway
        self._server.tls = tls
        self._server.patience = patience or Patience()
        self._server.timeout = self._server.patience.idle
        self._server.most_open = threads + MAX_IDLE_CONNECTIONS

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


class _Gateway(wsgi.Gateway_10):
    def get_environ(self) -> Any:
        connection = self.req.conn
        scheme = "https" if connection.secure else "http"
        return {**super().get_environ(), GONE: connection.gone, "wsgi.url_scheme": scheme}  # type: ignore[no-untyped-call]


class _Connections(connections.ConnectionManager):
    """Cheroot's idle connections, where a new one is never turned away for one that has been silent for longer."""

    server: "Server"
    _selector: Any

    def make_room(self) -> bool:
        """Close the one that has been silent for longest; False when there is none."""
        idle = [(fd, each) for fd, each in self._selector.connections if each is not self.server]
        for fd, each in sorted(idle, key=lambda pair: pair[1].last_used):
            if not _readable(fd):  # what is readable is about to be looked at
                self._selector.unregister(fd)
                each.close()
                return True
        return False

    def _from_server_socket(self, server_socket: socket.socket) -> Any:
        try:
            return super()._from_server_socket(server_socket)  # type: ignore[misc]
        except OSError as error:
            if error.errno not in _FULL:
                raise
            logger.warning("the API cannot take a connection now: %s", error.strerror)
            if not self.make_room():
                time.sleep(0.1)  # the one that waits is still there: do not spin
            return None


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


class Server(wsgi.Server):
    """Cheroot with our connections, our limits and our log."""

    ConnectionClass = Connection
    keep_alive_conn_limit: Any = None  # the connections are bounded as a whole
    max_request_header_size = MAX_HEADER_BYTES
    max_request_body_size = MAX_BODY_BYTES
    expiration_interval = 0.25  # also how long a stop may go unnoticed, in seconds
    _connections: Any
    tls: Tls | None = None
    patience = Patience()
    most_open = MAX_IDLE_CONNECTIONS

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._open: set[Connection] = set()

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)

    def prepare(self) -> None:
        super().prepare()
        self._connections.close()
        self._connections = _Connections(self)

    def process_conn(self, conn: Connection) -> None:
        """Only a connection that has sent something gets a thread; a new one first waits among the idle ones."""
        if conn.last_used is not None:
            super().process_conn(conn)
        elif len(self._open) <= self.most_open or self._connections.make_room():
            self._connections.put(conn)
        else:
            conn.close()

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
