"""The Order Service's use cases: one writer that carries out whole batches, reads that never wait behind it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from ordersys.core import errors, ids, pages
from ordersys.core.batch import Batcher, Entry
from ordersys.core.events import Change, Event, Logged
from ordersys.core.records import Order, Status
from ordersys.core.watch.metrics import Registry
from ordersys.order import model
from ordersys.order.flow import Depths, Flow, Gauge
from ordersys.order.metrics import OrderMetrics
from ordersys.order.model import Accepted, Outcome, Refused, Settle

logger = logging.getLogger(__name__)

Item = model.Command | Settle

WATCH_PAGE = 100  # events in memory for one watcher, whether it reads them or not
WATCH_POLL_SECONDS = 0.5
"""How soon a watcher sees what another process committed; what this one commits it sees at once."""


class Store(Protocol):
    async def apply(self, items: Sequence[Item], now: int, new_id: Callable[[], str]) -> list[Outcome]: ...
    async def order(self, order_id: str) -> Order | None: ...
    async def list_orders(
        self, *, customer_id: str, status: Status | None, before: tuple[int, str] | None, limit: int
    ) -> list[Order]: ...
    async def list_events(
        self, *, after: int, order_id: str, change: Change | None, since: int, limit: int
    ) -> list[Logged]: ...
    async def events_after(self, sequence: int, *, order_id: str, customer_id: str, limit: int) -> list[Event]: ...
    async def outbox(self) -> tuple[int, int]: ...


class OrderService:
    """`committed` is called after every transaction that may have made events; it must not block.

    `depths` says how deep the broker's queues are, on a thread of its own.
    """

    def __init__(
        self,
        store: Store,
        committed: Callable[[], None],
        *,
        depths: Depths = dict,
        clock: Callable[[], int] = ids.now_us,
        new_id: Callable[[], str] = ids.uuid7,
        max_waiting: int = 10_000,
        metrics: OrderMetrics | None = None,
    ) -> None:
        self._store = store
        self._committed = committed
        self._clock = clock
        self._new_id = new_id
        self._metrics = metrics or OrderMetrics(Registry())
        self._writer: Batcher[Item, Outcome] = Batcher(
            "order-writer", self._write, max_batch=512, max_waiting=max_waiting, observer=self._metrics.writer
        )
        self._gauge = Gauge(store, depths)
        self._news = asyncio.Event()
        self._closing = False

    async def execute(self, items: Sequence[Item]) -> list[Outcome | None]:
        """Carry out commands and settlements: one outcome each, in order, durable on return.

        None for one that failed through a fault of ours: its outcome is not known. Raises `Unavailable` when the
        database is away or too much is waiting.
        """
        results = await self._writer.submit_all(items)
        for result in results:
            if isinstance(result, errors.Unavailable):
                raise result
        return [None if isinstance(result, BaseException) else result for result in results]

    async def advance(
        self, order_id: str, to_status: Status | None, expected_version: int, *, key: str = "", traceparent: str = ""
    ) -> Accepted:
        """Ship or deliver, with a key once only; raises the refusal."""
        command = model.advance(order_id, to_status, expected_version, key=key, traceparent=traceparent)
        outcome = await self._writer.submit(command)
        if isinstance(outcome, Refused):
            raise outcome.error
        assert isinstance(outcome, Accepted)  # noqa: S101 - nobody settles a command that is not from product-service
        return outcome

    async def order(self, order_id: str) -> Order:
        order = await self._store.order(order_id)
        if order is None:
            raise errors.OrderNotFound.of(order_id)
        return order

    async def list_orders(
        self, page_size: int, page_token: str, customer_id: str, status: Status | None
    ) -> tuple[list[Order], str]:
        """One page, newest first, and the token of the next one ("" on the last)."""
        limit = pages.size(page_size)
        position = pages.position(page_token, (int, str))
        before = (int(position[0]), str(position[1])) if position else None
        found = await self._store.list_orders(customer_id=customer_id, status=status, before=before, limit=limit + 1)
        page = found[:limit]
        return page, pages.token(page[-1].created_at, page[-1].id) if len(found) > limit else ""

    async def list_events(
        self, page_size: int, page_token: str, order_id: str, change: Change | None, since: int
    ) -> tuple[list[Logged], str]:
        """One page of the event log, oldest first, and the token of the next one ("" on the last)."""
        limit = pages.size(page_size)
        position = pages.position(page_token, (int,))
        found = await self._store.list_events(
            after=int(position[0]) if position else 0, order_id=order_id, change=change, since=since, limit=limit + 1
        )
        page = found[:limit]
        return page, pages.token(page[-1].event.sequence) if len(found) > limit else ""

    async def flow(self) -> Flow:
        """How far the events are on their way, at most a second old; with a broker that is away too."""
        return await self._gauge.read()

    async def watch(self, after: int, order_id: str, customer_id: str) -> AsyncIterator[Event]:
        """Every event after a sequence, then live, until the caller leaves or the service drains."""
        while not self._closing:
            news = self._news  # taken before the look: what commits during it wakes us
            found = await self._store.events_after(after, order_id=order_id, customer_id=customer_id, limit=WATCH_PAGE)
            for event in found:
                yield event
                after = event.sequence
            if len(found) < WATCH_PAGE:
                try:
                    async with asyncio.timeout(WATCH_POLL_SECONDS):
                        await news.wait()
                except TimeoutError:
                    continue  # another process may have committed: look again
        raise errors.Unavailable("order-service is shutting down; watch again from the last sequence")

    async def close_watches(self) -> None:
        """End every watch: its caller comes back to another replica, or after the restart."""
        self._closing = True
        self._announce()

    async def drain(self) -> None:
        """Refuse new commands and return when those taken before are answered."""
        await self._writer.drain()

    async def _write(self, entries: Sequence[Entry[Item, Outcome]]) -> None:
        outcomes = await self._store.apply([entry.item for entry in entries], self._clock(), self._new_id)
        self._announce()
        done = []
        for entry, outcome in zip(entries, outcomes, strict=True):
            entry.resolve(outcome)
            if isinstance(entry.item, model.Command) and isinstance(outcome, Accepted) and not outcome.replayed:
                done.append(entry.item.change)
        self._metrics.changed(done)

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
        self._committed()
