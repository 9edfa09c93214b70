"""RabbitMQ through pika, for versions 3.10 to 4.x: durable exchanges, quorum queues, confirms.

Each publisher and each subscription has a connection and a thread of its own.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pika import BlockingConnection, URLParameters
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.channel import Channel
from pika.exceptions import AMQPError, ChannelClosedByBroker

from ordersys.broker import broker
from ordersys.broker.broker import Depth
from ordersys.broker.rabbitmq_consumer import RabbitSubscription
from ordersys.broker.rabbitmq_depths import RabbitDepths
from ordersys.broker.rabbitmq_link import reason
from ordersys.broker.rabbitmq_publisher import RabbitPublisher
from ordersys.core import errors
from ordersys.core.topology import Queue, Topology

HEARTBEAT_SECONDS = 20
BLOCKED_SECONDS = 30.0
CONNECT_SECONDS = 5.0
_NEVER = 1_000_000
_HINTS = {
    403: "give the user permission to configure, write and read in the vhost",
    404: "declare the exchange too",
    406: "what exists cannot be changed: delete it and the messages in it, or use another name",
}

Arguments = dict[str, str | int]


class RabbitBroker:
    """The vhost that an amqp:// or amqps:// URL names; raises UsageError for a URL that is none.

    What the URL's query says about heartbeat, timeouts and TLS is honoured
    (https://pika.readthedocs.io/en/stable/modules/parameters.html#urlparameters).
    """

    def __init__(self, url: str) -> None:
        self._parameters = _parameters(url)
        self._address = f"{self._parameters.host}:{self._parameters.port}"
        self._topologies: list[Topology] = []
        self._parts = broker.Parts()
        self._depths: RabbitDepths | None = None
        self._counting = threading.Lock()

    def declare(self, topology: Topology) -> None:
        with self._connection() as connection:
            _declare(connection.channel(), topology)
        if topology not in self._topologies:
            self._topologies.append(topology)

    def publisher(self) -> RabbitPublisher:
        return self._parts.add(RabbitPublisher(self._parameters, self._redeclare))

    def subscribe(self, queue: Queue, prefetch: int) -> RabbitSubscription:
        broker.check_prefetch(prefetch)
        return self._parts.add(RabbitSubscription(self._parameters, self._redeclare, queue, prefetch))

    def ping(self) -> None:
        with self._connection():
            pass  # it answered, and let us in

    def depths(self, queues: Sequence[Queue], timeout: float = 2.0) -> dict[str, Depth]:
        with self._counting:  # who never asks has no connection for it
            if self._depths is None:
                self._depths = self._parts.add(RabbitDepths(self._parameters))
        return self._depths.depths(queues, timeout)

    def close(self) -> None:
        self._parts.close()

    def _redeclare(self, channel: Channel) -> None:
        """On each new connection: the broker may have come back empty."""
        for topology in tuple(self._topologies):
            _declare(channel, topology)

    @contextmanager
    def _connection(self) -> Iterator[BlockingConnection]:
        """A short connection of this thread's own."""
        try:
            connection = BlockingConnection(self._parameters)
            try:
                yield connection
            finally:
                if connection.is_open:
                    connection.close()
        except ChannelClosedByBroker as error:
            if error.reply_code not in _HINTS:
                raise self._unavailable(error) from error
            raise errors.UsageError(f"RabbitMQ: {error.reply_text}; {_HINTS[error.reply_code]}") from error
        except (AMQPError, AMQPConnectorException, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> errors.Unavailable:
        return errors.Unavailable(f"RabbitMQ at {self._address}: {reason(error)}", metadata={"dependency": "broker"})


def _parameters(url: str) -> URLParameters:
    wrong = errors.UsageError(
        "broker URL: expected amqp://USER:PASSWORD@HOST:PORT/VHOST or amqps://..., with special characters"
        " in user, password and vhost percent-encoded (the vhost / is %2F)"
    )
    if not url.startswith(("amqp://", "amqps://")):
        raise wrong
    try:
        parameters = URLParameters(url)
    except (ValueError, TypeError, SyntaxError, OSError):
        raise wrong from None  # the cause may quote a piece of the password
    query = url.partition("?")[2]
    defaults: dict[str, object] = {
        "heartbeat": HEARTBEAT_SECONDS,
        "blocked_connection_timeout": BLOCKED_SECONDS,
        "socket_timeout": CONNECT_SECONDS,
        "stack_timeout": 2 * CONNECT_SECONDS,
        "client_properties": {"connection_name": "ordersys"},
    }
    for name, value in defaults.items():
        if f"{name}=" not in query:
            setattr(parameters, name, value)
    return parameters


def _declare(channel: Channel | BlockingChannel, topology: Topology) -> None:
    """On a blocking channel each step waits for its answer; on the other kind an error closes the channel."""
    for exchange in topology.exchanges:
        channel.exchange_declare(exchange.name, exchange.kind.value, durable=True)
    for queue in topology.queues:
        for name, arguments in queue_arguments(queue).items():
            channel.queue_declare(name, durable=True, arguments=arguments)
        for binding in queue.bindings:
            channel.queue_bind(queue.name, binding.exchange, binding.pattern)


def queue_arguments(queue: Queue) -> dict[str, Arguments]:
    """The queue and the queues that belong to it, with their arguments, none of which can be changed later.

    At-least-once dead-lettering needs reject-publish (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering).
    The delivery limit is said everywhere: RabbitMQ 4 has a default of 20, and where nothing takes dead letters
    it drops the message (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
    """
    return {
        queue.dead_letters: {"x-queue-type": "quorum", "x-delivery-limit": _NEVER},
        queue.name: _dead_lettered_to(queue.dead_letters, broker.DELIVERY_LIMIT),
        # No x-message-ttl: each message brings its wait, because waits are a setting and may change.
        **{retry: _dead_lettered_to(queue.name, _NEVER) for retry in queue.retries},
    }


def _dead_lettered_to(target: str, delivery_limit: int) -> Arguments:
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": delivery_limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": target,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
