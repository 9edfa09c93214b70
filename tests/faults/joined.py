"""Both services on real databases, without a network between them: each step of theirs can be lost, or be the last.

There are two Product Service processes. What one asks of its database or of order-service is a step; the n-th step can
be kept from happening, or its answer lost, and the process may die of it: then nothing it does from there on happens.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from faults.order_model import Ask, Order, Told
from faults.stores import NOW, Pair

from ordersys.core import errors
from ordersys.core.records import Product, Status, StockAudit, StockMove
from ordersys.core.v1 import order_pb2, product_pb2
from ordersys.order.service import OrderService
from ordersys.order.servicer import OrderServicer
from ordersys.product import model
from ordersys.product.recovery import Recovery
from ordersys.product.service import PATIENCE_US, ProductService, Summary
from ordersys.product.store import AnyCommand

NO_CONTEXT: Any = None  # the two calls used here do not look at it

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Hurt:
    """Step `at` (1 = the next) does not happen, or its answer is lost; `dies`: and the process is dead then."""

    at: int
    happens: bool
    dies: bool


class Process:
    """One Product Service process: the store and the authority that it sees."""

    def __init__(self, system: "System") -> None:
        self._system = system
        self._store = system.pair.product.products
        self._hurt: Hurt | None = None
        self._steps = 0
        self.hit = False
        self.dead = False
        self.service = ProductService(self, self, clock=system.clock)
        self.recovery = Recovery(self, self.service, age=0.0, clock=system.clock)

    def expect(self, hurt: Hurt | None) -> None:
        self._hurt, self._steps, self.hit = hurt, 0, False

    @property
    def busy(self) -> bool:
        service = self.service
        return service._writer.busy or service._asker.busy or bool(service._waits)

    async def _step(self, carry_out: Callable[[], Awaitable[Result]]) -> Result:
        if self.dead:
            raise errors.Unavailable("this process is dead")
        self._steps += 1
        hurt = self._hurt
        if hurt is None or self._steps != hurt.at:
            return await carry_out()
        self.hit = True
        try:
            if hurt.happens:
                await carry_out()
        finally:
            self.dead = hurt.dies
        raise errors.Unavailable("lost")

    # --- the store --------------------------------------------------------------------------------------------------

    async def decide(self, commands: Sequence[AnyCommand], now: int) -> Sequence[model.Decision]:
        return await self._step(lambda: self._store.decide(commands, now))

    async def pending(self, before: int, limit: int) -> list[tuple[str, str]]:
        return await self._store.pending(before, limit)

    async def product(self, product_id: str) -> Product | None:
        return await self._store.product(product_id)

    async def list_products(self, after: str, limit: int) -> list[Product]:
        return await self._store.list_products(after, limit)

    async def summary(self) -> Summary:
        return await self._store.summary()

    async def audit(self) -> tuple[list[StockAudit], int]:
        return await self._store.audit()

    async def moves(self, order_id: str) -> list[StockMove]:
        return await self._store.moves(order_id)

    # --- order-service ----------------------------------------------------------------------------------------------

    async def process(self, commands: Sequence[order_pb2.OrderCommand]) -> Sequence[order_pb2.OrderResult]:
        self._system.sent.extend(commands)
        return await self._step(lambda: self._system.process(commands))

    async def settle(self, command_ids: Sequence[str]) -> Sequence[order_pb2.OrderResult]:
        return await self._step(lambda: self._system.settle(command_ids))


class System:
    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.clock = itertools.count(NOW, 2 * PATIENCE_US).__next__  # nobody has to wait for another process
        self.sent: list[order_pb2.OrderCommand] = []  # whatever the network may deliver late, or once more
        self.outcomes: dict[str, order_pb2.OrderResult] = {}  # by command id, as order-service said first
        self.restart_orders()
        self.processes = [Process(self), Process(self)]

    def restart_orders(self) -> None:
        self._orders = OrderService(self.pair.order.orders, lambda: None, clock=self.clock)
        self._servicer = OrderServicer(self._orders)

    def restart(self, who: int) -> None:
        self.processes[who] = Process(self)

    async def process(self, commands: Sequence[order_pb2.OrderCommand]) -> Sequence[order_pb2.OrderResult]:
        request = order_pb2.ProcessOrdersRequest(commands=commands)
        return self._noted((await self._servicer.ProcessOrders(request, NO_CONTEXT)).results)

    async def settle(self, command_ids: Sequence[str]) -> Sequence[order_pb2.OrderResult]:
        request = order_pb2.SettleCommandsRequest(command_ids=command_ids)
        return self._noted((await self._servicer.SettleCommands(request, NO_CONTEXT)).results)

    def _noted(self, results: Sequence[order_pb2.OrderResult]) -> Sequence[order_pb2.OrderResult]:
        """What order-service has said of a command it says for ever."""
        for result in results:
            assert self.outcomes.setdefault(result.command_id, result) == result
        return results

    async def deliver(self, index: int) -> order_pb2.OrderResult:
        """The network brings a command that was sent: late, or once more."""
        [result] = await self.process([self.sent[index]])
        return result

    async def ask(self, who: int, asks: Sequence[Ask], hurt: Hurt | None) -> tuple[list[tuple[Told, bool]], bool]:
        """Commands that come at once: what each is told and whether it is a replay; and whether it was hurt."""
        process = self.processes[who]
        process.expect(hurt)
        told = await asyncio.gather(*(self._told(process, ask) for ask in asks))
        return list(told), await self._calm(who)

    async def settle_pending(self, who: int, hurt: Hurt | None) -> bool:
        """One round of recovery; whether it was hurt."""
        process = self.processes[who]
        process.expect(hurt)
        try:
            await process.recovery.settle_pending()
        except errors.Unavailable:
            assert process.hit
        return await self._calm(who)

    async def advance(self, order_id: str, status: Status, version: int) -> Told:
        try:
            order = (await self._orders.advance(order_id, status, version)).order
        except errors.OrdersysError as error:
            return error.code
        lines = tuple((each.product_id, each.quantity) for each in order.lines)
        return Order(order.id, order.status.value, order.version, lines)

    async def _told(self, process: Process, ask: Ask) -> tuple[Told, bool]:
        try:
            answer, replayed = await process.service.execute(command(ask))
        except errors.OrdersysError as error:
            return error.code, False
        if ask.kind == "adjust":
            return product_pb2.Product.FromString(answer).available, replayed
        return read(order_pb2.Order.FromString(answer)), replayed

    async def _calm(self, who: int) -> bool:
        """Wait until the process has nothing more to do, and replace it if it is dead; whether it was hurt."""
        process = self.processes[who]
        while process.busy:  # noqa: ASYNC110 - there is no event for it, and nobody else needs one
            await asyncio.sleep(0.0005)
        hit = process.hit
        process.expect(None)
        if process.dead:
            self.restart(who)
        return hit


def command(ask: Ask) -> model.OrderCommand | model.AdjustStock:
    """As the gRPC door makes it."""
    lines = tuple(model.Wanted(*line) for line in ask.lines)
    fingerprint = model.fingerprint(
        ask.kind, ask.order_id if ask.kind != "place" else "", ask.lines, ask.version, ask.product_id, ask.delta
    )
    common: dict[str, Any] = {"command_id": ask.command_id, "key": ask.key, "fingerprint": fingerprint}
    if ask.kind == "adjust":
        return model.AdjustStock(**common, product_id=ask.product_id, delta=ask.delta, reason="")
    common |= {"order_id": ask.order_id, "traceparent": ""}
    if ask.kind == "place":
        return model.PlaceOrder(**common, customer_id="c", lines=lines)
    if ask.kind == "update":
        return model.UpdateOrder(**common, lines=lines, expected_version=ask.version)
    return model.CancelOrder(**common, reason="", expected_version=ask.version)


def read(order: order_pb2.Order) -> Order:
    status = order_pb2.OrderStatus.Name(order.status).removeprefix("ORDER_STATUS_").lower()
    lines = tuple((each.product_id, each.quantity) for each in order.lines)
    return Order(order.id, status, order.version, lines)
