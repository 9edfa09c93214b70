"""Identity and time: UUIDv7 (RFC 9562), W3C Trace Context, and microseconds since the epoch, with their text forms."""

import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_us() -> int:
    """Microseconds since the epoch, UTC."""
    return time.time_ns() // 1000


class _Counter:
    """RFC 9562 section 6.2, method 1: a 12-bit counter keeps ids of one millisecond in order within a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> int:
        """48 bits of milliseconds and 12 of counter, always greater than the one before."""
        with self._lock:
            self._last = max(self._last + 1, (time.time_ns() // 1_000_000) << 12)
            return self._last


_counter = _Counter()


def uuid7() -> str:
    """A new UUIDv7 as text; ids made later in this process sort after it."""
    stamp = _counter.next()
    head = f"{stamp >> 12:012x}"
    tail = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    rest = f"{tail:016x}"
    return f"{head[:8]}-{head[8:]}-7{stamp & 0xFFF:03x}-{rest[:4]}-{rest[4:]}"


def is_uuid(text: str) -> bool:
    """True for the lower-case canonical text form of RFC 9562."""
    return _UUID.fullmatch(text) is not None


def rfc3339(us: int) -> str:
    """Microseconds since the epoch as RFC 3339 text in UTC, always with six decimals."""
    return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> int:
    """RFC 3339 text as microseconds since the epoch, what is finer cut off; raises ValueError for anything else."""
    # fromisoformat alone takes much more: week dates, no seconds, no time zone.
    try:
        moment = datetime.fromisoformat(text.upper() if _RFC3339.fullmatch(text) else "").astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{text[:50]!r} is not RFC 3339 text like 2026-11-03T12:03:44Z") from None
    return (moment - _EPOCH) // timedelta(microseconds=1)


def is_traceparent(text: str) -> bool:
    """True for a version 00 header of W3C Trace Context (https://www.w3.org/TR/trace-context/)."""
    return _TRACEPARENT.fullmatch(text) is not None


def new_traceparent() -> str:
    """The header of a new trace that nobody has decided to sample."""
    random = os.urandom(24).hex()
    return f"00-{random[:32]}-{random[32:]}-00"
