"""The arithmetic of `ordersys top`, and what its screen shows of it."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ordersys.client.calls import Flow, QueueDepth
from ordersys.core.events import Change, Event
from ordersys.core.records import Order, Product, Status
from ordersys.operate.top import view
from ordersys.operate.top.readings import Rates, Reading, quantile, rates, read
from ordersys.operate.top.sample import Sample, document, sample
from ordersys.operate.top.sources import Seen

AT = 1_793_707_424_123_456
INF = math.inf


def reading(at: float, text: str, started: float = 1.0) -> Reading:
    return read(f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {started}\n{text}\n", at)


def counter(value: float, name: str = "ordersys_things", labels: str = "") -> str:
    return f"# TYPE {name}_total counter\n{name}_total{labels} {value}"


def buckets(name: str, labels: str, counts: Mapping[str, float], total: float) -> str:
    lines = [f'{name}_bucket{{{labels},le="{bound}"}} {count}' for bound, count in counts.items()]
    last = list(counts.values())[-1]
    return "\n".join(
        [f"# TYPE {name} histogram", *lines, f"{name}_count{{{labels}}} {last}", f"{name}_sum{{{labels}}} {total}"]
    )


# --- rates ----------------------------------------------------------------------------------------------------------


def test_a_rate_is_the_increase_over_the_time_between() -> None:
    found = rates([(reading(10, counter(100)), reading(12.5, counter(150)))])
    assert (found.per_second("ordersys_things_total"), found.seconds) == (20.0, 2.5)


def test_rates_of_several_processes_add_up_each_over_its_own_time() -> None:
    one = (reading(10, counter(0)), reading(11, counter(5)))
    other = (reading(10, counter(0)), reading(12, counter(5)))
    assert rates([one, other]).per_second("ordersys_things_total") == 7.5


def test_a_counter_that_began_anew_has_grown_from_nothing() -> None:
    smaller = rates([(reading(10, counter(100)), reading(11, counter(3)))])
    assert smaller.per_second("ordersys_things_total") == 3.0
    restarted = rates([(reading(10, counter(100), started=1.0), reading(11, counter(130), started=2.0))])
    assert restarted.per_second("ordersys_things_total") == 130.0


def test_a_series_that_is_new_has_grown_from_nothing() -> None:
    found = rates([(reading(10, ""), reading(12, counter(4)))])
    assert found.per_second("ordersys_things_total") == 2.0


def test_a_single_reading_has_gauges_and_no_rates() -> None:
    one = reading(10, f"{counter(100)}\n# TYPE ordersys_depth gauge\nordersys_depth 7")
    found = rates([(one, one)])
    assert (found.per_second("ordersys_things_total"), found.seconds) == (None, 0.0)
    assert list(found.values("ordersys_depth")) == [({}, 7.0)]


def test_labels_choose_among_the_series_of_a_name() -> None:
    text = counter(0, labels='{a="x",b="1"}') + '\nordersys_things_total{a="x",b="2"} 0'
    later = counter(6, labels='{a="x",b="1"}') + '\nordersys_things_total{a="x",b="2"} 4'
    found = rates([(reading(0, text), reading(2, later))])
    assert found.per_second("ordersys_things_total", a="x") == 5.0
    assert found.per_second("ordersys_things_total", a="x", b="2") == 2.0
    assert found.per_second("ordersys_things_total", a="y") is None
    assert found.groups("ordersys_things_total", "a", "b") == [("x", "1"), ("x", "2")]


@pytest.mark.parametrize("text", ["ordersys_things{", "<html>", "x y z"])
def test_what_is_not_in_the_text_format_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the parser's own words
        read(text, 0.0)


# --- quantiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [
        (0.5, {0.1: 100.0, 0.2: 100.0, INF: 100.0}, 0.05),
        (0.5, {0.1: 0.0, 0.2: 100.0, INF: 100.0}, 0.15),
        (0.99, {0.1: 90.0, 0.2: 100.0, INF: 100.0}, 0.19),
        (0.5, {0.1: 0.0, 0.2: 0.0, INF: 10.0}, 0.2),  # more than the last bound that there is
        (0.0, {0.1: 0.0, 0.2: 10.0, INF: 10.0}, 0.1),
        (1.0, {0.1: 10.0, 0.2: 10.0, INF: 10.0}, 0.1),
        (0.5, {0.1: 0.0, INF: 0.0}, None),
        (0.5, {}, None),
    ],
)
def test_quantiles_are_interpolated_within_a_bucket(
    share: float, counts: dict[float, float], expected: float | None
) -> None:
    found = quantile(share, counts)
    assert found == (pytest.approx(expected) if expected is not None else None)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=8),
    st.floats(0, 1, allow_nan=False),
    st.floats(0, 1, allow_nan=False),
)
def test_a_greater_share_is_never_a_smaller_quantile(increments: list[float], one: float, other: float) -> None:
    bounds = [*(0.1 * 2**step for step in range(len(increments))), INF]
    counts, total = {}, 0.0
    for bound, increment in zip(bounds, [*increments, 0.0], strict=True):
        total += increment
        counts[bound] = total
    low, high = quantile(min(one, other), counts), quantile(max(one, other), counts)
    assert (low is None) == (high is None) == (total == 0)
    if low is not None and high is not None:
        assert 0 <= low <= high * (1 + 1e-9) + 1e-9 <= (bounds[-2] + 1e-9) * 1.01


def test_a_quantile_is_about_what_happened_between_the_readings() -> None:
    name, labels = "ordersys_seconds", 'method="PlaceOrder"'
    slow_before = buckets(name, labels, {"0.1": 0, "1.0": 1000, "+Inf": 1000}, 900)
    quick_since = buckets(name, labels, {"0.1": 100, "1.0": 1100, "+Inf": 1100}, 905)
    found = rates([(reading(0, slow_before), reading(5, quick_since))])
    assert found.quantile(0.99, name, method="PlaceOrder") == pytest.approx(0.099)
    assert found.mean(name, method="PlaceOrder") == pytest.approx(0.05)
    assert found.quantile(0.5, name, method="GetData") is None
    idle = rates([(reading(0, quick_since), reading(5, quick_since))])
    assert (idle.quantile(0.5, name), idle.mean(name)) == (None, None)


# --- samples --------------------------------------------------------------------------------------------------------


def text_of(placed: float) -> str:
    calls = "ordersys_grpc_server_calls_total"
    who = 'service="product-service",method="PlaceOrder"'
    return "\n".join(
        [
            "# TYPE ordersys_order_changes_total counter",
            f'ordersys_order_changes_total{{change="created"}} {placed}',
            f'ordersys_order_changes_total{{change="shipped"}} {placed / 2}',
            "# TYPE ordersys_grpc_server_calls_total counter",
            f'{calls}{{{who},code="OK"}} {placed}',
            f'{calls}{{{who},code="FAILED_PRECONDITION"}} {placed / 10}',
            f'{calls}{{{who},code="UNAVAILABLE"}} {placed / 5}',
            buckets("ordersys_grpc_server_call_duration_seconds", who, {"0.1": placed, "+Inf": placed}, placed / 20),
            buckets("ordersys_batch_size", 'batcher="product-writer"', {"8": placed / 4, "+Inf": placed / 4}, placed),
            "# TYPE ordersys_batch_waiting gauge",
            'ordersys_batch_waiting{batcher="product-writer"} 3',
            "# TYPE ordersys_notifications_total counter",
            f'ordersys_notifications_total{{queue="notify.topic",outcome="handled"}} {placed}',
            f'ordersys_notifications_total{{queue="notify.topic",outcome="dead"}} {placed / 10}',
            buckets(
                "ordersys_notification_lag_seconds", 'queue="notify.topic"', {"0.5": placed, "+Inf": placed}, placed
            ),
            "# TYPE ordersys_unsettled_commands gauge",
            "ordersys_unsettled_commands 2",
            "# TYPE ordersys_unsettled_oldest_age_seconds gauge",
            "ordersys_unsettled_oldest_age_seconds 12.5",
            "# TYPE ordersys_outbox_depth gauge",
            "ordersys_outbox_depth 4",
            "# TYPE ordersys_outbox_oldest_age_seconds gauge",
            "ordersys_outbox_oldest_age_seconds 3.5",
            "# TYPE ordersys_queue_messages gauge",
            'ordersys_queue_messages{queue="notify.topic",state="ready"} 6',
            'ordersys_queue_messages{queue="notify.topic",state="retrying"} 5',
            'ordersys_queue_messages{queue="notify.topic",state="dead"} 1',
            "# TYPE ordersys_dependency_up gauge",
            'ordersys_dependency_up{service="order-service",dependency="broker"} 0',
            'ordersys_dependency_up{service="order-service",dependency="database"} 1',
            "# TYPE ordersys_http_requests_total counter",
            f'ordersys_http_requests_total{{method="POST",route="/api/v1/orders",status="201"}} {placed}',
            f'ordersys_http_requests_total{{method="POST",route="/api/v1/orders",status="503"}} {placed / 5}',
            f'ordersys_http_requests_total{{method="GET",route="/metrics",status="200"}} {placed}',
        ]
    )


def product(number: str, available: int) -> Product:
    return Product(
        id=number, name=f"thing {number}", description="", attributes={}, currency="EUR", price=1, available=available
    )


def seen(**given: Any) -> Seen:
    found = rates([(reading(0, text_of(0)), reading(10, text_of(100)))])
    return Seen(**{"at": AT, "rates": found, "measured": ("http://a/metrics",), **given})


def test_a_sample_of_metrics_alone() -> None:
    made = sample(seen(), low=10)
    assert made.orders_per_second == 10.0
    assert made.changes_per_second == {"created": 10.0, "shipped": 5.0}
    [rpc, post] = made.calls
    assert (rpc.service, rpc.method, rpc.per_second) == ("product-service", "PlaceOrder", 13.0)
    assert (rpc.refused_per_second, rpc.failed_per_second) == (pytest.approx(1.0), 2.0)
    assert (rpc.p50_seconds, rpc.p99_seconds) == (pytest.approx(0.05), pytest.approx(0.099))
    assert (post.method, post.per_second, post.failed_per_second) == ("POST /api/v1/orders", 12.0, 2.0)
    [batch] = made.batches
    assert (batch.batcher, batch.per_second, batch.size, batch.waiting) == ("product-writer", 2.5, 4.0, 3.0)
    assert (made.outbox_depth, made.outbox_oldest_age_seconds) == (4, 3.5)
    [queue] = made.queues
    assert (queue.ready, queue.retrying, queue.dead, made.dead_letters) == (6, 5, 1, 1)
    assert (queue.handled_per_second, queue.dead_per_second, queue.retried_per_second) == (10.0, 1.0, 0.0)
    assert queue.lag_p50_seconds == pytest.approx(0.25)
    assert (made.unsettled_commands, made.unsettled_oldest_age_seconds) == (2, 12.5)
    assert [(each.dependency, each.up) for each in made.dependencies] == [("broker", False), ("database", True)]
    assert made.low_stock is None  # nobody was there to say so


def test_what_the_services_say_goes_before_what_was_sampled_for_the_metrics() -> None:
    depth = QueueDepth("notify.fanout", 1, 2, 3)
    flow = Flow(outbox_depth=9, outbox_oldest=AT - 2_000_000, queues=(depth,), broker_problem="")
    products = [product("1", 11), product("2", 10), product("3", 0)]
    made = sample(seen(flow=flow, products=products), low=10)
    assert (made.outbox_depth, made.outbox_oldest_age_seconds) == (9, 2.0)
    assert {each.name: (each.ready, each.dead) for each in made.queues} == {
        "notify.fanout": (1, 3),
        "notify.topic": (None, None),  # known from its notifier's metrics only
    }
    assert made.dead_letters == 3
    assert [each.id for each in made.low_stock or ()] == ["3", "2"]


def test_without_any_metrics_rates_are_those_of_the_event_log_and_the_rest_is_not_known() -> None:
    made = sample(Seen(at=AT, rates=Rates(), events_per_second={"created": 4.0, "shipped": 1.0}), low=10)
    assert (made.orders_per_second, made.changes_per_second["shipped"]) == (4.0, 1.0)
    assert (made.calls, made.batches, made.queues, made.outbox_depth, made.dead_letters) == ([], [], [], None, None)


def test_when_nobody_answers_nothing_is_claimed() -> None:
    made = sample(Seen(at=AT, rates=Rates(), away={"order-service": "gone"}), low=10)
    shown = document(made, 10)
    assert shown["orders_per_second"] is None
    assert shown["outbox"] == {"depth": None, "oldest_age_seconds": None}
    assert (shown["low_stock"], shown["dead_letters"], shown["away"]) == (None, None, {"order-service": "gone"})


def test_an_order_service_without_orders_takes_none_per_second() -> None:
    idle = "# TYPE ordersys_relay_events_total counter\nordersys_relay_events_total 0"
    made = sample(Seen(at=AT, rates=rates([(reading(0, idle), reading(1, idle))])), low=10)
    assert made.orders_per_second == 0.0


# --- the screen -----------------------------------------------------------------------------------------------------


def screen(made: Sample, columns: int, lines: int) -> list[str]:
    console = Console(width=columns, height=lines, force_terminal=True, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(view.Screen(made, "q ends"))
    return capture.get().splitlines()


@pytest.mark.parametrize("columns", [80, 120])
def test_the_screen_fits_and_shows_what_counts(columns: int) -> None:
    flow = Flow(
        outbox_depth=9, outbox_oldest=AT - 90_000_000, queues=(QueueDepth("notify.topic", 6, 5, 1),), broker_problem=""
    )
    made = sample(seen(flow=flow, products=[product("3", 0)]), low=10)
    lines = screen(made, columns, 50)
    text = "\n".join(lines)
    assert len(lines) <= 50
    assert max(map(len, lines)) <= columns
    for piece in (
        "orders/s 10.0",
        "p50 50 ms",
        "p99 99 ms",
        "outbox 9, 90 s",
        "dead 1",
        "unsettled 2",
        "order-service without broker",
        "PlaceOrder",
        "product-writer",
        "notify.topic",
        "3 thing 3",
    ):
        assert piece in text


def test_a_low_screen_has_room_for_the_newest_events_too() -> None:
    order = Order(
        id="o-1",
        customer_id="c-1",
        status=Status.PLACED,
        lines=(),
        currency="EUR",
        version=1,
        created_at=AT,
        updated_at=AT,
    )
    events = [Event(id=str(n), sequence=n, change=Change.CREATED, time=AT + n, order=order) for n in range(1, 60)]
    lines = screen(sample(seen(events=events, products=[product("3", 0)]), low=10), 80, 24)
    assert len(lines) <= 24
    assert any(line.startswith("newest events") for line in lines)
    assert "12:03:44Z  created    o-1 v1  c-1" in "\n".join(lines)
    assert max(map(len, lines)) <= 80


def test_the_screen_says_who_is_away() -> None:
    away = {
        "http://127.0.0.1:9101/metrics": "Connection refused",
        "http://127.0.0.1:8080/metrics": "it wants an API key with the scope admin: set ORDERSYS_API_KEY",
        "order-service": "127.0.0.1:50052: UNAVAILABLE",
    }
    text = "\n".join(screen(sample(Seen(at=AT, rates=Rates(), away=away), low=10), 120, 40))
    assert "no metrics at 127.0.0.1:9101: rates are those of the event log" in text
    assert "it wants an API key with the scope admin" in text
    assert "order-service: 127.0.0.1:50052: UNAVAILABLE" in text
    assert "orders/s -" in text


def test_text_of_elsewhere_cannot_steer_the_terminal() -> None:
    made = sample(seen(products=[product("\x1b[2J", 0)], away={"order-service": "\x1b]0;title\x07"}), low=10)
    assert "\x1b[2J" not in "\n".join(screen(made, 120, 50))
    assert "\x1b]0" not in "\n".join(screen(made, 120, 50))
    assert not any("\x1b" in line for line in view.plain(made))


@pytest.mark.parametrize(
    ("seconds", "spanned", "aged"),
    [
        (None, "-", "-"),
        (0.00025, "250 us", "0 s"),
        (0.0123, "12 ms", "0 s"),
        (1.52, "1.5 s", "2 s"),
        (600, "600.0 s", "10 min"),
    ],
)
def test_spans_and_ages(seconds: float | None, spanned: str, aged: str) -> None:
    assert (view.span(seconds), view.age(seconds)) == (spanned, aged)
