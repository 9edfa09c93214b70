"""What the fields of a request may say; each check returns its complaints, `refuse` raises when there are any."""

import unicodedata
from collections.abc import Sequence

from ordersys.core.errors import FieldViolation, InvalidArgument

MAX_ID = 128
MAX_KEY = 255
MAX_REASON = 500
MAX_LINES = 100
MAX_QUANTITY = 1_000_000
_STEERING = ("Cc", "Cs", "Zl", "Zp")  # control, half a surrogate pair, line and paragraph separators


def text(field: str, value: str, *, most: int = MAX_ID, required: bool = True) -> list[FieldViolation]:
    """At most so many characters, none of which steers a terminal or breaks a line."""
    if required and not value.strip():
        return [FieldViolation(field, "must not be empty")]
    if len(value) > most:
        return [FieldViolation(field, f"has {len(value)} characters, at most {most} are allowed")]
    if not value.isprintable() and any(unicodedata.category(each) in _STEERING for each in value):
        return [FieldViolation(field, "must not contain control characters")]
    return []


def storable(value: str) -> bool:
    """False for what no database or protobuf holds: a NUL (PostgreSQL), half of a surrogate pair (UTF-8)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in value


def key(value: str) -> list[FieldViolation]:
    """An idempotency key; empty is allowed and means that the call is not protected against repetition."""
    return text("idempotency_key", value, most=MAX_KEY) if value else []


def version(field: str, value: int) -> list[FieldViolation]:
    """An expected version."""
    if value < 0:
        return [FieldViolation(field, f"is {value}, must be 0 (any) or a version from 1")]
    return []


def refuse(violations: Sequence[FieldViolation]) -> None:
    """Raise InvalidArgument when there is anything to complain about."""
    if violations:
        raise InvalidArgument(violations)
