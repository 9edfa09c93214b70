"""A database that is looked into and left as it is, nothing made, upgraded or written; and facts about its engine."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from ordersys.core import errors
from ordersys.core.storage.database import Database, Result, Transaction, postgres_engine

_CONNECT_SECONDS = 2  # libpq takes 1 for 2
_STATEMENT_SECONDS = 3
_WAL = 2  # https://www.sqlite.org/fileformat.html section 1.3.3
_STEPS = 10_000  # of SQLite's virtual machine between two looks at the clock: some milliseconds
_ATTEMPTS = 5


class LookedInto(Database):
    """Its `read` and `read_soon` are those of a `Database`; `write` raises `Unavailable`.

    Raises UsageError for a URL that is none, and `Missing` when its SQLite file does not exist.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.file = Path(str(self.url.database)).absolute() if self.is_sqlite else None
        if self.file is not None and not self.file.exists():
            self.close()
            raise Missing(f"not made yet: {self.file}")

    def read(self, work: Transaction[Result]) -> Result:
        if self.file is None:
            return super().read(work)
        for _ in range(_ATTEMPTS):
            before = _state(self.file)
            try:
                found = super().read(work)
            except errors.Unavailable:
                if before == _state(self.file):
                    raise
                continue
            # Who has found nobody there has read without a lock: somebody may have come meanwhile.
            if before[0] or before == _state(self.file):
                return found
        raise errors.Unavailable(f"{self.file} comes and goes too often to be read")

    def translated(self, error: exc.SQLAlchemyError) -> Exception:
        if type(error) is exc.DatabaseError:  # no database, or a damaged one
            return errors.UsageError(f"database {self.label}: {error.orig}")
        return super().translated(error)

    def _connects(self, url: sa.URL) -> sa.Engine:
        if url.get_backend_name() == "postgresql":
            engine = postgres_engine(url, connect_timeout=_CONNECT_SECONDS)
            event.listen(engine, "connect", _only_read)
            return engine
        file = Path(str(url.database)).absolute()
        return sa.create_engine("sqlite://", creator=lambda: _connected(file), poolclass=sa.NullPool)


class Missing(errors.Unavailable):
    """There is nothing to look into."""


def _state(file: Path) -> tuple[bool, int, int]:
    """Is somebody there, and what would be different had somebody written."""
    at = file.stat()
    return Path(f"{file}-wal").exists(), at.st_mtime_ns, at.st_size


def _connected(file: Path) -> sqlite3.Connection:
    """A connection that leaves no file behind.

    Even a reader makes the two files of the write-ahead log, and may not remove them. Where there are none, nobody
    writes, and the file can be read as one that never changes (https://www.sqlite.org/wal.html section 5).
    """
    alone = "" if Path(f"{file}-wal").exists() else "&immutable=1"
    return sqlite3.connect(
        f"{file.as_uri()}?mode=ro{alone}", uri=True, timeout=_CONNECT_SECONDS, check_same_thread=False
    )


def _only_read(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
        cursor.execute(f"SET statement_timeout = '{_STATEMENT_SECONDS}s'")
    connection.commit()


_POSTGRES_FACTS = """
    SELECT current_setting('server_version') AS version, current_setting('server_encoding') AS encoding,
        current_setting('synchronous_commit') AS synchronous_commit, current_setting('fsync') AS fsync,
        (SELECT sum(numbackends) FROM pg_stat_database) AS connections,
        current_setting('max_connections')::int AS max_connections,
        extract(epoch FROM clock_timestamp())::float8 AS now, pg_is_in_recovery() AS standby
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteFacts:
    """`wal`: is the write-ahead log on. `damage`: what the quick check complains of first; None = it took too long."""

    bytes: int
    wal: bool
    damage: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresFacts:
    """Settings as our sessions have them; `skew` is how far its clock is ahead of ours, in seconds."""

    version: str
    encoding: str
    synchronous_commit: str
    fsync: str
    connections: int
    max_connections: int
    skew: float
    standby: bool


def sqlite_facts(database: LookedInto, seconds: float) -> SqliteFacts:
    """Facts of the file, of which at most so many seconds are spent on the quick check."""
    assert database.file is not None  # noqa: S101 - for the type checker
    size = database.file.stat().st_size
    return SqliteFacts(bytes=size, wal=wal(database.file), damage=database.read(lambda found: _damage(found, seconds)))


def postgres_facts(database: LookedInto) -> PostgresFacts:
    def work(connection: sa.Connection) -> PostgresFacts:
        began = time.time()
        row = connection.execute(sa.text(_POSTGRES_FACTS)).one()
        between = (began + time.time()) / 2
        return PostgresFacts(
            version=row.version,
            encoding=row.encoding,
            synchronous_commit=row.synchronous_commit,
            fsync=row.fsync,
            connections=int(row.connections),
            max_connections=int(row.max_connections),
            skew=float(row.now) - between,
            standby=row.standby,
        )

    return database.read(work)


def wal(file: Path) -> bool:
    """Is its write-ahead log on? Who reads a file as one that never changes is not told."""
    with file.open("rb") as opened:
        head = opened.read(20)
    return len(head) < 20 or tuple(head[18:20]) == (_WAL, _WAL)  # the first connection to an empty file switches it on


def _damage(connection: sa.Connection, seconds: float) -> str | None:
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    return damage(driver, seconds)


def damage(connection: sqlite3.Connection, seconds: float) -> str | None:
    """What SQLite's quick check complains of first, "" for nothing, None when it is not done within so many seconds."""
    with _bounded(connection, seconds):
        try:
            [(said,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
        except sqlite3.OperationalError as error:
            if str(error) == "interrupted":
                return None
            raise
        except sqlite3.DatabaseError as error:
            return str(error)
    return "" if said == "ok" else str(said)


@contextmanager
def _bounded(connection: sqlite3.Connection, seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)
