"""What the Product Service counts, and the gauges of its books."""

import time
from typing import Protocol

from prometheus_client import Counter

from ordersys.core import errors
from ordersys.core.watch.measured import BatchMetrics
from ordersys.core.watch.metrics import Registry
from ordersys.product.model import Fate

LOOK_SECONDS = 2.0
DRIFT_SECONDS = 300.0
"""How often the whole ledger is added up."""
_REFUSALS = (errors.InsufficientStock.code, errors.ProductNotFound.code, errors.OrderRefused.code)


class Store(Protocol):
    async def oldest_pending(self) -> tuple[int, int]: ...
    async def drift(self) -> int: ...


class ProductMetrics:
    """Bound to one registry; what is read in the background keeps its last value while the database is away."""

    def __init__(self, registry: Registry) -> None:
        self.writer = BatchMetrics(registry, "product-writer")
        self.asker = BatchMetrics(registry, "order-asker")
        refusals = registry.counter(
            "ordersys_stock_refusals", "Commands refused for their products or by a rule", ["code"]
        )
        self._refusals = {code: refusals.labels(code) for code in _REFUSALS}
        settlements = registry.counter(
            "ordersys_settlements",
            "Reservations whose fate was written, by what it was and by whether the answer came or recovery asked",
            ["fate", "by"],
        )
        self._settlements: dict[tuple[Fate, bool], Counter] = {
            (fate, recovered): settlements.labels(fate.value, "recovery" if recovered else "answer")
            for fate in Fate
            for recovered in (False, True)
        }
        self._unsettled = registry.gauge(
            "ordersys_unsettled_commands", "Commands that hold stock and whose fate is not written yet"
        )
        self._unsettled_age = registry.gauge(
            "ordersys_unsettled_oldest_age_seconds", "How long the oldest of them has waited; 0 without one"
        )
        self._drift = registry.gauge(
            "ordersys_stock_drift_units", "Units by which the shelves differ from the ledger; anything but 0 is a fault"
        )

    def refused(self, error: errors.OrdersysError) -> None:
        if (counter := self._refusals.get(error.code)) is not None:
            counter.inc()

    def settled(self, fate: Fate, *, recovered: bool) -> None:
        self._settlements[fate, recovered].inc()

    async def look_at_pending(self, store: Store) -> None:
        count, since = await store.oldest_pending()
        self._unsettled.set(count)
        # It goes on growing while nobody can look: an alert on it does not fall silent with the database.
        self._unsettled_age.set_function(lambda: max(0.0, time.time() - since / 1e6) if count else 0.0)

    async def look_at_drift(self, store: Store) -> None:
        self._drift.set(await store.drift())
