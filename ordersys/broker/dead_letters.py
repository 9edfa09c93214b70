"""The dead letters of some queues: look at them, send them to their queue again, or throw them away.

Looking borrows the messages and gives them back. Replaying publishes a message to its queue with a confirm and only
then takes it out of the dead letters: killed half-way it stands in both, and the inbox drops the second.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ordersys.broker import broker
from ordersys.broker.broker import Broker, Delivery, Message, Outcome, Subscription
from ordersys.core import errors, ids
from ordersys.core.topology import Queue

MOST = 10_000
"""Dead letters of one queue that are looked at in one go: they are held in memory."""
_FIRST_SECONDS = 1.0  # for the connection and the first message
_NEXT_SECONDS = 0.3
_STEP = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One message that nobody will try again by itself. Times are RFC 3339 text, "" when not known."""

    id: str
    queue: str  # where it failed and where a replay sends it
    reason: str
    tries: int
    first_failed_at: str
    last_failed_at: str
    exchange: str
    routing_key: str
    content_type: str
    body: bytes


Chosen = Callable[[DeadLetter], bool]


class DeadLetters:
    def __init__(self, opened: Broker, queues: Sequence[Queue]) -> None:
        self._broker = opened
        self._queues = queues

    def look(self, chosen: Chosen) -> list[DeadLetter]:
        """Those chosen, oldest first per queue; raises `Unavailable` when the broker cannot be reached."""
        with self._borrowed() as borrowed:
            return [letter for queue, lent in borrowed for letter, _ in _all(lent, queue) if chosen(letter)]

    def discard(self, chosen: Chosen) -> list[DeadLetter]:
        """Throw away those chosen; returns them."""
        return self._take(chosen, lambda _: None)

    def replay(self, chosen: Chosen) -> list[DeadLetter]:
        """Send those chosen to their queues again, as if for the first time; returns them.

        Raises `Unavailable` when a queue does not confirm: that message and the rest stay where they are.
        """
        publisher = self._broker.publisher()
        try:
            return self._take(chosen, lambda letters: _publish(publisher, letters))
        finally:
            publisher.close()

    def _take(self, chosen: Chosen, first: Callable[[Sequence[DeadLetter]], None]) -> list[DeadLetter]:
        began = ids.rfc3339(ids.now_us())  # what comes back dead meanwhile is not taken again
        taken: list[DeadLetter] = []
        with self._borrowed() as borrowed:
            for queue, lent in borrowed:
                found = [(letter, delivery) for letter, delivery in _all(lent, queue) if chosen(letter)]
                found = [pair for pair in found if pair[0].last_failed_at <= began]
                for start in range(0, len(found), _STEP):
                    step = found[start : start + _STEP]
                    first([letter for letter, _ in step])
                    lent.ack([delivery for _, delivery in step])
                    taken += [letter for letter, _ in step]
        return taken

    @contextmanager
    def _borrowed(self) -> Iterator[list[tuple[Queue, Subscription]]]:
        """All queues at once, so that an empty one costs no wait of its own."""
        self._broker.ping()
        with ExitStack() as given_back:
            borrowed = []
            for queue in self._queues:
                lent = self._broker.subscribe(Queue(queue.dead_letters, ()), prefetch=MOST)
                given_back.callback(lent.close)
                borrowed.append((queue, lent))
            yield borrowed


def _all(borrowed: Subscription, queue: Queue) -> Iterator[tuple[DeadLetter, Delivery]]:
    held = 0
    while deliveries := borrowed.receive(MOST - held, _NEXT_SECONDS if held else _FIRST_SECONDS):
        held += len(deliveries)
        yield from ((_letter(delivery, queue), delivery) for delivery in deliveries)
        if held >= MOST:
            return
    if borrowed.problem:
        raise errors.Unavailable(f"the dead letters of {queue.name} cannot be read: {borrowed.problem}")


def _letter(delivery: Delivery, queue: Queue) -> DeadLetter:
    headers = delivery.headers
    return DeadLetter(
        id=delivery.message_id or f"sha256-{hashlib.sha256(delivery.body).hexdigest()[:16]}",
        queue=str(headers.get(broker.QUEUE, queue.name)),
        # A message that was put here by the broker itself carries none of our notes.
        reason=str(headers.get(broker.REASON, broker.NEVER_SETTLED)),
        tries=delivery.tries,
        first_failed_at=str(headers.get(broker.FIRST_FAILED, "")),
        last_failed_at=str(headers.get(broker.LAST_FAILED, "")),
        exchange=delivery.exchange,
        routing_key=delivery.routing_key,
        content_type=delivery.content_type,
        body=delivery.body,
    )


def _publish(publisher: broker.Publisher, letters: Sequence[DeadLetter]) -> None:
    outcomes = publisher.publish([_message(letter) for letter in letters])
    for letter, outcome in zip(letters, outcomes, strict=True):
        if outcome is not Outcome.CONFIRMED:
            raise errors.Unavailable(f"queue {letter.queue} did not take {letter.id}: it stays a dead letter")


def _message(letter: DeadLetter) -> Message:
    return Message(
        exchange="",
        routing_key=letter.queue,
        body=letter.body,
        message_id=letter.id,
        content_type=letter.content_type,
        # Where it was published first is all it keeps: its tries begin anew.
        headers={broker.EXCHANGE: letter.exchange, broker.ROUTING_KEY: letter.routing_key},
    )
