"""The line that every gRPC call leaves, through a real server: level by what came of it, ids and nothing else."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from integration.grpc_site import SERVICE, Site, raises, run, site

from ordersys.core import errors, ids
from ordersys.core.rpc import call_log
from ordersys.core.rpc.call_log import CallLog
from ordersys.core.rpc.server import Call
from ordersys.core.v1 import order_pb2

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "hunter2"  # noqa: S105 - the point is that nobody ever sees it


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == call_log.__name__]


def told(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = vars(record)["ecs"]
    return dict(facts)


def the_line(
    caplog: pytest.LogCaptureFixture, ask: Callable[[Site], Awaitable[object]], *failures: Exception
) -> logging.LogRecord:
    """What one call leaves; the service fails for the order "x" with the failure."""

    async def main() -> None:
        async with site() as there:
            if failures:
                there.orders.actions["x"] = raises(failures[0])
            try:
                await ask(there)
            except (errors.OrdersysError, aio.AioRpcError):
                assert failures

    caplog.set_level(logging.INFO)
    run(main())
    [line] = lines(caplog)
    return line


def get(order_id: str = "x") -> Callable[[Site], Awaitable[object]]:
    request = order_pb2.GetOrderRequest(order_id=order_id)
    metadata = (("traceparent", TRACEPARENT), ("x-secret", SECRET))

    async def ask(there: Site) -> None:
        await there.stub.GetOrder(request, metadata=metadata)

    return ask


def test_a_call_that_succeeds_leaves_one_line(caplog: pytest.LogCaptureFixture) -> None:
    line = the_line(caplog, get("o-1"))
    assert line.levelno == logging.INFO
    assert line.getMessage().startswith("GetOrder: OK in ")
    facts = told(line)
    assert facts.pop("event.duration") > 0
    assert facts == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{SERVICE}/GetOrder",
        "rpc.response.status_code": "OK",
        "event.outcome": "success",
        "client.address": "127.0.0.1",
        "trace.id": TRACEPARENT[3:35],
        "span.id": TRACEPARENT[36:52],
        "ordersys.order.id": "o-1",
    }


def test_what_a_rule_refuses_is_no_trouble_and_none_of_its_words_are_told(caplog: pytest.LogCaptureFixture) -> None:
    line = the_line(caplog, get(), errors.InvalidArgument.of("name", f"must not be {SECRET}"))
    assert line.levelno == logging.INFO
    assert line.getMessage().endswith(" ms: invalid_argument")
    facts = told(line)
    assert (facts["rpc.response.status_code"], facts["error.code"]) == ("INVALID_ARGUMENT", "invalid_argument")
    assert (facts["event.outcome"], facts["ordersys.order.id"]) == ("failure", "x")
    assert SECRET not in caplog.text + str(facts)


def test_with_a_dependency_away_the_log_knows_what_the_caller_does_not(caplog: pytest.LogCaptureFixture) -> None:
    away = errors.Unavailable("database me@10.0.0.7: refused", told="the database cannot be reached")
    heard: list[aio.AioRpcError] = []

    async def ask(there: Site) -> None:
        try:
            await get()(there)
        except aio.AioRpcError as error:
            heard.append(error)

    line = the_line(caplog, ask, away)
    assert (line.levelno, line.exc_info) == (logging.WARNING, None)
    assert told(line)["error.message"] == "database me@10.0.0.7: refused"
    assert told(line)["error.code"] == "unavailable"
    [error] = heard
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the database cannot be reached")
    assert "10.0.0.7" not in repr(error) + repr(error.trailing_metadata())


def test_a_fault_of_ours_is_one_error_with_its_stack_trace(caplog: pytest.LogCaptureFixture) -> None:
    line = the_line(caplog, get(), ZeroDivisionError("of ours"))
    assert line.levelno == logging.ERROR
    assert line.exc_info
    assert line.getMessage().endswith(" ms: ZeroDivisionError: of ours")
    assert told(line)["error.code"] == "internal"


def test_a_stream_leaves_its_line_when_its_reader_goes(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(there: Site) -> None:
        async def wait() -> None:
            await there.orders.cancelled.wait()

        there.orders.actions["s"] = wait
        call = there.stub.WatchOrders(order_pb2.WatchOrdersRequest(order_id="s"))
        await call.read()
        assert lines(caplog) == []
        call.cancel()
        await there.orders.cancelled.wait()

    line = the_line(caplog, ask)
    assert line.levelno == logging.INFO
    facts = told(line)
    assert (facts["rpc.response.status_code"], facts["event.outcome"]) == ("CANCELLED", "unknown")
    assert facts["ordersys.order.id"] == "s"


def test_health_checks_are_for_debugging_only(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with site() as there:
            check = health_pb2_grpc.HealthStub(there.channel.raw).Check
            await check(health_pb2.HealthCheckRequest())

    caplog.set_level(logging.DEBUG)
    run(main())
    assert [line.levelno for line in lines(caplog)] == [logging.DEBUG]


def a_call(**more: Any) -> Call:
    return Call("/p.S/M", streams=False, peer="ipv4:192.0.2.1:5", traceparent=ids.new_traceparent(), **more)


def test_a_batch_names_its_orders_but_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    commands = [order_pb2.OrderCommand(order_id=f"o-{number}") for number in range(1000)]
    CallLog().ended(a_call(request=order_pb2.ProcessOrdersRequest(commands=commands)))
    assert told(lines(caplog)[0])["ordersys.order.id"] == [f"o-{number}" for number in range(100)]


def test_an_id_that_is_none_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    CallLog().ended(a_call(request=order_pb2.GetOrderRequest(order_id="x" * 1_000_000)))
    assert told(lines(caplog)[0])["ordersys.order.id"] == "x" * 128


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:5", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:5", "2001:db8::1"),
        ("ipv6:[::1]:5", "::1"),
        ("unix:/run/x", "unix:/run/x"),
    ],
)
def test_the_address_is_without_its_port(caplog: pytest.LogCaptureFixture, peer: str, address: str) -> None:
    caplog.set_level(logging.INFO)
    call = a_call()
    call.peer = peer
    CallLog().ended(call)
    assert told(lines(caplog)[0])["client.address"] == address


def test_a_line_that_nobody_wants_is_not_made(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    CallLog().ended(a_call(request=object()))
    assert lines(caplog) == []
