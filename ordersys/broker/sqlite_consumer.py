"""A consumer of the embedded broker.

It leases the messages it holds and renews the lease from a thread of its own while it lives, however long a handler
takes; whoever is killed loses them when the lease runs out. Waiting costs a look at SQLite's change counter
(https://www.sqlite.org/pragma.html#pragma_data_version) every POLL_SECONDS. Nothing is written while a consumer is
idle or holds nothing.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from ordersys.broker import broker
from ordersys.broker.broker import Delivery
from ordersys.broker.sqlite_file import BUSY_SECONDS, BrokerFile, Routes, insert
from ordersys.core import errors, ids
from ordersys.core.topology import Queue

logger = logging.getLogger(__name__)

LEASE_SECONDS = 5.0
POLL_SECONDS = 0.02
FAILING_POLL_SECONDS = 0.5

_LEASE_US = int(LEASE_SECONDS * 1_000_000)
_ACK = "DELETE FROM messages WHERE id = ? AND deliveries = ? AND consumer = ?"
_REJECT = "UPDATE messages SET consumer = NULL WHERE id = ? AND deliveries = ? AND consumer = ?"
_READY = """
    SELECT id, deliveries, exchange, routing_key, body, message_id, content_type, headers
    FROM messages WHERE queue = ? AND consumer IS NULL ORDER BY id LIMIT ?
"""
_RESTED = """
    SELECT id FROM messages WHERE due <= ? AND consumer IS NULL
    AND queue IN (SELECT name FROM queues WHERE returns_to = ?) ORDER BY due, id LIMIT 1000
"""
_RETURN = """
    INSERT INTO messages (queue, exchange, routing_key, body, message_id, content_type, headers)
    SELECT ?, exchange, routing_key, body, message_id, content_type, headers FROM messages WHERE id = ?
"""
_LEND = "UPDATE messages SET deliveries = ?, consumer = ? WHERE id = ?"
_LOOK = """
    SELECT EXISTS (SELECT 1 FROM messages WHERE queue = :queue AND consumer IS NULL),
        (SELECT min((SELECT min(due) FROM messages WHERE queue = name AND due IS NOT NULL AND consumer IS NULL))
            FROM queues WHERE returns_to = :queue)
"""
_OTHERS = "SELECT id, until FROM consumers WHERE id != ?"

Lent: TypeAlias = tuple[int, int, str]
"""Message id, which of its deliveries this is, and to whom: all three must still be so when it is settled."""


class SqliteSubscription:
    """Settlements that cannot be written now are kept, and written as soon as the file takes them."""

    def __init__(self, path: Path, queue: Queue, prefetch: int) -> None:
        self._queue = queue
        self._prefetch = prefetch
        self._file = BrokerFile(path)
        self._me = ids.uuid7()
        self._last_tag = 0
        self._held: dict[int, Lent] = {}
        self._settled: list[tuple[str, Lent]] = []
        self._seen = -1  # the change counter at the last look
        self._look_again = 0.0  # monotonic
        self.problem = ""  # `ping` says whether the file can be opened
        self._changed = threading.Condition()
        self.closed = False
        self._keeper = threading.Thread(
            target=self._keep_lease, args=(BrokerFile(path),), name=f"lease-{queue.name}", daemon=True
        )
        self._keeper.start()

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout
        while not self.closed:
            pause = POLL_SECONDS
            room = min(limit, self._prefetch - len(self._held))
            try:
                self._write_settled()
                if room > 0 and self._worth_taking() and (deliveries := self._take(room)):
                    return deliveries
            except errors.Unavailable:  # the file has logged it
                self._seen, pause = -1, FAILING_POLL_SECONDS
            left = deadline - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(pause, left))
        return []

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._settle(_ACK, deliveries)

    def reject(self, delivery: Delivery) -> None:
        self._settle(_REJECT, [delivery])

    def retry(self, delivery: Delivery, reason: str) -> bool:
        return self._move(delivery, broker.failed(self._queue, delivery, reason))

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        self._move(delivery, broker.failed(self._queue, delivery, reason, final=True))

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify()
        self._keeper.join()
        self._settled += [(_REJECT, lent) for lent in self._held.values()]
        self._held.clear()
        try:
            self._write_settled()
        except errors.Unavailable:
            logger.warning("queue %s: what was held comes back when its lease runs out", self._queue.name)
            self._settled.clear()
        self._file.close()

    def _settle(self, sql: str, deliveries: Sequence[Delivery]) -> None:
        lent = [self._held.pop(delivery.tag, None) for delivery in deliveries]
        self._settled += [(sql, each) for each in lent if each is not None]
        try:
            self._write_settled()
        except errors.Unavailable:  # the file has logged it, and `receive` tries again
            self._seen = -1

    def _write_settled(self) -> None:
        if not self._settled:
            return
        with self._file.write(BUSY_SECONDS) as connection:
            for sql, lent in self._settled:
                connection.execute(sql, lent)
            if not self._held:
                self._drop_lease(connection)
        self._settled.clear()
        self._look_again = 0.0  # what was rejected is ready, and our own writes do not move the change counter

    def _move(self, delivery: Delivery, failed: broker.Failed) -> bool:
        """Settle it and put its successor into the next queue, in one transaction; False if that is the dead letters.

        A delivery that is no longer ours is left alone: whoever holds it now decides.
        """
        lent = self._held.get(delivery.tag)
        if lent is None:
            return True
        target = failed.message.routing_key
        with self._file.write(BUSY_SECONDS) as connection:
            ours = connection.execute(_ACK, lent).rowcount
            if ours:
                if not Routes(connection).queues("", target):
                    raise errors.Unavailable(f"there is no queue {target!r} for what failed: declare the topology")
                due = None if failed.wait is None else ids.now_us() + int(failed.wait * 1_000_000)
                insert(connection, target, failed.message, due)
            if len(self._held) == 1:
                self._drop_lease(connection)
        del self._held[delivery.tag]
        self._look_again = 0.0
        return not ours or failed.wait is not None

    def _drop_lease(self, connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM consumers WHERE id = ?", (self._me,))

    def _worth_taking(self) -> bool:
        """Reads, never writes, and only when somebody wrote to the file or a time has come that was known before."""
        version: int = self._file.read("PRAGMA data_version")[0][0]
        if version == self._seen and time.monotonic() < self._look_again:
            return False
        self._seen = version
        now = ids.now_us()
        [(ready, due)] = self._file.read(_LOOK, {"queue": self._queue.name})
        leases = [until for _id, until in self._file.read(_OTHERS, (self._me,))]
        next_us = min([_LEASE_US, *(at - now for at in (due, *leases) if at is not None)])
        self._look_again = time.monotonic() + next_us / 1_000_000
        return bool(ready) or (due is not None and due <= now) or any(_run_out(until, now) for until in leases)

    def _take(self, room: int) -> list[Delivery]:
        """Lease up to `room` messages, those of the dead and those that have rested long enough included."""
        taken: dict[int, Lent] = {}
        deliveries = []
        with self._file.write(BUSY_SECONDS) as connection:
            now = ids.now_us()
            self._free_the_dead(connection, now)
            self._return_rested(connection, now)
            rows = connection.execute(_READY, (self._queue.name, room)).fetchall()
            for row in rows:
                delivery = self._delivery(row)
                if row[1] > broker.DELIVERY_LIMIT and self._bury(connection, row[0], delivery):
                    continue
                deliveries.append(delivery)
                taken[delivery.tag] = (row[0], row[1] + 1, self._me)
            connection.executemany(_LEND, [(times, consumer, id_) for id_, times, consumer in taken.values()])
            if taken:
                connection.execute("INSERT OR REPLACE INTO consumers VALUES (?, ?)", (self._me, now + _LEASE_US))
        with self._changed:
            self._held.update(taken)
            self._changed.notify()
        if rows:
            self._look_again = 0.0  # there may be more
        return deliveries

    def _free_the_dead(self, connection: sqlite3.Connection, now: int) -> None:
        """What a consumer held whose lease ran out is ready again, at its old place."""
        for consumer, until in connection.execute(_OTHERS, (self._me,)).fetchall():
            if _run_out(until, now):
                connection.execute("UPDATE messages SET consumer = NULL WHERE consumer = ?", (consumer,))
                connection.execute("DELETE FROM consumers WHERE id = ?", (consumer,))

    def _return_rested(self, connection: sqlite3.Connection, now: int) -> None:
        """Messages whose wait is over go from the retry queues to the end of their queue."""
        for (message_id,) in connection.execute(_RESTED, (now, self._queue.name)).fetchall():
            connection.execute(_RETURN, (self._queue.name, message_id))
            connection.execute("DELETE FROM messages WHERE id = ?", (message_id,))

    def _bury(self, connection: sqlite3.Connection, message_id: int, delivery: Delivery) -> bool:
        """Make a dead letter of what nobody ever settles; False for a queue that has no dead letters."""
        if not Routes(connection).queues("", self._queue.dead_letters):
            return False
        failed = broker.failed(self._queue, delivery, broker.NEVER_SETTLED, final=True)
        insert(connection, self._queue.dead_letters, failed.message)
        connection.execute("DELETE FROM messages WHERE id = ?", (message_id,))
        return True

    def _delivery(self, row: tuple[int, int, str, str, bytes, str, str, str]) -> Delivery:
        _id, deliveries, exchange, routing_key, body, message_id, content_type, headers_json = row
        headers = json.loads(headers_json)
        exchange, routing_key = broker.origin(headers, exchange, routing_key)
        self._last_tag += 1
        return Delivery(
            tag=self._last_tag,
            queue=self._queue.name,
            exchange=exchange,
            routing_key=routing_key,
            body=body,
            message_id=message_id,
            content_type=content_type,
            headers=headers,
            redelivered=deliveries > 0,
        )

    def _keep_lease(self, file: BrokerFile) -> None:
        """Renew while anything is held. A consumer that was taken for dead is not in the table: nothing to renew."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.closed or self._held)
                if self._changed.wait_for(lambda: self.closed, LEASE_SECONDS / 3):
                    break
                if not self._held:
                    continue
            try:
                with file.write(LEASE_SECONDS) as connection:
                    connection.execute(
                        "UPDATE consumers SET until = ? WHERE id = ?", (ids.now_us() + _LEASE_US, self._me)
                    )
            except errors.Unavailable:
                continue  # the file has logged it
        file.close()


def _run_out(until: int, now: int) -> bool:
    """A lease that ends later than any given now was written before the clock was set back: it has run out too."""
    return not now < until <= now + _LEASE_US
