"""Why a TLS handshake failed, in words that say what to do about it.

gRPC's core closes the connection without the alert that RFC 8446 section 6.2 asks for, so that a client whose
certificate is refused hears "Socket closed": then we knock ourselves, once, and look at how far we get.
"""

import re
import socket
import ssl
import threading
import time

from ordersys.core import errors
from ordersys.core.tls import Kept

_KNOCK_SECONDS = 1.0
_KNOWN_SECONDS = 5.0
"""How long what a knock found out is not asked again."""

_WORDS = (
    ("certificate.has.expired", "its certificate has expired"),
    ("not.yet.valid", "its certificate is not valid yet"),
    ("issuer certificate|self.signed", "unknown CA: its certificate is not from a CA that is trusted here"),
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "it showed no certificate"),
    ("hostname|not match", "its certificate is for another name than the one that was called"),
    ("WRONG_VERSION_NUMBER|HTTP_REQUEST", "it does not speak TLS"),
    ("UNSUPPORTED_PROTOCOL|ALERT_PROTOCOL_VERSION", "it does not speak TLS 1.2 or newer"),
    ("ALERT_CERTIFICATE_EXPIRED", "it says that our certificate has expired"),
    ("ALERT_UNKNOWN_CA", "unknown CA: it does not trust the CA of our certificate"),
    ("CERTIFICATE_REQUIRED", "it asks for a certificate"),
    ("ALERT_[A-Z_]*CERTIFICATE", "it refuses our certificate"),
)
"""What stands in the report of a library, and what it means; "it" is the other side."""

_FAILED = re.compile(r"handshake failed|verification check failed", re.IGNORECASE)
_LEFT = re.compile(r"failed to connect.*(Socket closed|reset by peer|EOF)", re.IGNORECASE | re.DOTALL)


def reason(text: str) -> str:
    """What OpenSSL or BoringSSL said, in plain words; the text itself where there are none."""
    for pattern, words in _WORDS:
        if re.search(pattern, text, re.IGNORECASE):
            return words
    return text.rpartition("OPENSSL_internal:")[2].removesuffix(": OK")


def failed(text: str) -> bool:
    """True when this is the report of a failed handshake, rather than of a connection that did not come about."""
    return _FAILED.search(text) is not None


class Doubts:
    """Finds out why the calls to one address fail; for any thread."""

    def __init__(self, address: str, kept: Kept | None) -> None:
        self._address = address
        self._kept = kept
        self._lock = threading.Lock()
        self._known = (0.0, "")  # until when, and what

    def suspect(self, error: errors.OrdersysError) -> bool:
        """True when TLS may be the reason for this, so that `explained` is worth its while."""
        return isinstance(error, errors.NoAnswer) and (failed(error.message) or bool(_LEFT.search(error.message)))

    def explained(self, error: errors.OrdersysError) -> errors.OrdersysError:
        """The same error with the reason, if TLS is the reason; may take some seconds."""
        found = reason(error.message) if failed(error.message) else self._found()
        if not found:
            return error
        return errors.NoAnswer(f"{self._address}: UNAVAILABLE: no TLS connection: {found}", metadata=error.metadata)

    def _found(self) -> str:
        with self._lock:
            until, found = self._known
            if time.monotonic() >= until:
                found = self._knock()
                self._known = (time.monotonic() + _KNOWN_SECONDS, found)
            return found

    def _knock(self) -> str:
        host, _, port = self._address.rpartition(":")
        host = host.strip("[]")
        context = self._context()
        try:
            with (
                socket.create_connection((host, int(port)), _KNOCK_SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=host) as connection,
            ):
                # Who shows a TLS 1.3 server the wrong certificate hears of it after the handshake.
                return "" if self._kept and connection.recv(1) else self._refused()
        except ssl.SSLCertVerificationError as error:
            return reason(error.verify_message)
        except ssl.SSLError as error:
            return reason(error.reason or str(error)) if self._kept else ""
        except ConnectionResetError:
            return self._refused() if self._kept else ""
        except (OSError, ValueError):  # nobody there, or nobody who speaks
            return ""

    def _context(self) -> ssl.SSLContext:
        if self._kept is None:  # only whether TLS is spoken there; nothing is sent
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        else:
            files = self._kept.files
            context = ssl.create_default_context(cafile=files.ca or None)
            if files.cert:
                context.load_cert_chain(files.cert, files.key)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        return context

    def _refused(self) -> str:
        if self._kept is None:
            return "it speaks TLS: set ORDERSYS_TLS_CA_FILE, and ORDERSYS_TLS_CERT_FILE with its key"
        ours = self._kept.current()
        if not ours.cert:
            return "it asks for a certificate: set ORDERSYS_TLS_CERT_FILE and ORDERSYS_TLS_KEY_FILE"
        if ours.expires <= time.time():
            return f"our certificate has expired: see {self._kept.files.cert}"
        return (
            f"it refuses our certificate in {self._kept.files.cert}: is it from the CA that is trusted there?"
            " The service's log says why"
        )
