"""The file of the embedded broker: its schema, and one thread's way into it."""

import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ordersys.broker.broker import Message
from ordersys.core import errors
from ordersys.core.topology import Kind, matches

logger = logging.getLogger(__name__)

BUSY_SECONDS = 10.0
SCHEMA_VERSION = 1
SCHEMA = (
    "CREATE TABLE exchanges (name TEXT PRIMARY KEY, kind TEXT NOT NULL) WITHOUT ROWID",
    # A retry queue names the queue that its messages return to.
    "CREATE TABLE queues (name TEXT PRIMARY KEY, returns_to TEXT) WITHOUT ROWID",
    """CREATE TABLE bindings (exchange TEXT NOT NULL, queue TEXT NOT NULL, pattern TEXT NOT NULL,
        PRIMARY KEY (exchange, queue, pattern)) WITHOUT ROWID""",
    # `until`: when the lease of a consumer that holds messages runs out, in microseconds since the epoch.
    "CREATE TABLE consumers (id TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID",
    # AUTOINCREMENT: an id that was used again would let an old settlement remove a new message.
    """CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, exchange TEXT NOT NULL,
        routing_key TEXT NOT NULL, body BLOB NOT NULL, message_id TEXT NOT NULL, content_type TEXT NOT NULL,
        headers TEXT NOT NULL, due INTEGER, consumer TEXT, deliveries INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX messages_ready ON messages (queue, id) WHERE consumer IS NULL",
    "CREATE INDEX messages_due ON messages (queue, due) WHERE due IS NOT NULL",
    "CREATE INDEX messages_held ON messages (consumer) WHERE consumer IS NOT NULL",
)


class BrokerFile:
    """A connection that is opened when it is first needed, and anew after an error.

    `write` and `read` raise `Unavailable` when the file cannot be opened, locked in time or written; nothing is
    half-written then. UsageError when the file is not a broker's, or a newer ordersys's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._timeout = BUSY_SECONDS
        self._failing = False

    @contextmanager
    def write(self, timeout: float) -> Iterator[sqlite3.Connection]:
        """One transaction, durable when it ends; waits up to `timeout` seconds for the other writers."""
        with self._errors():
            connection = self._open(timeout)
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def read(self, sql: str, parameters: Mapping[str, object] | Sequence[object] = ()) -> list[Any]:
        """The rows of one statement."""
        with self._errors():
            return self._open(BUSY_SECONDS).execute(sql, parameters).fetchall()

    def close(self) -> None:
        """Let go of the file, and of what was written in a transaction that has not ended."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.close()
            if not self._failing:
                logger.warning("broker %s: %s", self._path, error)
            self._failing = True
            raise errors.Unavailable(
                f"broker {self._path}: {error}",
                metadata={"dependency": "broker"},
                told="the broker cannot be reached",
            ) from error
        except BaseException:
            self.close()
            raise
        if self._failing:
            logger.info("broker %s works again", self._path)
        self._failing = False

    def _open(self, timeout: float) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout, isolation_level=None, check_same_thread=False)
            self._timeout = timeout
            _prepare(self._connection, self._path, timeout)
        if timeout != self._timeout:
            self._connection.execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
            self._timeout = timeout
        return self._connection


class Routes:
    """Where messages go, as the database says within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._kinds: dict[str, str] = dict(connection.execute("SELECT name, kind FROM exchanges"))
        self._queues = {name for (name,) in connection.execute("SELECT name FROM queues")}
        self._bindings: dict[str, list[tuple[str, str]]] = {}
        for exchange, queue, pattern in connection.execute("SELECT exchange, queue, pattern FROM bindings"):
            self._bindings.setdefault(exchange, []).append((queue, pattern))

    def knows(self, exchange: str) -> bool:
        return not exchange or exchange in self._kinds

    def queues(self, exchange: str, routing_key: str) -> list[str]:
        """Each queue that gets a copy; the empty exchange leads to the queue that the routing key names."""
        if not exchange:
            return [routing_key] if routing_key in self._queues else []
        everything = self._kinds[exchange] == Kind.FANOUT
        bound = self._bindings.get(exchange, [])
        return sorted({queue for queue, pattern in bound if everything or matches(pattern, routing_key)})


def insert(connection: sqlite3.Connection, queue: str, message: Message, due: int | None = None) -> None:
    """Append to a queue; `due` (microseconds since the epoch) is when a message at rest goes on."""
    connection.execute(
        "INSERT INTO messages (queue, exchange, routing_key, body, message_id, content_type, headers, due)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            queue,
            message.exchange,
            message.routing_key,
            message.body,
            message.message_id,
            message.content_type,
            json.dumps(dict(message.headers)),
            due,
        ),
    )


def _prepare(connection: sqlite3.Connection, path: Path, timeout: float) -> None:
    """Durable commits, readers that never wait, and the schema."""
    if _version(connection, path) == 0:
        _create(connection, path, timeout)
    connection.execute("PRAGMA synchronous = FULL")


def _create(connection: sqlite3.Connection, path: Path, timeout: float) -> None:
    _switch_to_wal(connection, timeout)
    connection.execute("BEGIN IMMEDIATE")
    if _version(connection, path) == 0:  # nobody else was quicker
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _switch_to_wal(connection: sqlite3.Connection, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # The switch does not wait for the busy timeout when another process makes it at the same moment.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of the file, 0 when it is empty."""
    # One statement sees one state: another process may be making the schema at this moment.
    version: int
    [(version, tables)] = connection.execute(
        "SELECT (SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_master)"
    )
    if version > SCHEMA_VERSION:
        raise errors.UsageError(
            f"broker {path} was made by a newer ordersys (schema {version}, this one knows {SCHEMA_VERSION}):"
            " install the newer one, or name another file"
        )
    if version == 0 and tables:
        raise errors.UsageError(f"broker {path} is the database of something else: name a file of its own")
    return version
