"""Consuming from RabbitMQ with manual acknowledgements (https://www.rabbitmq.com/docs/confirms)."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from pika import BasicProperties
from pika.channel import Channel
from pika.connection import Parameters
from pika.spec import Basic

from ordersys.broker import broker
from ordersys.broker.broker import Delivery, Headers, Outcome
from ordersys.broker.rabbitmq_link import Link
from ordersys.broker.rabbitmq_publisher import Confirms
from ordersys.core import errors
from ordersys.core.topology import Queue
from ordersys.core.users import FAILURES

CONFIRM_SECONDS = 10.0

# RabbitMQ writes these for its own bookkeeping. Sent back to it, x-death would make it take a second retry for a
# cycle and drop the message (https://www.rabbitmq.com/docs/dlx#cycles), and CC would send copies elsewhere.
_BROKERS_OWN = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
_COPIES = ("CC", "BCC")


class RabbitSubscription:
    """A consumer with a connection of its own; what it held when the connection was lost is the broker's again."""

    def __init__(self, parameters: Parameters, declare: Callable[[Channel], None], queue: Queue, prefetch: int) -> None:
        self._declare = declare
        self._queue = queue
        self._prefetch = prefetch
        self._confirms = Confirms()
        self._channel: Channel | None = None
        self._tags = count(1)  # our own: those of AMQP start again on each channel
        self._held: dict[int, int] = {}  # our tag -> that of the channel, both ascending
        self._buffer: deque[Delivery] = deque()
        self._arrived = threading.Condition()
        self.closed = False
        self._link = Link(f"queue {queue.name}", parameters, self)

    @property
    def problem(self) -> str:
        return self._link.problem

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout
        with self._arrived:
            while not self._buffer and (left := deadline - time.monotonic()) > 0 and not self._link.closed:
                self._arrived.wait(left)
            return [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._link.call(partial(self._ack, [delivery.tag for delivery in deliveries]))

    def reject(self, delivery: Delivery) -> None:
        self._link.call(partial(self._reject, delivery.tag))

    def retry(self, delivery: Delivery, reason: str) -> bool:
        return self._move(delivery, broker.failed(self._queue, delivery, reason))

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        self._move(delivery, broker.failed(self._queue, delivery, reason, final=True))

    def close(self) -> None:
        self.closed = True
        self._link.close()

    def _move(self, delivery: Delivery, failed: broker.Failed) -> bool:
        """Publish its successor, then ack it; False if that is in the dead letters.

        A delivery that is no longer ours is left alone: the broker delivers it again.
        """
        if delivery.tag not in self._held:
            return True
        expiration_ms = None if failed.wait is None else failed.expiration_ms
        message = replace(failed.message, exchange=FAILURES)  # to the same queue, by a way that rights can limit
        [outcome] = self._confirms.send(self._link, [message], CONFIRM_SECONDS, expiration_ms)
        target = failed.message.routing_key
        if outcome is Outcome.UNROUTABLE:
            raise errors.Unavailable(f"there is no queue {target!r} for what failed: declare the topology")
        if outcome is Outcome.FAILED:
            raise errors.Unavailable(f"RabbitMQ did not confirm a message for queue {target!r}")
        self.ack([delivery])
        return failed.wait is not None

    def set_up(self, channel: Channel, done: Callable[[Any], None]) -> None:
        self._channel = channel
        self._declare(channel)
        self._confirms.set_up(channel, None)
        channel.add_on_cancel_callback(self._cancelled)
        channel.basic_qos(prefetch_count=self._prefetch)
        channel.basic_consume(self._queue.name, self._on_message, callback=done)

    def up(self, channel: Channel) -> None:
        self._confirms.up(channel)

    def down(self) -> None:
        self._channel = None
        self._confirms.down()
        with self._arrived:
            self._held.clear()
            self._buffer.clear()
            self._arrived.notify()

    def _cancelled(self, _frame: Any) -> None:
        self._link.restart(f"the broker stopped delivering from {self._queue.name!r}: was the queue deleted?")

    def _on_message(self, _channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        headers, exchange, routing_key = _read(method, properties)
        delivery = Delivery(
            tag=next(self._tags),
            queue=self._queue.name,
            exchange=exchange,
            routing_key=routing_key,
            body=body,
            message_id=_text(properties.message_id),
            content_type=_text(properties.content_type),
            headers=headers,
            redelivered=bool(method.redelivered),
        )
        with self._arrived:
            self._held[delivery.tag] = int(method.delivery_tag or 0)
            self._buffer.append(delivery)
            self._arrived.notify()

    def _ack(self, tags: Sequence[int]) -> None:
        done = sorted(self._held.pop(tag) for tag in tags if tag in self._held)
        if self._channel is None or not done:
            return
        # One frame covers all up to a tag: right for those below the oldest that is still held.
        oldest = next(iter(self._held.values()), done[-1] + 1)
        together = [tag for tag in done if tag < oldest]
        if together:
            self._channel.basic_ack(together[-1], multiple=True)
        for tag in done[len(together) :]:
            self._channel.basic_ack(tag)

    def _reject(self, tag: int) -> None:
        if self._channel is not None and tag in self._held:
            # Never nack: from RabbitMQ 4.3 on it does not count towards the delivery limit.
            self._channel.basic_reject(self._held.pop(tag), requeue=True)


def _read(method: Basic.Deliver, properties: BasicProperties) -> tuple[Headers, str, str]:
    """The message's own headers (text and numbers), and the exchange and routing key of its first publish."""
    raw: Mapping[str, Any] = properties.headers or {}
    headers = {name: value for name, value in raw.items() if _is_own(name) and isinstance(value, str | int)}
    exchange, routing_key = _text(method.exchange), _text(method.routing_key)
    match raw.get("x-death"):
        case [*_, {"exchange": str(first), "routing-keys": [str(key), *_], "reason": str(why)}]:  # oldest last
            exchange, routing_key = first, key
            headers.setdefault(broker.REASON, broker.NEVER_SETTLED if why == "delivery_limit" else f"RabbitMQ: {why}")
    return headers, *broker.origin(headers, exchange, routing_key)


def _is_own(name: object) -> bool:
    return isinstance(name, str) and name not in _COPIES and not name.startswith(_BROKERS_OWN)


def _text(value: object) -> str:
    """Other people's messages may lack a property, and pika gives one that is not UTF-8 as bytes."""
    return value if isinstance(value, str) else ""
