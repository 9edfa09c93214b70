"""The admin port of a role: /metrics, /healthz (alive) and /readyz, over HTTP, for who watches it.

On a thread and an event loop of its own, so that a role that is busy, or hangs, is still seen.
"""

import asyncio
import errno
import json
import logging
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus

from ordersys.core import errors
from ordersys.core.watch.metrics import Registry
from ordersys.core.watch.readiness import NOT_YET, State

logger = logging.getLogger(__name__)

SECONDS = 5.0
"""How long one request may take, from its connection to the last byte of the answer."""
MAX_CONNECTIONS = 32
MAX_HEAD_BYTES = 16 * 1024

_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"
Answer = tuple[HTTPStatus, str, bytes]


class AdminServer:
    """Answers GET and HEAD, one request per connection; `address` is known once it has started.

    With `elsewhere` any free port will do where `bind` is taken: several copies of a role may run on one machine.
    """

    def __init__(self, bind: str, registry: Registry, *, elsewhere: bool = False) -> None:
        self._bind = bind
        self._registry = registry
        self._elsewhere = elsewhere
        self._open = 0
        self.state: Callable[[], State] = lambda: NOT_YET
        self.address = bind

    def start(self) -> None:
        """Return when requests are answered; raises UsageError when the address is taken or is not this machine's."""
        self._listener = self._listen()
        host, port = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="admin", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close every connection."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _listen(self) -> socket.socket:
        host, _, number = self._bind.rpartition(":")
        try:
            port = int(number)
            family, _, _, _, address = socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            try:
                return socket.create_server((address[0], port), family=family)
            except OSError as error:
                if not (self._elsewhere and error.errno == errno.EADDRINUSE):
                    raise
                return socket.create_server((address[0], 0), family=family)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", "") or error
            raise errors.UsageError(f"the admin port cannot listen on {self._bind}: {reason}") from error

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, sock=self._listener, limit=MAX_HEAD_BYTES)
        await self._stopping.wait()
        server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(SECONDS):
                    writer.write(self._response(await _head(reader)))
                    writer.write_eof()
                    # Closing on unread bytes resets the connection, and the client may not see why.
                    while await reader.read(MAX_HEAD_BYTES):
                        pass
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            logger.debug("an admin request came to nothing: %r", error)
        finally:
            self._open -= 1
            writer.close()

    def _response(self, head: bytes) -> bytes:
        method = head.partition(b" ")[0]
        try:
            status, content_type, body = self._answer_to(head)
        except Exception:
            logger.exception("an admin request failed")
            status, content_type, body = HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"internal error; the log says why\n"
        fields = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n"
        )
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            fields += "Allow: GET, HEAD\r\n"
        return f"{fields}\r\n".encode() + (b"" if method == b"HEAD" else body)

    def _answer_to(self, head: bytes) -> Answer:
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return HTTPStatus.BAD_REQUEST, _TEXT, b"expected an HTTP/1.1 request\n"
        if words[0] not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"only GET and HEAD\n"
        match words[1].partition("?")[0]:
            case "/metrics":
                accept = next((line[7:] for line in lines if line.lower().startswith("accept:")), "")
                body, content_type = self._registry.exposition(accept.strip())
                return HTTPStatus.OK, content_type, body
            case "/healthz":
                return HTTPStatus.OK, _JSON, b'{"status":"ok"}\n'
            case "/readyz":
                state = self.state()
                body = json.dumps(state.document(), separators=(",", ":")).encode() + b"\n"
                return HTTPStatus.OK if state.ready else HTTPStatus.SERVICE_UNAVAILABLE, _JSON, body
        return HTTPStatus.NOT_FOUND, _TEXT, b"there are /metrics, /healthz and /readyz\n"


async def _head(reader: asyncio.StreamReader) -> bytes:
    """What stands before the body; what is too long is no request."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return b""
