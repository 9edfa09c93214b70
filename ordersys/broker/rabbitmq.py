"""RabbitMQ through pika, for versions 3.10 to 4.x: durable exchanges, quorum queues, confirms.

Each publisher and each subscription has a connection and a thread of its own.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from pika import BlockingConnection, URLParameters
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.channel import Channel
from pika.exceptions import AMQPError, ChannelClosedByBroker

from ordersys.broker import broker
from ordersys.broker.broker import Depth, Findings
from ordersys.broker.rabbitmq_consumer import RabbitSubscription
from ordersys.broker.rabbitmq_depths import RabbitDepths
from ordersys.broker.rabbitmq_link import lost
from ordersys.broker.rabbitmq_publisher import RabbitPublisher
from ordersys.broker.rabbitmq_tls import Options, contexts
from ordersys.broker.rabbitmq_topology import DIFFERS, NOT_FOUND, REFUSED, declare, inspect, missing
from ordersys.core import errors
from ordersys.core.tls import Files
from ordersys.core.topology import Queue, Topology
from ordersys.core.users import User

HEARTBEAT_SECONDS = 20
BLOCKED_SECONDS = 30.0
CONNECT_SECONDS = 5.0
_HINTS = {
    REFUSED: "`ordersys topology permissions` prints what each role's user needs",
    NOT_FOUND: "declare the exchange too",
    DIFFERS: "what exists cannot be changed: delete it and the messages in it, or use another name",
}
_NO_FILES = Files()


class RabbitBroker:
    """The vhost that an amqp:// or amqps:// URL names; raises UsageError for a URL that is none.

    `files` are for amqps://, and raise UsageError when one is wrong. What the URL's query says about heartbeat,
    timeouts and TLS goes first (https://pika.readthedocs.io/en/stable/modules/parameters.html#urlparameters).
    """

    system: ClassVar[str] = "rabbitmq"

    def __init__(self, url: str, files: Files = _NO_FILES) -> None:
        self._parameters = _parameters(url)
        if url.startswith("amqps:") and "ssl_options" not in _query(url):
            self._parameters.ssl_options = Options(contexts(files))
        self._address = f"{self._parameters.host}:{self._parameters.port}"
        self._topologies: list[Topology] = []
        self._parts = broker.Parts()
        self._depths: RabbitDepths | None = None
        self._counting = threading.Lock()

    def declare(self, topology: Topology) -> bool:
        with self._connection() as connection:
            try:
                declare(connection.channel(), topology)
            except ChannelClosedByBroker as error:
                if error.reply_code != REFUSED:
                    raise
                if absent := missing(connection, topology):
                    raise errors.UsageError(
                        f"RabbitMQ: there is no {', '.join(absent)}, and this user may not declare"
                        f" ({error.reply_text}): `ordersys topology declare` does it, with a user who may"
                    ) from error
                return False
        if topology not in self._topologies:
            self._topologies.append(topology)
        return True

    def inspect(self, topology: Topology, user: User | None = None) -> Findings:
        with self._connection() as connection:
            return inspect(connection, topology, user)

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
        channel.add_on_close_callback(self._refused)
        for topology in tuple(self._topologies):
            declare(channel, topology)

    def _refused(self, _channel: Channel, error: Exception) -> None:
        """Whoever may not declare any more does not try again with every connection."""
        if isinstance(error, ChannelClosedByBroker) and error.reply_code == REFUSED:
            self._topologies.clear()

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
        return errors.Unavailable(
            f"RabbitMQ at {self._address}: {lost(error, self._parameters)}",
            metadata={"dependency": "broker"},
            told="the broker cannot be reached",
        )


def _parameters(url: str) -> URLParameters:
    wrong = errors.UsageError(
        "broker URL: expected amqp://USER:PASSWORD@HOST:PORT/VHOST or amqps://..., with special characters"
        " in user, password and vhost percent-encoded (the vhost / is %2F)"
    )
    # An @ behind the host: what is taken for the host is a piece of the password, and it would be told.
    if (
        not url.startswith(("amqp://", "amqps://"))
        or "@" in url.partition("?")[0].partition("://")[2].partition("/")[2]
    ):
        raise wrong
    try:
        parameters = URLParameters(url)
    except (ValueError, TypeError, SyntaxError, OSError):
        raise wrong from None  # the cause may quote a piece of the password
    defaults: dict[str, object] = {
        "heartbeat": HEARTBEAT_SECONDS,
        "blocked_connection_timeout": BLOCKED_SECONDS,
        "socket_timeout": CONNECT_SECONDS,
        "stack_timeout": 2 * CONNECT_SECONDS,
        "client_properties": {"connection_name": "ordersys"},
    }
    for name, value in defaults.items():
        if name not in _query(url):
            setattr(parameters, name, value)
    return parameters


def _query(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query)
