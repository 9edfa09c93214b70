"""Where `ordersys top` has its figures from: real HTTP, real gRPC, and services that come and go."""

import time
from collections.abc import Iterator

import pytest
from fake_services import FakeServices
from integration.grpc_site import taken_port
from role_site import site

from ordersys.client.calls import Orders
from ordersys.core import ids
from ordersys.core.events import Change, Event
from ordersys.operate.top import sources
from ordersys.operate.top.sources import Log, Seen, Sources


@pytest.fixture
def services() -> Iterator[FakeServices]:
    running = FakeServices().start()
    yield running
    running.stop()


@pytest.fixture
def orders(services: FakeServices) -> Iterator[Orders]:
    with Orders(services.address, services.address, 10) as client:
        yield client


class Counter:
    """A role's metrics, whose counter somebody moves."""

    def __init__(self) -> None:
        self.value = 0

    def __call__(self) -> str:
        return (
            "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 1\n"
            f"# TYPE ordersys_things_total counter\nordersys_things_total {self.value}\n"
        )


def look(found: Sources, seconds: float = 20) -> Seen:
    return found.look(seconds, 60, 0)


# --- everybody answers, or not --------------------------------------------------------------------------------------


def test_metrics_and_both_services_are_asked(orders: Orders) -> None:
    counter = Counter()
    with site(metrics=counter) as role:
        url = f"http://{role}/metrics"
        asked = Sources([url], orders)
        first = look(asked)
        assert (first.measured, first.rates.per_second("ordersys_things_total"), first.away) == ((url,), None, {})
        assert first.flow is not None
        assert [each.dead for each in first.flow.queues] == [1]
        assert [each.id for each in first.products or ()] == ["1", "2"]
        counter.value = 100
        second = look(asked)
    rate = second.rates.per_second("ordersys_things_total")
    assert rate == pytest.approx(100 / second.rates.seconds)


def test_who_does_not_answer_is_named_and_hides_nobody(orders: Orders) -> None:
    with taken_port() as silent, site(metrics="x y z") as stranger, site(metrics="", key="osk_x") as closed:
        urls = {
            name: f"http://{where}/metrics" for name, where in (("silent", silent), ("no", stranger), ("key", closed))
        }
        found = look(Sources(list(urls.values()), orders), seconds=2)
        away = {name: found.away[url] for name, url in urls.items()}
        assert look(Sources([urls["key"]], orders, api_key="osk_x")).away == {}
    assert away["silent"] in ("timed out", "no answer within 2 s")
    assert away["no"] == "what it answers are no metrics"
    assert "ORDERSYS_API_KEY" in away["key"]
    assert found.products is not None
    assert found.measured == ()


def test_services_that_go_and_come(services: FakeServices) -> None:
    with Orders(services.address, services.address, 1) as client:
        asked = Sources([], client)
        assert look(asked).away == {}
        services.stop()
        gone = look(asked)
        assert set(gone.away) == {"product-service", "order-service"}
        assert (gone.flow, gone.products, gone.events_per_second) == (None, None, None)
        services.start()
        deadline = time.monotonic() + 30
        while look(asked).away:
            assert time.monotonic() < deadline


def test_a_role_that_was_away_starts_a_new_window(orders: Orders) -> None:
    counter = Counter()
    asked = Sources(["http://127.0.0.1:9/metrics"], orders)
    reading = sources.read(counter(), 1.0)
    later = sources.read(counter(), 2.0)
    url = "http://127.0.0.1:9/metrics"
    assert asked._pair(url, reading, 60) == (reading, reading)
    assert asked._pair(url, later, 60) == (reading, later)
    assert asked._pair(url, OSError("gone"), 60) is None
    assert asked._pair(url, later, 60) == (later, later)


def test_the_window_moves_on(orders: Orders) -> None:
    url = "http://127.0.0.1:9/metrics"
    asked = Sources([url], orders)
    readings = [sources.read(Counter()(), float(at)) for at in range(10)]
    pairs = [asked._pair(url, each, 3.0) for each in readings]
    assert [(pair[0].at, pair[1].at) for pair in pairs if pair] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (2, 5), (3, 6), (4, 7), (5, 8), (6, 9)
    ]  # fmt: skip


# --- the event log --------------------------------------------------------------------------------------------------


def test_each_event_is_seen_once_and_rates_are_by_change(services: FakeServices, orders: Orders) -> None:
    log = Log(orders)
    first = services.order()
    log.look(at=10.0)
    assert (len(log.events), log.per_second) == (1, None)
    services.order()
    services.changed(first.id, Change.SHIPPED)
    log.look(at=12.0)
    assert [event.change.value for event in log.events] == ["created", "created", "shipped"]
    assert log.per_second is not None
    assert (log.per_second["created"], log.per_second["shipped"], log.per_second["lines"]) == (0.5, 0.5, 0.0)
    log.look(at=13.0)
    assert len(log.events) == 3
    assert set(log.per_second.values()) == {0.0}


def test_without_any_order_there_is_nothing_to_see(orders: Orders) -> None:
    log = Log(orders)
    log.look(at=1.0)
    log.look(at=2.0)
    assert (list(log.events), set((log.per_second or {}).values())) == ([], {0.0})


def test_a_log_that_grows_faster_than_it_is_read_is_caught_up_with(services: FakeServices, orders: Orders) -> None:
    log = Log(orders)
    services.order()
    log.look(at=1.0)
    grow(services, 5 * sources._PAGE)
    log.look(at=2.0)
    assert log.per_second is not None
    assert log.per_second["created"] == pytest.approx(1000, rel=0.02)
    assert log.events[-1].sequence == len(services.log)
    grow(services, 7)
    log.look(at=3.0)
    assert (log.per_second["created"], log.events[-1].sequence) == (7.0, len(services.log))


def test_a_long_log_is_not_read_from_its_beginning(services: FakeServices, orders: Orders) -> None:
    grow(services, 20 * sources._PAGE + 3)
    log = Log(orders)
    log.look(at=1.0)
    assert [event.sequence for event in log.events][-1] == len(services.log)
    assert len(services.received("ListEvents")) < 20
    assert sum(request.page_size for request in services.received("ListEvents")) < 2 * sources._PAGE


def grow(services: FakeServices, count: int) -> None:
    """A thousand orders per second, by their own times."""
    order = services.order()
    services.log.pop()
    began = order.updated_at + len(services.log) * 1000
    for number in range(count):
        at = began + number * 1000
        services.log.append(
            Event(id=ids.uuid7(), sequence=len(services.log) + 1, change=Change.CREATED, time=at, order=order)
        )
