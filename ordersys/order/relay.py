"""The relay: moves events from the outbox to the broker, in order per order id, and forgets none.

It has threads of its own: inside a saturated gRPC loop it would starve. Each round publishes at most one event per
order, pipelined; while the broker confirms one round the next is read, and waits to follow it. What the broker
confirmed on every exchange it had to go to is taken out of the outbox. An event that got no confirm stays, and the
later events of its order wait behind it: a notifier may see one twice, never a later one first because of us.

Of several processes on one outbox one at a time relays, whoever committed what (docs/decisions/0027-one-relay-at-a-
time.md).
"""

import logging
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from ordersys.broker.broker import Broker, Message, Outcome
from ordersys.core import errors, events
from ordersys.core.backoff import Backoff
from ordersys.core.topology import Topology, routes
from ordersys.core.watch import spans
from ordersys.core.watch.metrics import Registry
from ordersys.core.watch.tracing import Span, Tracing
from ordersys.order.store import Unsent

logger = logging.getLogger(__name__)

WINDOW = 500
"""Events per round, at most."""
ROUNDS = 2
"""How many are under way: one with the broker, the next behind it. In turns, so that orders keep their order, too."""
POLL_SECONDS = 1.0
"""The safety net; a commit wakes the relay at once."""
LINGER_SECONDS = 0.02
"""How long it keeps its turn with nothing to do: under load it is not passed to and fro."""
AGAIN_SECONDS = 0.1
"""When it asks again for a turn that is another's; a commit that the other has just missed waits no longer."""


class Store(Protocol):
    def unsent(self, limit: int) -> list[Unsent]: ...
    def mark_sent(self, sequences: Sequence[int]) -> None: ...


class Turn(Protocol):
    """To relay while no other process does."""

    def take(self) -> bool:
        """True when it is ours, or still is; to be asked again within seconds as long as it is needed."""

    def give_up(self) -> None: ...


class Alone:
    """The turn of who shares its outbox with nobody."""

    def take(self) -> bool:
        return True

    def give_up(self) -> None: ...


class RelayMetrics:
    """Belongs to the thread of the relay."""

    def __init__(self, registry: Registry) -> None:
        messages = registry.counter(
            "ordersys_relay_messages", "Messages that were published, by what the broker said to them", ["outcome"]
        )
        self._messages = {outcome: messages.labels(outcome.value) for outcome in Outcome}
        self._events = registry.counter("ordersys_relay_events", "Events taken out of the outbox, confirmed everywhere")
        self._retries = registry.counter("ordersys_relay_retries", "Events that have to be published once more")
        self._duration = registry.histogram(
            "ordersys_relay_round_duration_seconds", "How long a round took that found something in the outbox"
        )

    def published(self, outcomes: Iterable[Outcome]) -> None:
        for outcome, count in Tally(outcomes).items():
            self._messages[outcome].inc(count)

    def finished(self, seconds: float, *, sent: int, missing: int) -> None:
        self._duration.observe(seconds)
        self._events.inc(sent)
        self._retries.inc(missing)


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """What is on its way to the broker: some events, one message per route of each."""

    begun: float
    batch: list[Unsent]
    spans: list[Span]
    published: Future[list[Outcome]]


class Relay:
    def __init__(
        self,
        store: Store,
        broker: Broker,
        topology: Topology,
        metrics: RelayMetrics | None = None,
        tracing: Tracing | None = None,
        *,
        turn: Turn | None = None,
    ) -> None:
        self._store = store
        self._turn = turn or Alone()
        self._metrics = metrics or RelayMetrics(Registry())
        self._tracing = tracing or Tracing()
        self._broker = broker
        self._topology = topology
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay")
        self._under_way: list[Round] = []
        self._declared = False
        self._troubled = False

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is something in the outbox; never blocks."""
        self._woken.set()

    def stop(self, timeout: float) -> None:
        """Finish the rounds under way and end; whatever is still in the outbox goes out after the next start."""
        self._stopping.set()
        self._woken.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning("the relay did not end within %.1f s: its events stay in the outbox", timeout)

    def _run(self) -> None:
        publisher = self._broker.publisher()
        backoff, rest_until = Backoff(first=0.1, most=5.0), 0.0
        with ThreadPoolExecutor(1, thread_name_prefix="relay-publish") as sender:
            while self._under_way or not self._stopping.is_set():
                self._woken.clear()
                ours = more = False
                try:
                    if self._finish():
                        self._recovered()
                        backoff.reset()
                    rests = time.monotonic() < rest_until
                    if self._under_way or not rests:
                        ours = self._turn.take()
                        if not ours:
                            rest_until = time.monotonic() + AGAIN_SECONDS
                    if ours and not rests and self._has_room() and not self._stopping.is_set():
                        more = self._begin(lambda messages: sender.submit(publisher.publish, messages))
                except Exception as error:  # noqa: BLE001 - the relay outlives whatever is wrong with one round
                    self._trouble(error)
                    ours, rest_until = False, time.monotonic() + backoff.pause()
                if not (more and self._has_room()):
                    self._rest(rest_until - time.monotonic(), ours=ours)
            self._turn.give_up()
            publisher.close()

    def _rest(self, seconds: float, *, ours: bool) -> None:
        """Wait for a commit or a confirm, or for so long when nothing may be begun; others may have the turn then."""
        if not self._under_way and not (ours and self._woken.wait(LINGER_SECONDS)):
            self._turn.give_up()
        self._woken.wait(seconds if 0 < seconds < POLL_SECONDS else POLL_SECONDS)

    def _has_room(self) -> bool:
        return len(self._under_way) < ROUNDS

    def _begin(self, publish: Callable[[list[Message]], "Future[list[Outcome]]"]) -> bool:
        """Begin a round with what may go out now; True when another could follow at once."""
        begun = time.perf_counter()
        busy = {event.order_id for each in self._under_way for event in each.batch}
        found = self._store.unsent(WINDOW + len(busy))
        batch = [event for event in first_per_order(found) if event.order_id not in busy][:WINDOW]
        if not batch:
            return False
        if not self._declared:
            self._broker.declare(self._topology)
            self._declared = True
        sending = [each for event in batch for each in self._messages(event)]
        published = publish([message for message, _ in sending])
        published.add_done_callback(lambda _: self._woken.set())
        self._under_way.append(Round(begun, batch, [span for _, span in sending], published))
        return len(found) > len(busy) + len(batch)

    def _finish(self) -> bool:
        """Take what was confirmed out of the outbox; True when that was something, and everything that was published.

        Raises `Unavailable` when nothing was confirmed, and whatever kept a round from it.
        """
        done = [each for each in self._under_way if each.published.done()]
        if not done:
            return False
        self._under_way = [each for each in self._under_way if each not in done]
        sent: list[int] = []
        for each in done:
            sent += self._confirmed(each)
        if sent:
            self._store.mark_sent(sent)
        count = sum(len(each.batch) for each in done)
        missing = count - len(sent)
        self._metrics.finished(time.perf_counter() - min(each.begun for each in done), sent=len(sent), missing=missing)
        if missing:
            # Somebody may have deleted an exchange, a queue or a binding: make them again, the events wait for that.
            self._declared = False
            error = errors.Unavailable(f"{missing} of {count} events were not taken by every queue")
            if not sent:
                raise error
            self._trouble(error)
        return not missing

    def _confirmed(self, done: "Round") -> Iterator[int]:
        """The sequences of a round's events that are everywhere they had to go."""
        published = done.published.result()
        self._metrics.published(published)
        for span, outcome in zip(done.spans, published, strict=True):
            self._end(span, outcome)
        outcomes = iter(published)
        for event in done.batch:
            results = [next(outcomes) for _ in routes(event.change)]
            if all(result is Outcome.CONFIRMED for result in results):
                yield event.sequence

    def _messages(self, event: Unsent) -> Iterator[tuple[Message, Span]]:
        parent = events.traceparent_of(event.body) if self._tracing.on else ""
        for exchange, key in routes(event.change):
            span = spans.send(
                self._tracing,
                self._broker.system,
                exchange=exchange,
                routing_key=key,
                message_id=event.event_id,
                order_id=event.order_id,
                parent=parent,
            )
            message = Message(
                exchange=exchange,
                routing_key=key,
                body=event.body.encode(),
                message_id=event.event_id,
                content_type=events.CONTENT_TYPE,
                headers={spans.TRACEPARENT: span.traceparent} if span.recorded else {},
            )
            yield message, span

    def _end(self, span: Span, outcome: Outcome) -> None:
        if outcome is not Outcome.CONFIRMED:
            if self._troubled:  # of an outage only the first round is told: what waits is tried again and again
                return
            span.fail(outcome.value)
        span.end()

    def _trouble(self, error: Exception) -> None:
        if not self._troubled:
            known = isinstance(error, errors.OrdersysError)
            logger.warning("events wait in the outbox: %s", error, exc_info=None if known else error)
        self._troubled = True

    def _recovered(self) -> None:
        if self._troubled:
            logger.info("events flow to the broker again")
        self._troubled = False


def first_per_order(found: Sequence[Unsent]) -> list[Unsent]:
    """Of each order only its oldest event: the next one goes when this one is confirmed."""
    oldest: dict[str, Unsent] = {}
    for event in found:
        oldest.setdefault(event.order_id, event)
    return list(oldest.values())
