"""Our gRPC server and channels on a real socket: listening, health, draining, limits, retries, and who leaves early."""

import asyncio
import itertools
import re
import threading
import time

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from integration.grpc_site import SERVICE, Orders, Site, forever, new_server, raises, run, site, slow_road, taken_port

from ordersys.core import errors, ids
from ordersys.core.rpc import server
from ordersys.core.rpc.channel import AsyncChannel, Channel
from ordersys.core.rpc.limits import Limits
from ordersys.core.v1 import order_pb2, order_pb2_grpc
from ordersys.core.watch.readiness import State

# --- listening --------------------------------------------------------------------------------------------------


def test_port_zero_is_any_port_and_the_address_says_which() -> None:
    async def main() -> str:
        async with site() as there:
            return there.server.address

    assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", run(main()))


def test_a_second_server_on_the_same_port_is_refused_and_the_first_goes_on() -> None:
    async def main() -> None:
        async with site() as there:
            with pytest.raises(errors.UsageError, match=f"cannot listen on {there.server.address}: .*in use"):
                await new_server(Orders(), there.server.address).start()
            assert await there.get("fine") == "fine"

    run(main())


def test_two_servers_that_start_at_the_same_moment_do_not_share_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have found it free: then it is gRPC's own bind that decides."""
    monkeypatch.setattr(server, "refuse_taken", lambda _: None)

    async def main() -> None:
        async with site() as there:
            with pytest.raises(errors.UsageError, match=f"cannot listen on {there.server.address}"):
                await new_server(Orders(), there.server.address).start()

    run(main())


def test_a_port_that_somebody_else_has_is_refused() -> None:
    with taken_port() as address, pytest.raises(errors.UsageError, match=f"cannot listen on {address}: .*in use"):
        run(new_server(Orders(), address).start())


@pytest.mark.parametrize(
    "bind",
    ["", "nonsense", ":1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:99999", "127.0.0.1:-1", "192.0.2.1:0", "a b:0"],
)
def test_an_address_where_nobody_can_listen_is_refused(bind: str) -> None:
    with pytest.raises(errors.UsageError, match="cannot listen on ") as refused:
        run(new_server(Orders(), bind).start())
    assert bind in refused.value.message


# --- callers who leave, calls that take too long ----------------------------------------------------------------


def test_a_caller_who_leaves_cancels_the_handler_and_nobody_else() -> None:
    async def main() -> None:
        async with site() as there:
            left = asyncio.Event()
            gate = asyncio.Event()

            async def waits() -> None:
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    left.set()
                    raise

            there.orders.actions = {"leaves": waits, "stays": gate.wait}  # type: ignore[dict-item]
            leaves, stays = (asyncio.create_task(there.get(each)) for each in ("leaves", "stays"))
            await there.until("leaves")
            await there.until("stays")
            leaves.cancel()
            await left.wait()
            with pytest.raises(asyncio.CancelledError):
                await leaves
            gate.set()
            assert await stays == "stays"

    run(main())


def test_a_call_that_takes_too_long_is_unavailable_at_its_deadline() -> None:
    async def main() -> None:
        async with site() as there:
            there.orders.actions["slow"] = forever
            began = time.monotonic()
            with pytest.raises(errors.Unavailable, match="DEADLINE_EXCEEDED") as raised:
                await there.get("slow", deadline=0.3)
            assert 0.2 < time.monotonic() - began < 5
            assert raised.value.metadata == {"address": there.server.address}

    run(main())


def test_a_channel_that_is_closed_during_a_call_fails_the_call_and_cancels_nobody() -> None:
    async def main() -> None:
        async with site() as there:
            there.orders.actions["slow"] = forever
            call = asyncio.create_task(there.get("slow"))
            await there.until("slow")
            await there.channel.close()
            with pytest.raises(errors.Unavailable, match="the channel was closed during the call"):
                await call

    run(main())


# --- limits -----------------------------------------------------------------------------------------------------


def test_a_request_over_the_limit_is_refused_for_good_and_one_below_it_is_not() -> None:
    async def main() -> None:
        async with site(retry=True) as there:
            most = Limits().request_bytes
            fits = "x" * (most - 100)
            assert await there.get(fits) == fits
            with pytest.raises(errors.InvalidArgument, match=r"the request is too large: .* larger than max"):
                await there.get("x" * most)
            assert len(there.orders.calls) == 1

    run(main())


# --- retries and connections ------------------------------------------------------------------------------------


def test_only_a_call_that_may_go_through_is_repeated_and_only_where_it_was_asked_for() -> None:
    async def main() -> None:
        async with site(retry=True) as there:
            failures = [errors.Unavailable("not yet"), errors.Unavailable("nearly")]

            async def third_time_lucky() -> None:
                if failures:
                    raise failures.pop()

            there.orders.actions["x"] = third_time_lucky
            there.orders.actions["y"] = raises(errors.OrderNotFound.of("y"))
            assert await there.get("x") == "x"
            with pytest.raises(errors.OrderNotFound):
                await there.get("y")
            assert there.orders.calls == ["x", "x", "x", "y"]
            assert await there.get("cancelled at first") == "cancelled at first"

            once = AsyncChannel(there.server.address, retry=False)
            there.orders.actions["z"] = raises(errors.Unavailable("no"))
            with pytest.raises(errors.Unavailable):
                await Site(there.orders, there.server, once).get("z")
            await once.close()
            assert there.orders.calls[-1:] == ["z"]

    run(main())


def test_a_server_that_answers_slowly_can_be_connected_to() -> None:
    """One attempt may take seconds: far away, or in a busy hour, 100 ms are nothing."""

    async def main() -> None:
        async with site() as there, slow_road(there.server.address, seconds=0.15) as address:
            channel = AsyncChannel(address, retry=False)
            try:
                assert await Site(there.orders, there.server, channel).get("far away") == "far away"
            finally:
                await channel.close()

    run(main())


def test_nobody_there_is_unavailable_at_once_and_found_soon_after_it_has_come() -> None:
    async def main() -> None:
        with taken_port() as address:
            pass
        channel = AsyncChannel(address, retry=False)
        orders = Orders()
        running = new_server(orders, address)
        there = Site(orders, running, channel)
        began = time.monotonic()
        with pytest.raises(errors.Unavailable, match=f"{address}: UNAVAILABLE: .*refused"):
            await there.get("x")
        assert time.monotonic() - began < 5
        await running.start()
        try:
            while True:
                try:
                    assert await there.get("x") == "x"
                    break
                except errors.Unavailable:
                    await asyncio.sleep(0.05)
        finally:
            await channel.close()
            await running.stop(0)

    run(main())


def test_a_blocking_channel_may_be_used_by_many_threads() -> None:
    async def main() -> None:
        async with site() as there:
            channel = Channel(there.server.address)
            stub = order_pb2_grpc.OrderServiceStub(channel.raw)
            got: list[str] = []

            def call(number: int) -> None:
                request = order_pb2.GetOrderRequest(order_id=str(number))
                got.append(channel.call(stub.GetOrder, request, deadline=10).order.id)

            def all_at_once() -> None:
                threads = [threading.Thread(target=call, args=(number,)) for number in range(30)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

            await asyncio.to_thread(all_at_once)
            channel.close()
            assert sorted(got, key=int) == [str(number) for number in range(30)]

    run(main())


# --- trace context ----------------------------------------------------------------------------------------------


def test_the_callers_trace_is_passed_on_and_a_missing_or_broken_one_replaced() -> None:
    given = ids.new_traceparent()

    async def main() -> list[str]:
        async with site() as there:
            request = order_pb2.GetOrderRequest(order_id="x")
            await there.stub.GetOrder(request, metadata=(("traceparent", given),))
            await there.stub.GetOrder(request)
            await there.stub.GetOrder(request, metadata=(("traceparent", "00-nonsense-01"),))
            return there.orders.traceparents

    passed, made, replaced = run(main())
    assert passed == given
    assert ids.is_traceparent(made)
    assert ids.is_traceparent(replaced)
    assert len({passed, made, replaced}) == 3


# --- health and reflection --------------------------------------------------------------------------------------

States = health_pb2.HealthCheckResponse


def test_each_service_and_the_whole_are_serving_and_others_unknown() -> None:
    async def main() -> None:
        async with site() as there:
            health = health_pb2_grpc.HealthStub(there.channel.raw)
            for service in ("", SERVICE):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == States.SERVING
            with pytest.raises(aio.AioRpcError) as unknown:
                await health.Check(health_pb2.HealthCheckRequest(service="nonsense"))
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
            watch = health.Watch(health_pb2.HealthCheckRequest(service="nonsense"))
            assert (await watch.read()).status == States.SERVICE_UNKNOWN
            watch.cancel()

    run(main())


def test_health_follows_what_is_found_and_names_what_is_missing() -> None:
    async def main() -> None:
        async with site() as there:
            health = health_pb2_grpc.HealthStub(there.channel.raw)
            watches = [health.Watch(health_pb2.HealthCheckRequest(service=each)) for each in ("", SERVICE)]

            async def told() -> list[int]:
                return [(await each.read()).status for each in watches]

            async def missing(service: str = "") -> str:
                return await there.channel.missing(service, deadline=10)

            assert await told() == [States.SERVING] * 2
            there.server.health.report(State({"database": False, "broker": True}, ("database",)))
            assert await told() == [States.NOT_SERVING] * 2
            assert [await missing(each) for each in ("", SERVICE, "database", "broker")] == ["database"] * 3 + [""]
            there.server.health.report(State({"database": True, "broker": False}, ()))
            assert await told() == [States.SERVING] * 2  # degraded, and each dependency can be asked for
            assert [await missing(each) for each in ("", "database", "broker")] == ["", "", "broker"]
            there.server.health.report(State({"database": True, "broker": None}, ()))
            assert await missing("broker") == "broker"
            with pytest.raises(errors.OrdersysError):
                await missing("nonsense")
            blocking = Channel(there.server.address, retry=False)
            there.server.health.report(State({"database": False}, ("database", "schema")))
            assert await asyncio.to_thread(blocking.missing, SERVICE, deadline=10) == "database, schema"
            assert not await asyncio.to_thread(blocking.healthy, SERVICE, deadline=10)
            blocking.close()

    run(main())


def test_a_watch_hears_of_changes_only() -> None:
    async def main() -> None:
        async with site() as there:
            watch = health_pb2_grpc.HealthStub(there.channel.raw).Watch(health_pb2.HealthCheckRequest(service="broker"))
            assert (await watch.read()).status == States.SERVICE_UNKNOWN
            for up in (True, True, True, False, False, True):
                there.server.health.report(State({"broker": up}, ()))
                await asyncio.sleep(0)
            there.server.health.drain()
            heard = []
            while (answer := await watch.read()) is not aio.EOF:
                heard.append(answer.status)
            # It may miss a change that another followed at once; it never repeats itself, and ends with the drain.
            assert all(one != next_ for one, next_ in itertools.pairwise(heard))
            assert heard[-1] == States.NOT_SERVING

    run(main())


def test_while_it_drains_it_is_not_serving_takes_no_new_calls_and_finishes_the_old_ones() -> None:
    async def main() -> None:
        async with site() as there:
            gate = asyncio.Event()
            there.orders.actions["slow"] = gate.wait  # type: ignore[assignment]
            health = health_pb2_grpc.HealthStub(there.channel.raw)
            watches = [health.Watch(health_pb2.HealthCheckRequest(service=each)) for each in ("", SERVICE)]
            assert [(await each.read()).status for each in watches] == [States.SERVING] * 2
            call = asyncio.create_task(there.get("slow", deadline=20))
            await there.until("slow")

            stopping = asyncio.create_task(there.server.stop(20))
            assert [(await each.read()).status for each in watches] == [States.NOT_SERVING] * 2
            assert [await each.read() for each in watches] == [aio.EOF] * 2  # a watch does not hold it
            late = AsyncChannel(there.server.address, retry=False)
            with pytest.raises(errors.Unavailable):
                await Site(there.orders, there.server, late).get("late")
            await late.close()
            assert not stopping.done()
            gate.set()
            assert await call == "slow"
            await stopping
            assert there.orders.calls == ["slow"]

    run(main())


def test_nobody_who_watches_its_health_holds_the_server_for_its_grace_time() -> None:
    async def main() -> float:
        async with site() as there:
            watch = health_pb2_grpc.HealthStub(there.channel.raw).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            began = time.monotonic()
            await there.server.stop(20)
            return time.monotonic() - began

    assert run(main()) < 10


def test_a_call_that_outlasts_the_grace_time_is_given_up() -> None:
    async def main() -> None:
        async with site() as there:
            there.orders.actions["slow"] = forever
            call = asyncio.create_task(there.get("slow", deadline=20))
            await there.until("slow")
            await there.server.stop(0.2)
            with pytest.raises(errors.Unavailable):
                await call

    run(main())


def test_reflection_lists_every_service() -> None:
    async def main() -> set[str]:
        async with site() as there:
            stub = reflection_pb2_grpc.ServerReflectionStub(there.channel.raw)
            call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            answer = await call.read()
            call.cancel()
            return {service.name for service in answer.list_services_response.service}

    assert run(main()) == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
