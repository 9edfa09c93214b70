"""Both services in one process, each on a database whose steps can fail, and the lives of some orders in them."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from faults.steps import Hurt
from faults.stores import NOW, Pair, Stores, cancel, place, update

from ordersys.core import errors, ids
from ordersys.core.events import Change
from ordersys.core.records import Status
from ordersys.core.v1 import order_pb2
from ordersys.order.service import OrderService
from ordersys.order.servicer import OrderServicer
from ordersys.product import model
from ordersys.product.recovery import Recovery
from ordersys.product.service import PATIENCE_US, ProductService

NO_CONTEXT: Any = None  # the two calls used here do not look at it

Result = TypeVar("Result")


class Shop:
    """Both services without a network between them, each on a database whose steps can fail."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._clock = itertools.count(NOW, 2 * PATIENCE_US).__next__  # nobody has to wait for another process
        self.repeats = 0
        self.start_order()
        self.start_product()

    def start_order(self) -> None:
        self.order_service = OrderService(self._pair.order.orders, lambda: None, clock=self._clock)
        self._servicer = OrderServicer(self.order_service)

    def start_product(self) -> None:
        self.service = ProductService(self._pair.product.products, self, clock=self._clock)

    async def process(self, commands: Sequence[order_pb2.OrderCommand]) -> Sequence[order_pb2.OrderResult]:
        request = order_pb2.ProcessOrdersRequest(commands=commands)
        return (await self._servicer.ProcessOrders(request, NO_CONTEXT)).results

    async def settle(self, command_ids: Sequence[str]) -> Sequence[order_pb2.OrderResult]:
        request = order_pb2.SettleCommandsRequest(command_ids=command_ids)
        return (await self._servicer.SettleCommands(request, NO_CONTEXT)).results

    async def place(self, key: str, *lines: tuple[str, int]) -> order_pb2.Order:
        return await self._ask(lambda: replace(place(0, *lines), key=key, order_id=ids.uuid7()))

    async def update(self, order: order_pb2.Order, *lines: tuple[str, int]) -> order_pb2.Order:
        return await self._ask(lambda: replace(update(order.id, *lines), expected_version=order.version))

    async def cancel(self, order: order_pb2.Order) -> order_pb2.Order:
        return await self._ask(lambda: replace(cancel(order.id), expected_version=order.version))

    async def ship(self, order: order_pb2.Order) -> None:
        key = ids.uuid7()
        await self._until_answered(lambda: self.order_service.advance(order.id, Status.SHIPPED, order.version, key=key))

    async def _ask(self, request: Callable[[], model.OrderCommand]) -> order_pb2.Order:
        """The answer, asked for once more when it has come: it must be the same again."""

        async def once() -> bytes:
            return (await self.service.execute(replace(request(), command_id=ids.uuid7())))[0]

        answer = await self._until_answered(once)
        assert await self._until_answered(once) == answer
        return order_pb2.Order.FromString(answer)

    async def _until_answered(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        for _ in range(10):
            try:
                return await attempt()
            except errors.Unavailable:
                self.repeats += 1
                await self._bury()
        raise AssertionError("one failure, and ten attempts without an answer")

    async def _bury(self) -> None:
        """Replace a service whose process is dead: all it knew in memory is gone."""
        for stores, service, start in (
            (self._pair.product, self.service, self.start_product),
            (self._pair.order, self.order_service, self.start_order),
        ):
            if stores.steps.dead:
                await service.drain()  # what it still tries fails, as nothing comes from a dead process
                stores.steps.heal()
                start()


async def lives(shop: Shop) -> None:
    """Every command there is: two orders and a refusal, each answered."""
    first = await shop.place("first", ("a", 3), ("b", 1))
    changed = await shop.update(first, ("a", 1), ("b", 4))
    await shop.cancel(changed)
    await shop.ship(await shop.place("second", ("b", 2)))
    with pytest.raises(errors.InsufficientStock):
        await shop.place("third", ("a", 1), ("b", 999))


def live(pair: Pair, hurt: Stores, at: int, how: Hurt) -> int:
    """The lives with step `at` of one database hurt; holds all books afterwards. How often a call was repeated."""

    async def story() -> int:
        shop = Shop(pair)
        hurt.steps.fail(at, how)
        async with asyncio.timeout(30):
            await lives(shop)
            await shop.service.drain()
            await shop.order_service.drain()
            hurt.steps.heal()
            shop.start_order()
            shop.start_product()
            await Recovery(pair.product.products, shop.service, age=0.0).settle_pending()
            await shop.service.drain()
            await shop.order_service.drain()
            await balance(pair)
        return shop.repeats

    return asyncio.run(story())


async def balance(pair: Pair) -> None:
    """Nothing pending, shelf = ledger = reservations = live orders, and one event without gaps for each change."""
    audits, pending = await pair.product.products.audit()
    assert pending == 0
    orders = await pair.order.orders.list_orders(customer_id="", status=None, before=None, limit=100)
    assert sorted(each.status for each in orders) == [Status.CANCELLED, Status.SHIPPED]
    live = [each.lines for each in orders if each.status is not Status.CANCELLED]
    for each in audits:
        wanted = sum(line.quantity for lines in live for line in lines if line.product_id == each.product_id)
        assert (each.held, each.reserved, each.available, each.ledger) == (wanted, wanted, 100 - wanted, 100 - wanted)
    log = await pair.order.orders.list_events(after=0, order_id="", change=None, since=0, limit=100)
    assert [each.event.sequence for each in log] == [1, 2, 3, 4, 5]
    assert not any(each.published for each in log)
    told = [(each.event.order.status, each.event.change, each.event.order.version) for each in log]
    placed = Status.PLACED
    assert told == [
        (placed, Change.CREATED, 1),
        (placed, Change.LINES, 2),
        (Status.CANCELLED, Change.CANCELLED, 3),
        (placed, Change.CREATED, 1),
        (Status.SHIPPED, Change.SHIPPED, 2),
    ]
