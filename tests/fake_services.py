"""Both services as one real gRPC server on a free port, with a memory instead of rules, and failures on demand."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from google.protobuf.message import Message

from ordersys.core import errors, events, ids, pages, records
from ordersys.core.events import Change, Event
from ordersys.core.records import Line, Order, Product, Status
from ordersys.core.rpc.server import GrpcServer
from ordersys.core.v1 import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc

SERVICES = ("ordersys.core.v1.ProductService", "ordersys.core.v1.OrderService")
PRICE = 1999


def until(condition: Callable[[], bool], what: str = "") -> None:
    """Poll until the condition holds; fails after 20 seconds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what or condition}"
        time.sleep(0.005)


class FakeServices:
    """`requests` holds all that were received, by RPC; what is remembered survives `stop` and `start`."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Message]] = []
        self.products = {
            number: Product(
                id=number,
                name=name,
                description="A thing",
                attributes={"colour": "red"},
                currency=currency,
                price=price,
                available=10,
            )
            for number, name, currency, price in (("1", "Mug", "EUR", PRICE), ("2", "Ünïque tea 東京", "JPY", 500))
        }
        self.orders: dict[str, Order] = {}
        self.log: list[Event] = []
        self.watching = 0
        self.page_size = 1000
        self.services: Sequence[str] = SERVICES  # as its health knows them
        self.address = "127.0.0.1:0"
        self._answers: dict[str, Message] = {}
        self._failures: dict[str, list[Exception]] = {}
        self._hanging: set[str] = set()

    def start(self) -> "FakeServices":
        """Listen, on the same port as before."""
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="fake-services")
        self._thread.start()
        assert started.wait(20)
        return self

    def stop(self) -> None:
        """Drop every connection."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def fail(self, rpc: str, *failures: Exception) -> None:
        """The next calls of this RPC fail with these."""
        self._failures.setdefault(rpc, []).extend(failures)

    def hang(self, rpc: str) -> None:
        """Every call of this RPC is received and never answered."""
        self._hanging.add(rpc)

    def received(self, rpc: str) -> list[Any]:
        return [request for name, request in self.requests if name == rpc]

    def happen(self, change: Change, order: Order) -> Event:
        """Append to the event log."""
        event = Event(id=ids.uuid7(), sequence=len(self.log) + 1, change=change, time=order.updated_at, order=order)
        self.log.append(event)
        return event

    def order(self, customer_id: str = "customer-1", quantity: int = 2, product_id: str = "1") -> Order:
        """A new order that exists, and its event."""
        now = 1_793_707_424_123_456
        order = Order(
            id=ids.uuid7(),
            customer_id=customer_id,
            status=Status.PLACED,
            lines=(Line(product_id, quantity, PRICE),),
            currency="EUR",
            version=1,
            created_at=now,
            updated_at=now,
        )
        self.orders[order.id] = order
        self.happen(Change.CREATED, order)
        return order

    def changed(self, order_id: str, change: Change, **fields: Any) -> Order:
        old = self.found(order_id)
        values = {name: getattr(old, name) for name in old.__slots__} | {"version": old.version + 1} | fields
        self.orders[order_id] = Order(**values)
        self.happen(change, self.orders[order_id])
        return self.orders[order_id]

    def found(self, order_id: str) -> Order:
        if order_id not in self.orders:
            raise errors.OrderNotFound.of(order_id)
        return self.orders[order_id]

    async def answer(self, rpc: str, request: Message, make: Callable[[], Message]) -> Any:
        """What `make` answers, or answered before to the same key."""
        self.requests.append((rpc, request))
        if self._failures.get(rpc):
            raise self._failures[rpc].pop(0)
        if rpc in self._hanging:
            await asyncio.Event().wait()
        key: str = getattr(request, "idempotency_key", "")
        if not key:
            return make()
        if key in self._answers:
            replay = type(self._answers[key])()
            replay.CopyFrom(self._answers[key])
            replay.replayed = True  # type: ignore[attr-defined]
            return replay
        self._answers[key] = make()
        return self._answers[key]

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        server = GrpcServer(self.address, self.services, self._add_servicers)
        await server.start()
        self.address = server.address
        started.set()
        await self._stopped.wait()
        await server.stop(0)

    def _add_servicers(self, server: Any) -> None:
        product_pb2_grpc.add_ProductServiceServicer_to_server(_Products(self), server)
        order_pb2_grpc.add_OrderServiceServicer_to_server(_Orders(self), server)


class _Products(product_pb2_grpc.ProductServiceServicer):
    def __init__(self, services: FakeServices) -> None:
        self._services = services

    async def GetData(self, request: Any, context: Any) -> Any:
        return await self._services.answer(
            "GetData", request, lambda: product_pb2.GetDataResponse(message="2 products, 20 units")
        )

    async def ListProducts(self, request: Any, context: Any) -> Any:
        def make() -> Message:
            at = int(request.page_token or 0)
            size = min(request.page_size, self._services.page_size)
            everything = list(self._services.products.values())
            return product_pb2.ListProductsResponse(
                products=[records.product_to_proto(product) for product in everything[at : at + size]],
                next_page_token=str(at + size) if at + size < len(everything) else "",
            )

        return await self._services.answer("ListProducts", request, make)

    async def GetProduct(self, request: Any, context: Any) -> Any:
        return await self._services.answer(
            "GetProduct",
            request,
            lambda: product_pb2.GetProductResponse(product=records.product_to_proto(self._found(request.product_id))),
        )

    async def AdjustStock(self, request: Any, context: Any) -> Any:
        def make() -> Message:
            product = self._found(request.product_id)
            values = {name: getattr(product, name) for name in product.__slots__}
            adjusted = Product(**values | {"available": product.available + request.delta})
            self._services.products[product.id] = adjusted
            return product_pb2.AdjustStockResponse(product=records.product_to_proto(adjusted))

        return await self._services.answer("AdjustStock", request, make)

    async def PlaceOrder(self, request: Any, context: Any) -> Any:
        def make() -> Message:
            [first, *_] = request.lines
            order = self._services.order(request.customer_id, first.quantity, first.product_id)
            return product_pb2.PlaceOrderResponse(order=records.order_to_proto(order))

        return await self._services.answer("PlaceOrder", request, make)

    async def UpdateOrder(self, request: Any, context: Any) -> Any:
        def make() -> Message:
            lines = tuple(Line(line.product_id, line.quantity, PRICE) for line in request.lines)
            order = self._services.changed(request.order_id, Change.LINES, lines=lines)
            return product_pb2.UpdateOrderResponse(order=records.order_to_proto(order))

        return await self._services.answer("UpdateOrder", request, make)

    async def CancelOrder(self, request: Any, context: Any) -> Any:
        def make() -> Message:
            order = self._services.changed(request.order_id, Change.CANCELLED, status=Status.CANCELLED)
            return product_pb2.CancelOrderResponse(order=records.order_to_proto(order))

        return await self._services.answer("CancelOrder", request, make)

    def _found(self, product_id: str) -> Product:
        if product_id not in self._services.products:
            raise errors.ProductNotFound.of(product_id)
        return self._services.products[product_id]


class _Orders(order_pb2_grpc.OrderServiceServicer):
    def __init__(self, services: FakeServices) -> None:
        self._services = services

    async def GetOrder(self, request: Any, context: Any) -> Any:
        return await self._services.answer(
            "GetOrder",
            request,
            lambda: order_pb2.GetOrderResponse(order=records.order_to_proto(self._services.found(request.order_id))),
        )

    async def ListOrders(self, request: Any, context: Any) -> Any:
        def make() -> Message:
            at = int(request.page_token or 0)
            size = request.page_size or 50
            wanted = [
                order
                for order in reversed(self._services.orders.values())
                if request.customer_id in ("", order.customer_id)
                and request.status in (0, records.STATUS_TO_PROTO[order.status])
            ]
            return order_pb2.ListOrdersResponse(
                orders=[records.order_to_proto(order) for order in wanted[at : at + size]],
                next_page_token=str(at + size) if at + size < len(wanted) else "",
            )

        return await self._services.answer("ListOrders", request, make)

    async def AdvanceOrder(self, request: Any, context: Any) -> Any:
        def make() -> Message:
            status = records.STATUS_FROM_PROTO[request.to_status]
            order = self._services.changed(request.order_id, Change(status.value), status=status)
            return order_pb2.AdvanceOrderResponse(order=records.order_to_proto(order))

        return await self._services.answer("AdvanceOrder", request, make)

    async def ListEvents(self, request: Any, context: Any) -> Any:
        def make() -> Message:
            [at] = pages.position(request.page_token, (int,)) or [0]
            since = records.microseconds(request.since) if request.HasField("since") else 0
            wanted = [event for event in self._services.log if event.sequence > int(at) and event.time >= since]
            page = wanted[: request.page_size]
            return order_pb2.ListEventsResponse(
                events=[order_pb2.LoggedEvent(event=events.to_proto(event), published=True) for event in page],
                next_page_token=pages.token(page[-1].sequence) if len(page) < len(wanted) else "",
            )

        return await self._services.answer("ListEvents", request, make)

    async def GetFlow(self, request: Any, context: Any) -> Any:
        queue = order_pb2.QueueDepth(name="notify.topic", ready=3, retrying=2, dead=1)
        return await self._services.answer("GetFlow", request, lambda: order_pb2.GetFlowResponse(queues=[queue]))

    async def WatchOrders(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._services.answer("WatchOrders", request, order_pb2.OrderEvent)
        self._services.watching += 1
        try:
            at = request.after_sequence
            while True:
                for event in self._services.log[at:]:
                    at = event.sequence
                    if request.order_id in ("", event.order.id) and request.customer_id in (
                        "",
                        event.order.customer_id,
                    ):
                        yield events.to_proto(event)
                await asyncio.sleep(0.005)
        finally:
            self._services.watching -= 1
