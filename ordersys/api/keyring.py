"""The API keys as requests meet them: remembered for a moment, so that neither speed nor a short absence of the
database is the caller's concern, and a revoked key is of no use a few seconds later."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from ordersys.api import keys
from ordersys.api.keys import Key
from ordersys.api.remembered import Patience, Remembered
from ordersys.api.store import KeyStore
from ordersys.core import errors, ids

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

PATIENCE = Patience(fresh=2.0, stale=60.0, impatient=0.3, patient=3.0, pause=1.0)
MOST_KEYS = 10_000  # remembered; there may be more
_USE_NOTED_US = 60_000_000  # how often the last use of a key is written down


def _twice(ask: Callable[[str], Answer]) -> Callable[[str], Answer]:
    """The first question after a restart of the database finds a dead connection in the pool."""

    def asked(name: str) -> Answer:
        try:
            return ask(name)
        except errors.Unavailable:
            return ask(name)

    return asked


class KeyRing:
    """The keys of a store, for many threads."""

    def __init__(self, store: KeyStore, patience: Patience = PATIENCE) -> None:
        self._store = store
        self._found = Remembered("API keys", _twice(store.find), patience, most=MOST_KEYS, workers=4)
        self._any: Remembered[str, bool] = Remembered("API keys", _twice(lambda _: store.any()), patience)
        self._in_use = False
        self._lock = threading.Lock()
        self._noted: dict[str, int] = {}
        self._unwritten: dict[str, int] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="API-keys-used")

    def in_use(self) -> bool:
        """Has there ever been a key? Raises Unavailable."""
        if not self._in_use:
            self._in_use = self._any.get("")
        return self._in_use

    def reachable(self) -> bool:
        """True when the database answers, whatever is remembered of it; raises Unavailable when it does not."""
        self._store.any()
        return True

    def find(self, text: str) -> Key:
        """The key of this text, if it is good now; raises Unauthenticated, and Unavailable when nobody can tell."""
        parts = keys.parts(text)
        key = self._found.get(parts[0]) if parts else None
        if parts is None or key is None or not key.opens_with(parts[1]):
            raise errors.Unauthenticated("there is no such API key")
        now = ids.now_us()
        if key.revoked_at is not None:
            raise errors.Unauthenticated(f"the API key {key.id} was revoked")
        if key.expires_at is not None and key.expires_at <= now:
            raise errors.Unauthenticated(f"the API key {key.id} expired at {ids.rfc3339(key.expires_at)}")
        self._note_use(key, now)
        return key

    def close(self) -> None:
        """Ask and write nothing more."""
        for each in (self._found, self._any):
            each.close()
        self._writer.shutdown(wait=False, cancel_futures=True)

    def _note_use(self, key: Key, now: int) -> None:
        with self._lock:
            if now - max(self._noted.get(key.id, 0), key.last_used_at or 0) < _USE_NOTED_US:
                return
            self._noted[key.id] = now
            idle = not self._unwritten
            self._unwritten[key.id] = now
        if idle:  # else it goes with those that wait already
            with suppress(RuntimeError):  # closed: this request was left behind
                self._writer.submit(self._write_uses)

    def _write_uses(self) -> None:
        with self._lock:
            unwritten, self._unwritten = self._unwritten, {}
        try:
            self._store.note_uses(unwritten)
        except Exception as error:  # noqa: BLE001 - when a key was used last is not worth a request; the next minute tries again
            logger.warning("API keys: their last use was not written: %s", type(error).__name__)
