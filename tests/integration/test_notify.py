"""Notifiers on real brokers with real inboxes: the embedded pair, and RabbitMQ with PostgreSQL."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_services import FakeServices, until

from ordersys.broker import broker as protocol
from ordersys.broker.broker import Broker, Message, Outcome
from ordersys.broker.rabbitmq import RabbitBroker
from ordersys.broker.sqlite import SqliteBroker
from ordersys.core import events, topology
from ordersys.core.events import Event
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.core.topology import Binding, Queue
from ordersys.notify.consumer import Counts, Notifier
from ordersys.notify.inbox import CHAIN, Inbox
from ordersys.notify.queues import queue_for
from ordersys.notify.sinks import LogSink

WAITS = (0.05, 0.1)


@pytest.fixture(params=["embedded", "production"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The URLs of a broker and of a database that go together."""
    if request.param == "embedded":
        return f"sqlite:///{tmp_path / 'broker.db'}", f"sqlite:///{tmp_path / 'notify.db'}"
    return request.getfixturevalue("rabbitmq_url"), request.getfixturevalue("postgres_url")


@pytest.fixture
def url(site: tuple[str, str]) -> str:
    """The broker's."""
    return site[0]


@pytest.fixture
def database(site: tuple[str, str]) -> Iterator[Database]:
    database = Database(site[1])
    migrations.upgrade(database, CHAIN)
    yield database
    database.close()


def broker_at(url: str) -> Broker:
    if url.startswith("sqlite:"):
        return SqliteBroker(url)
    return RabbitBroker(url)


@pytest.fixture
def sent(url: str) -> Iterator["Sender"]:
    sender = Sender(url)
    yield sender
    sender.close()


class Sender:
    """Publishes events as the relay does."""

    def __init__(self, url: str) -> None:
        self._broker = broker_at(url)
        self._broker.declare(topology.standard(WAITS))
        self._publisher = self._broker.publisher()
        self._services = FakeServices()

    def declare(self, queue: Queue) -> None:
        self._broker.declare(topology.Topology(topology.EXCHANGES, (queue,)))

    def created(self, count: int) -> list[Event]:
        for _ in range(count):
            self._services.order("Zoë")
        return self.publish(*self._services.log[-count:])

    def publish(self, *published: Event) -> list[Event]:
        for event in published:
            for exchange, key in topology.routes(event.change):
                self.raw(events.encode(event).encode(), exchange, key, event.id)
        return list(published)

    def raw(self, body: bytes, exchange: str = topology.TOPIC, key: str = "order.created", id_: str = "raw") -> None:
        message = Message(
            exchange=exchange, routing_key=key, body=body, message_id=id_, content_type=events.CONTENT_TYPE
        )
        assert self._publisher.publish([message]) == [Outcome.CONFIRMED]

    def left_in(self, queue: str, wanted: int) -> list[protocol.Delivery]:
        """What a queue holds, and that it holds no more than that."""
        subscription = self._broker.subscribe(Queue(queue, ()), prefetch=1000)
        try:
            found: list[protocol.Delivery] = []
            until(lambda: found.extend(subscription.receive(1000, 0.1)) or len(found) >= wanted)
            return found + subscription.receive(1000, 0.2)
        finally:
            subscription.close()

    def close(self) -> None:
        self._publisher.close()
        self._broker.close()


class Running:
    """A notifier with a broker of its own, as every role has."""

    def __init__(self, url: str, database: Database, queue: Queue, sink: object) -> None:
        self._broker = broker_at(url)
        self.notifier = Notifier(self._broker, queue, Inbox(database), sink, name="n")  # type: ignore[arg-type]
        self.notifier.start()

    def stop(self) -> None:
        assert self.notifier.stop(20)
        self._broker.close()


class Flaky:
    """Fails as often as it is told to, then writes a line."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.stream = io.StringIO()
        self._log = LogSink(self.stream)

    def handle(self, event: Event, body: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("not now")
        self._log.handle(event, body)

    @property
    def ids(self) -> list[str]:
        return [json.loads(line)["id"] for line in self.stream.getvalue().splitlines()]


def test_both_standard_queues_hear_every_created_order_once_and_in_order(
    url: str, database: Database, sent: Sender
) -> None:
    sinks = {mode: Flaky(0) for mode in ("fanout", "topic")}
    running = [Running(url, database, queue_for(mode, [], "", WAITS), sink) for mode, sink in sinks.items()]
    published = sent.created(60)
    sent.publish(*published[:10])  # the relay may repeat what was not marked as sent
    for each in running:
        until(lambda each=each: each.notifier.counts == Counts(handled=60, duplicates=10))
        each.stop()
    for sink in sinks.values():
        assert sink.ids == [event.id for event in published]
        assert sink.stream.getvalue().splitlines() == [events.encode(event) for event in published]
    for queue in topology.standard(WAITS).queues:
        assert sent.left_in(queue.name, 0) == []


def test_a_handler_that_fails_twice_is_handled_on_the_third_try(url: str, database: Database, sent: Sender) -> None:
    sink = Flaky(2)
    running = Running(url, database, queue_for("topic", [], "", WAITS), sink)
    [event] = sent.created(1)
    until(lambda: running.notifier.counts == Counts(handled=1, retried=2))
    running.stop()
    assert sink.ids == [event.id]


def test_a_handler_that_always_fails_and_poison_end_in_the_dead_letters_with_their_reasons(
    url: str, database: Database, sent: Sender
) -> None:
    queue = queue_for("topic", [], "", WAITS)
    running = Running(url, database, queue, Flaky(3))
    sent.raw(b"not json")
    [event] = sent.created(1)
    until(lambda: running.notifier.counts == Counts(retried=2, dead=2))
    [other] = sent.created(1)
    until(lambda: running.notifier.counts == Counts(handled=1, retried=2, dead=2))
    running.stop()

    poison, failed = sent.left_in(queue.dead_letters, 2)
    assert poison.body == b"not json"
    assert str(poison.headers[protocol.REASON]).startswith("not JSON")
    assert failed.message_id == event.id
    assert failed.headers[protocol.REASON] == "OSError: not now"
    assert failed.headers[protocol.TRIES] == 3
    assert Inbox(database).known(queue.name, [event.id, other.id]) == {other.id}


def test_copies_share_a_queue_and_a_restart_repeats_nothing(url: str, database: Database, sent: Sender) -> None:
    queue = queue_for("topic", [], "", WAITS)
    sinks = [Flaky(0), Flaky(0)]
    copies = [Running(url, database, queue, sink) for sink in sinks]
    published = sent.created(100)
    until(lambda: sum(copy.notifier.counts.handled for copy in copies) == 100)
    for copy in copies:
        copy.stop()

    sent.publish(*published)
    later = Flaky(0)
    again = Running(url, database, queue, later)
    until(lambda: again.notifier.counts == Counts(duplicates=100))
    again.stop()
    assert sorted(sinks[0].ids + sinks[1].ids) == sorted(event.id for event in published)
    assert later.ids == []


def test_a_subscriber_of_ones_own_hears_what_it_asked_for(url: str, database: Database, sent: Sender) -> None:
    queue = queue_for("topic", ["order.updated.shipped"], "", WAITS)
    assert queue.bindings == (Binding(topology.TOPIC, "order.updated.shipped"),)
    sink = Flaky(0)
    running = Running(url, database, queue, sink)
    sent.declare(queue)
    [created] = sent.created(1)
    shipped = sent._services.changed(created.order.id, events.Change.SHIPPED)
    sent.publish(sent._services.log[-1])
    until(lambda: running.notifier.counts == Counts(handled=1))
    running.stop()
    assert [json.loads(line)["data"]["version"] for line in sink.stream.getvalue().splitlines()] == [shipped.version]


def test_the_reader_of_the_command_leaving_loses_nothing(site: tuple[str, str], url: str, sent: Sender) -> None:
    notify = [sys.executable, "-m", "ordersys", "notify", "--mode", "topic", "--json", "--broker-url", url]
    notify += ["--database-url", site[1]]
    published = sent.created(30)

    # Buffered as it is by default, so that something is left to be written at the exit.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    first = subprocess.Popen(notify, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert first.stdout is not None
    line = first.stdout.readline()
    first.stdout.close()
    [unread] = sent.created(1)  # those before may be in the pipe; this one nobody can take any more
    assert first.stderr is not None
    with first.stderr:
        log = first.stderr.read()
    assert first.wait(30) == 0, log
    assert json.loads(line)["id"] == published[0].id
    assert b"Traceback" not in log

    second = subprocess.Popen(notify, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert second.stdout is not None
    [last] = sent.created(1)
    printed = []
    while last.id not in printed:
        printed.append(json.loads(second.stdout.readline())["id"])
    assert unread.id in printed
    second.terminate()
    second.stdout.close()
    assert second.wait(30) == 0
    assert sent.left_in("notify.topic.dlq", 0) == []
    assert sent.left_in("notify.topic.retry", 0) == []
