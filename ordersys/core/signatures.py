"""Signing webhooks and checking the signatures, as https://www.standardwebhooks.com has it.

Three headers go with the body: `webhook-id` (the event's id, the same at every try), `webhook-timestamp` (seconds since
the epoch, of this try) and `webhook-signature`: for each secret `v1,` and the base64 of HMAC-SHA256 over
`ID.TIMESTAMP.BODY`, with spaces between. The body is signed as it is, byte by byte.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
TOLERANCE_SECONDS = 300
"""How old, and how far ahead, a timestamp may be: whoever recorded a request cannot send it again later."""

_PREFIX = "whsec_"
_LEAST, _MOST = 24, 64  # bytes of a secret
_VERSION = "v1"


class BadSignature(ValueError):
    """The request is not from who has the secret, or not from now; the message says which."""


def secrets_of(text: str) -> tuple[bytes, ...]:
    """The secrets in a setting: one, or while they are exchanged several with commas between.

    Raises ValueError, which tells nothing of them.
    """
    return tuple(_secret(each.strip()) for each in text.split(","))


def _secret(text: str) -> bytes:
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        secret = b""
    if not text.startswith(_PREFIX) or not _LEAST <= len(secret) <= _MOST:
        raise ValueError(
            f"expected {_PREFIX} and the base64 of {_LEAST} to {_MOST} random bytes,"
            f" as `echo {_PREFIX}$(openssl rand -base64 32)` makes it"
        )
    return secret


def headers(secrets: Sequence[bytes], message_id: str, seconds: int, body: bytes) -> dict[str, str]:
    """The three headers of one try; `seconds` since the epoch."""
    signatures = " ".join(_signature(each, message_id, str(seconds), body) for each in secrets)
    return {ID: message_id, TIMESTAMP: str(seconds), SIGNATURE: signatures}


def verify(
    secrets: Sequence[bytes],
    message_id: str,
    timestamp: str,
    signature: str,
    body: bytes,
    now: float,
    tolerance: float = TOLERANCE_SECONDS,
) -> None:
    """Raise BadSignature unless one of the signatures is one of these secrets', and no older than `tolerance` seconds.

    The timestamp and the signature as the headers have them; `now` in seconds since the epoch.
    """
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise BadSignature(f"{TIMESTAMP}: {timestamp[:40]!r} is not a number of seconds since the epoch")
    given = [each for each in signature.split() if each.startswith(f"{_VERSION},")]
    if not given:
        raise BadSignature(f"{SIGNATURE}: holds no signature of version {_VERSION}, which begins with {_VERSION},")
    expected = [_signature(each, message_id, timestamp, body) for each in secrets]
    # All are compared, each in a time that tells nothing of where it differs.
    matches = [hmac.compare_digest(_bytes(one), _bytes(other)) for one in given for other in expected]
    if not any(matches):
        raise BadSignature("the signature does not match: another secret, another id or timestamp, or a changed body")
    if abs(age := now - int(timestamp)) > tolerance:
        when = f"{age:.0f} s old" if age > 0 else f"{-age:.0f} s ahead of this machine's clock"
        raise BadSignature(f"{TIMESTAMP}: the request is {when}, more than {tolerance:g} s")


def _signature(secret: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    signed = _bytes(f"{message_id}.{timestamp}.") + body
    return f"{_VERSION},{base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()}"


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # as the command line hands over what is not UTF-8
