"""One connection to RabbitMQ in a thread of its own, which comes back by itself when it is lost.

pika is not thread-safe (https://pika.readthedocs.io/en/stable/faq.html): whatever touches the channel runs on that
thread, so heartbeats are answered however long a handler takes.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from pika import SelectConnection
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflowFailed, AMQPConnectorPhaseErrorBase
from pika.channel import Channel
from pika.connection import Parameters
from pika.exceptions import ChannelClosed, ConnectionClosed, ConnectionClosedByClient
from pika.frame import Method
from pika.spec import Connection

from ordersys.broker.rabbitmq_tls import explained, refusal
from ordersys.core.backoff import Backoff

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
CLOSE_SECONDS = 3.0


class User(Protocol):
    """What lives on a link's channel; called on the link's thread only."""

    def set_up(self, channel: Channel, done: Callable[[Any], None]) -> None:
        """Prepare a new channel; `done` is the callback of the last step, and everything before it went well then."""

    def up(self, channel: Channel) -> None:
        """The channel can be used."""

    def down(self) -> None:
        """The channel is gone, and nothing will be answered on it any more. May come twice, or without an `up`."""


class Link:
    """Connects at once and for ever, until it is closed; `work` handed in runs in order, connected or not."""

    def __init__(self, name: str, parameters: Parameters, user: User) -> None:
        self._name = name
        self._parameters = parameters
        self._user = user
        self._address = f"{parameters.host}:{parameters.port}"
        self._backoff = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self._connection: SelectConnection | None = None
        self._attempt: object = None  # the timer of the next attempt to connect
        self._connected: bool | None = None  # None until the first attempt has ended
        self.problem = "it has not answered yet"  # why there is no channel, "" while there is one
        self._why = ""  # why we closed the connection, when it was us
        self._said: set[str] = set()  # the reasons that were logged since the connection was lost
        self.closed = False
        self._loop = IOLoop()
        self._thread = threading.Thread(target=self._run, name=f"rabbitmq-{name}", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], None]) -> None:
        """Run `work` on the link's thread, soon."""
        self._loop.add_callback_threadsafe(work)

    def restart(self, why: str) -> None:
        """Give the connection up and make a new one; on the link's thread."""
        self._why = why
        self._user.down()
        if self._connection is not None and self._connection.is_open:
            self._connection.close()

    def close(self) -> None:
        """Close in good order what is open; returns within a few seconds whatever the broker does."""
        self.closed = True
        self.call(self._finish)
        self._thread.join(CLOSE_SECONDS + 1)

    def _run(self) -> None:
        self._connect_after(0.0)
        while True:
            try:
                self._loop.start()
                break
            except Exception:
                # A fault in a callback must not leave us without a connection for good.
                logger.exception("%s: the connection to RabbitMQ at %s failed inside", self._name, self._address)
                if self.closed:
                    break
                self._loop.call_later(self._backoff.pause(), self._recover)
        self._user.down()
        self._loop.close()

    def _recover(self) -> None:
        if self._connection is not None:
            self.restart("it failed inside")
        elif self._attempt is None:
            self._connect()

    def _connect_after(self, seconds: float) -> None:
        self._attempt = self._loop.call_later(seconds, self._connect)

    def _connect(self) -> None:
        self._attempt = None
        if not self.closed:
            self._connection = SelectConnection(
                self._parameters,
                on_open_callback=self._opened,
                on_open_error_callback=self._lost,
                on_close_callback=self._lost,
                custom_ioloop=self._loop,
            )

    def _opened(self, connection: SelectConnection) -> None:
        connection.add_on_connection_blocked_callback(self._blocked)
        connection.channel(on_open_callback=self._set_up)

    def _blocked(self, _connection: object, frame: "Method[Connection.Blocked]") -> None:
        why = frame.method.reason
        logger.warning("%s: RabbitMQ at %s takes no messages for now: %s", self._name, self._address, why)

    def _set_up(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._channel_closed)
        self._user.set_up(channel, lambda _frame: self._ready(channel))

    def _ready(self, channel: Channel) -> None:
        if self._connected is False:
            logger.info("%s: RabbitMQ at %s is back", self._name, self._address)
        self._connected, self.problem = True, ""
        self._said.clear()
        self._backoff.reset()
        self._user.up(channel)

    def _channel_closed(self, _channel: Channel, error: Exception) -> None:
        if not self.closed:
            self.restart(reason(error))

    def _lost(self, _connection: SelectConnection, error: BaseException) -> None:
        self._connection = None
        self._user.down()
        if self.closed:
            self._loop.stop()
            return
        why = self.problem = self._why or lost(error, self._parameters)
        if self._connected is not False:
            logger.warning("%s: no connection to RabbitMQ at %s (%s): trying again", self._name, self._address, why)
        elif why not in self._said:
            logger.warning("%s: RabbitMQ at %s is away for another reason: %s", self._name, self._address, why)
        self._said.add(why)
        self._connected, self._why = False, ""
        self._connect_after(self._backoff.pause())

    def _finish(self) -> None:
        if self._connection is None or self._connection.is_closed:
            self._loop.stop()
            return
        self._loop.call_later(CLOSE_SECONDS, partial(self._cut, self._connection))
        if not self._connection.is_closing:
            self._connection.close()

    def _cut(self, connection: SelectConnection) -> None:
        """The broker does not answer our goodbye: pika has no public way to hang up without one."""
        terminate: Callable[[Exception], None] = getattr(connection, "_terminate_stream")  # noqa: B009
        terminate(ConnectionClosedByClient(200, "the broker did not answer"))


def lost(error: BaseException, parameters: Parameters) -> str:
    """Why there is no connection; what ended without a word may have been refused."""
    why = reason(error)
    return refusal(parameters) or why if "Stream connection lost" in why else why


def reason(error: BaseException) -> str:
    """The words of the innermost error: pika wraps them several times, and its outer texts say nothing."""
    if isinstance(error, ConnectionClosed | ChannelClosed):
        return f"{error.reply_code} {error.reply_text}"
    inner: object = None
    if isinstance(error, AMQPConnectionWorkflowFailed):
        inner = error.exceptions[-1]
    elif isinstance(error, AMQPConnectorPhaseErrorBase):
        inner = error.exception
    elif error.args:
        inner = error.args[0]
    return reason(inner) if isinstance(inner, BaseException) else explained(str(error)) or type(error).__name__
