"""How far the events are on their way: what waits in the outbox, and how deep the broker's queues are.

Whoever asks gets an answer in time, also while the broker is away; however many ask, it is counted once a second.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ordersys.core import errors

logger = logging.getLogger(__name__)

FRESH_SECONDS = 1.0
BROKER_SECONDS = 2.5  # well within a caller's deadline
SILENT = "the broker does not answer"
FAULT = "the queues cannot be counted; the log of order-service says why"


class Depth(Protocol):
    """How many messages of a queue wait for a consumer, rest before another try, or are dead letters."""

    @property
    def ready(self) -> int: ...
    @property
    def retrying(self) -> int: ...
    @property
    def dead(self) -> int: ...


Depths = Callable[[], Mapping[str, Depth]]
"""The depth of each queue by name, asked in a thread of its own; raises `Unavailable` while the broker is away."""


class Store(Protocol):
    async def outbox(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    outbox_depth: int
    outbox_oldest: int  # when it was made, in microseconds since the epoch; 0 with an empty outbox
    queues: Mapping[str, Depth]
    broker_problem: str  # why `queues` is empty, "" when the broker answered; names no address


class Gauge:
    """Belongs to one event loop."""

    def __init__(self, store: Store, depths: Depths) -> None:
        self._store = store
        self._depths = depths
        self._reading: asyncio.Task[Flow] | None = None
        self._begun = 0.0  # monotonic
        self._counting: asyncio.Task[Mapping[str, Depth]] | None = None
        self._troubled = False

    async def read(self) -> Flow:
        """At most a second old; raises `Unavailable` when the database cannot be reached."""
        reading = self._reading
        if reading is None or (reading.done() and time.monotonic() - self._begun >= FRESH_SECONDS):
            reading = self._reading = asyncio.create_task(self._read(), name="flow")
            self._begun = time.monotonic()
        return await asyncio.shield(reading)  # who leaves does not take the answer from the others

    async def _read(self) -> Flow:
        depth, oldest = await self._store.outbox()
        queues, problem = await self._queues()
        return Flow(outbox_depth=depth, outbox_oldest=oldest, queues=queues, broker_problem=problem)

    async def _queues(self) -> tuple[Mapping[str, Depth], str]:
        if self._counting is None:  # a count that hangs is waited for, not begun again beside itself
            self._counting = asyncio.create_task(asyncio.to_thread(self._depths), name="queue depths")
        done, _ = await asyncio.wait((self._counting,), timeout=BROKER_SECONDS)
        if not done:
            return {}, SILENT
        counted, self._counting = self._counting, None
        error = counted.exception()
        if error is None:
            self._troubled = False
            return counted.result(), ""
        if isinstance(error, errors.Unavailable):
            return {}, SILENT  # the relay logs that it is away, and until when
        if not self._troubled:
            logger.error("the queues cannot be counted: %s", error, exc_info=error)
        self._troubled = True
        return {}, FAULT
