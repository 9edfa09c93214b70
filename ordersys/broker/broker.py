"""What every broker offers: publish with confirm, and consume with ack, reject, retry and dead letter.

Delivery is at least once. Blocking calls; each publisher and each subscription belongs to one thread at a time.
Two adapters implement this and pass the same contract suite: `sqlite.py` and `rabbitmq.py`.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Protocol, TypeVar

from ordersys.core import errors, ids
from ordersys.core.topology import Queue, Topology
from ordersys.core.users import User

Headers = Mapping[str, str | int]

# What a message that failed carries on its way through the retry queues and into the dead letters.
TRIES = "x-ordersys-tries"  # how often it was handled so far
REASON = "x-ordersys-reason"
FIRST_FAILED = "x-ordersys-first-failed-at"  # RFC 3339
LAST_FAILED = "x-ordersys-last-failed-at"
EXCHANGE = "x-ordersys-exchange"  # where it was published first
ROUTING_KEY = "x-ordersys-routing-key"
QUEUE = "x-ordersys-queue"  # whose consumer failed

DELIVERY_LIMIT = 20
"""A message that comes back unsettled more often than this is a dead letter: it kills its consumers."""
NEVER_SETTLED = f"came back unsettled more than {DELIVERY_LIMIT} times"


class Outcome(Enum):
    """What became of one published message."""

    CONFIRMED = "confirmed"  # every queue it was routed to has it, durably
    UNROUTABLE = "unroutable"  # no queue was bound to take it
    FAILED = "failed"  # refused, or the connection was lost before the confirm: it may or may not be there


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is published; the empty exchange is AMQP's default one and its routing key is a queue's name."""

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    content_type: str
    headers: Headers = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message lent to a consumer until it is settled; exchange and routing key are those of its first publish."""

    tag: int  # means something to the subscription that made it, and to nobody else
    queue: str
    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    content_type: str
    headers: Headers
    redelivered: bool  # true when it was lent before without being settled

    @property
    def tries(self) -> int:
        """How often it was handled and failed before this delivery; a header that is no such number counts as 0."""
        tries = self.headers.get(TRIES, 0)
        return max(0, tries) if isinstance(tries, int) else 0


@dataclass(frozen=True, slots=True)
class Failed:
    """Where a failed message goes next: `queue` after resting `wait` seconds, or at once into the dead letters."""

    message: Message
    wait: float | None

    @property
    def expiration_ms(self) -> int:
        return math.ceil((self.wait or 0.0) * 1000)


@dataclass(frozen=True, slots=True)
class Depth:
    """How many messages a queue and those that belong to it hold; what a consumer holds unsettled is not counted."""

    ready: int  # wait for a consumer
    retrying: int  # rest before another try
    dead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is wrong with the topology at the broker, in words like "queue notify.topic"; nothing says all is right."""

    missing: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()  # exists, but not as it would be declared
    refused: tuple[str, ...] = ()  # what the user may not do, like "read notify.topic"


class Publisher(Protocol):
    def publish(self, messages: Sequence[Message], timeout: float = 10.0) -> list[Outcome]:
        """Send all, pipelined, and wait until each is confirmed, returned or failed: one outcome per message, in order.

        Never raises for the broker being away: what had no confirm within `timeout` seconds has FAILED.
        Messages reach a queue in the order given.
        """

    def close(self) -> None: ...


class Subscription(Protocol):
    """A consumer of one queue. Settle each delivery exactly once, on the thread that received it."""

    @property
    def problem(self) -> str:
        """Why nothing can come now, "" while it consumes: an empty `receive` alone does not tell."""

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        """Up to `limit` messages in queue order; empty after `timeout` seconds without one, or with the broker away."""

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Done: they leave the queue. Lost tags are ignored: the broker will deliver those messages again."""

    def reject(self, delivery: Delivery) -> None:
        """Give it back to the queue at once, to be delivered again as `redelivered`."""

    def retry(self, delivery: Delivery, reason: str) -> bool:
        """Publish it to the retry queue of its next wait, or to the dead letters after the last, and then ack it.

        True if it will be tried again, False if it is a dead letter now. Nothing is acked unless that publish
        was confirmed; then the message stays unsettled and is delivered again.
        """

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Publish it to the dead letters at once, and then ack it: for messages that no repetition can cure."""

    def close(self) -> None:
        """Give back what is held and stop consuming."""


class Broker(Protocol):
    system: ClassVar[str]  # what traces call it: `messaging.system`

    def declare(self, topology: Topology) -> bool:
        """Make exchanges, queues with their retry and dead-letter queues, and bindings; repeating it changes nothing.

        False when this user may not, but all exchanges and queues were there: nothing else was looked at then.
        Raises `Unavailable` when the broker cannot be reached, UsageError when a queue exists with other properties,
        or when something is not there and this user may not make it.
        """

    def inspect(self, topology: Topology, user: User | None = None) -> Findings:
        """Compare the broker with the topology and, where the broker has users, ours with the rights of `user`.

        Changes nothing. Raises `Unavailable` when the broker cannot be reached.
        """

    def publisher(self) -> Publisher: ...

    def subscribe(self, queue: Queue, prefetch: int) -> Subscription:
        """Consume a declared queue, holding at most `prefetch` unsettled messages."""

    def ping(self) -> None:
        """Raise `Unavailable` when the broker cannot be reached now."""

    def depths(self, queues: Sequence[Queue], timeout: float = 2.0) -> dict[str, Depth]:
        """How deep these queues are at about this moment, by name; a queue that does not exist holds nothing.

        Of no queue at all it costs next to nothing, and says whether the broker answers.
        May be called on any thread. Raises `Unavailable` when the broker has not said so within `timeout` seconds.
        """

    def close(self) -> None: ...


class Part(Protocol):
    """A publisher or a subscription, as the broker object sees it that handed it out."""

    closed: bool

    def close(self) -> None: ...


AnyPart = TypeVar("AnyPart", bound=Part)


class Parts:
    """What a broker object handed out, so that closing the one closes the others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Part] = []

    def add(self, part: AnyPart) -> AnyPart:
        with self._lock:
            self._open = [each for each in self._open if not each.closed]
            self._open.append(part)
        return part

    def close(self) -> None:
        """All at the same time: each may wait a while for a broker that does not answer."""
        with self._lock:
            closing = [threading.Thread(target=part.close) for part in self._open]
            self._open.clear()
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()


def check_prefetch(prefetch: int) -> None:
    """Raises UsageError unless AMQP can count that far, in 16 bits; it takes 0 for no limit at all."""
    if not 1 <= prefetch <= 65_535:
        raise errors.UsageError(f"prefetch {prefetch}: expected 1 to 65535 messages")


def depth(queue: Queue, counts: Mapping[str, int]) -> Depth:
    """The depth of a queue from the messages in each queue by name; one that is not named has none."""
    retrying = sum(counts.get(each, 0) for each in queue.retries)
    return Depth(counts.get(queue.name, 0), retrying, counts.get(queue.dead_letters, 0))


def origin(headers: Headers, exchange: str, routing_key: str) -> tuple[str, str]:
    """Exchange and routing key of the first publish: what `failed` noted, or where the message came from just now."""
    return str(headers.get(EXCHANGE, exchange)), str(headers.get(ROUTING_KEY, routing_key))


def failed(queue: Queue, delivery: Delivery, reason: str, *, final: bool = False) -> Failed:
    """What a failed delivery becomes: a message for the next retry queue, or for the dead letters after the last."""
    tries = delivery.tries + 1
    now = ids.rfc3339(ids.now_us())
    headers: dict[str, str | int] = {
        **delivery.headers,
        TRIES: tries,
        REASON: reason[:1000],
        FIRST_FAILED: delivery.headers.get(FIRST_FAILED, now),
        LAST_FAILED: now,
        EXCHANGE: delivery.exchange,
        ROUTING_KEY: delivery.routing_key,
        QUEUE: queue.name,
    }
    dead = final or tries >= queue.tries
    target = queue.dead_letters if dead else queue.retries[tries - 1]
    message = Message(
        exchange="",
        routing_key=target,
        body=delivery.body,
        message_id=delivery.message_id,
        content_type=delivery.content_type,
        headers=headers,
    )
    return Failed(message, None if dead else queue.waits[tries - 1])
