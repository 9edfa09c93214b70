"""What gRPC makes of the certificate files: a server's credentials, and a channel whose new connections use new files.

TLS 1.2 and 1.3 only, on both sides: gRPC's own least version.
"""

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import grpc

from ordersys.core import errors
from ordersys.core.tls import Content, Kept

_LOOK_SECONDS = 1.0
"""How long a client's changed files may stay unnoticed; a server looks at every handshake."""


def of_server(kept: Kept, *, client_cert: bool) -> grpc.ServerCredentials:
    """Raises UsageError when a file is missing that a server needs.

    Connections that are open keep what they began with: no call is dropped when the files change.
    """
    files = kept.files
    if not files.cert:
        raise errors.UsageError(
            "a service needs a certificate of its own: ORDERSYS_TLS_CA_FILE is set, ORDERSYS_TLS_CERT_FILE and"
            " ORDERSYS_TLS_KEY_FILE are not"
        )
    if client_cert and not files.ca:
        raise errors.UsageError(
            "ORDERSYS_TLS_CLIENT_CERT=required needs the CA that the callers' certificates must be from:"
            " set ORDERSYS_TLS_CA_FILE, or ORDERSYS_TLS_CLIENT_CERT=none"
        )

    used = kept.current()

    def configuration(content: Content) -> grpc.ServerCertificateConfiguration:
        root = content.ca if client_cert else None
        return grpc.ssl_server_certificate_configuration([(content.key, content.cert)], root)

    def changed() -> Any:  # None: as they were
        nonlocal used
        content = kept.current()
        if content is used:
            return None
        used = content
        return configuration(content)

    return grpc.dynamic_ssl_server_credentials(configuration(used), changed, require_client_authentication=client_cert)


def of_client(content: Content) -> grpc.ChannelCredentials:
    """Without a CA the server's certificate must be from one of those that gRPC brings along."""
    return grpc.ssl_channel_credentials(content.ca or None, content.key or None, content.cert or None)


class Renewed:
    """Stands for a grpc or grpc.aio channel, opens a new one when the files have changed, and gives that to new calls.

    The calls in flight keep the old one alive; it closes itself when the last of them is done.
    """

    def __init__(self, kept: Kept, open_channel: Callable[[grpc.ChannelCredentials], Any]) -> None:
        self._kept = kept
        self._open_channel = open_channel
        self._lock = threading.Lock()
        self._opened: weakref.WeakSet[Any] = weakref.WeakSet()
        self._look_at = 0.0
        self._open(kept.current())

    def unary_unary(self, method: str, *how: Any, **named: Any) -> "_Method":
        return _Method(self, "unary_unary", method, *how, **named)

    def unary_stream(self, method: str, *how: Any, **named: Any) -> "_Method":
        return _Method(self, "unary_stream", method, *how, **named)

    def stream_unary(self, method: str, *how: Any, **named: Any) -> "_Method":
        return _Method(self, "stream_unary", method, *how, **named)

    def stream_stream(self, method: str, *how: Any, **named: Any) -> "_Method":
        return _Method(self, "stream_stream", method, *how, **named)

    def channel(self) -> Any:
        """The one for a call that begins now."""
        with self._lock:
            if time.monotonic() >= self._look_at:
                content = self._kept.current()
                if content is not self._content:
                    self._open(content)
                self._look_at = time.monotonic() + _LOOK_SECONDS
            return self._channel

    def close(self) -> list[Any]:
        """Close every channel; what each answered (an awaitable, when they are grpc.aio's)."""
        return [each.close() for each in tuple(self._opened)]

    def _open(self, content: Content) -> None:
        self._content = content
        self._channel = self._open_channel(of_client(content))
        self._opened.add(self._channel)


class _Method:
    """One method of a service, as a stub calls it."""

    def __init__(self, renewed: Renewed, kind: str, *how: Any, **named: Any) -> None:
        self._renewed = renewed
        self._kind = kind
        self._how = how, named

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._call("__call__", arguments, options)

    def with_call(self, *arguments: Any, **options: Any) -> Any:
        return self._call("with_call", arguments, options)

    def future(self, *arguments: Any, **options: Any) -> Any:
        return self._call("future", arguments, options)

    def _call(self, way: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        channel = self._renewed.channel()
        how, named = self._how
        call = getattr(getattr(channel, self._kind)(*how, **named), way)(*arguments, **options)
        if hasattr(call, "add_done_callback"):  # it is under way: its channel must last as long
            call.add_done_callback(lambda _, _kept=channel: None)
        return call
