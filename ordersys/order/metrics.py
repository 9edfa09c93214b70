"""What the Order Service counts, and the gauges of the outbox and of the queues."""

import asyncio
import time
from collections import Counter as Tally
from collections.abc import Iterable
from typing import Protocol

from ordersys.core import errors
from ordersys.core.events import Change
from ordersys.core.watch.measured import BatchMetrics
from ordersys.core.watch.metrics import Registry
from ordersys.order.flow import Depths

LOOK_SECONDS = 2.0


class Store(Protocol):
    async def outbox(self) -> tuple[int, int]: ...


class OrderMetrics:
    """Bound to one registry; belongs to the event loop of the service."""

    def __init__(self, registry: Registry) -> None:
        self.writer = BatchMetrics(registry, "order-writer")
        changes = registry.counter("ordersys_order_changes", "Changes to orders, each with its event", ["change"])
        self._changes = {change: changes.labels(change.value) for change in Change}
        self._depth = registry.gauge("ordersys_outbox_depth", "Events that the broker has not confirmed")
        self._age = registry.gauge(
            "ordersys_outbox_oldest_age_seconds", "How long the oldest of them has waited; 0 without one"
        )
        self._queues = registry.gauge(
            "ordersys_queue_messages",
            "Messages that wait for a consumer, rest before another try, or are dead; absent while nobody can tell",
            ["queue", "state"],
        )

    def changed(self, changes: Iterable[Change]) -> None:
        for change, count in Tally(changes).items():
            self._changes[change].inc(count)

    async def look_at_outbox(self, store: Store) -> None:
        """With the database away the last that was seen stays, and its age grows: nobody can have taken it out."""
        depth, oldest = await store.outbox()
        self._depth.set(depth)
        self._age.set_function(lambda: max(0.0, time.time() - oldest / 1e6) if depth else 0.0)

    async def look_at_queues(self, depths: Depths) -> None:
        """With the broker away there are no such numbers: others may consume from it while we cannot reach it."""
        try:
            found = await asyncio.to_thread(depths)
        except errors.OrdersysError:
            self._queues.clear()
            raise
        for name, depth in found.items():
            for state in ("ready", "retrying", "dead"):
                self._queues.labels(name, state).set(getattr(depth, state))
