"""A broker under test, names of the test's own on it, and what the cases of the contract suite do again and again."""

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from contract.broker_process import connect

from ordersys.broker.broker import Broker, Delivery, Headers, Message, Outcome, Publisher, Subscription
from ordersys.core.topology import Binding, Exchange, Kind, Queue, Topology

PROGRAM = Path(__file__).with_name("broker_process.py")


class Site:
    """One broker URL; closes what a test opened on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._prefix = uuid.uuid4().hex[:8]
        self._brokers: list[Broker] = []
        self._processes: list[subprocess.Popen[str]] = []

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite:")

    def name(self, text: str) -> str:
        return f"{self._prefix}.{text}"

    def broker(self) -> Broker:
        self._brokers.append(connect(self.url))
        return self._brokers[-1]

    def fanout(self, *names: str, waits: tuple[float, ...] = (1.0,)) -> tuple[str, list[Queue]]:
        """A declared fanout exchange with one queue per name."""
        exchange = Exchange(self.name("fanout"), Kind.FANOUT)
        queues = [Queue(self.name(name), (Binding(exchange.name),), waits) for name in names]
        self.broker().declare(Topology((exchange,), tuple(queues)))
        return exchange.name, queues

    def queue(self, waits: tuple[float, ...] = (1.0,)) -> Queue:
        """A declared queue without bindings."""
        queue = Queue(self.name("queue"), (), waits)
        self.broker().declare(Topology((), (queue,)))
        return queue

    def publish(self, queue: Queue | str, *ids: str) -> None:
        publisher = self.broker().publisher()
        assert publisher.publish([to(queue, id_) for id_ in ids]) == [Outcome.CONFIRMED] * len(ids)
        publisher.close()

    def subscribe(self, queue: Queue | str, prefetch: int = 100) -> Subscription:
        queue = Queue(queue, ()) if isinstance(queue, str) else queue
        return self.broker().subscribe(queue, prefetch)

    def process(self, *arguments: str) -> "subprocess.Popen[str]":
        """The helper program in a process of its own."""
        command = [sys.executable, str(PROGRAM), self.url, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        for broker in self._brokers:
            broker.close()


def to(queue: Queue | str, id_: str, body: bytes = b"{}", headers: Headers | None = None) -> Message:
    """A message for one queue, by its name."""
    return message("", queue if isinstance(queue, str) else queue.name, id_, body, headers)


def message(exchange: str, routing_key: str, id_: str, body: bytes = b"{}", headers: Headers | None = None) -> Message:
    return Message(
        exchange=exchange,
        routing_key=routing_key,
        body=body,
        message_id=id_,
        content_type="application/json",
        headers=headers or {},
    )


def take(subscription: Subscription, count: int, seconds: float = 20.0) -> list[Delivery]:
    """Exactly `count` deliveries, or fewer if they do not come in time."""
    deadline = time.monotonic() + seconds
    deliveries: list[Delivery] = []
    while len(deliveries) < count and time.monotonic() < deadline:
        deliveries += subscription.receive(count - len(deliveries), 0.2)
    return deliveries


def rest(subscription: Subscription, seconds: float = 0.3) -> list[str]:
    """What else comes within this time."""
    return message_ids(subscription.receive(100, seconds))


def message_ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message_id for delivery in deliveries]


def publish_until_confirmed(publisher: Publisher, messages: Sequence[Message], seconds: float = 60.0) -> int:
    """As the relay does: what was not confirmed is published again; how many were published more than once."""
    deadline = time.monotonic() + seconds
    repeated = 0
    while messages and time.monotonic() < deadline:
        outcomes = publisher.publish(messages, timeout=5.0)
        messages = [each for each, outcome in zip(messages, outcomes, strict=True) if outcome is not Outcome.CONFIRMED]
        repeated += len(messages)
    assert not messages
    return repeated


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
