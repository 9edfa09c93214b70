"""Publishing to RabbitMQ with confirms (https://www.rabbitmq.com/docs/confirms), many messages in flight at a time."""

import logging
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from pika import BasicProperties, DeliveryMode
from pika.channel import Channel
from pika.connection import Parameters
from pika.exceptions import AMQPError
from pika.frame import Method
from pika.spec import Basic

from ordersys.broker.broker import Message, Outcome
from ordersys.broker.rabbitmq_link import Link

logger = logging.getLogger(__name__)

WINDOW = 1000  # messages in flight; pika has no backpressure of its own


class Batch:
    """What one caller waits for; only the link's thread settles it."""

    def __init__(self, messages: Sequence[Message], expiration_ms: int | None) -> None:
        self.messages = messages
        self.expiration = None if expiration_ms is None else str(expiration_ms)
        self.outcomes: list[Outcome | None] = [None] * len(messages)
        self.started = False
        self.abandoned = False
        self._open = len(messages)
        self._done = threading.Event()

    def settle(self, index: int, outcome: Outcome) -> None:
        self.outcomes[index] = outcome
        self._open -= 1
        if not self._open:
            self._done.set()

    def wait(self, timeout: float) -> list[Outcome]:
        """The outcomes; FAILED for what is still open after `timeout` seconds, and that is not sent any more."""
        try:
            self._done.wait(timeout)
        finally:
            self.abandoned = True
        return [outcome or Outcome.FAILED for outcome in self.outcomes]


class Confirms:
    """The publishing half of a channel; everything but `send` runs on the link's thread."""

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._waiting: deque[tuple[Batch, int]] = deque()
        self._last_tag = 0
        self._unconfirmed: dict[int, tuple[Batch, int]] = {}
        self._returned: Counter[tuple[str, str, str]] = Counter()

    def send(
        self, link: Link, messages: Sequence[Message], timeout: float, expiration_ms: int | None = None
    ) -> list[Outcome]:
        """Publish and wait; `expiration_ms` is how long each message may stay in its queue. Never raises."""
        if not messages or link.closed:
            return [Outcome.FAILED] * len(messages)
        batch = Batch(messages, expiration_ms)
        link.call(partial(self._add, batch))
        return batch.wait(timeout)

    def set_up(self, channel: Channel, done: Callable[[Any], None] | None) -> None:
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, done)

    def up(self, channel: Channel) -> None:
        self._channel = channel
        self._last_tag = 0
        self._pump()

    def down(self) -> None:
        """What was not confirmed has failed, and so has the rest of a batch under way: it would overtake the repeat."""
        self._channel = None
        self._returned.clear()
        lost, self._unconfirmed = self._unconfirmed, {}
        for batch, index in lost.values():
            batch.settle(index, Outcome.FAILED)
        while self._waiting and self._waiting[0][0].started:
            batch, index = self._waiting.popleft()
            batch.settle(index, Outcome.FAILED)

    def _add(self, batch: Batch) -> None:
        self._waiting.extend((batch, index) for index in range(len(batch.messages)))
        self._pump()

    def _pump(self) -> None:
        while self._waiting and self._channel is not None and len(self._unconfirmed) < WINDOW:
            batch, index = self._waiting.popleft()
            if not batch.abandoned:
                batch.started = True
                self._publish(self._channel, batch, index)

    def _publish(self, channel: Channel, batch: Batch, index: int) -> None:
        message = batch.messages[index]
        properties = BasicProperties(
            content_type=message.content_type,
            delivery_mode=DeliveryMode.Persistent.value,
            message_id=message.message_id,
            timestamp=int(time.time()),
            headers=dict(message.headers),
            expiration=batch.expiration,
        )
        try:
            channel.basic_publish(message.exchange, message.routing_key, message.body, properties, mandatory=True)
        except (AMQPError, ValueError, TypeError, struct.error) as error:
            # Nothing was sent: the channel is closing, or AMQP has no form for this message.
            logger.error("message %s cannot be published: %r", message.message_id, error)  # noqa: TRY400
            batch.settle(index, Outcome.FAILED)
            return
        self._last_tag += 1
        self._unconfirmed[self._last_tag] = (batch, index)

    def _on_return(self, _channel: Channel, returned: Basic.Return, properties: BasicProperties, _body: bytes) -> None:
        """Unroutable. This comes before the message's ack but does not name its tag: count by what identifies it."""
        self._returned[str(returned.exchange), str(returned.routing_key), properties.message_id or ""] += 1

    def _on_confirm(self, frame: "Method[Basic.Ack | Basic.Nack]") -> None:
        confirm = frame.method
        last = int(confirm.delivery_tag or 0)
        tags = list(takewhile(lambda tag: tag <= last, self._unconfirmed)) if confirm.multiple else [last]
        for tag in tags:
            batch, index = self._unconfirmed.pop(tag)
            batch.settle(index, self._outcome(batch.messages[index], isinstance(confirm, Basic.Nack)))
        self._pump()

    def _outcome(self, message: Message, refused: bool) -> Outcome:
        if refused:
            return Outcome.FAILED
        sent = (message.exchange, message.routing_key, message.message_id)
        if self._returned[sent]:
            self._returned[sent] -= 1
            return Outcome.UNROUTABLE
        return Outcome.CONFIRMED


class RabbitPublisher:
    """A publisher with a connection of its own, so that a blocked or slow consumer never holds it up."""

    def __init__(self, parameters: Parameters, declare: Callable[[Channel], None]) -> None:
        self._declare = declare
        self._confirms = Confirms()
        self.closed = False
        self._link = Link("publisher", parameters, self)

    def publish(self, messages: Sequence[Message], timeout: float = 10.0) -> list[Outcome]:
        return self._confirms.send(self._link, messages, timeout)

    def close(self) -> None:
        self.closed = True
        self._link.close()

    def set_up(self, channel: Channel, done: Callable[[Any], None]) -> None:
        self._declare(channel)
        self._confirms.set_up(channel, done)

    def up(self, channel: Channel) -> None:
        self._confirms.up(channel)

    def down(self) -> None:
        self._confirms.down()
