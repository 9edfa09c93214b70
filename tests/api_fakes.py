"""The two services as the gateway sees them: hand-written servicers, reachable in process or over real gRPC."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from ordersys.core import errors
from ordersys.core.records import STATUS_FROM_PROTO, Line, Order, Product, Status, order_to_proto, product_to_proto
from ordersys.core.rpc.channel import Channel
from ordersys.core.rpc.server import GrpcServer
from ordersys.core.v1 import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc

KEYBOARD = Product(
    id="1",
    name="Keyboard",
    description="Ä mechanical one",
    attributes={"layout": "de"},
    currency="EUR",
    price=4999,
    available=10,
)
NEXT = "after-1"
TIME = 1_750_000_000_123_456


def an_order(number: int, customer_id: str = "c-1", quantity: int = 2) -> Order:
    return Order(
        id=f"0197e5c4-0000-7000-8000-{number:012d}",
        customer_id=customer_id,
        status=Status.PLACED,
        lines=(Line("1", quantity, KEYBOARD.price),),
        currency="EUR",
        version=1,
        created_at=TIME,
        updated_at=TIME,
    )


class FakeProducts(product_pb2_grpc.ProductServiceServicer):
    """Sells one product; `failure` is raised by every call while it is set."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.requests: list[Any] = []
        self.by_key: dict[str, tuple[Any, Order]] = {}
        self.before_answer: Callable[[], Any] | None = None

    async def _heard(self, request: Any) -> None:
        self.requests.append(request)
        if self.before_answer is not None:
            await self.before_answer()
        if self.failure is not None:
            raise self.failure

    async def GetData(self, request: Any, context: Any) -> product_pb2.GetDataResponse:
        await self._heard(request)
        return product_pb2.GetDataResponse(message="1 product, 10 units")

    async def ListProducts(self, request: Any, context: Any) -> product_pb2.ListProductsResponse:
        await self._heard(request)
        return product_pb2.ListProductsResponse(products=[product_to_proto(KEYBOARD)], next_page_token=NEXT)

    async def GetProduct(self, request: Any, context: Any) -> product_pb2.GetProductResponse:
        await self._heard(request)
        if request.product_id != KEYBOARD.id:
            raise errors.ProductNotFound.of(request.product_id)
        return product_pb2.GetProductResponse(product=product_to_proto(KEYBOARD))

    async def PlaceOrder(self, request: Any, context: Any) -> product_pb2.PlaceOrderResponse:
        await self._heard(request)
        key = request.idempotency_key
        if key in self.by_key:
            first, order = self.by_key[key]
            if first != request:
                raise errors.IdempotencyKeyReused.of(key)
            return product_pb2.PlaceOrderResponse(order=order_to_proto(order), replayed=True)
        quantity = request.lines[0].quantity
        if quantity > KEYBOARD.available:
            raise errors.InsufficientStock.of("1", quantity, KEYBOARD.available)
        order = an_order(len(self.by_key) + 1, request.customer_id, quantity)
        self.by_key[key] = (request, order)
        return product_pb2.PlaceOrderResponse(order=order_to_proto(order))

    async def UpdateOrder(self, request: Any, context: Any) -> Any:
        quantity = request.lines[0].quantity
        return await self._changed(request, product_pb2.UpdateOrderResponse, quantity=quantity)

    async def CancelOrder(self, request: Any, context: Any) -> Any:
        return await self._changed(request, product_pb2.CancelOrderResponse, status=Status.CANCELLED)

    async def AdjustStock(self, request: Any, context: Any) -> product_pb2.AdjustStockResponse:
        await self._heard(request)
        if request.product_id != KEYBOARD.id:
            raise errors.ProductNotFound.of(request.product_id)
        replayed = [each for each in self.requests[:-1] if each.idempotency_key == request.idempotency_key]
        adjusted = replace(KEYBOARD, available=KEYBOARD.available + request.delta)
        return product_pb2.AdjustStockResponse(product=product_to_proto(adjusted), replayed=bool(replayed))

    async def _changed(self, request: Any, response: Any, quantity: int = 2, **fields: Any) -> Any:
        await self._heard(request)
        return change(request, response, self.requests[:-1], quantity, **fields)


def change(request: Any, response: Any, before: list[Any], quantity: int = 2, **fields: Any) -> Any:
    """The answer of a service that knows the order number 7, at version 1, to a change of it."""
    order = an_order(7, quantity=quantity)
    if request.order_id != order.id:
        raise errors.OrderNotFound.of(request.order_id)
    for earlier in before:
        if getattr(earlier, "idempotency_key", "") == request.idempotency_key != "" and earlier != request:
            raise errors.IdempotencyKeyReused.of(request.idempotency_key)
    if request.expected_version not in (0, order.version):
        raise errors.VersionConflict.of(order.id, request.expected_version, order.version)
    changed = order_to_proto(replace(order, version=order.version + 1, **fields))
    return response(order=changed, replayed=request in before)


class FakeOrders(order_pb2_grpc.OrderServiceServicer):
    """Knows `order`, the number 7, and lists `listed`."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.requests: list[Any] = []
        self.order = an_order(7)
        self.listed = [an_order(7)]
        self.missing: set[str] = set()

    async def _heard(self, request: Any) -> None:
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure

    async def GetOrder(self, request: Any, context: Any) -> order_pb2.GetOrderResponse:
        await self._heard(request)
        if request.order_id != an_order(7).id:
            raise errors.OrderNotFound.of(request.order_id)
        return order_pb2.GetOrderResponse(order=order_to_proto(self.order))

    async def ListOrders(self, request: Any, context: Any) -> order_pb2.ListOrdersResponse:
        await self._heard(request)
        found = [order_to_proto(each) for each in self.listed if request.customer_id in ("", each.customer_id)]
        return order_pb2.ListOrdersResponse(orders=found, next_page_token=NEXT)

    async def AdvanceOrder(self, request: Any, context: Any) -> Any:
        await self._heard(request)
        status = STATUS_FROM_PROTO[request.to_status]
        return change(request, order_pb2.AdvanceOrderResponse, self.requests[:-1], status=status)


class FakeChannel(Channel):
    """Calls a servicer in this very thread and notes the deadlines that it was given."""

    def __init__(self, servicer: Any) -> None:
        self.address = "in-process"
        self.raw: Any = _Names()
        self.deadlines: list[float] = []
        self.traceparents: list[str] = []
        self._servicer = servicer

    def call(self, method: Any, request: Any, *, deadline: float, traceparent: str = "") -> Any:
        self.deadlines.append(deadline)
        self.traceparents.append(traceparent)
        return asyncio.run(getattr(self._servicer, method)(request, None))

    def missing(self, service: str, *, deadline: float) -> str:
        if self._servicer.failure is not None:
            raise errors.NoAnswer("in-process: away")
        return service if service in getattr(self._servicer, "missing", ()) else ""


class _Names:
    """Gives a stub the names of its methods for callables."""

    def unary_unary(self, path: str, **_: object) -> str:
        return path.rpartition("/")[2]

    unary_stream = unary_unary


@contextmanager
def listening(products: FakeProducts, orders: FakeOrders) -> Iterator[tuple[str, str]]:
    """Both servicers on real gRPC servers; where they listen."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, tuple[str, str]]] = Future()

    async def serve() -> None:
        servers = [
            GrpcServer(
                "127.0.0.1:0",
                ["ordersys.core.v1.ProductService"],
                partial(product_pb2_grpc.add_ProductServiceServicer_to_server, products),
            ),
            GrpcServer(
                "127.0.0.1:0",
                ["ordersys.core.v1.OrderService"],
                partial(order_pb2_grpc.add_OrderServiceServicer_to_server, orders),
            ),
        ]
        for server in servers:
            await server.start()
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop, (servers[0].address, servers[1].address)))
        await stop.wait()
        for server in servers:
            await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="fake-services")
    thread.start()
    loop, stop, addresses = started.result(10)
    try:
        yield addresses
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
