"""The relay: moves events from the outbox to the broker, in order per order id, and forgets none.

It has a thread of its own: inside a saturated gRPC loop it would starve. Each round publishes at most one event per
order, pipelined, and takes out of the outbox what the broker confirmed on every exchange it had to go to. An event
that got no confirm stays, and the later events of its order wait behind it: a notifier may see one twice, never a
later one first because of us.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Protocol

from ordersys.broker.broker import Broker, Message, Outcome, Publisher
from ordersys.core import errors, events
from ordersys.core.backoff import Backoff
from ordersys.core.topology import Topology, routes
from ordersys.order.store import Unsent

logger = logging.getLogger(__name__)

WINDOW = 500
"""Events per round: the most that are published and not confirmed."""
POLL_SECONDS = 1.0
"""The safety net; a commit wakes the relay at once."""


class Store(Protocol):
    def unsent(self, limit: int) -> list[Unsent]: ...
    def mark_sent(self, sequences: Sequence[int]) -> None: ...


class Relay:
    def __init__(self, store: Store, broker: Broker, topology: Topology) -> None:
        self._store = store
        self._broker = broker
        self._topology = topology
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay")
        self._declared = False
        self._troubled = False

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is something in the outbox; never blocks."""
        self._woken.set()

    def stop(self, timeout: float) -> None:
        """Finish the round at work and end; whatever is still in the outbox goes out after the next start."""
        self._stopping.set()
        self._woken.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning("the relay did not end within %.1f s: its events stay in the outbox", timeout)

    def _run(self) -> None:
        publisher = self._broker.publisher()
        backoff = Backoff(first=0.1, most=5.0)
        try:
            while not self._stopping.is_set():
                self._woken.clear()
                try:
                    progress, left = self._round(publisher)
                except Exception as error:  # noqa: BLE001 - the relay outlives whatever is wrong with one round
                    self._trouble(error)
                    progress, left = False, True
                if progress:
                    self._recovered()
                    backoff.reset()
                if left and not progress:
                    self._stopping.wait(backoff.pause())
                elif not left:
                    self._woken.wait(POLL_SECONDS)
        finally:
            publisher.close()

    def _round(self, publisher: Publisher) -> tuple[bool, bool]:
        """(something was confirmed, something is left) of one round."""
        found = self._store.unsent(WINDOW)
        if not found:
            return False, False
        if not self._declared:
            self._broker.declare(self._topology)
            self._declared = True
        batch = first_per_order(found)
        messages = [message for event in batch for message in _messages(event)]
        outcomes = iter(publisher.publish(messages))
        sent = []
        for event in batch:
            results = [next(outcomes) for _ in routes(event.change)]
            if all(result is Outcome.CONFIRMED for result in results):
                sent.append(event.sequence)
        if sent:
            self._store.mark_sent(sent)
        missing = len(batch) - len(sent)
        if missing:
            # Somebody may have deleted an exchange, a queue or a binding: make them again, the events wait for that.
            self._declared = False
            self._trouble(errors.Unavailable(f"{missing} of {len(batch)} events were not taken by every queue"))
        return bool(sent), len(found) > len(sent) or len(found) == WINDOW

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


def _messages(event: Unsent) -> list[Message]:
    return [
        Message(
            exchange=exchange,
            routing_key=key,
            body=event.body.encode(),
            message_id=event.event_id,
            content_type=events.CONTENT_TYPE,
        )
        for exchange, key in routes(event.change)
    ]
