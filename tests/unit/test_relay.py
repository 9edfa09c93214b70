"""The relay against hand-written fakes: nothing is marked sent that was not confirmed, and orders keep their order."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from collector import Recorder

from ordersys.broker.broker import Message, Outcome, Subscription
from ordersys.core import errors, topology
from ordersys.core.events import Change
from ordersys.core.topology import Queue, Topology
from ordersys.core.watch.metrics import Registry
from ordersys.core.watch.tracing import Tracing
from ordersys.order.relay import Relay, RelayMetrics, first_per_order
from ordersys.order.store import Unsent

Verdict = Callable[[Message], Outcome]


class FakeStore:
    def __init__(self, *events: Unsent) -> None:
        self.events = list(events)
        self.fail = False
        self.read = 0

    def unsent(self, limit: int) -> list[Unsent]:
        if self.fail:
            raise errors.Unavailable("database away")
        self.read = len(self.events[:limit])
        return self.events[:limit]

    def mark_sent(self, sequences: Sequence[int]) -> None:
        self.events = [event for event in self.events if event.sequence not in sequences]


class FakeBroker:
    """Confirms as `verdict` says; what was published stands in `messages`."""

    system = "fake"

    def __init__(self, verdict: Verdict = lambda _: Outcome.CONFIRMED) -> None:
        self.verdict = verdict
        self.messages: list[Message] = []
        self.declared = 0
        self.closed = threading.Event()

    def declare(self, topology: Topology) -> None:
        self.declared += 1

    def publisher(self) -> "FakeBroker":
        return self

    def subscribe(self, queue: Queue, prefetch: int) -> Subscription:
        raise AssertionError("the relay does not consume")

    def ping(self) -> None: ...

    def publish(self, messages: Sequence[Message], timeout: float = 10.0) -> list[Outcome]:
        self.messages += messages
        return [self.verdict(message) for message in messages]

    def close(self) -> None:
        self.closed.set()

    def sent(self, exchange: str) -> list[str]:
        return [message.message_id for message in self.messages if message.exchange == exchange]


def unsent(sequence: int, order_id: str, change: Change = Change.CREATED) -> Unsent:
    return Unsent(sequence=sequence, event_id=f"e{sequence}", order_id=order_id, change=change, body="{}")


@contextmanager
def running(
    store: FakeStore, broker: FakeBroker, metrics: RelayMetrics | None = None, tracing: Tracing | None = None
) -> Iterator[Relay]:
    relay = Relay(store, broker, topology.standard(), metrics, tracing=tracing)
    relay.start()
    try:
        yield relay
    finally:
        relay.stop(5)
        assert broker.closed.is_set()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_created_goes_to_both_exchanges_and_changes_to_the_topic_one() -> None:
    store = FakeStore(unsent(1, "a"), unsent(2, "b", Change.SHIPPED))
    broker = FakeBroker()
    with running(store, broker):
        until(lambda: not store.events)
    assert broker.sent(topology.FANOUT) == ["e1"]
    assert broker.sent(topology.TOPIC) == ["e1", "e2"]
    assert [message.routing_key for message in broker.messages] == [
        "order.created",
        "order.created",
        "order.updated.shipped",
    ]


def test_an_event_is_sent_only_when_every_exchange_has_confirmed_it() -> None:
    refused = [topology.FANOUT]
    broker = FakeBroker(lambda message: Outcome.FAILED if message.exchange in refused else Outcome.CONFIRMED)
    store = FakeStore(unsent(1, "a"))
    with running(store, broker):
        until(lambda: len(broker.sent(topology.TOPIC)) >= 2)
        assert store.events  # the topic exchange has it, the fanout exchange has not
        refused.clear()
        until(lambda: not store.events)


def test_a_later_event_of_an_order_never_passes_an_earlier_one_and_holds_up_nobody_else() -> None:
    stuck = ["e1"]
    broker = FakeBroker(lambda message: Outcome.FAILED if message.message_id in stuck else Outcome.CONFIRMED)
    store = FakeStore(unsent(1, "a"), unsent(2, "a", Change.LINES), unsent(3, "b"), unsent(4, "a", Change.SHIPPED))
    with running(store, broker):
        until(lambda: [event.event_id for event in store.events] == ["e1", "e2", "e4"])
        assert "e2" not in broker.sent(topology.TOPIC)
        stuck.clear()
        until(lambda: not store.events)
    order = [each for each in broker.sent(topology.TOPIC) if each in ("e2", "e4")]
    assert order == ["e2", "e4"]


def test_an_unroutable_event_has_the_topology_declared_again_and_waits_for_it() -> None:
    broker = FakeBroker(lambda _: Outcome.CONFIRMED if broker.declared > 1 else Outcome.UNROUTABLE)
    store = FakeStore(unsent(1, "a"))
    with running(store, broker):
        until(lambda: not store.events)
    assert broker.declared == 2


def test_a_commit_wakes_the_relay_long_before_it_would_look_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ordersys.order.relay.POLL_SECONDS", 60.0)
    store, broker = FakeStore(), FakeBroker()
    with running(store, broker) as relay:
        store.events.append(unsent(1, "a"))
        relay.wake()
        until(lambda: not store.events)


def test_the_relay_outlives_its_database_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    store, broker = FakeStore(unsent(1, "a")), FakeBroker()
    store.fail = True
    with running(store, broker):
        until(lambda: "database away" in caplog.text)
        store.fail = False
        until(lambda: not store.events)
    assert caplog.text.count("database away") == 1


def test_of_each_order_only_the_oldest_event_is_taken() -> None:
    events = [unsent(1, "a"), unsent(2, "b"), unsent(3, "a"), unsent(4, "c")]
    assert [event.sequence for event in first_per_order(events)] == [1, 2, 4]


def test_of_an_outage_the_trace_of_an_event_holds_the_first_round_and_the_one_that_went_through() -> None:
    recorder, away = Recorder(), [True]
    broker = FakeBroker(lambda _: Outcome.FAILED if away else Outcome.CONFIRMED)
    store = FakeStore(unsent(1, "a", Change.SHIPPED))
    with running(store, broker, tracing=recorder.tracing()):
        until(lambda: len(broker.messages) >= 4)
        away.clear()
        until(lambda: not store.events)
    first, last = recorder.spans
    assert (first.name, first.attributes["error.type"], last.error) == ("send orders.topic", "failed", False)
    assert [first.id, last.id] == [
        message.headers["traceparent"].split("-")[2] for message in (broker.messages[0], broker.messages[-1])
    ]


def test_while_one_round_waits_for_its_confirm_the_next_follows_it_in_order() -> None:
    confirm = threading.Event()

    def verdict(message: Message) -> Outcome:
        return Outcome.CONFIRMED if message.message_id != "e1" or confirm.wait(10) else Outcome.FAILED

    store, broker = FakeStore(unsent(1, "a")), FakeBroker(verdict)
    with running(store, broker) as relay:
        until(lambda: "e1" in broker.sent(topology.FANOUT))
        store.events += [unsent(2, "a", Change.LINES), unsent(3, "b"), unsent(4, "c")]
        relay.wake()
        until(lambda: store.read == 4)  # the next round was read
        assert broker.sent(topology.TOPIC) == ["e1"]
        confirm.set()
        until(lambda: not store.events)
    assert broker.sent(topology.FANOUT) == ["e1", "e3", "e4"]
    assert broker.sent(topology.TOPIC).index("e1") < broker.sent(topology.TOPIC).index("e2")


def test_what_is_under_way_when_it_stops_is_confirmed_and_taken_out() -> None:
    confirm = threading.Event()
    broker = FakeBroker(lambda _: Outcome.CONFIRMED if confirm.wait(10) else Outcome.FAILED)
    store = FakeStore(unsent(1, "a"))
    with running(store, broker) as relay:
        until(lambda: bool(broker.messages))
        threading.Timer(0.1, confirm.set).start()
        relay.stop(10)
        assert not store.events


def test_what_some_queue_does_not_take_is_published_again_while_the_rest_flows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stuck = ["e1"]
    broker = FakeBroker(lambda message: Outcome.UNROUTABLE if message.message_id in stuck else Outcome.CONFIRMED)
    store = FakeStore(unsent(1, "a"), *[unsent(number, f"o{number}") for number in range(2, 1200)])
    caplog.set_level("INFO")
    with running(store, broker):
        until(lambda: [event.event_id for event in store.events] == ["e1"])
        stuck.clear()
        until(lambda: not store.events)
    assert [record.message for record in caplog.records if "outbox" in record.message] == [
        "events wait in the outbox: 1 of 500 events were not taken by every queue"
    ]
    assert caplog.text.count("flow to the broker again") == 1


def test_what_it_does_is_counted() -> None:
    answers = {topology.FANOUT: [Outcome.FAILED, Outcome.UNROUTABLE]}  # and then it confirms

    def verdict(message: Message) -> Outcome:
        left = answers.get(message.exchange)
        return left.pop(0) if left else Outcome.CONFIRMED

    registry = Registry()
    store = FakeStore(unsent(1, "a"), unsent(2, "b", Change.SHIPPED))
    with running(store, FakeBroker(verdict), RelayMetrics(registry)):
        until(lambda: registry.get_sample_value("ordersys_relay_events_total") == 2)

    def messages(outcome: str) -> float | None:
        return registry.get_sample_value("ordersys_relay_messages_total", {"outcome": outcome})

    assert (messages("failed"), messages("unroutable")) == (1, 1)
    assert messages("confirmed") == 3 + 1 + 1  # topic each of three times and once for event 2, fanout at last
    assert registry.get_sample_value("ordersys_relay_retries_total") == 2
    assert registry.get_sample_value("ordersys_relay_round_duration_seconds_count") == 3
