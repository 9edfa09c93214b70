"""Answers of something slow or absent, kept for a while: one question at a time per name, off the caller's thread."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from ordersys.core import errors

Name = TypeVar("Name")
Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

_MOST_QUESTIONS = 256  # asked at once; beyond, nobody waits for an answer that would come too late


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long answers are good for and waited for; all in seconds."""

    fresh: float  # younger answers are given without asking again
    stale: float  # older ones, up to this age, when asking fails or takes long
    impatient: float  # how long is waited for a new answer while there is an old one
    patient: float  # the same while there is none
    pause: float  # after a failure nothing is asked for so long


class Remembered(Generic[Name, Answer]):
    """`ask` for each name, remembered; safe from any thread.

    At most `most` answers are kept; those that were not wanted for longest go first.
    """

    def __init__(
        self, what: str, ask: Callable[[Name], Answer], patience: Patience, *, most: int = 1, workers: int = 1
    ) -> None:
        self._what = what
        self._ask = ask
        self._patience = patience
        self._most = most
        self._lock = Lock()
        self._kept: OrderedDict[Name, tuple[float, Answer]] = OrderedDict()
        self._asked: dict[Name, tuple[float, Future[Answer]]] = {}
        self._failure: tuple[float, str] | None = None
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix=what.replace(" ", "-"))

    def get(self, name: Name, within: float | None = None) -> Answer:
        """The answer, at most `stale` seconds old; with `within`, at most that old.

        Raises Unavailable when it does not come in time, and what `ask` raises.
        """
        patience = self._patience
        fresh, stale = (patience.fresh, patience.stale) if within is None else (within, within)
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(name)
            if kept is not None:
                self._kept.move_to_end(name)
                if now - kept[0] < fresh:
                    return kept[1]
            old = kept if kept is not None and now - kept[0] < stale else None
            try:
                since, asked = self._question(name, now)
            except errors.Unavailable:
                if old is None:
                    raise
                return old[1]
        left = since + (patience.impatient if old else patience.patient) - now
        wait((asked,), max(0.0, left))
        if old is not None and (not asked.done() or asked.exception() is not None):
            return old[1]
        if not asked.done():
            raise errors.Unavailable(f"{self._what}: no answer within {patience.patient:g} s")
        return asked.result()

    def close(self) -> None:
        """Ask nothing more; what is being asked is left behind."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _question(self, name: Name, now: float) -> tuple[float, "Future[Answer]"]:
        """The question under way for this name, since when; raises Unavailable when nothing is asked now."""
        if name in self._asked:
            return self._asked[name]
        if self._failure is not None and now - self._failure[0] < self._patience.pause:
            raise errors.Unavailable(self._failure[1])
        if len(self._asked) >= _MOST_QUESTIONS:
            raise errors.Unavailable(f"{self._what}: too many questions at once")
        try:
            self._asked[name] = now, self._workers.submit(self._answer, name)
        except RuntimeError:
            raise errors.Unavailable(f"{self._what}: closed") from None
        return self._asked[name]

    def _answer(self, name: Name) -> Answer:
        try:
            answer = self._ask(name)
        except Exception as error:
            with self._lock:
                self._asked.pop(name, None)
                self._failure = time.monotonic(), str(error)
            logger.warning("%s: %s", self._what, error)
            raise
        with self._lock:
            self._asked.pop(name, None)
            self._failure = None
            self._kept[name] = time.monotonic(), answer
            self._kept.move_to_end(name)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return answer
