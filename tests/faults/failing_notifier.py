"""A notifier on a standard queue whose handler fails: python failing_notifier.py QUEUE TIMES [CUSTOMER].

It fails TIMES times (-1: always) with each event of CUSTOMER (all when not given), and prints one JSON line per try.
"""

import json
import signal
import sys
import threading
import time
from collections import Counter

from ordersys import logs, settings, wiring
from ordersys.core import topology
from ordersys.core.events import Event
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.notify import inbox
from ordersys.notify.consumer import Notifier


class Failing:
    """Fails `times` times with each event of the customer; says of each try when it was and how it ended."""

    def __init__(self, times: int, customer: str) -> None:
        self._times = times
        self._customer = customer
        self._tries: Counter[str] = Counter()

    def handle(self, event: Event, body: bytes) -> None:
        self._tries[event.id] += 1
        nth = self._tries[event.id]
        fails = self._customer in ("", event.order.customer_id) and (self._times < 0 or nth <= self._times)
        line = {
            "event": event.id,
            "order": event.order.id,
            "try": nth,
            "at": time.time(),
            "bytes": len(body),
            "fails": fails,
        }
        print(json.dumps(line), flush=True)
        if fails:
            raise ConnectionError(f"the mail server is away, try {nth}")


def main() -> None:
    name, times, *customer = sys.argv[1:]
    chosen = settings.load()
    logs.set_up("info", "json", "failing-notifier")
    standard = topology.standard(chosen.retry_waits)
    [queue] = [each for each in standard.queues if each.name == name]
    broker = wiring.broker(chosen)
    broker.declare(standard)
    database = Database(chosen.notify_database_url)
    migrations.upgrade(database, inbox.CHAIN)
    sink = Failing(int(times), customer[0] if customer else "")
    notifier = Notifier(broker, queue, inbox.Inbox(database), sink, name=name)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    notifier.start()
    print("ready", file=sys.stderr, flush=True)
    while not stopped.wait(0.1):
        pass
    notifier.stop(10)
    broker.close()
    database.close()


main()
