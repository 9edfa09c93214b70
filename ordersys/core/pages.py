"""Cursor pages (https://google.aip.dev/158): an opaque token says where the page before ended."""

import base64
import binascii
import json

from ordersys.core import errors, fields

DEFAULT_SIZE = 50
MAX_SIZE = 1000


def size(page_size: int) -> int:
    """The page size asked for, 0 meaning the default; raises InvalidArgument when it is negative or too large."""
    if not 0 <= page_size <= MAX_SIZE:
        raise errors.InvalidArgument.of(
            "page_size", f"is {page_size}, must be 0 (default {DEFAULT_SIZE}) to {MAX_SIZE}"
        )
    return page_size or DEFAULT_SIZE


def token(*position: str | int) -> str:
    """The token of a page that ended at this position."""
    return base64.urlsafe_b64encode(json.dumps(position, separators=(",", ":")).encode()).decode().rstrip("=")


def position(page_token: str, kinds: tuple[type, ...]) -> list[str | int] | None:
    """Where the page before ended, None for the first page; raises InvalidArgument for a token that is not ours."""
    if not page_token:
        return None
    try:
        padded = page_token + "=" * (-len(page_token) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise _not_ours() from error
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds):
        raise _not_ours()
    if not all(fields.storable(part) if isinstance(part, str) else abs(part) < 2**63 for part in parts):
        raise _not_ours()
    return parts


def _not_ours() -> errors.InvalidArgument:
    return errors.InvalidArgument.of("page_token", "must be the next_page_token of the page before, or empty")
