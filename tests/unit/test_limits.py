"""What the calls in flight may take, and that the largest legal requests fit."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ordersys.core import errors, fields
from ordersys.core.rpc.limits import (
    CALL_BYTES,
    COPIES,
    METADATA_COPIES,
    SMALL_ANSWER,
    STALLED_PER_STREAM,
    Gate,
    Limits,
    Ticket,
)
from ordersys.core.v1 import order_pb2, product_pb2
from ordersys.order import servicer as order_servicer
from ordersys.product import authority
from ordersys.product import servicer as product_servicer

METHOD = "/x.Y/Z"
METADATA = (("ten", "letters"),)
HEAD = CALL_BYTES + METADATA_COPIES * 10
ONE = HEAD + 1000
"""What a call takes whose request of at most 1000 bytes is still to come."""


def limits(calls: int = 2, **more: float) -> Limits:
    return Limits(request_bytes=1000, memory_bytes=calls * ONE, streams=2, **more)  # type: ignore[arg-type]


class Calls:
    """Calls that have entered, each in a task of its own as on a server; they end when they are told to."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.tickets: list[Ticket] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def enter(self, *, streams: bool = False) -> asyncio.Task[None]:
        """Raises what it is refused with."""
        entered: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()

        async def call() -> None:
            try:
                entered.set_result(self.gate.enter(METHOD, METADATA, streams=streams))
            except errors.Unavailable as error:
                entered.set_exception(error)
                return
            await asyncio.Event().wait()

        task = asyncio.create_task(call())
        self.tickets.append(await entered)
        self.tasks.append(task)
        return task

    async def leave(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait((task,))
        await asyncio.sleep(0)  # its callbacks run in the next turn


def run(main: Callable[[Calls], Awaitable[None]], allowed: Limits) -> None:
    async def whole() -> None:
        calls = Calls(Gate(allowed))
        await main(calls)
        for task in calls.tasks:
            await calls.leave(task)
        assert (calls.gate.memory, calls.gate.answers, calls.gate.streams.total(), calls.gate.stalled) == (0, 0, 0, 0)

    asyncio.run(whole())


def test_a_call_is_refused_when_those_in_flight_take_all_the_memory_and_let_in_when_one_has_ended() -> None:
    async def main(calls: Calls) -> None:
        first = await calls.enter()
        await calls.enter()
        with pytest.raises(errors.Unavailable, match="overloaded"):
            await calls.enter()
        await calls.leave(first)
        await calls.enter()

    run(main, limits(2))


def test_a_call_takes_the_most_until_its_request_is_here_and_then_what_it_is() -> None:
    async def main(calls: Calls) -> None:
        await calls.enter()
        assert calls.gate.memory == ONE
        calls.tickets[0].arrived(10)
        assert calls.gate.memory == HEAD + COPIES * 10

    run(main, limits(2))


def test_a_large_answer_counts_until_its_call_is_over_and_a_small_one_does_not() -> None:
    async def main(calls: Calls) -> None:
        first = await calls.enter()
        await calls.enter()
        calls.tickets[0].answered(SMALL_ANSWER)
        assert calls.gate.answers == 0
        calls.tickets[0].answered(150_000)
        with pytest.raises(errors.Unavailable, match="overloaded: large answers"):
            calls.tickets[1].answered(70_000)
        calls.tickets[1].answered(SMALL_ANSWER)
        await calls.leave(first)
        calls.tickets[1].answered(70_000)

    run(main, limits(10, answers_bytes=200_000))


def test_each_method_has_so_many_streams() -> None:
    async def main(calls: Calls) -> None:
        first = await calls.enter(streams=True)
        await calls.enter(streams=True)
        with pytest.raises(errors.Unavailable, match=f"2 streams of {METHOD} are open"):
            await calls.enter(streams=True)
        await calls.enter()
        await calls.leave(first)
        await calls.enter(streams=True)

    run(main, limits(10))


def test_a_stream_of_which_nothing_is_taken_gives_its_place_to_others_and_only_so_many_may() -> None:
    async def main(calls: Calls) -> None:
        closed = asyncio.Event()

        async def close() -> None:
            closed.set()

        live = await calls.enter(streams=True)
        with calls.tickets[0].taking(close):  # in time
            await asyncio.sleep(0)
        for number in range(1, 2 * STALLED_PER_STREAM + 1):
            await calls.enter(streams=True)
            with pytest.raises(errors.Unavailable, match="nothing was taken"), calls.tickets[number].taking(close):
                await closed.wait()
            closed.clear()
        assert calls.gate.streams[METHOD] == 1
        with pytest.raises(errors.Unavailable, match="2 streams"):
            await calls.enter(streams=True)
        await calls.leave(calls.tasks[-1])
        await calls.enter(streams=True)
        assert not live.done()

    run(main, limits(100, take=0.01))


def largest_lines(prices: bool) -> list[order_pb2.OrderLine]:
    price = order_pb2.Money(currency="EUR", amount=2**62) if prices else None
    wide = "\U0001f600" * fields.MAX_ID
    return [
        order_pb2.OrderLine(product_id=wide, quantity=fields.MAX_QUANTITY, unit_price=price)
        for _ in range(fields.MAX_LINES)
    ]


def test_the_largest_legal_order_fits_into_a_request_and_its_command_into_a_call() -> None:
    wide = "\U0001f600"
    request = product_pb2.PlaceOrderRequest(
        customer_id=wide * fields.MAX_ID, idempotency_key=wide * fields.MAX_KEY, lines=largest_lines(prices=False)
    )
    assert 50_000 < request.ByteSize() < product_servicer.MAX_REQUEST_BYTES
    assert authority.CALL_BYTES + largest_command().ByteSize() < order_servicer.MAX_REQUEST_BYTES


def largest_command() -> order_pb2.OrderCommand:
    wide = "\U0001f600" * fields.MAX_ID
    command = order_pb2.OrderCommand(command_id=wide, order_id=wide, expected_version=2**62, traceparent="0" * 55)
    command.place.customer_id = wide
    command.place.lines.extend(largest_lines(prices=True))
    return command


def test_many_large_commands_go_in_several_calls_and_usual_ones_in_one() -> None:
    large = [largest_command() for _ in range(20)]
    found = list(authority.parts(large))
    assert [command for part in found for command in part] == large
    assert 5 < len(found) <= 10
    for part in found:
        assert order_pb2.ProcessOrdersRequest(commands=part).ByteSize() < order_servicer.MAX_REQUEST_BYTES
    line = order_pb2.OrderLine(product_id="1", quantity=1, unit_price=order_pb2.Money(currency="EUR", amount=1999))
    usual = order_pb2.OrderCommand(command_id="0" * 36, order_id="0" * 36, traceparent="0" * 55)
    usual.place.lines.append(line)
    assert len(list(authority.parts([usual] * 256))) == 1
    assert list(authority.parts([])) == []
