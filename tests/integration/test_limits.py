"""A gRPC server under clients that take more than their share: bounded, and served are the others."""

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack
from itertools import islice
from typing import Any

import pytest
from grpc import aio
from http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    Connection,
    Frame,
    call,
    message,
    window,
)
from integration.grpc_site import SERVICE, Orders, Site, forever, run, site

from ordersys.core import errors
from ordersys.core.rpc.channel import AsyncChannel
from ordersys.core.rpc.limits import CALL_BYTES, Limits
from ordersys.core.rpc.server import GrpcServer
from ordersys.core.v1 import order_pb2, order_pb2_grpc

GET = f"/{SERVICE}/GetOrder"
WATCH = f"/{SERVICE}/WatchOrders"
LIST = f"/{SERVICE}/ListOrders"
ENHANCE_YOUR_CALM = 11


class LargeOrders(Orders):
    """Streams without end, and answers with pages of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = 0

    async def WatchOrders(
        self, request: order_pb2.WatchOrdersRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[order_pb2.OrderEvent]:
        self.streams += 1
        try:
            while True:
                yield order_pb2.OrderEvent(id="x" * 10_000)
        finally:
            self.streams -= 1

    async def ListOrders(
        self, request: order_pb2.ListOrdersRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> order_pb2.ListOrdersResponse:
        self.calls.append("list")
        return order_pb2.ListOrdersResponse(next_page_token="x" * 200_000)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the test as a whole has a bound
        await asyncio.sleep(0.01)


async def large_site(stack: AsyncExitStack, limits: Limits) -> Site:
    orders = LargeOrders()

    def add(to: aio.Server) -> None:
        order_pb2_grpc.add_OrderServiceServicer_to_server(orders, to)

    server = GrpcServer("127.0.0.1:0", [SERVICE], add, limits=limits)
    await server.start()
    stack.push_async_callback(server.stop, 0)
    channel = AsyncChannel(server.address, retry=False)
    stack.push_async_callback(channel.close)
    return Site(orders, server, channel)


def heard(connection: Connection, kind: int) -> Frame:
    """The first frame of this kind."""
    return next(frame for frame in connection.frames() if frame.kind == kind)


# --- calls ----------------------------------------------------------------------------------------------------------


def test_calls_beyond_the_memory_are_refused_at_once_and_served_again_when_others_have_ended() -> None:
    async def main() -> None:
        limits = Limits(request_bytes=1000, memory_bytes=3 * (CALL_BYTES + 2000))
        async with site(limits=limits) as there:
            gate = asyncio.Event()
            there.orders.actions["slow"] = gate.wait  # type: ignore[assignment]
            slow = [asyncio.create_task(there.get("slow")) for _ in range(3)]
            await until(lambda: there.orders.calls.count("slow") == 3)
            with pytest.raises(errors.Unavailable, match="overloaded: the calls in flight") as refused:
                await there.get("more")
            assert refused.value.retry_after > 0
            gate.set()
            assert await asyncio.gather(*slow) == ["slow"] * 3
            assert await there.get("more") == "more"

    run(main())


def test_requests_that_never_end_are_refused_and_give_their_place_to_others() -> None:
    async def main() -> None:
        limits = Limits(request_bytes=50_000, memory_bytes=10 * (CALL_BYTES + 51_000), arrive=0.5)
        async with site(limits=limits) as there:
            with await asyncio.to_thread(Connection, there.server.address) as slow:
                for number in range(10):
                    slow.send(call(2 * number + 1, GET))
                    slow.data(2 * number + 1, message(5_000, of=40_000))
                refused = await asyncio.to_thread(ended, slow, 10)
                assert [frame.flags for frame in refused] == [END_HEADERS | END_STREAM] * 10
                assert await there.get("fine") == "fine"

    run(main())


def ended(connection: Connection, count: int) -> list[Frame]:
    """So many answers that are nothing but a status."""
    return list(islice((frame for frame in connection.frames() if frame.kind == HEADERS), count))


def test_large_answers_that_nobody_takes_leave_room_for_small_ones() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            there = await large_site(stack, Limits(answers_bytes=1_100_000))
            with await asyncio.to_thread(Connection, there.server.address, window(0)) as slow:
                for number in range(20):
                    slow.send(call(2 * number + 1, LIST))
                    slow.send(Frame(DATA, 1, 2 * number + 1, message(0)))
                await until(lambda: there.orders.calls.count("list") == 20)
                with pytest.raises(aio.AioRpcError, match="large answers"):
                    await there.stub.ListOrders(order_pb2.ListOrdersRequest(), timeout=10)
                assert await there.get("small") == "small"
            while True:  # our own side knows it first
                try:
                    await there.stub.ListOrders(order_pb2.ListOrdersRequest(), timeout=10)
                    break
                except aio.AioRpcError:
                    await asyncio.sleep(0.01)

    run(main())


def test_metadata_has_a_limit_that_is_kept_exactly() -> None:
    async def main() -> None:
        async with site() as there:
            request = order_pb2.GetOrderRequest(order_id="x")
            assert (await there.stub.GetOrder(request, metadata=[("x", "y" * 7_000)])).order.id == "x"
            for _ in range(5):
                with pytest.raises(aio.AioRpcError, match="metadata"):
                    await there.stub.GetOrder(request, metadata=[("x", "y" * 9_000)])
            assert there.orders.calls == ["x"]

    run(main())


# --- streams --------------------------------------------------------------------------------------------------------


def test_so_many_streams_of_a_method_and_then_no_more_until_one_has_ended() -> None:
    async def main() -> None:
        async with site(limits=Limits(streams=3)) as there:
            there.orders.actions[""] = forever
            watches = [there.stub.WatchOrders(order_pb2.WatchOrdersRequest()) for _ in range(3)]
            for watch in watches:
                await watch.read()
            with pytest.raises(errors.Unavailable, match=f"3 streams of {WATCH} are open"):
                await anext(there.channel.stream(there.stub.WatchOrders, order_pb2.WatchOrdersRequest()))
            assert await there.get("fine") == "fine"
            watches[0].cancel()
            await there.orders.cancelled.wait()
            while True:  # our own side knows it first
                try:
                    await anext(there.channel.stream(there.stub.WatchOrders, order_pb2.WatchOrdersRequest()))
                    break
                except errors.Unavailable:
                    await asyncio.sleep(0.01)

    run(main())


def test_streams_that_nobody_reads_are_closed_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            there = await large_site(stack, Limits(take=0.3, streams=11))
            orders: Any = there.orders
            watch = there.stub.WatchOrders(order_pb2.WatchOrdersRequest())
            await watch.read()
            with await asyncio.to_thread(Connection, there.server.address) as slow:
                for number in range(10):
                    slow.send(call(2 * number + 1, WATCH))
                    slow.send(Frame(DATA, 1, 2 * number + 1, message(0)))
                await until(lambda: orders.streams == 11)
                while orders.streams > 1:
                    await watch.read()
            for _ in range(100):
                await watch.read()
            watch.cancel()
            await until(lambda: orders.streams == 0)

    with caplog.at_level(logging.WARNING):
        run(main())
    assert caplog.text.count("takes nothing of its stream, which is closed") == 10


# --- connections ----------------------------------------------------------------------------------------------------


def test_connections_beyond_the_limit_are_closed_and_those_before_go_on() -> None:
    async def main() -> None:
        async with site(limits=Limits(connections=5)) as there:
            assert await there.get("before") == "before"
            with Connection(there.server.address) as one, Connection(there.server.address) as two:
                for each in (one, two):
                    await asyncio.to_thread(heard, each, SETTINGS)
                with ExitStack() as stack:
                    more = [stack.enter_context(dialled(there.server.address)) for _ in range(10)]
                    closed = await asyncio.gather(*(asyncio.to_thread(is_closed, each) for each in more))
                    assert sum(closed) == 8
                    assert await there.get("still") == "still"

    run(main())


def dialled(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def is_closed(connection: socket.socket) -> bool:
    """Closed before the server said its settings."""
    try:
        return not connection.recv(1)
    except ConnectionError:
        return True


@pytest.mark.parametrize("said", [b"", PREFACE[:10], PREFACE], ids=["nothing", "half a preface", "no settings"])
def test_a_connection_that_says_too_little_is_closed(said: bytes) -> None:
    async def main() -> None:
        async with site(limits=Limits(handshake=0.5)) as there:
            with dialled(there.server.address) as silent:
                silent.sendall(said)
                await asyncio.to_thread(until_closed, silent)
            assert await there.get("fine") == "fine"

    run(main())


def until_closed(silent: socket.socket) -> None:
    try:
        while silent.recv(1000):
            pass
    except ConnectionError:
        pass  # that is closed, too


def test_who_pings_too_much_is_sent_away_with_the_reason() -> None:
    async def main() -> None:
        async with site() as there:
            with await asyncio.to_thread(Connection, there.server.address) as flood:
                flood.send(*[Frame(PING, 0, 0, bytes(8))] * 20)
                frame = await asyncio.to_thread(heard, flood, GOAWAY)
                assert struct.unpack(">I", frame.body[4:8]) == (ENHANCE_YOUR_CALM,)
                assert b"too_many_pings" in frame.body
            assert await there.get("fine") == "fine"

    run(main())


@pytest.mark.parametrize("retry", [True, False])
def test_callers_do_not_notice_that_their_connections_grow_old(retry: bool) -> None:
    async def main() -> None:
        async with site(retry=retry, limits=Limits(age=0.2, grace=20)) as there:

            async def short() -> None:
                await asyncio.sleep(0.01)

            there.orders.actions["x"] = short

            async def calls() -> int:
                return len([await there.get("x") for _ in range(100)])

            assert await asyncio.gather(*(calls() for _ in range(10))) == [100] * 10

    run(main())


def test_an_idle_connection_is_closed_and_its_caller_comes_back() -> None:
    async def main() -> None:
        async with site(limits=Limits(idle=0.3)) as there:
            with await asyncio.to_thread(Connection, there.server.address) as idle:
                await asyncio.to_thread(heard, idle, GOAWAY)
            assert await there.get("one") == "one"
            await asyncio.sleep(0.6)
            assert await there.get("two") == "two"

    run(main())
