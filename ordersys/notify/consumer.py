"""The notifier: takes events from a queue, drops those handled before, hands the rest to a sink, settles them.

The sink handles the events of a batch in queue order, the inbox remembers the handled ones in one transaction, and
only after that commit the broker is told. So a crash can repeat an effect, and never loses one.

Order is the queue's until something fails. A failed event waits in a retry queue while later events of its order go
on, so after a retry there is no promise of order: compare `order.version` and ignore what is older.
"""

import logging
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from ordersys.broker.broker import Broker, Delivery, Subscription
from ordersys.core import display, errors, events, ids, topology
from ordersys.core.backoff import Backoff
from ordersys.core.events import Event
from ordersys.core.redaction import redacted
from ordersys.core.topology import Queue, Topology
from ordersys.core.watch import spans
from ordersys.core.watch.metrics import Registry
from ordersys.core.watch.tracing import Span, Tracing
from ordersys.notify.inbox import Attempt
from ordersys.notify.metrics import NotifierMetrics
from ordersys.notify.sinks import Sink, SinkClosed, Undeliverable

logger = logging.getLogger(__name__)

RECEIVE_SECONDS = 0.5  # how long `stop` may go unnoticed by an idle notifier
_ID_LENGTH = 255  # an AMQP message id is a short string; much longer ones do not fit a database index

Message = tuple[Delivery, Event]


class Inbox(Protocol):
    """Remembers what was handled (see `inbox.Inbox`); both raise `Unavailable` when it cannot be reached."""

    def known(self, queue: str, event_ids: Sequence[str]) -> set[str]: ...

    def record(self, queue: str, handled: Sequence[tuple[str, str]], now_us: int) -> None: ...

    def note_failure(self, failed: Attempt, order_id: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a notifier has done since it was made."""

    handled: int = 0  # events that had their effect and are in the inbox
    duplicates: int = 0  # messages dropped because their event was handled before
    retried: int = 0  # failures that will be tried again
    dead: int = 0  # messages given to the dead letters


class Notifier:
    """One consumer of one queue, in a thread of its own; several copies, here or elsewhere, may share a queue.

    It survives its broker and its inbox: with either away it gives back what it holds, takes nothing, and tries again
    with growing pauses. It ends when it is stopped or when its sink is closed.
    """

    def __init__(
        self,
        broker: Broker,
        queue: Queue,
        inbox: Inbox,
        sink: Sink,
        *,
        name: str,
        batch: int = 50,
        backoff: Backoff | None = None,
        metrics: NotifierMetrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._inbox = inbox
        self._sink = sink
        self._name = name
        self._batch = batch
        self._backoff = backoff or Backoff(0.5, 30.0)
        self._tracing = tracing or Tracing()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=False)
        self._unrecorded: dict[str, str] = {}  # event id -> order id: had their effect, not yet in the inbox
        self._counts = Counts()
        self._metrics = metrics or NotifierMetrics(Registry(), queue.name)

    @property
    def counts(self) -> Counts:
        return self._counts

    @property
    def ended(self) -> bool:
        """True once it has been started and is not running any more: stopped, or its sink was closed."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Finish the event in hand, settle what was handled, give back the rest; False if that outlasts `timeout` s."""
        self._stopping.set()
        if self._thread.ident is None:  # never started
            return True
        self._thread.join(timeout)
        if not self.ended:
            logger.warning("%s has not stopped within %g s: a notification is still being handled", self._name, timeout)
        return self.ended

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._inbox.known(self._queue.name, [])  # with the inbox away nothing is taken from the queue
                self._remember()
                self._consume()
            except errors.Unavailable as error:
                self._pause(str(error))
            except Exception as error:
                logger.exception("%s met an unexpected error", self._name)
                self._pause(f"{type(error).__name__}: {error}")

    def _pause(self, reason: str) -> None:
        pause = self._backoff.pause()
        logger.warning("%s gave back what it held and tries again in %.1f s: %s", self._name, pause, reason)
        self._stopping.wait(pause)

    def _consume(self) -> None:
        self._broker.declare(Topology(topology.EXCHANGES, (self._queue,)))  # whoever comes first, after a loss too
        # Twice the batch: while one is handled the next is on its way.
        subscription = self._broker.subscribe(self._queue, prefetch=2 * self._batch)
        try:
            while not self._stopping.is_set():
                deliveries = subscription.receive(self._batch, RECEIVE_SECONDS)
                if deliveries:
                    self._settle(subscription, deliveries)
                    self._backoff.reset()
        finally:
            subscription.close()  # gives back every delivery that is not settled

    def _settle(self, subscription: Subscription, deliveries: Sequence[Delivery]) -> None:
        self._metrics.batch.observe(len(deliveries))
        messages = self._readable(subscription, deliveries)
        known = self._inbox.known(self._queue.name, [event.id for _, event in messages])
        fresh, duplicates = _apart(messages, known | self._unrecorded.keys())
        handled, failed = self._handle(fresh)
        self._remember()
        subscription.ack([*handled, *duplicates])
        self._count(duplicates=len(duplicates))
        for message, error in failed:
            self._give_on(subscription, message, error)

    def _readable(self, subscription: Subscription, deliveries: Sequence[Delivery]) -> list[Message]:
        """The deliveries with their events; what can never be read goes to the dead letters at once."""
        messages = []
        for delivery in deliveries:
            try:
                messages.append((delivery, _event(delivery.body)))
            except events.MalformedEvent as error:
                reason = str(error)
                logger.error(  # noqa: TRY400 - whose fault it is stands in the reason
                    "%s: message %r is a dead letter: %s",
                    self._name,
                    delivery.message_id,
                    reason,
                    extra={"ecs": {"ordersys.queue": self._queue.name, "ordersys.event.id": delivery.message_id}},
                )
                subscription.dead_letter(delivery, reason)
                self._count(dead=1)
        return messages

    def _handle(self, fresh: Sequence[Message]) -> tuple[list[Delivery], list[tuple[Message, Exception]]]:
        """What was handled and what failed; what is in neither was not begun, because it is time to stop."""
        handled: list[Delivery] = []
        failed: list[tuple[Message, Exception]] = []
        for delivery, event in fresh:
            if self._stopping.is_set():
                break
            begun = time.perf_counter()
            try:
                with self._span(delivery, event):
                    self._sink.handle(event, delivery.body)
            except SinkClosed as error:
                logger.warning("%s stops: %s", self._name, error)
                self._stopping.set()
            except Exception as error:  # noqa: BLE001 - a sink may fail in any way: the message is tried again
                failed.append(((delivery, event), error))
            else:
                self._metrics.done(event.time)
                self._unrecorded[event.id] = event.order.id
                handled.append(delivery)
                if logger.isEnabledFor(logging.DEBUG):
                    logger.debug("%s: handled %s", self._name, event.id, extra={"ecs": self._facts(event)})
            self._metrics.duration.observe(time.perf_counter() - begun)
        return handled, failed

    def _span(self, delivery: Delivery, event: Event) -> Span:
        """This try belongs to the sending of the message, or as far as is known to what made the event."""
        if not self._tracing.on:
            return self._tracing.passing()
        sent = str(delivery.headers.get(spans.TRACEPARENT, ""))
        return spans.process(
            self._tracing,
            self._broker.system,
            queue=self._queue.name,
            routing_key=delivery.routing_key,
            message_id=event.id,
            order_id=event.order.id,
            tries=delivery.tries + 1,
            parent=sent if ids.is_traceparent(sent) else event.traceparent,
        )

    def _remember(self) -> None:
        """Put what had its effect into the inbox; raises `Unavailable`, and then it is still to be remembered."""
        self._inbox.record(self._queue.name, list(self._unrecorded.items()), ids.now_us())
        self._count(handled=len(self._unrecorded))
        self._unrecorded.clear()

    def _give_on(self, subscription: Subscription, message: Message, error: Exception) -> None:
        """To the next retry queue, or to the dead letters: after the last one, and when the sink says so."""
        delivery, event = message
        # It goes into a header and a database, and may quote what others said.
        reason = redacted(display.printable(f"{type(error).__name__}: {error}"))
        failed_at = ids.now_us()
        hopeless = isinstance(error, Undeliverable)
        if hopeless:
            subscription.dead_letter(delivery, reason)
        again = not hopeless and subscription.retry(delivery, reason)
        logger.warning(
            "%s: event %s of order %s failed on try %d of %d, %s: %s",
            self._name,
            event.id,
            event.order.id,
            delivery.tries + 1,
            self._queue.tries,
            "to be tried again" if again else "now a dead letter",
            reason,
            exc_info=None if again or hopeless else error,
            extra={"ecs": self._facts(event)},
        )
        self._count(retried=int(again), dead=int(not again))
        tries = delivery.tries + 1
        failed = Attempt(queue=self._queue.name, event_id=event.id, at=failed_at, tries=tries, reason=reason)
        self._inbox.note_failure(failed, event.order.id)

    def _facts(self, event: Event) -> dict[str, str]:
        """What a program may look for in the log."""
        facts = {
            "ordersys.queue": self._queue.name,
            "ordersys.event.id": event.id,
            "ordersys.order.id": event.order.id,
        }
        if ids.is_traceparent(event.traceparent):
            facts["trace.id"] = event.traceparent[3:35]
        return facts

    def _count(self, *, handled: int = 0, duplicates: int = 0, retried: int = 0, dead: int = 0) -> None:
        now = self._counts
        self._counts = Counts(
            handled=now.handled + handled,
            duplicates=now.duplicates + duplicates,
            retried=now.retried + retried,
            dead=now.dead + dead,
        )
        self._metrics.handled.inc(handled)
        self._metrics.duplicates.inc(duplicates)
        self._metrics.retried.inc(retried)
        self._metrics.dead.inc(dead)


def _event(body: bytes) -> Event:
    """The event in a body; raises MalformedEvent for what no repetition can cure."""
    if len(body) > topology.MAX_BODY_BYTES:
        raise events.MalformedEvent(f"{len(body)} bytes: expected at most {topology.MAX_BODY_BYTES}")
    event = events.decode(body)
    for name, value in (("id", event.id), ("order_id", event.order.id)):
        if not 1 <= len(value) <= _ID_LENGTH or not value.isprintable():
            raise events.MalformedEvent(
                f"{name} {value[:40]!r}: expected printable text of 1 to {_ID_LENGTH} characters"
            )
    return event


def _apart(messages: Sequence[Message], known: Collection[str]) -> tuple[list[Message], list[Delivery]]:
    """The first message of each event that is not known, and the deliveries that only repeat one."""
    seen = set(known)
    fresh: list[Message] = []
    duplicates: list[Delivery] = []
    for delivery, event in messages:
        if event.id in seen:
            duplicates.append(delivery)
        else:
            seen.add(event.id)
            fresh.append((delivery, event))
    return fresh, duplicates
