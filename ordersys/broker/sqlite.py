"""The embedded broker: a durable queue in one SQLite file, for the processes of ONE machine. Use RabbitMQ for more.

A consumer leases the messages it holds and renews the lease while it lives; whoever is killed loses them when the
lease runs out. Waiting costs a look at SQLite's change counter (https://www.sqlite.org/pragma.html#pragma_data_version)
every POLL_SECONDS; nothing is written while a consumer is idle or holds nothing.
"""

import logging
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from ordersys.broker import broker
from ordersys.broker.broker import Depth, Findings, Message, Outcome
from ordersys.broker.sqlite_consumer import SqliteSubscription
from ordersys.broker.sqlite_file import BUSY_SECONDS, BrokerFile, Routes, insert
from ordersys.core import errors, ids
from ordersys.core.topology import Exchange, Queue, Topology
from ordersys.core.users import User

logger = logging.getLogger(__name__)

# A message whose rest is over is ready, though it moves to its queue only when a consumer looks.
_COUNT = """
    SELECT CASE WHEN due <= ? THEN returns_to ELSE name END, count(*)
    FROM messages JOIN queues ON name = queue WHERE consumer IS NULL GROUP BY 1
"""
_NOTHING = "SELECT name, 0 FROM queues LIMIT 0"


class SqliteBroker:
    """A broker in the file that a sqlite:///FILE URL names; raises UsageError for any other URL.

    The file is made when it is first needed.
    """

    system: ClassVar[str] = "ordersys-embedded"

    def __init__(self, url: str) -> None:
        file = url.removeprefix("sqlite:///")
        if file == url or file in ("", ":memory:"):
            raise errors.UsageError("broker URL: expected sqlite:///FILE; a broker in memory cannot be shared")
        self._path = Path(file)
        self._parts = broker.Parts()
        self._counted = BrokerFile(self._path)
        self._counting = threading.Lock()

    def declare(self, topology: Topology) -> bool:
        with closing(BrokerFile(self._path)) as file, file.write(BUSY_SECONDS) as connection:
            for exchange in topology.exchanges:
                _declare_exchange(connection, exchange)
            for queue in topology.queues:
                _declare_queue(connection, queue)
        return True

    def inspect(self, topology: Topology, user: User | None = None) -> Findings:
        """A file has no users of its own: whoever may write it may do everything."""
        wanted, found = _wanted(topology), self._found()
        return Findings(
            missing=tuple(each for each in wanted if each not in found),
            differing=tuple(each for each in wanted if each in found and found[each] != wanted[each]),
        )

    def _found(self) -> dict[str, str | None]:
        if not self._path.exists():  # asking must not make it
            return {}
        with closing(BrokerFile(self._path)) as file:
            return {
                **{f"exchange {name}": kind for name, kind in file.read("SELECT name, kind FROM exchanges")},
                **{f"queue {name}": returns for name, returns in file.read("SELECT name, returns_to FROM queues")},
                **{_binding(*row): "" for row in file.read("SELECT exchange, queue, pattern FROM bindings")},
            }

    def publisher(self) -> "SqlitePublisher":
        return self._parts.add(SqlitePublisher(self._path))

    def subscribe(self, queue: Queue, prefetch: int) -> SqliteSubscription:
        broker.check_prefetch(prefetch)
        return self._parts.add(SqliteSubscription(self._path, queue, prefetch))

    def ping(self) -> None:
        with closing(BrokerFile(self._path)) as file, file.write(BUSY_SECONDS):
            pass  # the lock can be had, so the file can be written

    def depths(self, queues: Sequence[Queue], timeout: float = 2.0) -> dict[str, Depth]:
        """A reader waits for nobody: there is no need to look at the clock."""
        with self._counting:
            counts = dict(self._counted.read(_COUNT, (ids.now_us(),)) if queues else self._counted.read(_NOTHING))
        return {queue.name: broker.depth(queue, counts) for queue in queues}

    def close(self) -> None:
        self._parts.close()
        with self._counting:
            self._counted.close()


def _declare_exchange(connection: sqlite3.Connection, exchange: Exchange) -> None:
    connection.execute("INSERT OR IGNORE INTO exchanges VALUES (?, ?)", (exchange.name, exchange.kind))
    [(kind,)] = connection.execute("SELECT kind FROM exchanges WHERE name = ?", (exchange.name,))
    if kind != exchange.kind:
        raise errors.UsageError(f"exchange {exchange.name!r} exists as {kind}, not {exchange.kind}: use another name")


def _wanted(topology: Topology) -> dict[str, str | None]:
    """Exchanges, queues and bindings in words, each with what the file has to say of it."""
    return {
        **{f"exchange {each.name}": str(each.kind) for each in topology.exchanges},
        **{f"queue {name}": returns for queue in topology.queues for name, returns in _returns(queue).items()},
        **{_binding(b.exchange, queue.name, b.pattern): "" for queue in topology.queues for b in queue.bindings},
    }


def _binding(exchange: str, queue: str, pattern: str) -> str:
    return f"binding of {queue} to {exchange} {pattern}".strip()


def _returns(queue: Queue) -> dict[str, str | None]:
    """The queue and those that belong to it, each with the queue that its messages return to."""
    return {queue.name: None, queue.dead_letters: None, **dict.fromkeys(queue.retries, queue.name)}


def _declare_queue(connection: sqlite3.Connection, queue: Queue) -> None:
    for name, returns_to in _returns(queue).items():
        connection.execute("INSERT OR IGNORE INTO queues VALUES (?, ?)", (name, returns_to))
        [(found,)] = connection.execute("SELECT returns_to FROM queues WHERE name = ?", (name,))
        if found != returns_to:
            role = f"a retry queue of {found!r}" if found else "a queue of its own"
            raise errors.UsageError(f"queue {name!r} exists as {role}: use another name for {queue.name!r}")
    for binding in queue.bindings:
        if not connection.execute("SELECT 1 FROM exchanges WHERE name = ?", (binding.exchange,)).fetchone():
            raise errors.UsageError(f"queue {queue.name!r} is bound to {binding.exchange!r}: no such exchange")
        bound = (binding.exchange, queue.name, binding.pattern)
        connection.execute("INSERT OR IGNORE INTO bindings VALUES (?, ?, ?)", bound)


class SqlitePublisher:
    """A batch is one transaction: all of it is durable when `publish` returns, or none of it is."""

    def __init__(self, path: Path) -> None:
        self._file = BrokerFile(path)
        self.closed = False

    def publish(self, messages: Sequence[Message], timeout: float = 10.0) -> list[Outcome]:
        if self.closed:
            return [Outcome.FAILED] * len(messages)
        try:
            with self._file.write(timeout) as connection:
                routes = Routes(connection)
                return [self._publish(connection, routes, message) for message in messages]
        except errors.Unavailable:  # the file has logged it
            return [Outcome.FAILED] * len(messages)

    def _publish(self, connection: sqlite3.Connection, routes: Routes, message: Message) -> Outcome:
        if not routes.knows(message.exchange):
            logger.error("message %s refused: there is no exchange %r", message.message_id, message.exchange)
            return Outcome.FAILED
        queues = routes.queues(message.exchange, message.routing_key)
        for queue in queues:
            insert(connection, queue, message)
        return Outcome.CONFIRMED if queues else Outcome.UNROUTABLE

    def close(self) -> None:
        self.closed = True
        self._file.close()
