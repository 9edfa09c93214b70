"""Settlement of the unknown: commands that took stock and got no answer (a crash, a timeout, order-service away).

Order-service is the authority. It either executed the command, then the stock stays taken; or it did not, then it
records that it never will, and only then the stock goes back. Runs at start and continuously, in every process:
settling twice, or while the command is still on its way, does no harm.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from ordersys.core import errors, ids
from ordersys.product.service import ProductService

logger = logging.getLogger(__name__)

_LIMIT = 500


class Store(Protocol):
    async def pending(self, before: int, limit: int) -> list[tuple[str, str]]: ...


class Recovery:
    """Asks every `interval` seconds for what is pending longer than `age` seconds and not in flight here."""

    def __init__(
        self,
        store: Store,
        service: ProductService,
        *,
        age: float,
        interval: float = 1.0,
        clock: Callable[[], int] = ids.now_us,
    ) -> None:
        self._store = store
        self._service = service
        self._age_us = int(age * 1_000_000)
        self._interval = interval
        self._clock = clock
        self._troubled = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.settle_pending()
                self._troubled = False
            except errors.OrdersysError as error:
                if not self._troubled:  # once, and not every second
                    logger.warning("unsettled commands stay pending: %s", error)
                self._troubled = True
            await asyncio.sleep(self._interval)

    async def settle_pending(self) -> int:
        """Settle everything that is old enough; how many were settled. Raises `Unavailable` with order-service away."""
        total = 0
        while True:
            found = await self._store.pending(self._clock() - self._age_us, _LIMIT)
            pending = [
                (order_id, command_id) for order_id, command_id in found if not self._service.is_flying(order_id)
            ]
            if not pending:
                return total
            settled = await self._service.settle(pending)
            total += settled
            logger.info("settled %d of %d commands that had no answer", settled, len(pending))
            if len(found) < _LIMIT or not settled:
                return total
