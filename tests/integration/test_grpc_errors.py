"""Errors on their way through a real server and our channels: each arrives as itself, a fault of ours as nothing."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from integration.grpc_site import Site, forever, raises, run, site

from ordersys.core import errors
from ordersys.core.errors import FieldViolation
from ordersys.core.rpc.channel import Channel
from ordersys.core.v1 import order_pb2, order_pb2_grpc

ERRORS: list[errors.OrdersysError] = [
    errors.InvalidArgument([FieldViolation("lines[0].quantity", "is 0"), FieldViolation("customer_id", "is empty")]),
    errors.ProductNotFound.of("1"),
    errors.OrderNotFound.of("o-1"),
    errors.InsufficientStock.of("1", 3, 2),
    errors.OrderRefused.of("at-most-50", "too_many", "at most 50 at a time"),
    errors.InvalidTransition.of("o-1", "shipped", "cancelled"),
    errors.VersionConflict.of("o-1", 1, 2),
    errors.IdempotencyKeyReused.of("k"),
    errors.Unauthenticated("who is it?"),
    errors.PermissionDenied("not you"),
    errors.Unavailable("come back", 1.25, {"dependency": "database"}),
    *(errors.OrderNotFound(message) for message in ("Zoë 東京 🚚", "100% \n\t\r", " space ", "%20", "\x00\x1f")),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("get", [Site.get, Site.get_blocking], ids=["async", "blocking"])
def test_an_error_arrives_as_itself(error: errors.OrdersysError, get: Callable[[Site, str], Awaitable[str]]) -> None:
    async def main() -> errors.OrdersysError:
        async with site() as there:
            there.orders.actions["x"] = raises(error)
            with pytest.raises(errors.OrdersysError) as raised:
                await get(there, "x")
            return raised.value

    arrived = run(main())
    assert type(arrived) is type(error)
    assert (arrived.code, arrived.message, arrived.metadata) == (error.code, error.message, error.metadata)
    assert getattr(arrived, "violations", None) == getattr(error, "violations", None)
    assert getattr(arrived, "retry_after", None) == getattr(error, "retry_after", None)
    assert isinstance(arrived.__cause__, grpc.RpcError)


def test_every_code_of_the_contract_has_been_sent() -> None:
    assert {error.code for error in ERRORS} == {*errors.REFUSALS, "invalid_argument", "unavailable"}


def test_another_client_sees_the_status_and_the_details_of_google_rpc() -> None:
    async def main() -> tuple[aio.AioRpcError, aio.AioRpcError]:
        async with site() as there:
            there.orders.actions["x"] = raises(ERRORS[0])
            there.orders.actions["y"] = raises(errors.Unavailable("come back", 1.25))
            seen = []
            for order_id in ("x", "y"):
                with pytest.raises(aio.AioRpcError) as raised:
                    await there.stub.GetOrder(order_pb2.GetOrderRequest(order_id=order_id))
                seen.append(raised.value)
            return seen[0], seen[1]

    invalid, unavailable = run(main())
    assert invalid.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert invalid.details() == "lines[0].quantity: is 0; customer_id: is empty"
    info, request = details(invalid)
    assert (info.domain, info.reason) == ("ordersys", "INVALID_ARGUMENT")
    assert [(each.field, each.description) for each in request.field_violations] == [
        ("lines[0].quantity", "is 0"),
        ("customer_id", "is empty"),
    ]
    assert unavailable.code() is grpc.StatusCode.UNAVAILABLE
    info, retry = details(unavailable)
    assert info.reason == "UNAVAILABLE"
    assert retry.retry_delay.ToMilliseconds() == 1250


def details(error: aio.AioRpcError) -> list[Any]:
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    found: list[Any] = []
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    for packed in status.details:
        for kind in kinds:
            if packed.Is(kind.DESCRIPTOR):
                found.append(kind())
                packed.Unpack(found[-1])
    return found


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgument([FieldViolation(f"lines[{n}].quantity", "is -1, must be 1 to 9") for n in range(500)]),
        errors.InvalidArgument([FieldViolation(f"lines[{n}]", "東京" * 20) for n in range(100)]),
        errors.InvalidArgument.of("reason", "x" * 1_000_000),
    ],
    ids=["many", "many in Japanese", "one huge"],
)
def test_an_error_too_long_for_the_trailers_is_cut_and_still_itself(error: errors.InvalidArgument) -> None:
    """Beyond 8 KiB of trailers a client sees RESOURCE_EXHAUSTED, and would try again for ever."""

    async def main() -> errors.OrdersysError:
        async with site() as there:
            there.orders.actions["x"] = raises(error)
            with pytest.raises(errors.InvalidArgument) as raised:
                await there.get("x")
            trailers = raised.value.__cause__.trailing_metadata()  # type: ignore[union-attr]
            # Binary values travel in base64, text percent-encoded.
            sizes = [len(value) * 4 // 3 if isinstance(value, bytes) else len(value) for _, value in trailers]
            assert sum(sizes) + 3 * len(raised.value.message.encode()) < 8000
            return raised.value

    arrived = run(main())
    assert arrived.message.endswith(" ...")
    assert error.message.startswith(arrived.message[:-4])
    assert len(arrived.message) > 300
    assert arrived.violations  # type: ignore[attr-defined]
    for sent, came in zip(error.violations, arrived.violations, strict=False):  # type: ignore[attr-defined]
        assert sent.field == came.field


@pytest.mark.parametrize(
    "fault", [ZeroDivisionError("secret"), errors.UsageError("secret"), errors.Internal("secret"), KeyError("secret")]
)
def test_a_fault_of_ours_says_nothing_of_the_inside_and_is_logged(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> tuple[aio.AioRpcError, str]:
        async with site() as there:
            there.orders.actions["x"] = raises(fault)
            with pytest.raises(aio.AioRpcError) as raised:
                await there.stub.GetOrder(order_pb2.GetOrderRequest(order_id="x"))
            with pytest.raises(errors.Internal, match=r"^internal error$"):
                await there.get("x")
            return raised.value, await there.get("fine")

    seen, afterwards = run(main())
    assert (seen.code(), seen.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "secret" not in repr(seen) + repr(seen.trailing_metadata())
    assert afterwards == "fine"
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [re.sub(r"\d+\.\d ms", "0 ms", record.getMessage()) for record in logged] == [
        f"GetOrder: INTERNAL in 0 ms: {type(fault).__name__}: {fault}"
    ] * 2
    assert all(record.exc_info for record in logged)


def test_what_a_servicer_aborts_with_is_left_alone_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with site() as there:
            with pytest.raises(errors.Internal, match=r"127\.0\.0\.1:\d+: DATA_LOSS: gone"):
                await there.get("aborts by itself")

    run(main())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_details_that_are_garbage_are_not_trusted_and_break_nothing() -> None:
    async def main() -> None:
        async with site() as there:
            with pytest.raises(errors.Internal, match="NOT_FOUND: gone"):
                await there.get("garbage")

    run(main())


def test_an_unknown_method_is_unimplemented() -> None:
    async def main() -> None:
        async with site() as there:
            call = there.channel.raw.unary_unary("/ordersys.core.v1.OrderService/EatOrder")
            with pytest.raises(errors.Internal, match="UNIMPLEMENTED: Method not found"):
                await there.channel.call(call, b"", deadline=10)

    run(main())


def test_a_body_that_is_not_protobuf_is_an_invalid_argument() -> None:
    async def main() -> None:
        async with site() as there:
            call = there.channel.raw.unary_unary("/ordersys.core.v1.OrderService/GetOrder")
            with pytest.raises(errors.InvalidArgument, match="request: is not the message that this method takes"):
                await there.channel.call(call, b"\xff\xff\xff", deadline=10)
            assert await there.get("fine") == "fine"

    run(main())


# --- streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "arrives"), [(errors.Unavailable("drains"), "drains"), (KeyError(), "internal error")]
)
def test_a_stream_that_fails_has_given_what_came_before(fault: Exception, arrives: str) -> None:
    request = order_pb2.WatchOrdersRequest(order_id="x")
    got: list[int] = []

    async def follow(there: Site) -> None:
        async for event in there.channel.stream(there.stub.WatchOrders, request):
            got.append(event.sequence)  # noqa: PERF401 - what came before the failure counts

    def follow_blocking(address: str) -> None:
        with closing(Channel(address)) as channel:
            for event in channel.stream(order_pb2_grpc.OrderServiceStub(channel.raw).WatchOrders, request):
                got.append(event.sequence)  # noqa: PERF401

    async def main() -> None:
        async with site() as there:
            there.orders.actions["x"] = raises(fault)
            with pytest.raises(errors.OrdersysError, match=arrives):
                await follow(there)
            with pytest.raises(errors.OrdersysError, match=arrives):
                await asyncio.to_thread(follow_blocking, there.server.address)

    run(main())
    assert got == [1, 2, 1, 2]


def test_a_reader_who_stops_reading_ends_the_stream_on_the_server() -> None:
    async def main() -> None:
        async with site() as there:
            there.orders.actions["x"] = forever
            stream = there.channel.stream(there.stub.WatchOrders, order_pb2.WatchOrdersRequest(order_id="x"))
            assert (await anext(stream)).sequence == 1
            await stream.aclose()  # type: ignore[attr-defined]
            await there.orders.cancelled.wait()

    run(main())
