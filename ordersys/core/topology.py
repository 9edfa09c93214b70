"""Exchanges, queues, bindings, retry and dead-letter rules as data; both brokers read this and nothing else.

Per queue `q` there are `q.retry` (and `q.retry.2`, `q.retry.3`, ... for the longer waits) where a failed message
rests before it returns to `q`, and `q.dlq` where it ends. One retry queue per wait: RabbitMQ expires messages only
at the head of a queue, so a long wait in front would hold up a short one behind it (https://www.rabbitmq.com/docs/ttl).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ordersys.core.events import Change

FANOUT = "orders.fanout"
TOPIC = "orders.topic"
MAX_BODY_BYTES = 1_000_000
"""Larger bodies are poison: quorum queues hold whole messages in memory while they are in flight."""


class Kind(StrEnum):
    FANOUT = "fanout"
    TOPIC = "topic"


@dataclass(frozen=True, slots=True)
class Exchange:
    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Binding:
    exchange: str
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue with its bindings, its waits between tries in seconds, and the two names derived from its own."""

    name: str
    bindings: tuple[Binding, ...]
    waits: tuple[float, ...] = (1.0, 5.0, 30.0)

    @property
    def dead_letters(self) -> str:
        return f"{self.name}.dlq"

    @property
    def retries(self) -> tuple[str, ...]:
        """The retry queues, one per wait; never fewer than one, so that `q.retry` always exists."""
        steps = range(1, max(1, len(self.waits)) + 1)
        return tuple(f"{self.name}.retry" if step == 1 else f"{self.name}.retry.{step}" for step in steps)

    @property
    def tries(self) -> int:
        """How often a message is handled before it is a dead letter: the first time, and once after each wait."""
        return len(self.waits) + 1


@dataclass(frozen=True, slots=True)
class Topology:
    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]


EXCHANGES = (Exchange(FANOUT, Kind.FANOUT), Exchange(TOPIC, Kind.TOPIC))
NOTIFY_FANOUT = Queue("notify.fanout", (Binding(FANOUT),))
NOTIFY_TOPIC = Queue("notify.topic", (Binding(TOPIC, "order.created"), Binding(TOPIC, "order.updated.#")))


def standard(waits: Sequence[float] = NOTIFY_FANOUT.waits) -> Topology:
    """What whoever comes first declares, identical everywhere."""
    queues = tuple(Queue(queue.name, queue.bindings, tuple(waits)) for queue in (NOTIFY_FANOUT, NOTIFY_TOPIC))
    return Topology(EXCHANGES, queues)


def routes(change: Change) -> tuple[tuple[str, str], ...]:
    """Every (exchange, routing key) the event of a change has to be confirmed on before it counts as sent."""
    if change is Change.CREATED:
        return (FANOUT, "order.created"), (TOPIC, "order.created")
    return ((TOPIC, f"order.updated.{change}"),)


def matches(pattern: str, routing_key: str) -> bool:
    """AMQP 0-9-1 topic matching: `*` is exactly one word, `#` is zero or more words."""
    words = routing_key.split(".") if routing_key else []
    reached = {0}  # how many words the pattern so far can have consumed
    for part in pattern.split(".") if pattern else []:
        if not reached:
            return False
        if part == "#":
            reached = set(range(min(reached), len(words) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in ("*", words[at])}
    return len(words) in reached
