"""API keys: their text, what is kept of them, and what they may be good for.

The text `osk_<id>_<secret>` is shown once. The id is public; of the secret only its SHA-256 is kept, which is enough:
256 random bits cannot be guessed, so that a slow hash would protect nothing.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from ordersys.core import errors

PREFIX = "osk_"
_TEXT = re.compile(r"osk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class Scope(StrEnum):
    """What a key or token may be good for."""

    ORDERS_READ = "orders:read"
    ORDERS_WRITE = "orders:write"
    STOCK_WRITE = "stock:write"
    ADMIN = "admin"  # includes all others


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it is kept; times in microseconds since the epoch, None = never."""

    id: str
    name: str  # for people
    digest: str = field(repr=False)  # SHA-256 of the secret, hexadecimal
    scopes: frozenset[Scope]
    customer_id: str = ""  # "" = good for every customer's orders
    created_at: int
    expires_at: int | None = None
    last_used_at: int | None = None
    revoked_at: int | None = None

    def opens_with(self, secret: str) -> bool:
        """True for the secret that this key was made with; takes equally long for any other."""
        return hmac.compare_digest(digest(secret), self.digest)


def draw() -> tuple[str, str]:
    """A new id and a new secret of 256 random bits."""
    return secrets.token_hex(6), secrets.token_urlsafe(32)


def text(key_id: str, secret: str) -> str:
    """What the caller sends."""
    return f"{PREFIX}{key_id}_{secret}"


def parts(text: str) -> tuple[str, str] | None:
    """The id and the secret; None for what cannot be a key."""
    found = _TEXT.fullmatch(text)
    return (found[1], found[2]) if found else None


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def scopes(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes of these names; raises UsageError for none, or for one that does not exist."""
    wanted = list(names)
    known = {scope.value for scope in Scope}
    wrong = [name for name in wanted if name not in known]
    if wrong or not wanted:
        complaint = f"there is no scope {wrong[0]!r}" if wrong else "a key needs at least one scope"
        raise errors.UsageError(f"{complaint}; there are {', '.join(Scope)} (admin includes the others)")
    return frozenset(Scope(name) for name in wanted)
