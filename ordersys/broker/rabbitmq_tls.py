"""TLS to RabbitMQ: a context for each new connection, from files that are looked at again, and what its faults mean."""

import re
import socket
import ssl

from pika import SSLOptions
from pika.connection import Parameters

from ordersys.core.tls import Content, Contexts, Files, naming

_OURS = "ORDERSYS_BROKER_CERT_FILE and ORDERSYS_BROKER_KEY_FILE name ours"
_REASONS = (
    # Alerts are what the other side says of us (RFC 8446 section 6.2); without a certificate TLS 1.2 knows no better.
    ("ALERT_CERTIFICATE_REQUIRED", f"the broker asks for a certificate: {_OURS}"),
    ("ALERT_HANDSHAKE_FAILURE", f"the broker refuses the handshake: does it ask for a certificate? {_OURS}"),
    ("ALERT_CERTIFICATE_EXPIRED", "the broker says that our certificate has expired, or is not valid yet"),
    ("ALERT_UNKNOWN_CA", "the broker does not know the CA of our certificate"),
    ("ALERT_", "the broker refuses our certificate or TLS version"),
    ("WRONG_VERSION_NUMBER", "the broker does not speak TLS on this port"),
)
_UNKNOWN_CA = ("self-signed certificate", "self signed certificate", "unable to get local issuer certificate")


def contexts(files: Files) -> Contexts:
    """What connections are made with: at least TLS 1.2, and a broker whose certificate names the host we call.

    Without a CA those of the system are trusted. Raises UsageError naming the setting whose file is wrong.
    """
    return Contexts(files, lambda content: _context(files, content))


class Options(SSLOptions):
    """Looked at by pika with each connection; the host name that it checks is the one it connects to."""

    __slots__ = ("_tls",)

    def __init__(self, tls: Contexts) -> None:
        self._tls = tls
        self.server_hostname = None

    @property
    def context(self) -> ssl.SSLContext:  # type: ignore[override]  # pika only reads it
        return self._tls.newest()


def explained(text: str) -> str:
    """What an error that OpenSSL is behind means, and the setting that helps; any other text as it is."""
    if found := re.search(r"certificate verify failed: (.+?)\.? \(_ssl", text):
        hint = " (ORDERSYS_BROKER_CA_FILE names the CA we trust)" if found[1].startswith(_UNKNOWN_CA) else ""
        return f"the broker's certificate is refused: {found[1]}{hint}"
    if found := re.search(r"\[SSL: (\w+)\]", text):
        for name, meaning in _REASONS:
            if name in found[1]:
                return f"{meaning} ({found[1]})"
    return text


def refusal(parameters: Parameters, seconds: float = 2.0) -> str:
    """What the broker has against our certificate, "" for nothing; asks with a connection that sends nothing.

    With TLS 1.3 a server looks at it after we think that the handshake is over (RFC 8446 section 4.4.2.4), and what
    we send meanwhile to a socket that it has closed makes its alert be lost.
    """
    options = parameters.ssl_options
    if options is None:
        return ""
    host = options.server_hostname or parameters.host
    try:
        with (
            socket.create_connection((parameters.host, parameters.port), seconds) as plain,
            options.context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.recv(1)
    except TimeoutError:  # it waits for us to speak
        return ""
    except OSError as error:
        return explained(str(error))
    return ""


def _context(files: Files, content: Content) -> ssl.SSLContext:
    ca_name, cert_name, _ = files.settings
    with naming(ca_name, files.ca):
        context = ssl.create_default_context(cadata=content.ca.decode("ascii", "ignore") or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # what is older is broken (RFC 8996)
    if files.cert:
        with naming(cert_name, files.cert):
            context.load_cert_chain(files.cert, files.key)
    return context
