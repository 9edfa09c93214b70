"""Both services joined without a network, and the answer between them lost in every way it can be lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ordersys.core import errors, ids
from ordersys.core.records import Product, Status
from ordersys.core.seed import Seed
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.core.v1 import order_pb2
from ordersys.order import store as order_store
from ordersys.order.service import OrderService
from ordersys.order.servicer import OrderServicer
from ordersys.product import model, service
from ordersys.product import store as product_store
from ordersys.product.model import Wanted
from ordersys.product.recovery import Recovery
from ordersys.product.service import ProductService

NO_CONTEXT: Any = None  # the two calls used here do not look at it


class Line:
    """The line between the services: it can lose what is asked, or the answer, or hold it up."""

    def __init__(self, servicer: OrderServicer) -> None:
        self._servicer = servicer
        self.lose_request = False
        self.lose_answer = False
        self.hold = asyncio.Event()
        self.hold.set()
        self.asked = asyncio.Event()
        self.batches: list[int] = []

    async def process(self, commands: Sequence[order_pb2.OrderCommand]) -> Sequence[order_pb2.OrderResult]:
        self.batches.append(len(commands))
        self.asked.set()
        request = order_pb2.ProcessOrdersRequest(commands=commands)
        await self.hold.wait()
        return (await self._over(lambda: self._servicer.ProcessOrders(request, NO_CONTEXT))).results

    async def settle(self, command_ids: Sequence[str]) -> Sequence[order_pb2.OrderResult]:
        request = order_pb2.SettleCommandsRequest(command_ids=command_ids)
        return (await self._over(lambda: self._servicer.SettleCommands(request, NO_CONTEXT))).results

    async def _over(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if self.lose_request:
            raise errors.Unavailable("the request was lost")
        answer = await call()
        if self.lose_answer:
            raise errors.Unavailable("the answer was lost")
        return answer


class System:
    def __init__(self, folder: Path) -> None:
        self.products_db = Database(f"sqlite:///{folder / 'product.db'}")
        self.orders_db = Database(f"sqlite:///{folder / 'order.db'}")
        migrations.upgrade(self.products_db, product_store.CHAIN)
        migrations.upgrade(self.orders_db, order_store.CHAIN)
        self.products = product_store.ProductStore(self.products_db)
        self.orders = order_store.OrderStore(self.orders_db)
        stock = [
            Product(id=name, name=name, description="", attributes={}, currency="EUR", price=100, available=units)
            for name, units in (("a", 100), ("b", 100))
        ]
        self.products.seed(Seed(products=tuple(stock), orders=()), ids.now_us())
        self.order_service = OrderService(self.orders, lambda: None)
        self.line = Line(OrderServicer(self.order_service))
        self.restart()

    def restart(self) -> None:
        """A new Product Service process on the same database: all it knew in memory is gone."""
        self.service = ProductService(self.products, self.line)
        self.recovery = Recovery(self.products, self.service, age=0.0)

    async def place(self, *lines: tuple[str, int], key: str = "") -> order_pb2.Order:
        return (await self.place_again(*lines, key=key))[0]

    async def place_again(self, *lines: tuple[str, int], key: str = "") -> tuple[order_pb2.Order, bool]:
        wanted = tuple(Wanted(*line) for line in lines)
        answer, replayed = await self.service.execute(
            model.PlaceOrder(
                command_id=ids.uuid7(),
                key=key,
                fingerprint=model.fingerprint("PlaceOrder", "c", [[line.product_id, line.quantity] for line in wanted]),
                order_id=ids.uuid7(),
                customer_id="c",
                lines=wanted,
                traceparent="",
            )
        )
        return order_pb2.Order.FromString(answer), replayed

    async def update(self, order_id: str, *lines: tuple[str, int], expected_version: int = 0) -> order_pb2.Order:
        answer, _ = await self.service.execute(
            model.UpdateOrder(
                command_id=ids.uuid7(),
                key="",
                fingerprint="",
                order_id=order_id,
                lines=tuple(Wanted(*line) for line in lines),
                expected_version=expected_version,
                traceparent="",
            )
        )
        return order_pb2.Order.FromString(answer)

    async def cancel(self, order_id: str, key: str = "") -> order_pb2.Order:
        answer, _ = await self.service.execute(
            model.CancelOrder(
                command_id=ids.uuid7(),
                key=key,
                fingerprint="cancel",
                order_id=order_id,
                reason="",
                expected_version=0,
                traceparent="",
            )
        )
        return order_pb2.Order.FromString(answer)

    async def stock(self) -> dict[str, int]:
        return {each.id: each.available for each in await self.products.list_products("", 10)}

    async def settled(self) -> None:
        await self.recovery.settle_pending()
        assert (await self.products.summary()).pending == 0

    async def assert_books_balance(self) -> None:
        """Available is the ledger's sum, and what is missing from the shelf is what the live orders hold."""
        stock = await self.stock()
        ledger = sa.select(
            product_store.stock_ledger.c.product_id, sa.func.sum(product_store.stock_ledger.c.delta)
        ).group_by(product_store.stock_ledger.c.product_id)
        assert stock == dict(self.products_db.read(lambda connection: connection.execute(ledger).all()))
        live: dict[str, int] = {"a": 0, "b": 0}
        for order in await self.orders.list_orders(customer_id="", status=None, before=None, limit=1000):
            if order.status is not Status.CANCELLED:
                live = {name: units + model.summed(order.lines).get(name, 0) for name, units in live.items()}
        assert {name: 100 - units for name, units in stock.items()} == live

    async def count(self) -> int:
        return len(await self.orders.list_orders(customer_id="", status=None, before=None, limit=1000))


@asynccontextmanager
async def system(folder: Path) -> AsyncIterator[System]:
    made = System(folder)
    try:
        async with asyncio.timeout(30):
            yield made
            await made.service.drain()
            await made.order_service.drain()
    finally:
        made.products_db.close()
        made.orders_db.close()


def run(folder: Path, story: Callable[[System], Awaitable[None]]) -> None:
    async def work() -> None:
        async with system(folder) as made:
            await story(made)

    asyncio.run(work())


def test_the_whole_life_of_an_order(tmp_path: Path) -> None:
    async def story(made: System) -> None:
        order = await made.place(("a", 3), ("b", 1))
        assert (order.version, order.total.amount) == (1, 400)
        assert await made.stock() == {"a": 97, "b": 99}
        order = await made.update(order.id, ("a", 1), ("b", 5), expected_version=1)
        assert await made.stock() == {"a": 99, "b": 95}
        with pytest.raises(errors.VersionConflict):
            await made.update(order.id, ("a", 50), expected_version=1)
        assert await made.stock() == {"a": 99, "b": 95}
        assert (await made.cancel(order.id)).status == order_pb2.ORDER_STATUS_CANCELLED
        assert await made.stock() == {"a": 100, "b": 100}
        with pytest.raises(errors.InvalidTransition):
            await made.update(order.id, ("a", 1))
        await made.settled()
        await made.assert_books_balance()

    run(tmp_path, story)


def test_callers_who_come_together_share_one_call_to_order_service(tmp_path: Path) -> None:
    async def story(made: System) -> None:
        await asyncio.gather(*(made.place(("a", 1)) for _ in range(100)))
        assert sum(made.line.batches) == 100
        assert len(made.line.batches) <= 5
        await made.assert_books_balance()

    run(tmp_path, story)


@pytest.mark.parametrize("lost", ["lose_request", "lose_answer"])
def test_an_unanswered_placement_is_unknown_and_its_key_gets_one_order_in_the_end(tmp_path: Path, lost: str) -> None:
    async def story(made: System) -> None:
        setattr(made.line, lost, True)
        with pytest.raises(errors.Unavailable):
            await made.place(("a", 5), key="k")
        assert (await made.stock())["a"] == 95  # held while the outcome is unknown
        setattr(made.line, lost, False)
        await made.settled()
        happened = lost == "lose_answer"
        assert (await made.stock())["a"] == (95 if happened else 100)
        _, replayed = await made.place_again(("a", 5), key="k")
        assert replayed is happened
        assert await made.count() == 1
        await made.service.drain()
        await made.assert_books_balance()

    run(tmp_path, story)


@pytest.mark.parametrize("lost", ["lose_request", "lose_answer"])
def test_after_a_crash_the_repetition_of_the_key_settles_by_itself(
    tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PATIENCE_US", 100_000)

    async def story(made: System) -> None:
        setattr(made.line, lost, True)
        with pytest.raises(errors.Unavailable):
            await made.place(("a", 5), key="k")
        setattr(made.line, lost, False)
        made.restart()
        answers = await asyncio.gather(*(made.place_again(("a", 5), key="k") for _ in range(10)))
        assert len({order.id for order, _ in answers}) == 1
        assert await made.count() == 1
        await made.service.drain()
        await made.assert_books_balance()

    run(tmp_path, story)


@pytest.mark.parametrize("lost", ["lose_request", "lose_answer"])
@pytest.mark.parametrize("kind", ["update", "cancel"])
def test_an_unanswered_change_moves_stock_exactly_as_order_service_decided(
    tmp_path: Path, lost: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PATIENCE_US", 0)

    async def story(made: System) -> None:
        order = await made.place(("a", 5))
        setattr(made.line, lost, True)
        with pytest.raises(errors.Unavailable):
            await (made.update(order.id, ("a", 2), ("b", 7)) if kind == "update" else made.cancel(order.id))
        assert (await made.stock())["a"] == 95  # nothing comes back before order-service has spoken
        with pytest.raises(errors.Unavailable):
            await made.update(order.id, ("a", 1))  # it cannot be said yet what the order holds
        setattr(made.line, lost, False)
        made.restart()
        await made.settled()
        await made.assert_books_balance()
        happened = lost == "lose_answer"
        after = await made.orders.order(order.id)
        assert after is not None
        assert after.version == (2 if happened else 1)
        await made.service.drain()

    run(tmp_path, story)


def test_a_command_settled_as_void_is_refused_when_it_arrives_late(tmp_path: Path) -> None:
    async def story(made: System) -> None:
        made.line.hold.clear()
        late = asyncio.ensure_future(made.place(("a", 5), key="k"))
        await made.line.asked.wait()
        other = ProductService(made.products, made.line)  # another process finds it pending and settles it
        assert await other.settle(await made.products.pending(ids.now_us(), 10)) == 1
        assert (await made.stock())["a"] == 100
        made.line.hold.set()
        with pytest.raises(errors.Unavailable, match="given up"):
            await late
        assert await made.count() == 0
        _, replayed = await made.place_again(("a", 5), key="k")
        assert not replayed
        await made.service.drain()
        await other.drain()
        await made.assert_books_balance()

    run(tmp_path, story)


def test_the_same_key_from_50_callers_at_once_is_one_order_and_50_identical_answers(tmp_path: Path) -> None:
    async def story(made: System) -> None:
        answers = await asyncio.gather(*(made.place_again(("a", 1), key="k") for _ in range(50)))
        assert len({order.SerializeToString(deterministic=True) for order, _ in answers}) == 1
        assert sum(replayed for _, replayed in answers) == 49
        with pytest.raises(errors.IdempotencyKeyReused):
            await made.place(("a", 2), key="k")
        assert await made.count() == 1
        assert (await made.stock())["a"] == 99

    run(tmp_path, story)


def test_another_body_with_a_key_that_is_still_in_flight_is_refused_at_once(tmp_path: Path) -> None:
    async def story(made: System) -> None:
        made.line.hold.clear()
        first = asyncio.ensure_future(made.place(("a", 1), key="k"))
        await made.line.asked.wait()
        with pytest.raises(errors.IdempotencyKeyReused):
            await made.place(("a", 2), key="k")
        made.line.hold.set()
        await first

    run(tmp_path, story)


def test_commands_on_one_order_take_their_turns(tmp_path: Path) -> None:
    async def story(made: System) -> None:
        order = await made.place(("a", 1))
        updates = [made.update(order.id, ("a", quantity)) for quantity in range(1, 21)]
        cancels = [made.cancel(order.id, key=f"k{number}") for number in range(3)]
        results = await asyncio.gather(*updates, *cancels, return_exceptions=True)
        unexpected = [
            each for each in results if isinstance(each, Exception) and not isinstance(each, errors.InvalidTransition)
        ]
        assert unexpected == []
        history = await made.orders.events_after(0, order_id=order.id, customer_id="", limit=100)
        assert [event.order.version for event in history] == list(range(1, len(history) + 1))
        await made.assert_books_balance()

    run(tmp_path, story)


def test_a_caller_who_leaves_does_not_stop_what_was_begun(tmp_path: Path) -> None:
    async def story(made: System) -> None:
        made.line.hold.clear()
        leaving = asyncio.ensure_future(made.place(("a", 5), key="k"))
        await made.line.asked.wait()
        leaving.cancel()
        made.line.hold.set()
        _, replayed = await made.place_again(("a", 5), key="k")
        assert replayed
        assert await made.count() == 1
        await made.service.drain()
        await made.assert_books_balance()

    run(tmp_path, story)


def test_recovery_leaves_alone_what_is_in_flight_here(tmp_path: Path) -> None:
    async def story(made: System) -> None:
        made.line.hold.clear()
        flying = asyncio.ensure_future(made.place(("a", 5)))
        await made.line.asked.wait()
        assert await made.recovery.settle_pending() == 0
        made.line.hold.set()
        assert (await flying).version == 1

    run(tmp_path, story)


def test_draining_answers_what_was_taken_and_refuses_the_rest(tmp_path: Path) -> None:
    async def story(made: System) -> None:
        made.line.hold.clear()
        taken = [asyncio.ensure_future(made.place(("a", 1))) for _ in range(5)]
        await made.line.asked.wait()
        draining = asyncio.ensure_future(made.service.drain())
        await asyncio.sleep(0)
        with pytest.raises(errors.Unavailable, match="shutting down"):
            await made.place(("a", 1))
        assert not draining.done()
        made.line.hold.set()
        assert len(await asyncio.gather(*taken)) == 5
        await draining
        assert (await made.products.summary()).pending == 0  # the settlements are written too

    run(tmp_path, story)
