"""How deep queues of RabbitMQ are: passive declares (https://www.rabbitmq.com/docs/queues#names) on one connection.

The answer to a passive declare counts the messages that wait; for a queue that does not exist the broker closes the
channel, so each question has a channel of its own and takes a new one after that.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pika.channel import Channel
from pika.connection import Parameters
from pika.exceptions import AMQPError, ChannelClosedByBroker, ChannelClosedByClient
from pika.frame import Method
from pika.spec import Queue as QueueMethods

from ordersys.broker import broker
from ordersys.broker.broker import Depth
from ordersys.broker.rabbitmq_link import Link, reason
from ordersys.core import errors
from ordersys.core.topology import Queue


class RabbitDepths:
    """Asks on a connection of its own, so that it never stands in the way of a publisher or a consumer."""

    def __init__(self, parameters: Parameters) -> None:
        self._address = f"{parameters.host}:{parameters.port}"
        self._channel: Channel | None = None
        self._waiting: list[_Count] = []
        self.closed = False
        self._link = Link("queue depths", parameters, self)

    def depths(self, queues: Sequence[Queue], timeout: float) -> dict[str, Depth]:
        count = _Count([name for queue in queues for name in (queue.name, *queue.retries, queue.dead_letters)])
        if self.closed:
            raise self._unavailable("the connection was closed")
        self._link.call(partial(self._begin, count))
        if not count.wait(timeout):
            raise self._unavailable(f"the queues were not counted within {timeout:g} s")
        if count.problem:
            raise self._unavailable(count.problem)
        return {queue.name: broker.depth(queue, count.counts) for queue in queues}

    def close(self) -> None:
        self.closed = True
        self._link.close()

    def set_up(self, channel: Channel, done: Callable[[Any], None]) -> None:
        done(None)

    def up(self, channel: Channel) -> None:
        self._channel = channel
        waiting, self._waiting = self._waiting, []
        for count in waiting:
            self._begin(count)

    def down(self) -> None:
        self._channel = None

    def _begin(self, count: "_Count") -> None:
        if self._channel is None or not self._channel.is_open:
            self._waiting = [each for each in self._waiting if not each.abandoned] + [count]
        elif not count.abandoned:
            count.begin(self._channel)

    def _unavailable(self, why: str) -> errors.Unavailable:
        return errors.Unavailable(
            f"RabbitMQ at {self._address}: {why}",
            metadata={"dependency": "broker"},
            told="the broker cannot be reached",
        )


class _Count:
    """One question; everything but `wait` runs on the link's thread."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._done = threading.Event()
        self.counts: dict[str, int] = {}
        self.problem = ""
        self.abandoned = False

    def wait(self, timeout: float) -> bool:
        """True once there is an answer, or a problem; nobody asks on after `timeout` seconds without."""
        self.abandoned = not self._done.wait(timeout)
        return not self.abandoned

    def begin(self, beside: Channel) -> None:
        """Count on a new channel of the connection that this one belongs to."""
        try:
            beside.connection.channel(on_open_callback=self._opened)
        except AMQPError as error:  # it is closing
            self._fail(error)

    def _opened(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._closed)
        self._next(channel)

    def _next(self, channel: Channel) -> None:
        if len(self.counts) < len(self._names) and not self.abandoned:
            name = self._names[len(self.counts)]
            channel.queue_declare(name, passive=True, callback=partial(self._counted, channel, name))
            return
        self._done.set()
        channel.close()

    def _counted(self, channel: Channel, name: str, frame: "Method[QueueMethods.DeclareOk]") -> None:
        self.counts[name] = int(frame.method.message_count or 0)
        self._next(channel)

    def _closed(self, channel: Channel, error: Exception) -> None:
        if isinstance(error, ChannelClosedByClient):
            return
        # A queue whose node is down is a 404 too, and not empty.
        if isinstance(error, ChannelClosedByBroker) and error.reply_code == 404 and "no queue" in error.reply_text:
            self.counts[self._names[len(self.counts)]] = 0
            self.begin(channel)
        else:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.problem = reason(error)
        self._done.set()
