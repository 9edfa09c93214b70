"""TLS of the API: a context for each new connection, from files that are looked at again."""

import socket
import ssl

from ordersys.core import errors
from ordersys.core.tls import Content, Contexts, Files, naming

_REASONS = {
    "HTTP_REQUEST": "it speaks HTTP without TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "UNSUPPORTED_PROTOCOL": "it speaks no TLS 1.2 or later",
}


class Tls:
    """What connections are made secure with; a client certificate is required when `files` name a CA.

    Streams and requests go on with the certificate that they began with.
    """

    def __init__(self, files: Files) -> None:
        """Raises UsageError naming the setting when a file is missing or wrong."""
        if files.ca and not files.cert:
            ca, cert, _ = files.settings
            raise errors.UsageError(f"ORDERSYS_{ca.upper()} is set and ORDERSYS_{cert.upper()} is not")
        self._contexts = Contexts(files, lambda content: _context(files, content))

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """The server's side of TLS on this connection; the handshake is still to come."""
        return self._contexts.newest().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)


def reason(error: OSError) -> str:
    """Why a handshake failed, for the log."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    name = getattr(error, "reason", None)
    return _REASONS.get(name, name.replace("_", " ").lower()) if name else str(error.args[-1])


class _Socket(ssl.SSLSocket):
    def shutdown(self, how: int) -> None:
        """The original forgets TLS here, and what another thread still writes would go out in the clear."""
        socket.socket.shutdown(self, how)


def _context(files: Files, content: Content) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = _Socket
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # what is older is broken (RFC 8996)
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could have us compute for nothing
    context.set_alpn_protocols(["http/1.1"])
    ca_name, cert_name, _ = files.settings
    with naming(cert_name, files.cert):
        context.load_cert_chain(files.cert, files.key)
    if content.ca:
        with naming(ca_name, files.ca):
            context.load_verify_locations(cadata=content.ca.decode("ascii", "ignore"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context
