"""The topology in a RabbitMQ vhost: make it, and see without changing anything what is missing of it or refused."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pika import BasicProperties, BlockingConnection
from pika.adapters.blocking_connection import BlockingChannel
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

from ordersys.broker import broker
from ordersys.broker.broker import Findings
from ordersys.core.topology import Queue, Topology
from ordersys.core.users import DEFAULT_EXCHANGE, FAILURES, User

REFUSED, NOT_FOUND, DIFFERS = 403, 404, 406
"""Why RabbitMQ closes a channel (https://www.rabbitmq.com/amqp-0-9-1-reference#constants)."""

_NEVER = 1_000_000

Arguments = dict[str, str | int]
Ask = Callable[[BlockingChannel], Any]


def declare(channel: Channel | BlockingChannel, topology: Topology) -> None:
    """On a blocking channel each step waits for its answer; on the other kind an error closes the channel."""
    for exchange in topology.exchanges:
        channel.exchange_declare(exchange.name, exchange.kind.value, durable=True)
    for queue in topology.queues:
        for name, arguments in queue_arguments(queue).items():
            channel.queue_declare(name, durable=True, arguments=arguments)
        for name in (*queue.retries, queue.dead_letters):
            channel.queue_bind(name, FAILURES, name)
        for binding in queue.bindings:
            channel.queue_bind(queue.name, binding.exchange, binding.pattern)


def missing(connection: BlockingConnection, topology: Topology) -> list[str]:
    """The exchanges and queues that are not there; asks with passive declares, which need no permission."""
    return [name for name, there, _ in _parts(topology) if _answer(connection, there) == NOT_FOUND]


def inspect(connection: BlockingConnection, topology: Topology, user: User | None) -> Findings:
    """What is not there, what is there with other properties as far as this user may see that, and what is refused.

    RabbitMQ does not tell a client which bindings there are.
    """
    absent, differing, refused = missing(connection, topology), [], []
    for name, _, same in _parts(topology):
        answer = 0 if name in absent else _answer(connection, same)
        differing += [name] if answer == DIFFERS else []
        refused += [f"configure {name}"] if answer == REFUSED and user and name.split()[-1] in user.configure else []
    for trial, ask in _trials(topology, user) if user else ():
        refused += [trial] if _answer(connection, ask) == REFUSED else []
    return Findings(missing=tuple(absent), differing=tuple(differing), refused=tuple(refused))


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


def _parts(topology: Topology) -> Iterator[tuple[str, Ask, Ask]]:
    """Each exchange and queue in words, with the questions whether it is there, and whether it is as we make it."""
    for exchange in topology.exchanges:
        ask = partial(BlockingChannel.exchange_declare, exchange=exchange.name, exchange_type=exchange.kind.value)
        yield f"exchange {exchange.name}", partial(ask, passive=True), partial(ask, durable=True)
    for queue in topology.queues:
        for name, arguments in queue_arguments(queue).items():
            declared = partial(BlockingChannel.queue_declare, queue=name, durable=True, arguments=arguments)
            yield f"queue {name}", partial(BlockingChannel.queue_declare, queue=name, passive=True), declared


def _trials(topology: Topology, user: User) -> Iterator[tuple[str, Ask]]:
    """What the user has to be able to do in words, with a try of each that RabbitMQ never lets succeed.

    It looks at the permission first, then at the expiration of a message and the priority of a consumer.
    """
    exchanges = {each.name: "order.created" for each in topology.exchanges}
    for exchange in user.write:
        for key in user.failures or (exchanges.get(exchange, ""),):
            named = "" if exchange == DEFAULT_EXCHANGE else exchange
            yield f"write {exchange} {key}".strip(), partial(_publish_in_vain, exchange=named, key=key)
    for queue in (name for each in topology.queues for name in (each.name, each.dead_letters)):
        if queue in user.read:
            yield f"read {queue}", partial(_consume_in_vain, queue=queue)


def _publish_in_vain(channel: BlockingChannel, exchange: str, key: str) -> None:
    channel.confirm_delivery()
    channel.basic_publish(exchange, key, b"", BasicProperties(expiration="never"))


def _consume_in_vain(channel: BlockingChannel, queue: str) -> None:
    channel.basic_consume(queue, lambda *_: None, arguments={"x-priority": "none"})


def _answer(connection: BlockingConnection, ask: Ask) -> int:
    """0, or why the broker closed the channel: each question has one of its own."""
    channel = connection.channel()
    try:
        ask(channel)
    except ChannelClosedByBroker as error:
        return int(error.reply_code)
    channel.close()
    return 0
