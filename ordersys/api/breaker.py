"""A circuit breaker: while a service is away, calls to it end at once instead of at their deadline.

https://learn.microsoft.com/en-us/azure/architecture/patterns/circuit-breaker
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from ordersys.core import errors
from ordersys.core.backoff import Backoff

logger = logging.getLogger(__name__)

FAILURES = 5
FIRST_SECONDS = 1.0
MOST_SECONDS = 10.0


class State(IntEnum):
    """As the metrics show it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


class LeftAlone(errors.Unavailable):
    """The service was not asked: it did not answer before, and the pause is not over."""


class Breaker:
    """The breaker of one service, for any number of threads; `clock` gives seconds.

    It opens when FAILURES calls in a row got no answer, and refuses every call for a jittered pause that grows from
    FIRST_SECONDS to MOST_SECONDS. Then it is half-open: one call goes through as the probe, and the others are still
    refused. Any answer closes it, a refusal too: who refuses is there.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._backoff = Backoff(FIRST_SECONDS, MOST_SECONDS)
        self._failures = 0
        self._until: float | None = None  # None = closed
        self._probing = False

    @property
    def state(self) -> State:
        with self._lock:
            if self._until is None:
                return State.CLOSED
            return State.HALF_OPEN if self._probing or self._until <= self._clock() else State.OPEN

    @contextmanager
    def guard(self) -> Iterator[bool]:
        """Around one call; True when it is the probe. Raises `LeftAlone` when the call may not begin."""
        probe = self._admit()
        try:
            yield probe
        except errors.NoAnswer:
            self._unanswered(probe)
            raise
        except errors.OrdersysError:
            self._answered()
            raise
        except BaseException:  # a bug of ours says nothing about the service; only the next call may be the probe
            self._forget(probe)
            raise
        self._answered()

    def hasten(self) -> None:
        """The service seems to be back: the next call may be the probe, however long the pause was to be."""
        with self._lock:
            if self._until is not None:
                self._until = min(self._until, self._clock())

    def _admit(self) -> bool:
        with self._lock:
            if self._until is None:
                return False
            left = self._until - self._clock()
            if left <= 0 and not self._probing:
                self._probing = True
                return True
        raise LeftAlone(f"{self._name} did not answer and is left alone", left if left > 0 else FIRST_SECONDS)

    def _answered(self) -> None:
        with self._lock:
            closes = self._until is not None
            self._until, self._failures, self._probing = None, 0, False
            self._backoff.reset()
        if closes:
            logger.info("%s answers again", self._name)

    def _unanswered(self, probe: bool) -> None:
        with self._lock:
            if self._until is not None and not probe:  # it began before the breaker opened: nothing new
                return
            self._probing = False
            self._failures += 1
            opens = self._until is None and self._failures == FAILURES
            if opens or self._until is not None:
                self._until = self._clock() + self._backoff.pause()
        if opens:
            logger.warning("%s did not answer %d calls in a row: calls are refused", self._name, FAILURES)

    def _forget(self, probe: bool) -> None:
        if probe:
            with self._lock:
                self._probing = False
