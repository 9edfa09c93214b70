"""What goes over the broker, copies and all: a queue of the test's own, read without an inbox."""

import threading
from collections import Counter
from typing import Self

from e2e.processes import Backend, until

from ordersys import wiring
from ordersys.core import events
from ordersys.core.topology import EXCHANGES, TOPIC, Binding, Queue, Topology
from ordersys.settings import Settings

QUEUE = Queue("faults.wire", (Binding(TOPIC, "#"),), ())


class Wire:
    """Counts every copy of every event that is published to the topic exchange."""

    def __init__(self, backend: Backend) -> None:
        url = backend.environment.get("ORDERSYS_BROKER_URL", "")
        self._broker = wiring.broker(Settings(home=backend.home, broker_url=url))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.copies: Counter[str] = Counter()
        self._orders: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._broker.declare(Topology(EXCHANGES, (QUEUE,)))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._broker.close()

    def sees(self, order_id: str, copies: int = 1) -> None:
        """Wait until so many copies of an order's events have passed."""
        until(lambda: self._orders[order_id] >= copies, f"{copies} copies of an event of order {order_id} pass")

    def repeated(self) -> int:
        """Copies beyond the first of each event."""
        return self.copies.total() - len(self.copies)

    def _read(self) -> None:
        subscription = self._broker.subscribe(QUEUE, prefetch=200)
        while not self._stopping.is_set():
            deliveries = subscription.receive(200, 0.1)
            for delivery in deliveries:
                event = events.decode(delivery.body)
                self.copies[event.id] += 1
                self._orders[event.order.id] += 1
            if deliveries:
                subscription.ack(deliveries)
        subscription.close()
