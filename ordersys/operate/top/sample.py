"""One look at everything as plain data: what the screen shows and `--json` prints."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ordersys.core import ids
from ordersys.core.events import Change, Event
from ordersys.core.records import Product
from ordersys.operate.top.readings import Rates
from ordersys.operate.top.sources import Seen

_FAILED = ("UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Statuses that are our fault or the system's, as the alerts have them; others a caller may have earned."""
_NOT_CALLS = ("none", "/metrics", "/healthz", "/readyz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """One RPC or route; None = not known, or there was no call."""

    service: str
    method: str
    per_second: float
    refused_per_second: float
    failed_per_second: float
    p50_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    batcher: str
    per_second: float
    size: float | None
    wait_p50_seconds: float | None
    waiting: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The counts are None while the broker does not answer, the rates while no notifier's metrics are read."""

    name: str
    ready: int | None
    retrying: int | None
    dead: int | None
    handled_per_second: float | None
    duplicate_per_second: float | None
    retried_per_second: float | None
    dead_per_second: float | None
    lag_p50_seconds: float | None
    lag_p99_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    service: str
    dependency: str
    up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """`seconds` is what rates and quantiles are about; 0 = a first look, which has none. None = nobody says."""

    at: int
    seconds: float
    orders_per_second: float | None
    changes_per_second: Mapping[str, float]
    calls: Sequence[Calls]
    batches: Sequence[Batches]
    outbox_depth: int | None
    outbox_oldest_age_seconds: float | None
    queues: Sequence[Queue]
    dead_letters: int | None
    unsettled_commands: int | None
    unsettled_oldest_age_seconds: float | None
    low_stock: Sequence[Product] | None
    newest_events: Sequence[Event]
    dependencies: Sequence[Dependency]
    broker_problem: str
    measured: Sequence[str]
    away: Mapping[str, str]


def sample(seen: Seen, *, low: int) -> Sample:
    """What was seen; products of which there are at most `low` units are low in stock."""
    found = seen.rates
    changes = {labels["change"]: rate for labels, rate in found.all("ordersys_order_changes_total")}
    if not changes and seen.events_per_second is not None:
        changes = dict(seen.events_per_second)
    known = bool(changes) or (found.seconds > 0 and any(True for _ in found.all("ordersys_relay_events_total")))
    queues = list(_queues(seen))
    depth, age = _outbox(seen)
    return Sample(
        at=seen.at,
        seconds=found.seconds,
        orders_per_second=changes.get(Change.CREATED.value, 0.0) if known else None,
        changes_per_second=changes,
        calls=sorted((*_rpcs(found), *_routes(found)), key=lambda each: -each.per_second),
        batches=list(_batches(found)),
        outbox_depth=depth,
        outbox_oldest_age_seconds=age,
        queues=queues,
        dead_letters=sum(each.dead or 0 for each in queues) if any(q.dead is not None for q in queues) else None,
        unsettled_commands=_whole(_total(found, "ordersys_unsettled_commands")),
        unsettled_oldest_age_seconds=_most(found, "ordersys_unsettled_oldest_age_seconds"),
        low_stock=None if seen.products is None else _low(seen.products, low),
        newest_events=seen.events,
        dependencies=list(_dependencies(found)),
        broker_problem=seen.flow.broker_problem if seen.flow else "",
        measured=seen.measured,
        away=seen.away,
    )


def document(made: Sample, events: int) -> dict[str, Any]:
    """As JSON has it, with at most so many events."""
    return {
        "at": ids.rfc3339(made.at),
        "seconds": made.seconds,
        "orders_per_second": made.orders_per_second,
        "changes_per_second": dict(made.changes_per_second),
        "calls": [asdict(each) for each in made.calls],
        "batches": [asdict(each) for each in made.batches],
        "outbox": {"depth": made.outbox_depth, "oldest_age_seconds": made.outbox_oldest_age_seconds},
        "queues": [asdict(each) for each in made.queues],
        "dead_letters": made.dead_letters,
        "unsettled": {"commands": made.unsettled_commands, "oldest_age_seconds": made.unsettled_oldest_age_seconds},
        "low_stock": None
        if made.low_stock is None
        else [{"id": each.id, "name": each.name, "available": each.available} for each in made.low_stock],
        "newest_events": [
            {
                "sequence": each.sequence,
                "time": ids.rfc3339(each.time),
                "change": each.change.value,
                "order_id": each.order.id,
                "customer_id": each.order.customer_id,
                "version": each.order.version,
            }
            for each in list(made.newest_events)[-events:]
        ],
        "dependencies": [asdict(each) for each in made.dependencies],
        "broker_problem": made.broker_problem,
        "measured": list(made.measured),
        "away": dict(made.away),
    }


def _rpcs(found: Rates) -> Iterator[Calls]:
    calls, seconds = "ordersys_grpc_server_calls_total", "ordersys_grpc_server_call_duration_seconds"
    for service, method in found.groups(calls, "service", "method"):
        by_code = {labels["code"]: rate for labels, rate in found.all(calls, service=service, method=method)}
        failed = sum(rate for code, rate in by_code.items() if code in _FAILED)
        everything = sum(by_code.values())
        yield Calls(
            service=service,
            method=method,
            per_second=everything,
            refused_per_second=everything - failed - by_code.get("OK", 0.0) - by_code.get("CANCELLED", 0.0),
            failed_per_second=failed,
            p50_seconds=found.quantile(0.5, seconds, service=service, method=method),
            p99_seconds=found.quantile(0.99, seconds, service=service, method=method),
        )


def _routes(found: Rates) -> Iterator[Calls]:
    calls, seconds = "ordersys_http_requests_total", "ordersys_http_request_duration_seconds"
    for method, route in found.groups(calls, "method", "route"):
        if route in _NOT_CALLS:
            continue
        by_status = [(labels["status"], rate) for labels, rate in found.all(calls, method=method, route=route)]
        yield Calls(
            service="api",
            method=f"{method} {route}",
            per_second=sum(rate for _, rate in by_status),
            refused_per_second=sum(rate for status, rate in by_status if status.startswith("4")),
            failed_per_second=sum(rate for status, rate in by_status if status.startswith("5")),
            p50_seconds=found.quantile(0.5, seconds, method=method, route=route),
            p99_seconds=found.quantile(0.99, seconds, method=method, route=route),
        )


def _batches(found: Rates) -> Iterator[Batches]:
    for (batcher,) in found.groups("ordersys_batch_size_count", "batcher"):
        yield Batches(
            batcher=batcher,
            per_second=found.per_second("ordersys_batch_size_count", batcher=batcher) or 0.0,
            size=found.mean("ordersys_batch_size", batcher=batcher),
            wait_p50_seconds=found.quantile(0.5, "ordersys_batch_wait_seconds", batcher=batcher),
            waiting=_total(found, "ordersys_batch_waiting", batcher=batcher),
        )


def _outbox(seen: Seen) -> tuple[int | None, float | None]:
    """How many events wait, and for how many seconds the oldest; the service's own word goes first."""
    if seen.flow is not None:
        oldest = seen.flow.outbox_oldest
        return seen.flow.outbox_depth, max(0.0, (seen.at - oldest) / 1e6) if oldest else 0.0
    depth = _whole(_most(seen.rates, "ordersys_outbox_depth"))
    return depth, _most(seen.rates, "ordersys_outbox_oldest_age_seconds")


def _queues(seen: Seen) -> Iterator[Queue]:
    found = seen.rates
    depths: dict[str, tuple[int, int, int]] = {}
    if seen.flow is not None:
        depths = {each.name: (each.ready, each.retrying, each.dead) for each in seen.flow.queues}
    else:
        for labels, _ in found.values("ordersys_queue_messages"):
            name = labels["queue"]
            states = (_most(found, "ordersys_queue_messages", queue=name, state=s) for s in _STATES)
            depths[name] = tuple(int(each or 0) for each in states)  # type: ignore[assignment]
    handled, lag = "ordersys_notifications_total", "ordersys_notification_lag_seconds"
    for name in sorted({*depths, *(name for (name,) in found.groups(handled, "queue"))}):
        ready, retrying, dead = depths.get(name, (None, None, None))
        outcome = {labels["outcome"]: rate for labels, rate in found.all(handled, queue=name)}
        rate = {each: outcome.get(each, 0.0) if outcome else None for each in _OUTCOMES}
        yield Queue(
            name=name,
            ready=ready,
            retrying=retrying,
            dead=dead,
            handled_per_second=rate["handled"],
            duplicate_per_second=rate["duplicate"],
            retried_per_second=rate["retried"],
            dead_per_second=rate["dead"],
            lag_p50_seconds=found.quantile(0.5, lag, queue=name),
            lag_p99_seconds=found.quantile(0.99, lag, queue=name),
        )


_STATES = ("ready", "retrying", "dead")
_OUTCOMES = ("handled", "duplicate", "retried", "dead")


def _low(products: Sequence[Product], low: int) -> list[Product]:
    return sorted((each for each in products if each.available <= low), key=lambda each: (each.available, each.id))


def _dependencies(found: Rates) -> Iterator[Dependency]:
    """Of several copies of a role all have to say that it is up."""
    up: dict[tuple[str, str], bool] = {}
    for labels, value in found.values("ordersys_dependency_up"):
        key = labels["service"], labels["dependency"]
        up[key] = up.get(key, True) and value >= 1
    for (service, dependency), is_up in sorted(up.items()):
        yield Dependency(service=service, dependency=dependency, up=is_up)


def _total(found: Rates, name: str, **labels: str) -> float | None:
    values = [value for _, value in found.values(name, **labels)]
    return sum(values) if values else None


def _most(found: Rates, name: str, **labels: str) -> float | None:
    return max((value for _, value in found.values(name, **labels)), default=None)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
