"""The operator's tools on both engines: dead letters, the event log, the audit, and the story of one order."""

import json
import shlex
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from e2e import processes
from e2e.processes import SECONDS, Backend, Done, Role, until
from faults.program import Program

from ordersys.broker.broker import Message, Outcome
from ordersys.broker.rabbitmq import RabbitBroker
from ordersys.broker.sqlite import SqliteBroker
from ordersys.client.calls import Orders
from ordersys.core import events, ids, topology

WAITS = "0.1,0.2"
TRIES = 3
FAILING = "ConnectionError: the mail server is away"
FANOUT, TOPIC = "notify --mode fanout --json", "notify --mode topic --json"


@dataclass(frozen=True)
class Shop:
    """Both services running; notifiers come and go with the tests, and each test looks at orders of its own."""

    backend: Backend
    orders: Orders

    def place(self, customer: str, count: int = 1) -> list[str]:
        return [self.orders.place_order(customer, [("1", 1)]).order.id for _ in range(count)]

    def dead(self, *filters: str) -> list[dict[str, Any]]:
        letters: list[dict[str, Any]] = self.backend.run("dlq", "list", *filters, "--json").document["dead_letters"]
        return letters

    def dead_are(self, least: int, *filters: str) -> list[dict[str, Any]]:
        """Wait until there are so many dead letters."""
        found: list[dict[str, Any]] = []

        def counted() -> bool:
            found[:] = self.dead(*filters)
            return len(found) >= least

        until(counted, f"{least} dead letters", 2 * SECONDS)
        return found

    @contextmanager
    def failing(self, queue: str, customer: str) -> Iterator[Program]:
        """A notifier whose handler always fails with the orders of a customer."""
        with Program(self.backend, "failing_notifier.py", queue, "-1", customer) as notifier:
            yield notifier.ready()
            assert notifier.stop() == 0  # it gives back what it holds

    @contextmanager
    def notified(self, *commands: str) -> Iterator[list[Role]]:
        roles = self.backend.start_all(*commands)
        yield roles
        assert [role.stop() for role in roles] == [0] * len(roles)

    @contextmanager
    def publishing(self) -> Iterator[Any]:
        url = self.backend.environment.get("ORDERSYS_BROKER_URL", f"sqlite:///{self.backend.home / 'broker.db'}")
        with closing(SqliteBroker(url) if url.startswith("sqlite:") else RabbitBroker(url)) as broker:
            broker.declare(topology.standard())
            yield broker.publisher().publish


@pytest.fixture(scope="module", params=processes.ENGINES)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp(f"operate-{request.param}")
    with (
        processes.engine(request.param) as settings,
        Backend(folder, {"ORDERSYS_RETRY_WAITS": WAITS, **settings}) as backend,
    ):
        backend.start_all("serve-order", "serve-product")
        with Orders(backend.product_address, backend.order_address, SECONDS) as orders:
            yield Shop(backend, orders)


@pytest.fixture
def shop(running: Shop) -> Iterator[Shop]:
    yield running
    running.backend.show()


def refused(done: Done, code: int, complaint: str) -> None:
    assert done.code == code, done
    assert complaint in done.complaint


def event_ids(shop: Shop, order_ids: list[str], change: str = "created") -> list[str]:
    log = [logged.event for order_id in order_ids for logged in shop.orders.log(order_id=order_id)]
    return [event.id for event in log if event.change == change]


# --- dead letters -----------------------------------------------------------------------------------------------------


def test_dead_letters_can_be_found_read_sent_again_and_thrown_away(shop: Shop) -> None:
    shop.backend.run("dlq", "discard", "--all")
    bad = shop.place("bad", 3)
    with shop.failing("notify.fanout", "bad"):
        found = shop.dead_are(3)
    assert [(each["order_id"], each["queue"], each["tries"]) for each in found] == [
        (order_id, "notify.fanout", TRIES) for order_id in bad
    ]
    assert [each["id"] for each in found] == event_ids(shop, bad)
    with shop.publishing() as publish:
        poison = Message(
            exchange="", routing_key="notify.topic", body=b"{}", message_id="p-1", content_type="text/plain"
        )
        assert publish([poison]) == [Outcome.CONFIRMED]
    with shop.notified(TOPIC):
        shop.dead_are(4)

    one, two, three = (each["id"] for each in found)
    later = ids.rfc3339(ids.now_us() + 3_600_000_000)
    counts = {
        "--queue notify.fanout": 3,
        "--reason missing": 1,
        f"--order {bad[1]} --since 1h": 1,
        f"--since {later}": 0,
        f"--order {bad[1]} --queue notify.topic": 0,
    }
    for filters, count in counts.items():  # one by one: who looks borrows what there is
        assert len(shop.dead(*shlex.split(filters))) == count, filters
    plain = shop.backend.run("dlq", "list").out.splitlines()
    assert plain[-1] == "4 dead letters"
    assert plain[0].split("\t")[:3] == [one, "notify.fanout", str(TRIES)]

    [shown] = shop.backend.run("dlq", "show", one, "--json").document["dead_letters"]
    assert shown["reason"] == f"{FAILING}, try {TRIES}"
    assert (shown["exchange"], shown["routing_key"]) == ("orders.fanout", "order.created")
    assert shown["first_failed_at"] < shown["last_failed_at"]
    assert json.loads(shown["body"])["id"] == one
    assert "the mail server is away" in shop.backend.run("dlq", "show", one).out
    refused(shop.backend.run("dlq", "show", "nothing"), 1, "dead_letter_not_found: no such dead letter: nothing")
    refused(shop.backend.run("dlq", "replay"), 2, "say which dead letters")
    refused(shop.backend.run("dlq", "discard", one, "--all"), 2, "say which dead letters")

    dry = shop.backend.run("dlq", "discard", one, "--dry-run", "--json").document["would_discard"]
    assert [each["id"] for each in dry] == [one]
    dry = shop.backend.run("dlq", "replay", "--all", "--reason", "mail", "--dry-run", "--json").document["would_replay"]
    assert [each["id"] for each in dry] == [one, two, three]
    gone = shop.backend.run("dlq", "discard", one, "--json").document["discarded"]
    assert [each["id"] for each in gone] == [one]
    refused(shop.backend.run("dlq", "replay", one), 1, "dead_letter_not_found")
    with shop.notified(FANOUT, TOPIC) as [fanout, topic]:
        assert len(shop.backend.run("dlq", "replay", two, "--json").document["replayed"]) == 1
        until(lambda: bool(fanout.events(bad[1])), "the replayed event is heard")
        replayed = shop.backend.run("dlq", "replay", "--all", "--json").document["replayed"]
        assert [each["id"] for each in replayed] == [three, "p-1"]
        until(lambda: bool(fanout.events(bad[2])), "the other one too")
        [letter] = shop.dead_are(1)  # what nobody can read comes back, as after its first try
        assert (letter["id"], letter["queue"], letter["tries"]) == ("p-1", "notify.topic", 1)
        assert not fanout.events(bad[0])
        assert Counter(event["subject"] for event in fanout.events()) == Counter(bad[1:])
        assert topic.running


def test_a_replay_that_is_killed_half_way_loses_nothing_and_doubles_no_effect(shop: Shop) -> None:
    count = 450  # of 200 at a time: three publishes, three acks
    [order_id] = shop.place("killed")
    shop.backend.run("dlq", "discard", "--all")
    event = next(shop.orders.log(order_id=order_id)).event
    copies = [replace(event, id=ids.uuid7()) for _ in range(count)]
    with shop.publishing() as publish:
        messages = [
            Message(
                exchange="",
                routing_key="notify.fanout.dlq",
                body=events.encode(each).encode(),
                message_id=each.id,
                content_type=events.CONTENT_TYPE,
            )
            for each in copies
        ]
        assert set(publish(messages)) == {Outcome.CONFIRMED}
    for nth in (1, 2):
        with Program(shop.backend, "killed_at_ack.py", str(nth), "dlq", "replay", "--all") as killed:
            assert killed.ends() == -signal.SIGKILL
            assert killed.out == ""
        # What the dead process held comes back after a while, but for the 200 that it acked the second time.
        shop.dead_are(count - 200 * (nth - 1))
    with shop.notified(FANOUT) as [fanout]:
        wanted = {each.id for each in copies}
        assert len(shop.backend.run("dlq", "replay", "--all", "--json").document["replayed"]) >= count - 200
        until(lambda: {each["id"] for each in fanout.events(order_id)} >= wanted, "everything is heard")
        [control] = shop.place("killed-control")
        until(lambda: bool(fanout.events(control)), "and whatever came behind it")
        heard = Counter(each["id"] for each in fanout.events(order_id) if each["id"] in wanted)
        assert heard == Counter(wanted)  # each once: what was sent twice was dropped by the inbox
    assert shop.dead() == []


# --- the event log ----------------------------------------------------------------------------------------------------


def test_events_are_listed_and_sent_again_to_one_queue_only(shop: Shop) -> None:
    began = ids.rfc3339(ids.now_us())
    one, two = shop.place("log", 2)
    shop.orders.update_order(one, [("1", 3)])
    shop.orders.cancel_order(one)
    shop.orders.ship_order(two)

    def changes(*options: str) -> list[str]:
        done = shop.backend.run("events", "list", "--since", began, *options, "--json")
        return [each["event"]["data"]["change"] for each in done.document["events"]]

    assert changes() == ["created", "created", "lines", "cancelled", "shipped"]
    assert changes("--order", one) == ["created", "lines", "cancelled"]
    assert changes("--type", "shipped") == ["shipped"]
    assert changes("--limit", "2") == ["created", "created"]
    refused(shop.backend.run("events", "list", "--type", "eaten"), 2, "expected one of created, lines")
    refused(shop.backend.run("events", "list", "--since", "yesterday"), 2, "expected RFC 3339")
    refused(shop.backend.run("events", "replay", "--queue", "late"), 2, "say which events")
    plain = shop.backend.run("events", "list", "--order", two).out.splitlines()
    assert [line.split("\t")[2] for line in plain] == ["created", "shipped"]
    assert {line.split("\t")[-1] for line in plain} <= {"yes", "waiting"}

    late_command = "notify --mode topic --queue late --bind order.# --json"
    with shop.notified(FANOUT, TOPIC, late_command) as [fanout, topic, late]:
        until(lambda: len(topic.events({one, two})) == 5, "the standard queues have heard")
        assert late.events() == []
        replay = ["events", "replay", "--queue", "late", "--json"]
        dry = shop.backend.run(*replay, "--since", began, "--dry-run").document
        assert dry == {"queue": "late", "would_replay": 5}
        assert shop.backend.run(*replay, "--order", one).document == {"queue": "late", "replayed": 3}
        until(lambda: len(late.events()) == 3, "the replay is heard")
        assert late.events() == topic.events(one)  # word for word, in order
        assert shop.backend.run(*replay, "--since", began).document["replayed"] == 5
        until(lambda: len(late.events()) == 5, "the rest is heard")
        refused(shop.backend.run("events", "replay", "--all", "--queue", "nobody's"), 2, "there is no queue")
        [control] = shop.place("log-control")
        for role in (fanout, topic, late):
            until(lambda role=role: bool(role.events(control)), "the control order is heard")  # type: ignore[misc]
        assert len(late.events({one, two})) == 5  # what it had handled was dropped by its inbox
        assert len(topic.events({one, two})) == 5
        assert len(fanout.events({one, two})) == 2


def test_old_events_are_forgotten_and_those_that_wait_for_the_broker_are_not(backend: Backend) -> None:
    short = {"ORDERSYS_EVENT_RETENTION_DAYS": f"{1 / 86_400:.9f}"}  # one second
    nowhere = {"ORDERSYS_BROKER_URL": f"amqp://nobody:nothing@127.0.0.1:{processes.free_port()}/%2F"}
    order_service, _ = backend.start_all("serve-order", "serve-product")
    with Orders(backend.product_address, backend.order_address, SECONDS) as orders:
        sent = orders.place_order("retention", [("1", 1)]).order
        until(lambda: all(logged.published for logged in orders.log()), "the event is published")
        assert order_service.stop() == 0
        alone = backend.start("serve-order", **nowhere).ready()
        kept = orders.place_order("retention", [("1", 1)]).order
        assert alone.stop(seconds=15) == 0
        until(lambda: ids.now_us() > kept.created_at + 2_000_000, "both are old")
        pruning = backend.start("serve-order", **nowhere, **short).ready()
        pruning.says("forgot")
        assert [(each.event.order.id, each.published) for each in orders.log()] == [(kept.id, False)]
        assert {each.id for each in orders.list_orders(customer_id="retention").orders} == {sent.id, kept.id}
        assert pruning.stop(seconds=15) == 0
        [_, topic] = backend.start_all("serve-order", TOPIC)
        until(lambda: bool(topic.events(kept.id)), "what had waited is heard")
    backend.balances()


# --- the books --------------------------------------------------------------------------------------------------------


def sql(backend: Backend, service: str, statement: str) -> None:
    """Change the service's database behind its back."""
    if url := backend.environment.get(f"ORDERSYS_{service.upper()}_DATABASE_URL"):
        import psycopg

        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            assert connection.execute(statement).rowcount == 1
        return
    with closing(sqlite3.connect(backend.home / f"{service}.db", timeout=SECONDS)) as connection, connection:
        assert connection.execute(statement).rowcount == 1


TAMPERED = {
    "a shelf": (
        "product",
        "UPDATE products SET available = available + 1 WHERE id = '5'",
        "UPDATE products SET available = available - 1 WHERE id = '5'",
        {"the ledger's sum is available", "seeded + restocked - reserved is available"},
    ),
    "the ledger": (
        "product",
        "UPDATE stock_ledger SET delta = delta + 2 WHERE order_id = '{order}'",
        "UPDATE stock_ledger SET delta = delta - 2 WHERE order_id = '{order}'",
        {
            "the ledger's sum is available",
            "seeded + restocked - reserved is available",
            "the ledger's reserved is what reservations hold",
        },
    ),
    "a reservation": (
        "product",
        """UPDATE reservations SET held = '{{"5": 1}}' WHERE order_id = '{order}'""",
        """UPDATE reservations SET held = '{{"5": 3}}' WHERE order_id = '{order}'""",
        {"the ledger's reserved is what reservations hold", "live orders are what is reserved"},
    ),
    "an order": (
        "order",
        "UPDATE orders SET lines = '[[\"5\", 2, 100]]' WHERE id = '{order}'",
        "UPDATE orders SET lines = '[[\"5\", 3, 100]]' WHERE id = '{order}'",
        {"live orders are what is reserved"},
    ),
}


def test_the_audit_names_what_does_not_balance(shop: Shop) -> None:
    order = shop.orders.place_order("audited", [("5", 3)]).order
    until(lambda: shop.orders.audit_stock()[1] == 0, "it is settled")
    shop.backend.balances()
    for what, (service, change, undo, expected) in TAMPERED.items():
        sql(shop.backend, service, change.format(order=order.id))
        done = shop.backend.run("inventory", "audit", "--json")
        assert (done.code, done.err) == (1, ""), what
        audit = json.loads(done.out)
        assert audit["ok"] is False
        assert {each["product_id"] for each in audit["differences"]} == {"5"}, what
        assert {each["what"] for each in audit["differences"]} == expected, what
        assert all(each["expected"] != each["found"] for each in audit["differences"])
        if what == "a shelf":
            plain = shop.backend.run("inventory", "audit")
            assert (plain.code, plain.out.splitlines()[-1]) == (1, "2 differences")
            assert any(line.startswith("5\tthe ledger's sum is available\t") for line in plain.out.splitlines())
        sql(shop.backend, service, undo.format(order=order.id))
    shop.backend.balances()
    assert shop.backend.run("inventory", "audit").out.splitlines()[-1] == "the books balance"


def test_the_story_of_an_order_has_its_moves_changes_deliveries_retries_and_dead_letters(shop: Shop) -> None:
    [order_id] = shop.place("story")
    shop.orders.update_order(order_id, [("1", 4), ("2", 1)])
    shop.orders.cancel_order(order_id)
    with shop.failing("notify.fanout", "story"), shop.notified(TOPIC) as [topic]:
        until(lambda: len(topic.events(order_id)) == 3, "the changes are heard")
        shop.dead_are(1, "--order", order_id)
    story = shop.backend.run("order", "explain", order_id, "--json").document
    assert (story["order"]["status"], story["order"]["version"]) == ("cancelled", 3)
    told = [(each["where"], each["what"]) for each in story["timeline"]]
    assert [each["at"] for each in story["timeline"]] == sorted(each["at"] for each in story["timeline"])
    assert [what for where, what in told if where == "stock"] == [
        "reserve 1 of product 1",
        "reserve 3 of product 1",
        "reserve 1 of product 2",
        "release 4 of product 1",
        "release 1 of product 2",
    ]
    assert [what for where, what in told if where == "order"] == [
        "created: version 1, placed",
        "lines: version 2, placed",
        "cancelled: version 3, cancelled",
    ]
    assert [what.rpartition(": ")[2] for where, what in told if where == "event"] == ["confirmed by the broker"] * 3
    assert [what.partition(" ")[2].partition(" ")[2] for where, what in told if where == "notify.topic"] == [
        "handled"
    ] * 3
    [event_id] = event_ids(shop, [order_id])
    assert [what for where, what in told if where == "notify.fanout"] == [
        *[f"event {event_id} failed on try {nth}: {FAILING}, try {nth}" for nth in range(1, TRIES + 1)],
        f"event {event_id} is a dead letter after {TRIES} tries: {FAILING}, try {TRIES}",
    ]
    plain = shop.backend.run("order", "explain", order_id).out.splitlines()
    assert plain[0].startswith(f"order {order_id}: cancelled, version 3, ")
    assert len(plain) == 1 + len(told)
    refused(shop.backend.run("order", "explain", "nothing"), 1, "order_not_found")
