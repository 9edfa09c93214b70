"""How fast events leave the outbox, held against pika publishing the same bodies, pipelined, with confirms.

    python benchmarks/relay.py AMQP_URL [EVENTS]

Prints the two rates in messages per second as JSON. Every event is two messages: fanout and topic.
"""

import asyncio
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pika
from pika.channel import Channel

from ordersys.broker.rabbitmq import RabbitBroker
from ordersys.core import events, ids, topology
from ordersys.core.records import Line
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.order import model
from ordersys.order.relay import Relay
from ordersys.order.store import CHAIN, OrderStore

WINDOW = 1000
_BATCH = 500


def main(url: str, count: int = 10_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'order.db'}")
        migrations.upgrade(database, CHAIN)
        store = OrderStore(database)
        for _ in range(0, count, _BATCH):
            commands = [
                model.Command(
                    command_id=ids.uuid7(),
                    order_id=ids.uuid7(),
                    change=events.Change.CREATED,
                    customer_id="c-1",
                    lines=(Line("1", 1, 1999),),
                    currency="EUR",
                    traceparent=ids.new_traceparent(),
                )
                for _ in range(_BATCH)
            ]
            asyncio.run(store.apply(commands, ids.now_us(), ids.uuid7))
        bodies = [each.body.encode() for each in store.unsent(count)]
        broker = RabbitBroker(url)
        broker.declare(topology.standard())
        raw = Raw(url, bodies).run()
        relay = Relay(store, broker, topology.standard(), turn=store.turn())
        begun = time.perf_counter()
        relay.start()
        while store.unsent(1):
            time.sleep(0.005)
        relayed = 2 * len(bodies) / (time.perf_counter() - begun)
        relay.stop(5.0)
        broker.close()
        database.close()
    print(json.dumps({"raw": raw, "relay": relayed}))


class Raw:
    """pika alone: as many messages as a window holds are under way, each confirm lets the next go."""

    def __init__(self, url: str, bodies: list[bytes]) -> None:
        self._exchanges = [topology.FANOUT, topology.TOPIC]
        self._bodies = iter([(exchange, body) for body in bodies for exchange in self._exchanges])
        self._count = 2 * len(bodies)
        self._tags = itertools.count(1)
        self._open: dict[int, None] = {}
        self._connection = pika.SelectConnection(pika.URLParameters(url), on_open_callback=self._opened)
        self.rate = 0.0

    def run(self) -> float:
        """Messages per second, all confirmed."""
        self._connection.ioloop.start()
        return self.rate

    def _opened(self, connection: pika.SelectConnection) -> None:
        connection.channel(on_open_callback=self._ready)

    def _ready(self, channel: Channel) -> None:
        channel.confirm_delivery(lambda frame: self._confirms(channel, frame.method))
        self._begun = time.perf_counter()
        self._publish(channel, WINDOW)

    def _publish(self, channel: Channel, count: int) -> None:
        for exchange, body in itertools.islice(self._bodies, count):
            properties = pika.BasicProperties(delivery_mode=2, content_type=events.CONTENT_TYPE)
            channel.basic_publish(exchange, "order.created", body, properties, mandatory=True)
            self._open[next(self._tags)] = None

    def _confirms(self, channel: Channel, confirm: Any) -> None:
        last = confirm.delivery_tag
        tags = list(itertools.takewhile(lambda tag: tag <= last, self._open)) if confirm.multiple else [last]
        for tag in tags:
            del self._open[tag]
        self._publish(channel, len(tags))
        if not self._open:
            self.rate = self._count / (time.perf_counter() - self._begun)
            self._connection.ioloop.stop()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
