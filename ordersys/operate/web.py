"""GET over HTTP, bounded in time and size: for what the roles show to whoever watches them."""

import http.client
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ordersys.core import errors

if TYPE_CHECKING:
    from ordersys.settings import Settings

_MOST_BYTES = 8 * 1024 * 1024
_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: bytes
    date: str  # the header Date, "" without one


def get(url: str, seconds: float, *, api_key: str = "", tls: ssl.SSLContext | None = None, accept: str = "") -> Answer:
    """The answer within so many seconds; raises `NoAnswer` when there is none, or when what comes is not HTTP."""
    parts = urlsplit(url)
    deadline = time.monotonic() + seconds
    headers = {"Connection": "close", **({"X-API-Key": api_key} if api_key else {}), "Accept": accept or "*/*"}
    opened: http.client.HTTPConnection
    if parts.scheme == "https":
        opened = http.client.HTTPSConnection(parts.netloc, timeout=seconds, context=tls)
    else:
        opened = http.client.HTTPConnection(parts.netloc, timeout=seconds)
    try:
        opened.request("GET", parts.path or "/", headers=headers)
        answer = opened.getresponse()
        body = b""
        while piece := answer.read1(_PIECE):  # each read has its own bound: all of them have one, too
            body += piece
            if time.monotonic() > deadline or len(body) > _MOST_BYTES:
                raise errors.NoAnswer(f"{parts.netloc}: the answer does not end")
        return Answer(status=answer.status, body=body, date=answer.getheader("Date") or "")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise errors.NoAnswer(f"{parts.netloc}: {reason}") from error
    finally:
        opened.close()


def own_api(settings: "Settings") -> ssl.SSLContext | None:
    """How to speak TLS with the API of this machine: trusts its own certificate and nothing else; None = it has none.

    Raises UsageError when a certificate file is missing or wrong.
    """
    if not settings.api_tls_cert_file:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False  # it is called at 127.0.0.1, and its certificate is for the name of the service
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    made.load_verify_locations(cadata=settings.api_tls_files.read().cert.decode("ascii", "ignore"))
    return _showing_ours(made, settings)


def anyone(settings: "Settings") -> ssl.SSLContext:
    """How to speak TLS with another machine: its certificate is from a public CA, or from that of the services."""
    made = ssl.create_default_context()
    if ca := settings.tls_files.read().ca:
        made.load_verify_locations(cadata=ca.decode("ascii", "ignore"))
    return _showing_ours(made, settings)


def _showing_ours(made: ssl.SSLContext, settings: "Settings") -> ssl.SSLContext:
    if settings.tls_cert_file:
        made.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return made
