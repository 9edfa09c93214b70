"""Rows 11 and 12: messages that nobody can read, and handlers that fail; the queue goes on, and nothing disappears."""

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from e2e import processes
from e2e.processes import until
from faults import crowd, figures
from faults.crowd import Site
from faults.program import Program

from ordersys.broker.broker import Message, Outcome
from ordersys.broker.sqlite import SqliteBroker
from ordersys.core import ids

Publish = Callable[[str, str, bytes], None]
"""Exchange, routing key, body: as anybody could who reaches the broker."""

WAITS = (0.3, 0.6, 1.8)
TRIES = len(WAITS) + 1
LATE = 10.0
"""How much longer than its wait a message may rest on a busy machine, in seconds."""

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "0",
    "source": "/ordersys/order-service",
    "type": "ordersys.order.created.v1",
    "subject": "o-1",
    "time": "2026-11-03T12:03:44.000000Z",
    "datacontenttype": "application/json",
    "sequence": "1",
    "data": {
        "order_id": "o-1",
        "customer_id": "ann",
        "status": "placed",
        "version": 1,
        "change": "created",
        "lines": [{"product_id": "1", "quantity": 1, "unit_price": {"currency": "EUR", "amount": 100}}],
        "total": {"currency": "EUR", "amount": 100},
        "created_at": "2026-11-03T12:03:44.000000Z",
        "updated_at": "2026-11-03T12:03:44.000000Z",
    },
}


def event(**changed: Any) -> bytes:
    """An event that is right but for what is changed in its data; None takes the field out."""
    made = copy.deepcopy(EVENT)
    made["data"] |= changed
    made["data"] = {name: value for name, value in made["data"].items() if value is not None}
    return json.dumps(made).encode()


POISON = {
    "not JSON": (b"Dear notifier, this is no JSON.", "not JSON"),
    "empty": (b"", "not JSON"),
    "not UTF-8": (b'{"id": "\xff\xfe"}', "not JSON"),
    "cut off": (event()[:-40], "not JSON"),
    "nested deeply": (b"[" * 100_000, "not JSON"),
    "a huge number": (b'{"id": ' + b"9" * 5_000 + b"}", "not JSON"),
    "a list": (b"[1, 2, 3]", "expected an object with 'type', got [1, 2, 3]"),
    "null": (b"null", "expected an object with 'type', got None"),
    "no data": (json.dumps({**EVENT, "data": "gone"}).encode(), "expected an object with 'change', got 'gone'"),
    "half a character": (event(order_id="order-\ud800"), "surrogates not allowed"),
    "another event": (json.dumps({**EVENT, "type": "com.example.invoice.v7"}).encode(), "type: expected"),
    "no version": (event(version=None), "'version' is missing"),
    "a quantity in words": (event(lines=[{**EVENT["data"]["lines"][0], "quantity": "two"}]), "quantity: expected"),
    "an unknown status": (event(status="eaten"), "status: expected one of placed"),
    "lines that are none": (event(lines=7), "not an order event"),
    "a NUL in its order id": (event(order_id="o\x001"), "order_id: expected an id"),
    "10 MB of nothing": (b"\0" * 10_000_000, "10000000 bytes: expected at most"),
    "10 MB and right": (event(customer_id="x" * 10_000_000), "bytes: expected at most"),
}


@contextmanager
def publisher(site: Site) -> Iterator[Publish]:
    """Publishes with a confirm, past all our own code where the broker is RabbitMQ."""
    if site.broker_url.startswith("amqp:"):
        import pika

        with pika.BlockingConnection(pika.URLParameters(site.broker_url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            yield lambda exchange, key, body: channel.basic_publish(exchange, key, body, mandatory=True)
        return
    with closing(SqliteBroker(site.broker_url)) as broker:
        sender = broker.publisher()

        def publish(exchange: str, key: str, body: bytes) -> None:
            message = Message(
                exchange=exchange, routing_key=key, body=body, message_id=ids.uuid7(), content_type="text/plain"
            )
            assert sender.publish([message]) == [Outcome.CONFIRMED]

        yield publish


@pytest.fixture(scope="module", params=processes.ENGINES)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Site]]:
    folder = tmp_path_factory.mktemp(f"poison-{request.param}")
    with crowd.site(request.param, folder, ORDERSYS_RETRY_WAITS=",".join(f"{wait:g}" for wait in WAITS)) as site:
        yield request.param, site


@pytest.fixture
def engine(running: tuple[str, Site]) -> str:
    return running[0]


@pytest.fixture
def site(running: tuple[str, Site]) -> Iterator[Site]:
    yield running[1]
    running[1].backend.show()


ROUTES = [("", "notify.fanout"), ("", "notify.topic"), ("orders.fanout", "any"), ("orders.topic", "order.created")]
QUEUES = {"orders.fanout": "notify.fanout", "orders.topic": "notify.topic"} | {key: key for _, key in ROUTES[:2]}
LARGE = 1_000_000


def routes(number: int, body: bytes) -> list[tuple[str, str]]:
    """Where a poison is sent: everywhere, a large one to one queue only."""
    return ROUTES if len(body) < LARGE else [ROUTES[number % len(ROUTES)]]


def test_row_11_poison_goes_to_the_dead_letters_and_the_queue_goes_on(site: Site, engine: str) -> None:
    notifiers = site.backend.start_all("notify --mode fanout --json", "notify --mode topic --json")
    good = []
    with publisher(site) as publish:
        for number, (body, _) in enumerate(POISON.values()):
            good.append(place(site, "good"))
            for exchange, key in routes(number, body):
                publish(exchange, key, body)
    good.append(place(site, "good"))
    for role in notifiers:
        until(lambda role=role: len(role.events()) >= len(good), "the good orders are heard of")  # type: ignore[misc]
        assert [event["subject"] for event in role.events()] == good
        assert role.running

    expected = sum(len(routes(number, body)) for number, (body, _) in enumerate(POISON.values()))
    until(lambda: len(site.dead_letters()) >= expected, f"{expected} dead letters")
    assert [role.stop() for role in notifiers] == [0, 0]
    found = site.backend.run("dlq", "list", "--json").document["dead_letters"]
    assert len(found) == expected
    assert all(each["tries"] == 1 and each["first_failed_at"] == each["last_failed_at"] for each in found)
    by_length = {len(body): name for name, (body, _) in POISON.items()}
    assert len(by_length) == len(POISON)
    for number, (name, (body, reason)) in enumerate(POISON.items()):
        mine = [each for each in found if by_length[each["bytes"]] == name]
        assert all(reason in each["reason"] for each in mine), (name, {each["reason"] for each in mine})
        came = sorted((each["exchange"], each["routing_key"], each["queue"]) for each in mine)
        assert came == sorted((exchange, key, QUEUES[exchange or key]) for exchange, key in routes(number, body)), name
    figures.record(11, engine, poison=expected, kinds=len(POISON), dead_letters=len(found), good_orders_heard=len(good))


def place(site: Site, customer: str) -> str:
    return site.client.place_order(customer, [("1", 1)]).order.id


def tries(programs: list[Program], order_id: str) -> list[dict[str, Any]]:
    """Each try of the order's event, in time."""
    lines = [json.loads(line) for program in programs for line in program.out.rpartition("\n")[0].splitlines()]
    return sorted((each for each in lines if each["order"] == order_id), key=lambda each: float(each["at"]))


def test_row_12_a_handler_that_always_fails_ends_in_the_dead_letters(site: Site, engine: str) -> None:
    with Program(site.backend, "failing_notifier.py", "notify.fanout", "-1", "bad") as notifier:
        notifier.ready()
        bad = place(site, "bad")
        until(lambda: bool(tries([notifier], bad)), "the first try")
        good = place(site, "good")
        until(lambda: bool(tries([notifier], good)), "the queue goes on")
        until(lambda: bool(site.dead_letters(bad)), "a dead letter")
        made = tries([notifier], bad)
        assert len(made) == TRIES
        [handled] = tries([notifier], good)
        assert handled["at"] < made[-1]["at"]
    gaps = [later["at"] - earlier["at"] for earlier, later in itertools.pairwise(made)]
    for wait, gap in zip(WAITS, gaps, strict=True):
        assert wait - 0.01 <= gap < wait + LATE
    [letter] = site.dead_letters(bad)
    assert (letter.queue, letter.tries) == ("notify.fanout", TRIES)
    assert letter.reason == f"ConnectionError: the mail server is away, try {TRIES}"
    assert (letter.exchange, letter.routing_key) == ("orders.fanout", "order.created")
    first, last = (ids.parse_rfc3339(at) / 1e6 for at in (letter.first_failed_at, letter.last_failed_at))
    assert last - first >= sum(WAITS) - 0.01
    figures.record(12, engine, tries=len(made), dead_letters=1, **{f"gap_{n}": gap for n, gap in enumerate(gaps, 1)})


def test_row_12_a_handler_that_fails_twice_has_done_it_on_the_third_try(site: Site, engine: str) -> None:
    with Program(site.backend, "failing_notifier.py", "notify.topic", "2", "twice") as notifier:
        notifier.ready()
        order_id = place(site, "twice")
        until(lambda: any(not each["fails"] for each in tries([notifier], order_id)), "it is handled")
        assert notifier.stop() == 0
        made = tries([notifier], order_id)
    assert [each["fails"] for each in made] == [True, True, False]
    assert site.dead_letters(order_id) == []
    told = site.backend.run("order", "explain", order_id, "--json").document["timeline"]
    assert [each["what"].split(" ", 2)[2].partition(":")[0] for each in told if each["where"] == "notify.topic"] == [
        "failed on try 1",
        "failed on try 2",
        "handled",
    ]
    figures.record(12, engine, tries=len(made), handled=1, dead_letters=0)


def test_row_12_the_count_of_tries_survives_the_notifier(site: Site, engine: str) -> None:
    with Program(site.backend, "failing_notifier.py", "notify.fanout", "-1", "ugly") as first:
        first.ready()
        order_id = place(site, "ugly")
        first.says(f"failed on try 2 of {TRIES}")
    with Program(site.backend, "failing_notifier.py", "notify.fanout", "-1", "ugly") as second:
        until(lambda: bool(site.dead_letters(order_id)), "a dead letter")
        made = tries([first, second], order_id)
    assert len(made) == TRIES
    assert [letter.tries for letter in site.dead_letters(order_id)] == [TRIES]
    figures.record(12, engine, kills=1, tries=len(made), dead_letters=1)
