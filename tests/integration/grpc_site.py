"""A tiny servicer behind our real server factory, and our channels to it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import grpc
from grpc import aio

from ordersys.core.rpc import server
from ordersys.core.rpc.channel import AsyncChannel, Channel
from ordersys.core.rpc.limits import Limits
from ordersys.core.rpc.server import GrpcServer
from ordersys.core.v1 import order_pb2, order_pb2_grpc

SERVICE = "ordersys.core.v1.OrderService"
T = TypeVar("T")


class Orders(order_pb2_grpc.OrderServiceServicer):
    """GetOrder and WatchOrders do what the order id asks for."""

    def __init__(self) -> None:
        self.actions: dict[str, Callable[[], Awaitable[None]]] = {}
        self.calls: list[str] = []
        self.traceparents: list[str] = []
        self.called = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def GetOrder(
        self, request: order_pb2.GetOrderRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> order_pb2.GetOrderResponse:
        self.calls.append(request.order_id)
        self.called.set()
        self.called = asyncio.Event()
        self.traceparents.append(server.traceparent())
        if request.order_id == "aborts by itself":
            await context.abort(grpc.StatusCode.DATA_LOSS, "gone")
        if request.order_id == "cancelled at first" and self.calls.count(request.order_id) == 1:
            await context.abort(grpc.StatusCode.CANCELLED, "the server stops")
        if request.order_id == "garbage":
            context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        if request.order_id in self.actions:
            await self.actions[request.order_id]()
        return order_pb2.GetOrderResponse(order=order_pb2.Order(id=request.order_id))

    async def WatchOrders(
        self, request: order_pb2.WatchOrdersRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[order_pb2.OrderEvent]:
        try:
            for sequence in (1, 2):
                yield order_pb2.OrderEvent(sequence=sequence)
            await self.actions[request.order_id]()
        except (asyncio.CancelledError, GeneratorExit):  # by where it was when the reader left
            self.cancelled.set()
            raise


class Site:
    """A server and a channel to it."""

    def __init__(self, orders: Orders, running: GrpcServer, channel: AsyncChannel) -> None:
        self.orders = orders
        self.server = running
        self.channel = channel
        self.stub: order_pb2_grpc.OrderServiceAsyncStub = order_pb2_grpc.OrderServiceStub(channel.raw)  # type: ignore[assignment]

    async def get(self, order_id: str, deadline: float = 10.0) -> str:
        request = order_pb2.GetOrderRequest(order_id=order_id)
        return (await self.channel.call(self.stub.GetOrder, request, deadline=deadline)).order.id

    async def get_blocking(self, order_id: str) -> str:
        """The same through a blocking channel of its own."""

        def call() -> str:
            channel = Channel(self.server.address, retry=False)
            try:
                stub = order_pb2_grpc.OrderServiceStub(channel.raw)
                return channel.call(stub.GetOrder, order_pb2.GetOrderRequest(order_id=order_id), deadline=10).order.id
            finally:
                channel.close()

        return await asyncio.to_thread(call)

    async def until(self, order_id: str) -> None:
        """A call for this order has arrived."""
        while order_id not in self.orders.calls:
            await self.orders.called.wait()


def new_server(orders: Orders, bind: str = "127.0.0.1:0", limits: Limits | None = None) -> GrpcServer:
    def add(to: aio.Server) -> None:
        order_pb2_grpc.add_OrderServiceServicer_to_server(orders, to)

    return GrpcServer(bind, [SERVICE], add, limits=limits)


@asynccontextmanager
async def site(*, retry: bool = False, limits: Limits | None = None) -> AsyncIterator[Site]:
    orders = Orders()
    running = new_server(orders, limits=limits)
    await running.start()
    channel = AsyncChannel(running.address, retry=retry)
    try:
        yield Site(orders, running, channel)
    finally:
        await channel.close()
        await running.stop(0)


def run(main: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await main

    return asyncio.run(bounded())


def raises(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def action() -> None:
        raise error

    return action


async def forever() -> None:
    await asyncio.Event().wait()


@contextmanager
def taken_port() -> Iterator[str]:
    """An address on which somebody listens until the end of the block; then it is free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@asynccontextmanager
async def slow_road(address: str, seconds: float) -> AsyncIterator[str]:
    """The address of a road to the server on which everything takes this much longer each way."""
    host, _, port = address.rpartition(":")
    roads: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while load := await reader.read(65_536):
                await asyncio.sleep(seconds)
                writer.write(load)
        except ConnectionError:
            return
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        roads.add(asyncio.current_task())  # type: ignore[arg-type]
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(carry(reader, back), carry(there, writer))

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    finally:
        proxy.close()
        for road in roads:
            road.cancel()
        await asyncio.gather(*roads, return_exceptions=True)
