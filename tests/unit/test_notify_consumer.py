"""The notifier against a broker and an inbox in memory that can be hurt at every step."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from ordersys.broker import broker as protocol
from ordersys.broker.broker import Delivery
from ordersys.core import errors, events, topology
from ordersys.core.backoff import Backoff
from ordersys.core.events import Change, Event
from ordersys.core.records import Line, Order, Status
from ordersys.core.topology import NOTIFY_TOPIC, Queue, Topology
from ordersys.core.watch.metrics import Registry
from ordersys.notify.consumer import Counts, Notifier
from ordersys.notify.inbox import Attempt
from ordersys.notify.metrics import NotifierMetrics
from ordersys.notify.sinks import SinkClosed, Undeliverable

QUEUE = replace(NOTIFY_TOPIC, waits=(1.0, 5.0))


def event(number: int, *, version: int = 1) -> Event:
    return Event(
        id=f"event-{number}",
        sequence=number,
        change=Change.CREATED if version == 1 else Change.LINES,
        time=1_700_000_000_000_000,
        order=Order(
            id=f"order-{number}",
            customer_id="customer-1",
            status=Status.PLACED,
            lines=(Line("1", 2, 1999),),
            currency="EUR",
            version=version,
            created_at=1_700_000_000_000_000,
            updated_at=1_700_000_000_000_000,
        ),
    )


def until(condition: Callable[[], bool], what: str = "") -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what or condition}"
        time.sleep(0.002)


class Journal:
    """Who did what, in order; and an error for whoever is to fail next."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, object]] = []
        self._failures: dict[str, list[BaseException]] = {}

    def fail(self, step: str, *failures: BaseException) -> None:
        """The next times that this step is taken it fails with these, one after the other."""
        self._failures.setdefault(step, []).extend(failures)

    def step(self, name: str, detail: object = None) -> None:
        if self._failures.get(name):
            self.steps.append((f"{name} failed", detail))
            raise self._failures[name].pop(0)
        self.steps.append((name, detail))

    def pending(self, step: str) -> int:
        return len(self._failures.get(step, []))

    def of(self, *names: str) -> list[tuple[str, object]]:
        return [step for step in self.steps if step[0] in names]


class MemoryBroker:
    """One queue. What is lent and not settled when a subscription closes goes back to the front, as redelivered."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.lock = threading.Lock()
        self.waiting: list[Delivery] = []
        self.resting: list[tuple[Delivery, str]] = []
        self.dead: list[tuple[Delivery, str]] = []
        self.declared: list[Topology] = []
        self.open = 0
        self._tag = 0

    def send(self, *bodies: Event | bytes) -> None:
        with self.lock:
            for body in bodies:
                self._tag += 1
                self.waiting.append(
                    Delivery(
                        tag=self._tag,
                        queue=QUEUE.name,
                        exchange=topology.TOPIC,
                        routing_key="order.created",
                        body=body if isinstance(body, bytes) else events.encode(body).encode(),
                        message_id=f"message-{self._tag}",
                        content_type=events.CONTENT_TYPE,
                        headers={},
                        redelivered=False,
                    )
                )

    def let_the_rested_return(self) -> None:
        with self.lock:
            self.waiting += [delivery for delivery, _reason in self.resting]
            self.resting.clear()

    def declare(self, topology: Topology) -> None:
        self.journal.step("declare")
        self.declared.append(topology)

    def publisher(self) -> protocol.Publisher:
        raise NotImplementedError("a notifier publishes nothing")

    def subscribe(self, queue: Queue, prefetch: int) -> "MemorySubscription":
        self.journal.step("subscribe", (queue.name, prefetch))
        self.open += 1
        return MemorySubscription(self, queue)

    def ping(self) -> None: ...

    def close(self) -> None: ...


class MemorySubscription:
    def __init__(self, broker: MemoryBroker, queue: Queue) -> None:
        self._broker = broker
        self._queue = queue
        self._held: dict[int, Delivery] = {}

    problem = ""

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        if self._broker.journal.pending("receive"):
            self._broker.journal.step("receive")
        deadline = time.monotonic() + min(timeout, 0.02)
        while time.monotonic() < deadline:
            with self._broker.lock:
                taken, self._broker.waiting = self._broker.waiting[:limit], self._broker.waiting[limit:]
                self._held.update({delivery.tag: delivery for delivery in taken})
            if taken:
                return taken
            time.sleep(0.001)
        return []

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._broker.journal.step("ack", [delivery.message_id for delivery in deliveries])
        self._settle(deliveries)

    def reject(self, delivery: Delivery) -> None:
        self._give_back([self._settle([delivery])[0]])

    def retry(self, delivery: Delivery, reason: str) -> bool:
        self._broker.journal.step("retry", delivery.message_id)
        failed = protocol.failed(self._queue, delivery, reason)
        self._settle([delivery])
        target = self._broker.dead if failed.wait is None else self._broker.resting
        target.append((replace(delivery, headers=failed.message.headers), reason))
        return failed.wait is not None

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        self._broker.journal.step("dead_letter", delivery.message_id)
        self._settle([delivery])
        self._broker.dead.append((delivery, reason))

    def close(self) -> None:
        self._broker.journal.step("close")
        self._give_back(list(self._held.values()))
        self._held.clear()
        self._broker.open -= 1

    def _settle(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return [self._held.pop(delivery.tag) for delivery in deliveries]

    def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        with self._broker.lock:
            self._broker.waiting[:0] = [replace(delivery, redelivered=True) for delivery in deliveries]


class MemoryInbox:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.rows: dict[tuple[str, str], str] = {}
        self.failures: list[tuple[str, int]] = []
        self._lock = threading.Lock()

    def known(self, queue: str, event_ids: Sequence[str]) -> set[str]:
        self._journal.step("known")
        with self._lock:
            return {event_id for event_id in event_ids if (queue, event_id) in self.rows}

    def record(self, queue: str, handled: Sequence[tuple[str, str]], now_us: int) -> None:
        if handled:
            self._journal.step("record", [event_id for event_id, _ in handled])
        with self._lock:
            self.rows |= {(queue, event_id): order_id for event_id, order_id in handled}

    def note_failure(self, failed: Attempt, order_id: str) -> None:
        with self._lock:
            self.failures.append((failed.event_id, failed.tries))


class MemorySink:
    """Remembers its effects; fails for an order as often as it is told to."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.effects: list[str] = []

    def handle(self, event: Event, body: bytes) -> None:
        assert events.decode(body) == event
        self._journal.step(f"handle {event.id}")
        self.effects.append(event.id)


class Setting:
    """A notifier and everything around it; `another` is a copy on the same queue and inbox."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.broker = MemoryBroker(self.journal)
        self.inbox = MemoryInbox(self.journal)
        self.sink = MemorySink(self.journal)
        self.registry = Registry()
        self.notifiers: list[Notifier] = []

    def start(self, batch: int = 50) -> Notifier:
        notifier = Notifier(
            self.broker,
            QUEUE,
            self.inbox,
            self.sink,
            name="n",
            batch=batch,
            backoff=Backoff(0.001, 0.01),
            metrics=NotifierMetrics(self.registry, QUEUE.name),
        )
        self.notifiers.append(notifier)
        notifier.start()
        return notifier

    def measured(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"ordersys_{name}", {"queue": QUEUE.name, **labels})

    @property
    def known(self) -> set[str]:
        return {event_id for _queue, event_id in self.inbox.rows}


@pytest.fixture
def setting() -> Iterator[Setting]:
    setting = Setting()
    yield setting
    for notifier in setting.notifiers:
        assert notifier.stop(20)
    assert setting.broker.open == 0


def acked(setting: Setting) -> list[str]:
    return [message for _, messages in setting.journal.of("ack") for message in messages]  # type: ignore[attr-defined]


def test_a_batch_is_handled_in_order_recorded_once_and_only_then_acked_at_once(setting: Setting) -> None:
    setting.broker.send(event(1), event(2), event(3))
    notifier = setting.start()
    until(lambda: len(acked(setting)) == 3)

    assert [name for name, _ in setting.journal.steps if name.startswith("handle")] == [
        "handle event-1",
        "handle event-2",
        "handle event-3",
    ]
    assert setting.journal.of("record", "ack") == [
        ("record", ["event-1", "event-2", "event-3"]),
        ("ack", ["message-1", "message-2", "message-3"]),
    ]
    assert setting.inbox.rows == {(QUEUE.name, f"event-{number}"): f"order-{number}" for number in (1, 2, 3)}
    until(lambda: notifier.counts == Counts(handled=3))


def test_no_more_than_a_batch_is_handled_before_it_is_settled(setting: Setting) -> None:
    setting.broker.send(*(event(number) for number in range(5)))
    setting.start(batch=2)
    until(lambda: len(acked(setting)) == 5)
    assert [len(ids) for _, ids in setting.journal.of("record")] == [2, 2, 1]  # type: ignore[arg-type]


def test_it_declares_its_queue_and_holds_two_batches(setting: Setting) -> None:
    setting.start(batch=7)
    until(lambda: bool(setting.journal.of("subscribe")))
    assert setting.broker.declared == [Topology(topology.EXCHANGES, (QUEUE,))]
    assert setting.journal.of("subscribe") == [("subscribe", (QUEUE.name, 14))]


def test_an_event_in_the_inbox_is_dropped(setting: Setting) -> None:
    setting.inbox.record(QUEUE.name, [("event-1", "order-1")], 1)
    setting.broker.send(event(1), event(2))
    notifier = setting.start()
    until(lambda: notifier.counts == Counts(handled=1, duplicates=1))
    assert setting.sink.effects == ["event-2"]
    assert sorted(acked(setting)) == ["message-1", "message-2"]


def test_an_event_that_another_queue_handled_is_not_dropped(setting: Setting) -> None:
    setting.inbox.record("another.queue", [("event-1", "order-1")], 1)
    setting.broker.send(event(1))
    setting.start()
    until(lambda: acked(setting) == ["message-1"])
    assert setting.sink.effects == ["event-1"]


def test_an_event_that_comes_twice_in_one_batch_has_its_effect_once(setting: Setting) -> None:
    setting.broker.send(event(1), event(2), event(1))
    notifier = setting.start()
    until(lambda: notifier.counts == Counts(handled=2, duplicates=1))
    assert setting.sink.effects == ["event-1", "event-2"]
    assert sorted(acked(setting)) == ["message-1", "message-2", "message-3"]


NOT_JSON = b"\xff not json"
WRONG_SCHEMA = json.dumps({"type": "ordersys.order.created.v1", "id": "1"}).encode()
UNKNOWN_TYPE = json.dumps({**events.to_json(event(1)), "type": "somebody.elses.v1"}).encode()
TOO_LARGE = events.encode(event(1)).encode() + b" " * topology.MAX_BODY_BYTES
NESTED = b"[" * 200_000
INFINITE = json.dumps({**events.to_json(event(1)), "sequence": float("inf")}).encode()
UNPRINTABLE = json.dumps({**events.to_json(event(1)), "id": "nul \0"}).encode()
CONTROL = json.dumps({**events.to_json(event(1)), "id": "line\nbreak"}).encode()
ENDLESS_ID = json.dumps({**events.to_json(event(1)), "id": "x" * 256}).encode()
NO_ID = json.dumps({**events.to_json(event(1)), "id": ""}).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (NOT_JSON, "not JSON"),
        (b"", "not JSON"),
        (b"[]", "not an order event"),
        (WRONG_SCHEMA, "not an order event"),
        (UNKNOWN_TYPE, "got 'somebody.elses.v1'"),
        (TOO_LARGE, "expected at most 1000000"),
        (NESTED, "not JSON"),
        (INFINITE, "not an order event"),
        (UNPRINTABLE, "id: expected an id, got 'nul \\x00'"),
        (ENDLESS_ID, "xxx': expected printable text of 1 to 255 characters"),
        (CONTROL, "id 'line\\nbreak': expected printable text"),
        (NO_ID, "id: expected an id, got ''"),
    ],
)
def test_poison_goes_to_the_dead_letters_at_once_and_the_queue_goes_on(
    setting: Setting, body: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    setting.broker.send(event(1), body, event(2))
    notifier = setting.start()
    until(lambda: notifier.counts == Counts(handled=2, dead=1))

    assert setting.sink.effects == ["event-1", "event-2"]
    assert [(delivery.message_id, delivery.body) for delivery, _ in setting.broker.dead] == [("message-2", body)]
    assert reason in setting.broker.dead[0][1]
    assert not setting.journal.of("retry")
    assert any("message-2" in record.message and reason in record.message for record in caplog.records)


def test_a_failing_handler_is_tried_again_and_its_neighbours_are_not(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    setting.journal.fail("handle event-2", OSError("no route"), OSError("still none"))
    setting.broker.send(event(1), event(2), event(3))
    notifier = setting.start()
    until(lambda: notifier.counts == Counts(handled=2, retried=1))
    assert setting.known == {"event-1", "event-3"}
    assert setting.broker.resting[0][1] == "OSError: no route"

    setting.broker.let_the_rested_return()
    until(lambda: notifier.counts == Counts(handled=2, retried=2))
    setting.broker.let_the_rested_return()
    until(lambda: notifier.counts == Counts(handled=3, retried=2))

    assert setting.sink.effects == ["event-1", "event-3", "event-2"]
    assert setting.known == {"event-1", "event-2", "event-3"}
    assert setting.inbox.failures == [("event-2", 1), ("event-2", 2)]
    messages = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert messages == [
        "n: event event-2 of order order-2 failed on try 1 of 3, to be tried again: OSError: no route",
        "n: event event-2 of order order-2 failed on try 2 of 3, to be tried again: OSError: still none",
    ]


def test_a_handler_that_always_fails_ends_in_the_dead_letters(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    setting.journal.fail("handle event-1", *(ValueError(f"no {number}") for number in (1, 2, 3)))
    setting.broker.send(event(1))
    notifier = setting.start()
    for tries in (1, 2):
        until(lambda tries=tries: notifier.counts.retried == tries)
        setting.broker.let_the_rested_return()
    until(lambda: notifier.counts == Counts(retried=2, dead=1))

    [(delivery, reason)] = setting.broker.dead
    assert reason == "ValueError: no 3"
    assert delivery.headers[protocol.TRIES] == 3
    assert setting.known == set()
    assert "failed on try 3 of 3, now a dead letter: ValueError: no 3" in caplog.text


def test_a_reason_that_no_database_could_hold_is_made_printable(setting: Setting) -> None:
    setting.journal.fail("handle event-1", OSError("nul \0, half \udc80,\nline"))
    setting.broker.send(event(1))
    notifier = setting.start()
    until(lambda: notifier.counts == Counts(retried=1))
    assert setting.broker.resting[0][1] == r"OSError: nul \x00, half \udc80,\nline"


def test_a_repeat_of_a_failed_event_is_dropped_and_the_failed_one_is_kept(setting: Setting) -> None:
    setting.journal.fail("handle event-1", OSError("no"))
    setting.broker.send(event(1), event(1))
    notifier = setting.start()
    until(lambda: notifier.counts == Counts(duplicates=1, retried=1))
    setting.broker.let_the_rested_return()
    until(lambda: notifier.counts == Counts(handled=1, duplicates=1, retried=1))
    assert setting.sink.effects == ["event-1"]


# Crash points, in the order of the steps


def test_with_the_inbox_away_nothing_is_taken_from_the_queue(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    setting.journal.fail("known", *(errors.Unavailable("database away") for _ in range(5)))
    setting.broker.send(event(1))
    notifier = setting.start()
    until(lambda: notifier.counts == Counts(handled=1))

    steps = [name for name, _ in setting.journal.steps]
    assert steps[:5] == ["known failed"] * 5
    assert setting.sink.effects == ["event-1"]
    assert caplog.text.count("database away") == 5


def test_the_inbox_away_in_the_middle_gives_the_batch_back_unhandled(setting: Setting) -> None:
    notifier = setting.start()
    until(lambda: bool(setting.journal.of("subscribe")))
    setting.journal.fail("known", errors.Unavailable("away"))
    setting.broker.send(event(1))
    until(lambda: notifier.counts == Counts(handled=1))

    names = [name for name, _ in setting.journal.steps if name != "known"]
    assert names[:4] == ["declare", "subscribe", "known failed", "close"]
    assert setting.sink.effects == ["event-1"]


def test_a_commit_that_fails_acks_nothing_and_repeats_no_effect(setting: Setting) -> None:
    setting.journal.fail("record", *(errors.Unavailable("disk full") for _ in range(4)))
    setting.broker.send(event(1), event(2))
    notifier = setting.start()
    until(lambda: not setting.broker.waiting and len(acked(setting)) == 2)

    names = [name for name, _ in setting.journal.of("record failed", "record", "ack", "close", "subscribe")]
    # Until the inbox can be written again nothing more is taken: a message may come back only so often.
    assert names == ["subscribe", "record failed", "close", *["record failed"] * 3, "record", "subscribe", "ack"]
    assert setting.sink.effects == ["event-1", "event-2"]
    until(lambda: notifier.counts == Counts(handled=2, duplicates=2))


def test_killed_between_effect_and_commit_the_effect_is_repeated_by_the_next(setting: Setting) -> None:
    setting.journal.fail("record", *(errors.Unavailable("killed") for _ in range(100_000)))
    setting.broker.send(event(1))
    first = setting.start()
    until(lambda: bool(setting.journal.of("record failed")))
    first.stop(20)
    setting.journal._failures.clear()
    assert setting.broker.waiting[0].redelivered

    setting.start()
    until(lambda: acked(setting) == ["message-1"])
    assert setting.sink.effects == ["event-1", "event-1"]


def test_an_ack_that_fails_after_the_commit_repeats_no_effect(setting: Setting) -> None:
    setting.journal.fail("ack", errors.Unavailable("connection lost"))
    setting.broker.send(event(1))
    first = setting.start()
    until(lambda: first.counts == Counts(handled=1, duplicates=1))
    assert setting.sink.effects == ["event-1"]
    assert acked(setting) == ["message-1"]


def test_a_retry_that_cannot_be_published_leaves_the_message_and_keeps_what_was_done(setting: Setting) -> None:
    setting.journal.fail("handle event-1", OSError("no"))
    setting.journal.fail("retry", errors.Unavailable("broker away"))
    setting.broker.send(event(1), event(2))
    notifier = setting.start()
    until(lambda: notifier.counts == Counts(handled=2))
    assert setting.sink.effects == ["event-2", "event-1"]
    assert not setting.broker.resting


def test_what_a_sink_calls_undeliverable_is_a_dead_letter_at_once(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    setting.journal.fail("handle event-1", Undeliverable("410 Gone"))
    setting.broker.send(event(1), event(2))
    notifier = setting.start()
    until(lambda: notifier.counts == Counts(handled=1, dead=1))
    assert [(each.message_id, why) for each, why in setting.broker.dead] == [("message-1", "Undeliverable: 410 Gone")]
    assert setting.journal.of("retry") == []
    until(lambda: setting.inbox.failures == [("event-1", 1)])
    assert "failed on try 1 of 3, now a dead letter: Undeliverable: 410 Gone" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_reason_keeps_no_secret_that_a_sink_quotes(setting: Setting) -> None:
    setting.journal.fail("handle event-1", Undeliverable("curl: amqp://guest:hunter2@rabbit: refused"))
    setting.broker.send(event(1))
    notifier = setting.start()
    until(lambda: notifier.counts == Counts(dead=1))
    [(_, reason)] = setting.broker.dead
    assert reason == "Undeliverable: curl: amqp://guest:***@rabbit: refused"


def test_a_dead_letter_that_cannot_be_published_is_tried_again(setting: Setting) -> None:
    setting.journal.fail("dead_letter", errors.Unavailable("broker away"))
    setting.broker.send(NOT_JSON, event(1))
    notifier = setting.start()
    until(lambda: notifier.counts == Counts(handled=1, dead=1))
    assert [delivery.body for delivery, _ in setting.broker.dead] == [NOT_JSON]


# The thread lives


@pytest.mark.parametrize("step", ["declare", "subscribe", "receive", "ack", "close", "known", "record"])
@pytest.mark.parametrize("error", [errors.Unavailable("away"), RuntimeError("a bug")])
def test_whatever_fails_the_notifier_comes_back_and_says_why(
    setting: Setting, step: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    setting.journal.fail(step, error, error)
    if step == "close":
        setting.journal.fail("receive", RuntimeError("so that it closes"))
    setting.broker.send(event(1))
    notifier = setting.start()
    until(lambda: notifier.counts.handled == 1 and setting.broker.waiting == [] and bool(acked(setting)))

    assert not notifier.ended
    assert setting.sink.effects == ["event-1"]
    assert str(error) in caplog.text
    setting.journal._failures.clear()
    setting.broker.open = 1  # a close that failed is not counted


def test_pauses_grow_until_a_batch_succeeds() -> None:
    setting = Setting()
    backoff = RecordedBackoff()
    setting.journal.fail("known", *(errors.Unavailable("away") for _ in range(3)))
    notifier = Notifier(setting.broker, QUEUE, setting.inbox, setting.sink, name="n", backoff=backoff)
    notifier.start()
    setting.broker.send(event(1))
    until(lambda: backoff.calls == ["pause", "pause", "pause", "reset"])
    assert notifier.stop(20)


class RecordedBackoff(Backoff):
    def __init__(self) -> None:
        super().__init__(0.001, 0.002)
        self.calls: list[str] = []

    def pause(self) -> float:
        self.calls.append("pause")
        return super().pause()

    def reset(self) -> None:
        self.calls.append("reset")
        super().reset()


# Stopping


class GatedSink(MemorySink):
    """Waits in the middle of each event until it is let through."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def handle(self, event: Event, body: bytes) -> None:
        self.begun.release()
        assert self.go.acquire(timeout=20)
        super().handle(event, body)


def test_stop_finishes_the_event_in_hand_settles_it_and_gives_back_the_rest(setting: Setting) -> None:
    setting.sink = gated = GatedSink(setting.journal)
    setting.broker.send(event(1), event(2), event(3), event(4))
    notifier = setting.start(batch=3)
    assert gated.begun.acquire(timeout=20)
    gated.go.release()
    assert gated.begun.acquire(timeout=20)  # the second event is in hand

    assert not notifier.stop(0.01)
    gated.go.release()
    assert notifier.stop(20)

    assert notifier.ended
    assert gated.effects == ["event-1", "event-2"]
    assert setting.known == {"event-1", "event-2"}
    assert acked(setting) == ["message-1", "message-2"]
    assert [delivery.message_id for delivery in setting.broker.waiting] == ["message-3", "message-4"]


def test_an_idle_notifier_and_one_that_never_started_stop_at_once(setting: Setting) -> None:
    notifier = setting.start()
    until(lambda: bool(setting.journal.of("subscribe")))
    assert not notifier.ended
    assert notifier.stop(20)
    assert notifier.ended

    never = Notifier(setting.broker, QUEUE, setting.inbox, setting.sink, name="never")
    assert never.stop(0)
    assert not never.ended


def test_a_notifier_stops_in_the_middle_of_a_pause() -> None:
    setting = Setting()
    setting.journal.fail("known", errors.Unavailable("away"))
    notifier = Notifier(setting.broker, QUEUE, setting.inbox, setting.sink, name="n", backoff=Backoff(1000, 1000))
    notifier.start()
    until(lambda: bool(setting.journal.of("known failed")))
    assert notifier.stop(20)


def test_a_closed_sink_ends_the_notifier_and_keeps_what_it_did_not_take(setting: Setting) -> None:
    setting.journal.fail("handle event-2", SinkClosed("nobody reads"))
    setting.broker.send(event(1), event(2), event(3))
    notifier = setting.start()
    until(lambda: notifier.ended)

    assert setting.known == {"event-1"}
    assert acked(setting) == ["message-1"]
    assert [delivery.message_id for delivery in setting.broker.waiting] == ["message-2", "message-3"]
    assert not setting.broker.resting
    assert not setting.broker.dead


def test_copies_that_share_a_queue_share_the_work(setting: Setting) -> None:
    copies = [setting.start(batch=3) for _ in range(3)]
    setting.broker.send(*(event(number) for number in range(200)))
    until(lambda: sum(copy.counts.handled for copy in copies) == 200)
    assert sorted(setting.sink.effects) == sorted(f"event-{number}" for number in range(200))
    assert len(setting.inbox.rows) == 200


def test_what_becomes_of_the_messages_is_counted_and_timed(setting: Setting) -> None:
    long_ago = event(1)
    now = replace(event(2), time=int(time.time() * 1e6))
    ahead = replace(event(3), time=int(time.time() * 1e6) + 3_600_000_000)  # by the clock of another machine
    setting.journal.fail("handle event-4", *(ValueError("no") for _ in range(QUEUE.tries)))
    setting.broker.send(long_ago, now, ahead, event(4), now, NOT_JSON)
    setting.start()

    def counted(outcome: str) -> float | None:
        return setting.measured("notifications_total", outcome=outcome)

    until(lambda: counted("retried") == 1)
    for tries in range(1, QUEUE.tries):
        until(lambda tries=tries: len(setting.broker.resting) == 1 or len(setting.broker.dead) == 2)
        setting.broker.let_the_rested_return()
        until(lambda tries=tries: (counted("retried"), counted("dead")) in {(tries + 1, 1), (QUEUE.tries - 1, 2)})
    assert [counted(each) for each in ("handled", "duplicate", "retried", "dead")] == [3, 1, QUEUE.tries - 1, 2]
    assert setting.measured("notification_lag_seconds_count") == 3
    assert setting.measured("notification_lag_seconds_bucket", le="7200.0") == 2  # all but the one of long ago
    assert setting.measured("notification_lag_seconds_bucket", le="0.01") in {1, 2}  # who is ahead has no lag
    assert setting.measured("notification_duration_seconds_count") == 3 + QUEUE.tries
    assert setting.measured("notification_batch_size_sum") == 6 + QUEUE.tries - 1
