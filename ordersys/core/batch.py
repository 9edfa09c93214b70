"""The batcher: callers await their own result, work runs once per batch.

Nobody waits for a timer: what arrives while one batch is at work forms the next, and a lone item is a batch of one
that leaves at once.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from ordersys.core import errors

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Entry(Generic[Item, Result]):
    """One item on its way through a batcher, and the caller who waits for its result."""

    __slots__ = ("_future", "item", "since")

    def __init__(self, item: Item, future: "asyncio.Future[Result]") -> None:
        self.item = item
        self.since = time.perf_counter()  # when it began to wait
        self._future = future

    @property
    def done(self) -> bool:
        """True once it has a result or an error, or once its caller has gone."""
        return self._future.done()

    def resolve(self, result: Result) -> None:
        if not self._future.done():
            self._future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self._future.done():
            self._future.set_exception(error)


Work = Callable[[Sequence[Entry[Item, Result]]], Awaitable[None]]


class Observer(Protocol):
    """Sees every batch; on the event loop, so it must be quick and never raise."""

    def watch(self, waiting: Callable[[], int]) -> None:
        """Called once; `waiting` says on any thread how many entries wait now."""

    def began(self, waited: Sequence[float]) -> None:
        """A batch begins; how many seconds each of its entries has waited."""

    def ended(self, seconds: float) -> None: ...


class Batcher(Generic[Item, Result]):
    """Runs `work` on batches of at most `max_batch` entries, at most `in_flight` batches at a time.

    `work` resolves or fails each entry it was given, then or later. When it raises `Unavailable`, every entry still
    open fails with it; when it raises anything else the batch is run again one entry at a time, so that a poisoned
    entry is alone with its error. An entry whose caller left before its batch began is dropped: it is not started.
    """

    def __init__(
        self,
        name: str,
        work: Work[Item, Result],
        *,
        max_batch: int = 256,
        max_waiting: int = 10_000,
        in_flight: int = 1,
        observer: Observer | None = None,
    ) -> None:
        self._name = name
        self._work = work
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._in_flight = in_flight
        self._waiting: deque[Entry[Item, Result]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False
        self._observer = observer
        if observer is not None:
            observer.watch(self._waiting.__len__)

    async def submit(self, item: Item) -> Result:
        """The item's own result; raises what the work failed it with, or `Unavailable` when too many are waiting."""
        self._admit()
        return await self.enqueue(item)

    async def submit_all(self, items: Iterable[Item]) -> list[Result | BaseException]:
        """One result or error per item, in order; raises `Unavailable` as a whole when too many are waiting."""
        self._admit()
        return await asyncio.gather(*[self.enqueue(item) for item in items], return_exceptions=True)

    def enqueue(self, item: Item) -> "asyncio.Future[Result]":
        """For follow-up work of what was accepted already: never refused, and not awaited by whoever may leave."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(Entry(item, future))
        self._start()
        return future

    def requeue(self, entries: Iterable[Entry[Item, Result]]) -> None:
        """Put entries that `work` could not finish yet at the front again, in their order."""
        again = list(entries)
        now = time.perf_counter()
        for entry in again:
            entry.since = now
        self._waiting.extendleft(reversed(again))
        self._start()

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    async def drain(self) -> None:
        """Refuse new items and return when everything taken before is done."""
        self._closed = True
        while self.busy:
            await asyncio.wait(self._running)

    def _admit(self) -> None:
        if self._closed:
            raise errors.Unavailable(f"{self._name} is shutting down")
        if len(self._waiting) >= self._max_waiting:
            raise errors.Unavailable(f"{self._name} is overloaded: {self._max_waiting} requests are waiting")

    def _start(self) -> None:
        if self._waiting and len(self._running) < self._in_flight:
            # The task takes its batch when it first runs: what arrives in this turn of the loop still joins it.
            task = asyncio.get_running_loop().create_task(self._run_batch(), name=f"{self._name}-batch")
            self._running.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._start()

    async def _run_batch(self) -> None:
        batch: list[Entry[Item, Result]] = []
        while self._waiting and len(batch) < self._max_batch:
            entry = self._waiting.popleft()
            if not entry.done:
                batch.append(entry)
        if not batch:
            return
        if self._observer is None:
            await self._run(batch)
            return
        begun = time.perf_counter()
        self._observer.began([begun - entry.since for entry in batch])
        try:
            await self._run(batch)
        finally:
            self._observer.ended(time.perf_counter() - begun)

    async def _run(self, batch: list[Entry[Item, Result]]) -> None:
        try:
            await self._work(batch)
        except errors.Unavailable as error:
            for entry in batch:
                entry.fail(error)
        except Exception as error:
            if len(batch) == 1:
                logger.exception("%s failed one entry", self._name)
                batch[0].fail(error)
                return
            logger.warning("%s failed a batch of %d, running it one by one: %r", self._name, len(batch), error)
            for entry in batch:
                if not entry.done:
                    await self._run([entry])
        except BaseException:  # cancelled in the middle: whoever waits must not wait for ever
            for entry in batch:
                entry.fail(errors.Unavailable(f"{self._name} was stopped"))
            raise
