"""The gauge against hand-written fakes: in time, at most once a second, and honest about a broker that is away."""

import asyncio
import threading
import time
from collections.abc import Mapping

import pytest

from ordersys.broker.broker import Depth
from ordersys.core import errors
from ordersys.order import flow
from ordersys.order.flow import Flow, Gauge

DEPTHS = {"notify.fanout": Depth(3, 2, 1)}


class FakeStore:
    def __init__(self) -> None:
        self.asked = 0
        self.fail = False

    async def outbox(self) -> tuple[int, int]:
        self.asked += 1
        if self.fail:
            raise errors.Unavailable("database away")
        return 7, 1_750_000_000_000_000


class FakeBroker:
    def __init__(self) -> None:
        self.asked = 0
        self.threads: set[int] = set()
        self.failure: Exception | None = None
        self.called = threading.Event()
        self.hanging = threading.Event()
        self.hanging.set()

    def depths(self) -> Mapping[str, Depth]:
        self.asked += 1
        self.called.set()
        self.threads.add(threading.get_ident())
        assert self.hanging.wait(20)
        if self.failure is not None:
            raise self.failure
        return DEPTHS


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is too fresh to be asked again."""
    monkeypatch.setattr(flow, "FRESH_SECONDS", 0.0)


def test_outbox_and_queues_come_together(store: FakeStore, broker: FakeBroker) -> None:
    found = asyncio.run(Gauge(store, broker.depths).read())

    expected = Flow(outbox_depth=7, outbox_oldest=1_750_000_000_000_000, queues=DEPTHS, broker_problem="")
    assert found == expected
    assert threading.get_ident() not in broker.threads


def test_many_who_ask_are_one_who_counts(store: FakeStore, broker: FakeBroker) -> None:
    async def ask() -> None:
        gauge = Gauge(store, broker.depths)
        await asyncio.gather(*(gauge.read() for _ in range(50)))
        await gauge.read()

    asyncio.run(ask())

    assert (store.asked, broker.asked) == (1, 1)


@pytest.mark.usefixtures("at_once")
def test_an_answer_grows_old(store: FakeStore, broker: FakeBroker) -> None:
    async def ask() -> None:
        gauge = Gauge(store, broker.depths)
        await gauge.read()
        await gauge.read()

    asyncio.run(ask())

    assert (store.asked, broker.asked) == (2, 2)


@pytest.mark.usefixtures("at_once")
def test_a_broker_that_hangs_is_asked_once_and_named_in_time(
    store: FakeStore, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "BROKER_SECONDS", 0.1)
    broker.hanging.clear()

    async def ask() -> tuple[list[Flow], float, Flow]:
        gauge = Gauge(store, broker.depths)
        began = time.monotonic()
        silent = [await gauge.read() for _ in range(3)]
        took = time.monotonic() - began
        broker.hanging.set()
        return silent, took, await gauge.read()

    silent, took, found = asyncio.run(ask())

    assert [(each.outbox_depth, each.queues, each.broker_problem) for each in silent] == [(7, {}, flow.SILENT)] * 3
    assert took < 5
    assert (found.queues, found.broker_problem) == (DEPTHS, "")
    assert broker.asked == 1


@pytest.mark.usefixtures("at_once")
def test_a_broker_that_is_away_is_named_without_its_address(store: FakeStore, broker: FakeBroker) -> None:
    broker.failure = errors.Unavailable("RabbitMQ at secret.example:5672: connection refused")

    async def ask() -> tuple[Flow, Flow]:
        gauge = Gauge(store, broker.depths)
        away = await gauge.read()
        broker.failure = None
        return away, await gauge.read()

    away, back = asyncio.run(ask())

    assert (away.outbox_depth, away.queues, away.broker_problem) == (7, {}, flow.SILENT)
    assert (back.queues, back.broker_problem) == (DEPTHS, "")


@pytest.mark.usefixtures("at_once")
def test_a_fault_is_logged_once_and_does_not_take_the_outbox_with_it(
    store: FakeStore, broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.failure = errors.UsageError("broker /home/x/broker.db is the database of something else")

    async def ask() -> list[Flow]:
        gauge = Gauge(store, broker.depths)
        return [await gauge.read() for _ in range(3)]

    found = asyncio.run(ask())

    assert [(each.outbox_depth, each.broker_problem) for each in found] == [(7, flow.FAULT)] * 3
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.usefixtures("at_once")
def test_a_database_that_is_away_is_unavailable_and_forgotten_when_it_is_back(
    store: FakeStore, broker: FakeBroker
) -> None:
    store.fail = True

    async def ask() -> Flow:
        gauge = Gauge(store, broker.depths)
        with pytest.raises(errors.Unavailable):
            await gauge.read()
        store.fail = False
        return await gauge.read()

    assert asyncio.run(ask()).outbox_depth == 7


def test_who_leaves_takes_the_answer_from_nobody(store: FakeStore, broker: FakeBroker) -> None:
    broker.hanging.clear()

    async def ask() -> Flow:
        gauge = Gauge(store, broker.depths)
        leaving = asyncio.create_task(gauge.read())
        staying = asyncio.create_task(gauge.read())
        assert await asyncio.to_thread(broker.called.wait, 20)
        leaving.cancel()
        await asyncio.wait((leaving,))
        broker.hanging.set()
        return await staying

    assert asyncio.run(ask()).queues == DEPTHS
