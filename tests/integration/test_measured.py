"""What the services count while they work, on real stores; and the calls to a real gRPC server."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from grpc import aio
from integration.grpc_site import SERVICE, Orders, Site, raises
from integration.test_settlement import System
from integration.test_settlement import run as run_story

from ordersys.core import errors
from ordersys.core.rpc.channel import AsyncChannel
from ordersys.core.rpc.server import GrpcServer
from ordersys.core.v1 import order_pb2, order_pb2_grpc
from ordersys.core.watch.measured import CallMetrics
from ordersys.core.watch.metrics import Registry
from ordersys.order.metrics import OrderMetrics
from ordersys.order.service import OrderService
from ordersys.order.servicer import OrderServicer
from ordersys.product.metrics import ProductMetrics
from ordersys.product.service import ProductService


class Numbers:
    """What a registry shows; `of` by name and labels."""

    def __init__(self) -> None:
        self.registry = Registry()

    def of(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"ordersys_{name}", labels)


def measured(made: System) -> Numbers:
    """The same services, measured."""
    numbers = Numbers()
    made.order_service = OrderService(made.orders, lambda: None, metrics=OrderMetrics(numbers.registry))
    made.line._servicer = OrderServicer(made.order_service)
    made.service = ProductService(made.products, made.line, metrics=ProductMetrics(numbers.registry))
    made.recovery._service = made.service
    return numbers


def test_changes_refusals_and_settlements_are_counted_and_repetitions_are_not(tmp_path: Path) -> None:
    async def story(made: System) -> None:
        numbers = measured(made)
        order = await made.place(("a", 3), key="k")
        _, replayed = await made.place_again(("a", 3), key="k")
        assert replayed
        await made.update(order.id, ("a", 1), expected_version=1)
        await made.cancel(order.id)
        for _ in range(2):  # the second is an answer from the store
            with pytest.raises(errors.InsufficientStock):
                await made.place(("a", 101), key="too many")
        with pytest.raises(errors.ProductNotFound):
            await made.place(("nope", 1))
        with pytest.raises(errors.InvalidTransition):
            await made.update(order.id, ("a", 1))
        await made.service.drain()
        await asyncio.sleep(0)
        changes = {each: numbers.of("order_changes_total", change=each) for each in ("created", "lines", "cancelled")}
        assert changes == {"created": 1, "lines": 1, "cancelled": 1}
        assert numbers.of("stock_refusals_total", code="insufficient_stock") == 1
        assert numbers.of("stock_refusals_total", code="product_not_found") == 1
        assert numbers.of("settlements_total", fate="accepted", by="answer") == 3
        assert numbers.of("settlements_total", fate="refused", by="answer") == 1
        assert numbers.of("settlements_total", fate="accepted", by="recovery") == 0
        for batcher in ("product-writer", "order-asker", "order-writer"):
            assert (numbers.of("batch_size_count", batcher=batcher) or 0) >= 4
            assert numbers.of("batch_waiting", batcher=batcher) == 0

    run_story(tmp_path, story)


@pytest.mark.parametrize(("lost", "fate"), [("lose_request", "void"), ("lose_answer", "accepted")])
def test_what_recovery_settles_is_counted_as_such(tmp_path: Path, lost: str, fate: str) -> None:
    async def story(made: System) -> None:
        numbers = measured(made)
        metrics = made.service._metrics
        setattr(made.line, lost, True)
        with pytest.raises(errors.Unavailable):
            await made.place(("a", 5))
        setattr(made.line, lost, False)
        await metrics.look_at_pending(made.products)
        assert numbers.of("unsettled_commands") == 1
        assert 0 < (numbers.of("unsettled_oldest_age_seconds") or 0) < 30
        await made.settled()
        assert numbers.of("settlements_total", fate=fate, by="recovery") == 1
        await metrics.look_at_pending(made.products)
        assert (numbers.of("unsettled_commands"), numbers.of("unsettled_oldest_age_seconds")) == (0, 0)

    run_story(tmp_path, story)


def test_drift_is_what_the_shelves_and_the_ledger_differ_by(tmp_path: Path) -> None:
    async def story(made: System) -> None:
        numbers = measured(made)
        metrics = made.service._metrics
        assert numbers.of("stock_drift_units") == 0
        await made.place(("a", 5))
        await metrics.look_at_drift(made.products)
        assert numbers.of("stock_drift_units") == 0
        for product_id, available in (("a", 100), ("b", 98)):  # somebody has touched the tables: one up, one down
            made.products_db.write(
                lambda connection, row=(available, product_id): connection.execute(
                    sa.text("UPDATE products SET available = :units WHERE id = :id"),
                    {"units": row[0], "id": row[1]},
                )
            )
        await metrics.look_at_drift(made.products)
        assert numbers.of("stock_drift_units") == 5 + 2

    run_story(tmp_path, story)


# --- gauges that are read in the background -------------------------------------------------------------------------


class FakeStore:
    """An outbox that says what it is told to, or is away."""

    def __init__(self) -> None:
        self.found: tuple[int, int] | None = (0, 0)

    async def outbox(self) -> tuple[int, int]:
        if self.found is None:
            raise errors.Unavailable("the database is away")
        return self.found

    oldest_pending = outbox


def test_the_age_of_the_outbox_goes_on_growing_while_nobody_can_look() -> None:
    async def main() -> None:
        numbers, store = Numbers(), FakeStore()
        metrics = OrderMetrics(numbers.registry)
        await metrics.look_at_outbox(store)
        assert (numbers.of("outbox_depth"), numbers.of("outbox_oldest_age_seconds")) == (0, 0)
        store.found = (7, int((time.time() - 100) * 1e6))
        await metrics.look_at_outbox(store)
        assert numbers.of("outbox_depth") == 7
        before = numbers.of("outbox_oldest_age_seconds") or 0
        assert 100 <= before < 120
        store.found = None
        with pytest.raises(errors.Unavailable):
            await metrics.look_at_outbox(store)
        await asyncio.sleep(0.01)
        assert numbers.of("outbox_depth") == 7
        assert (numbers.of("outbox_oldest_age_seconds") or 0) > before

    asyncio.run(main())


def test_queues_are_absent_while_nobody_can_count_them() -> None:
    @dataclass
    class Depth:
        ready: int
        retrying: int
        dead: int

    def away() -> Mapping[str, Depth]:
        raise errors.Unavailable("the broker is away")

    async def main() -> None:
        numbers = Numbers()
        metrics = OrderMetrics(numbers.registry)

        def shown() -> list[float | None]:
            return [numbers.of("queue_messages", queue="q", state=each) for each in ("ready", "retrying", "dead")]

        await metrics.look_at_queues(lambda: {"q": Depth(1, 2, 3)})
        assert shown() == [1, 2, 3]
        with pytest.raises(errors.Unavailable):
            await metrics.look_at_queues(away)
        assert shown() == [None] * 3
        await metrics.look_at_queues(lambda: {"q": Depth(4, 5, 6)})
        assert shown() == [4, 5, 6]

    asyncio.run(main())


# --- calls ----------------------------------------------------------------------------------------------------------


def test_calls_are_counted_by_method_and_status_and_streams_apart() -> None:
    async def main() -> None:
        numbers, orders = Numbers(), Orders()

        def add(to: aio.Server) -> None:
            order_pb2_grpc.add_OrderServiceServicer_to_server(orders, to)

        server = GrpcServer("127.0.0.1:0", [SERVICE], add, observers=[CallMetrics(numbers.registry, "order-service")])
        await server.start()
        channel = AsyncChannel(server.address, retry=False)
        there = Site(orders, server, channel)
        own: dict[str, str] = {"service": "order-service"}
        try:
            gate = asyncio.Event()
            orders.actions = {
                "slow": gate.wait,  # type: ignore[dict-item]
                "gone": raises(errors.OrderNotFound.of("gone")),
                "bug": raises(ZeroDivisionError()),
            }
            slow = asyncio.create_task(there.get("slow"))
            await there.until("slow")
            assert numbers.of("grpc_server_calls_in_flight", **own) == 1
            gate.set()
            await slow
            for order_id in ("gone", "bug"):
                with pytest.raises(errors.OrdersysError):
                    await there.get(order_id)
            await until_zero(numbers, "grpc_server_calls_in_flight", own)
            called = {**own, "method": "GetOrder"}
            for code in ("OK", "NOT_FOUND", "INTERNAL"):
                assert numbers.of("grpc_server_calls_total", **called, code=code) == 1
            assert numbers.of("grpc_server_call_duration_seconds_count", **called) == 3

            watch: Any = there.stub.WatchOrders(order_pb2.WatchOrdersRequest(order_id="slow"))
            orders.actions["slow"] = asyncio.Event().wait  # type: ignore[assignment]
            await watch.read()
            assert numbers.of("grpc_server_streams", **own) == 1
            assert numbers.of("grpc_server_calls_in_flight", **own) == 0
            watch.cancel()
            await until_zero(numbers, "grpc_server_streams", own)
            watched = {**own, "method": "WatchOrders"}
            assert numbers.of("grpc_server_calls_total", **watched, code="CANCELLED") == 1
            assert numbers.of("grpc_server_call_duration_seconds_count", **watched) is None

            with pytest.raises(aio.AioRpcError) as unknown:  # what callers invent makes no series
                await channel.raw.unary_unary("/ordersys.core.v1.OrderService/Invented")(b"")
            assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert b"Invented" not in numbers.registry.exposition("")[0]
        finally:
            await channel.close()
            await server.stop(0)

    asyncio.run(main())


async def until_zero(numbers: Numbers, name: str, labels: dict[str, str]) -> None:
    async with asyncio.timeout(20):
        while numbers.of(name, **labels) != 0:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
