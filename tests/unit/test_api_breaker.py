import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from api_fakes import FakeChannel, FakeOrders, FakeProducts, listening
from prometheus_client import CollectorRegistry

from ordersys.api.breaker import FAILURES, FIRST_SECONDS, MOST_SECONDS, Breaker, LeftAlone, State
from ordersys.api.metrics import Metrics
from ordersys.api.upstream import Upstream
from ordersys.core import errors
from ordersys.core.rpc.channel import Channel
from ordersys.core.v1 import product_pb2, product_pb2_grpc


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("product-service", clock)


def attempt(breaker: Breaker, outcome: Exception | None = None) -> None:
    with suppress(type(outcome) if outcome else ()), breaker.guard():
        if outcome:
            raise outcome


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        attempt(breaker, errors.NoAnswer("nobody"))


def left_alone(breaker: Breaker) -> float:
    """In how many seconds one that is open wants to be asked again."""
    with pytest.raises(LeftAlone) as refused, breaker.guard():
        pytest.fail("the call went through")
    return refused.value.retry_after


# --- the breaker ----------------------------------------------------------------------------------------------------


def test_calls_go_through_until_five_in_a_row_got_no_answer(breaker: Breaker) -> None:
    fail(breaker, FAILURES - 1)
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert breaker.state is State.OPEN
    assert FIRST_SECONDS / 2 <= left_alone(breaker) <= FIRST_SECONDS


@pytest.mark.parametrize(
    "answer",
    [
        None,
        errors.ProductNotFound.of("9"),
        errors.Internal(),
        errors.Unavailable("too much to do", 2.0),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_any_answer_is_one_even_that_of_a_service_with_too_much_to_do(
    breaker: Breaker, answer: Exception | None
) -> None:
    fail(breaker, FAILURES - 1)
    attempt(breaker, answer)
    fail(breaker, FAILURES - 1)
    assert breaker.state is State.CLOSED
    for _ in range(2 * FAILURES):
        attempt(breaker, answer)
    assert breaker.state is State.CLOSED


def test_what_is_left_of_the_pause_is_said(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES)
    first = left_alone(breaker)
    clock.now += 0.3
    assert left_alone(breaker) == pytest.approx(first - 0.3)


def test_after_the_pause_one_call_goes_through_and_the_others_are_refused(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES)
    clock.now += FIRST_SECONDS
    assert breaker.state is State.HALF_OPEN
    with breaker.guard() as probe:
        assert probe
        assert left_alone(breaker) > 0
        assert breaker.state is State.HALF_OPEN
    assert breaker.state is State.CLOSED
    with breaker.guard() as probe:
        assert not probe


def test_each_probe_without_an_answer_makes_the_pause_longer_up_to_ten_seconds(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES)
    pauses = [left_alone(breaker)]
    for _ in range(8):
        clock.now += pauses[-1]
        fail(breaker)
        assert breaker.state is State.OPEN
        pauses.append(left_alone(breaker))
    for number, pause in enumerate(pauses):
        whole = min(MOST_SECONDS, FIRST_SECONDS * 2**number)
        assert whole / 2 <= pause <= whole
    assert len(set(pauses)) == len(pauses)


def test_after_an_answer_trouble_begins_anew(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES)
    for _ in range(4):
        clock.now += MOST_SECONDS
        fail(breaker)
    clock.now += MOST_SECONDS
    attempt(breaker)
    fail(breaker, FAILURES - 1)
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert left_alone(breaker) <= FIRST_SECONDS


def test_a_bug_of_ours_is_no_answer_and_lets_the_next_call_be_the_probe(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES)
    clock.now += FIRST_SECONDS
    attempt(breaker, ZeroDivisionError())
    assert breaker.state is State.HALF_OPEN
    with breaker.guard() as probe:
        assert probe


def test_a_call_from_before_neither_prolongs_the_pause_nor_opens_it_again(breaker: Breaker) -> None:
    early = breaker.guard()
    assert early.__enter__() is False
    fail(breaker, FAILURES)
    pause = left_alone(breaker)
    too_late = errors.NoAnswer("at last")
    assert early.__exit__(errors.NoAnswer, too_late, None) is False
    assert left_alone(breaker) == pause
    assert breaker.state is State.OPEN


def test_an_answer_to_a_call_from_before_closes_it(breaker: Breaker) -> None:
    with breaker.guard():
        fail(breaker, FAILURES)
        assert breaker.state is State.OPEN
    assert breaker.state is State.CLOSED


def test_a_hint_ends_the_pause_and_opens_nothing_wider(breaker: Breaker, clock: Clock) -> None:
    breaker.hasten()
    assert breaker.state is State.CLOSED
    fail(breaker, FAILURES)
    breaker.hasten()
    assert breaker.state is State.HALF_OPEN
    with breaker.guard() as probe:
        assert probe
        breaker.hasten()
        left_alone(breaker)


def test_of_many_threads_one_is_the_probe(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES)
    clock.now += FIRST_SECONDS
    together, refused = threading.Barrier(16), threading.Semaphore(0)

    def come(_: int) -> str:
        together.wait(10)
        try:
            with breaker.guard() as probe:
                assert all(refused.acquire(timeout=10) for _ in range(15))
                return "probe" if probe else "through"
        except LeftAlone:
            refused.release()
            return "refused"

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(come, range(16))) == ["probe"] + ["refused"] * 15


def test_each_turn_is_logged_once(breaker: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fail(breaker, FAILURES)
        clock.now += FIRST_SECONDS
        fail(breaker)
        clock.now += 2 * FIRST_SECONDS
        attempt(breaker)
        attempt(breaker)
    said = [(each.levelname, each.getMessage()) for each in caplog.records]
    assert [level for level, _ in said] == ["WARNING", "INFO"]
    assert all("product-service" in message for _, message in said)


# --- calls through it -----------------------------------------------------------------------------------------------


class Shop:
    """An upstream in front of a fake; `ask` gets its data, or says how it was refused."""

    def __init__(self, channel: Channel, clock: Clock, deadline: float = 3.0) -> None:
        self.metrics = Metrics()
        self.upstream = Upstream("product-service", channel, deadline=deadline, metrics=self.metrics, clock=clock)
        self._stub = product_pb2_grpc.ProductServiceStub(channel.raw)

    def ask(self) -> Any:
        try:
            return self.upstream.call(self._stub.GetData, product_pb2.GetDataRequest()).message
        except errors.OrdersysError as error:
            return type(error)

    def calls(self, code: str) -> float:
        labels = {"service": "product-service", "method": "GetData", "code": code}
        return counted(self.metrics.registry, "ordersys_upstream_calls_total", labels)

    def breaker(self) -> float:
        return counted(self.metrics.registry, "ordersys_upstream_breaker_state", {"service": "product-service"})


def counted(registry: CollectorRegistry, name: str, labels: dict[str, str]) -> float:
    return registry.get_sample_value(name, labels) or 0.0


def test_while_it_is_open_nobody_is_called(clock: Clock) -> None:
    products = FakeProducts()
    shop = Shop(FakeChannel(products), clock)
    assert shop.ask() == "1 product, 10 units"
    products.failure = errors.NoAnswer("gone")
    assert [shop.ask() for _ in range(FAILURES + 3)] == [errors.NoAnswer] * FAILURES + [LeftAlone] * 3
    assert len(products.requests) == 1 + FAILURES
    assert (shop.calls("ok"), shop.calls("no_answer"), shop.calls("breaker_open")) == (1, FAILURES, 3)
    assert shop.breaker() == State.OPEN
    timed = {"service": "product-service", "method": "GetData"}
    seconds = counted(shop.metrics.registry, "ordersys_upstream_call_duration_seconds_count", timed)
    assert seconds == 1 + FAILURES


def test_the_probe_asks_for_the_health_before_it_sends_anything(clock: Clock) -> None:
    products = FakeProducts()
    shop = Shop(FakeChannel(products), clock)
    products.failure = errors.NoAnswer("gone")
    for _ in range(FAILURES):
        shop.ask()
    clock.now += FIRST_SECONDS
    assert shop.breaker() == State.HALF_OPEN
    assert shop.ask() is errors.NoAnswer
    assert len(products.requests) == FAILURES
    products.failure = None
    assert shop.ask() is LeftAlone
    clock.now += 2 * FIRST_SECONDS
    assert shop.ask() == "1 product, 10 units"
    assert shop.breaker() == State.CLOSED


def test_a_service_that_is_there_and_refuses_is_asked_on_and_on(clock: Clock) -> None:
    products = FakeProducts()
    products.failure = errors.Unavailable("too much to do")
    with listening(products, FakeOrders()) as (address, _):
        channel = Channel(address, retry=False)
        shop = Shop(channel, clock)
        assert [shop.ask() for _ in range(2 * FAILURES)] == [errors.Unavailable] * 2 * FAILURES
        channel.close()
    assert shop.breaker() == State.CLOSED
    assert shop.calls("unavailable") == 2 * FAILURES


def test_an_address_where_nobody_listens_gives_no_answer(clock: Clock) -> None:
    with socket.socket() as taken:  # bound but not listening: nobody answers there, and nobody else can
        taken.bind(("127.0.0.1", 0))
        channel = Channel(f"127.0.0.1:{taken.getsockname()[1]}", retry=False)
        shop = Shop(channel, clock)
        assert [shop.ask() for _ in range(FAILURES + 1)] == [errors.NoAnswer] * FAILURES + [LeftAlone]
        channel.close()


def test_a_deadline_that_passes_is_no_answer(clock: Clock) -> None:
    products = FakeProducts()
    products.before_answer = lambda: asyncio.sleep(30)
    with listening(products, FakeOrders()) as (address, _):
        channel = Channel(address, retry=False)
        shop = Shop(channel, clock, deadline=0.2)
        assert [shop.ask() for _ in range(FAILURES + 1)] == [errors.NoAnswer] * FAILURES + [LeftAlone]
        channel.close()


def test_a_server_is_healthy_when_it_serves_what_is_asked_for() -> None:
    with listening(FakeProducts(), FakeOrders()) as (address, _):
        channel = Channel(address)
        assert channel.healthy("", deadline=5)
        assert not channel.healthy("ordersys.core.v1.Other", deadline=5)
        channel.close()
    channel = Channel(address)
    assert not channel.healthy("", deadline=0.2)
    channel.close()
