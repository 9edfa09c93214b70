"""One SQL for two engines: SQLite for one machine, PostgreSQL for more; the URL picks.

SQLite (https://www.sqlite.org/wal.html): WAL so that readers never wait, synchronous=FULL so that a commit survives a
power cut, BEGIN IMMEDIATE for writes so that two writers queue instead of deadlocking on the lock upgrade.
PostgreSQL: serialization failures and deadlocks are retried, as its manual asks (section 13.5).
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc

from ordersys.core import errors
from ordersys.core.display import masked

Result = TypeVar("Result")
Transaction = Callable[[sa.Connection], Result]

BUSY_SECONDS = 10.0
_POSTGRES = {
    # Without these, an address that swallows packets holds the writer for minutes, or for hours.
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    # In a database without an encoding (SQL_ASCII) text would come back as bytes.
    "client_encoding": "utf8",
}
"""https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS; the URL's own options go first."""
_RETRIED_SQLSTATES = ("40001", "40P01")  # serialization_failure, deadlock_detected
_READ_ONLY = "25006"  # read_only_sql_transaction
_NOT_PERMITTED = "42501"  # insufficient_privilege
_REFUSALS = (exc.DatabaseError, exc.ProgrammingError)
"""Before the first statement these say that the URL is wrong: the file is no database, an option does not exist."""
_ATTEMPTS = 5
_ADVISORY_LOCK = 0x6F72_6465  # "orde": any number that is ours alone

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
"""Text that both engines order alike, byte by byte."""


class NotPermitted(errors.UsageError):
    """The database's user lacks a right; `reason` is what the server said."""

    def __init__(self, database: str, reason: str) -> None:
        super().__init__(f"database {database}: {reason}; `ordersys db permissions` prints what each role needs")
        self.reason = reason


class Database:
    """One service's database: `write` and `read` run a function in a transaction of its own.

    Both raise `Unavailable` when the database cannot be reached or written now, and nothing is half-written then.
    They raise `NotPermitted` for a right that is lacking; constraint violations come through as IntegrityError.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = _parsed(url)
            self.engine = self._connects(self.url)
        except (exc.ArgumentError, exc.NoSuchModuleError, ImportError) as error:
            # What cannot be read as a URL may have its password anywhere: only the scheme is shown.
            raise errors.UsageError(
                f"database URL {url.partition('://')[0] if '://' in url else ''}://...: {error};"
                " expected sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
            ) from None
        except OSError as error:
            raise errors.UsageError(f"database {self.label}: its folder cannot be made: {error}") from error
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        # SQLite's own queue for writers is a sleep with backoff: within a process a lock is fair and quick.
        self._writing = threading.Lock() if self.is_sqlite else nullcontext()
        self._takes_writes = True  # as far as the last one can tell
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sql-write")
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="sql-read")

    @property
    def label(self) -> str:
        """The URL without its password, and of libpq's options only where the server is."""
        place = {name: value for name, value in self.url.query.items() if name in ("host", "port")}
        return masked(self.url.set(query=place).render_as_string(hide_password=True))

    def write(self, work: Transaction[Result]) -> Result:
        """Commit what `work` did when it returns, undo it all when it raises; durable on return."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with (
                    self._writing,
                    self.engine.connect().execution_options(ordersys_write=True) as connection,
                    connection.begin(),
                ):
                    result = work(connection)
            except exc.DBAPIError as error:
                retried = getattr(error.orig, "sqlstate", None) in _RETRIED_SQLSTATES
                if not retried or attempt == _ATTEMPTS:
                    raise self._not_written(error) from error
                time.sleep(0.005 * 2**attempt)
            except exc.TimeoutError as error:
                raise self._not_written(error) from error
            else:
                self._takes_writes = True
                return result
        raise AssertionError("unreachable")

    def read(self, work: Transaction[Result]) -> Result:
        """Run `work` on one consistent snapshot as far as the engine's default isolation gives it."""
        try:
            with self.engine.connect() as connection, connection.begin():
                return work(connection)
        except (exc.DBAPIError, exc.TimeoutError) as error:
            raise self.translated(error) from error

    def ready(self) -> bool:
        """Whether it can be read and written now; raises `Unavailable` when it cannot be reached.

        SQLite is only asked to write after a write has failed: nothing else tells when a full disk has room again.
        """
        if not self.is_sqlite:
            return bool(self._asked("SHOW transaction_read_only") == "off")
        version = self._asked("PRAGMA user_version")
        if not self._takes_writes:
            self.write(lambda connection: connection.exec_driver_sql(f"PRAGMA user_version = {version}"))
        return True

    def _asked(self, statement: str) -> Any:
        return self.read(lambda connection: connection.exec_driver_sql(statement).scalar_one())

    def exclusive(self, connection: sa.Connection) -> None:
        """Let one process at a time go on until its transaction ends; SQLite's BEGIN IMMEDIATE does so anyway."""
        if not self.is_sqlite:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})

    def one_snapshot(self, connection: sa.Connection) -> None:
        """Let all reads of this transaction see one moment; SQLite's transactions do so anyway."""
        if not self.is_sqlite:
            connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))

    async def write_soon(self, work: Transaction[Result]) -> Result:
        """`write` on the one writer thread, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self.write, work)

    async def read_soon(self, work: Transaction[Result]) -> Result:
        """`read` on a reader thread, off the event loop; never waits behind a write."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read, work)

    def close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        # Dispose closes what lies in the pool; what another thread still uses would come back to it and stay open.
        event.listen(self.engine.pool, "checkin", lambda _connection, record: record.invalidate())
        self.engine.dispose()

    def _connects(self, url: sa.URL) -> sa.Engine:
        return _engine(url)

    def _not_written(self, error: exc.SQLAlchemyError) -> Exception:
        translated = self.translated(error)
        self._takes_writes = not isinstance(translated, errors.Unavailable)
        return translated

    def translated(self, error: exc.SQLAlchemyError) -> Exception:
        """What our callers are told of it: `Unavailable`, UsageError, NotPermitted, or the error itself."""
        text = str(getattr(error, "orig", None) or error).strip()
        # Why there is no connection may take a line per host; after a statement only the first line is no quotation.
        connecting = isinstance(error, exc.DBAPIError) and error.statement is None
        reason = " ".join(text.split()) if connecting else text.partition("\n")[0]
        transient = isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError)
        if transient or (isinstance(error, exc.DBAPIError) and error.connection_invalidated):
            return errors.Unavailable(
                f"database {self.label}: {reason}",
                metadata={"dependency": "database"},
                told="the database cannot be reached or written now",
            )
        if isinstance(error, exc.DatabaseError) and type(error) in _REFUSALS and error.statement is None:
            return errors.UsageError(f"database {self.label}: {reason}")
        if getattr(getattr(error, "orig", None), "sqlstate", None) == _NOT_PERMITTED:
            return NotPermitted(self.label, reason)
        return error


def upsert(engine: str, table: sa.Table) -> Any:
    """An INSERT that has ON CONFLICT: both engines spell it alike, SQLAlchemy keeps it per dialect."""
    if engine == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def postgres_place(url: str) -> tuple[str, int, str] | None:
    """(host, port, database) of a PostgreSQL URL, with libpq's defaults; None for SQLite's."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return None
    return parsed.host or "localhost", parsed.port or 5432, parsed.database or parsed.username or ""


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except ValueError:
        raise exc.ArgumentError("its port is not a number") from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise exc.ArgumentError(f"{parsed.get_backend_name()} is not supported")
    if parsed.get_backend_name() != "sqlite" and "@" in f"{parsed.host}{parsed.database}":  # a piece of the password
        raise exc.ArgumentError("an @ in the user or the password must be written %40")
    # As others write it, for example in the Secrets of operators; which driver that means depends on SQLAlchemy.
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "postgresql":
        return postgres_engine(url)
    if url.database in (None, "", ":memory:"):
        raise exc.ArgumentError("an SQLite database in memory cannot be shared or survive: name a file")
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    waiting = {"check_same_thread": False, "timeout": BUSY_SECONDS}
    engine = sa.create_engine(url, connect_args=waiting, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def postgres_engine(url: sa.URL, **ours: object) -> sa.Engine:
    """An engine with our defaults and these; what the URL says goes first."""
    chosen = {name: value for name, value in {**_POSTGRES, **ours}.items() if name not in url.query}
    engine = sa.create_engine(
        url,
        connect_args=chosen,
        pool_pre_ping=False,
        pool_size=8,
        max_overflow=8,
        pool_timeout=5.0,
        hide_parameters=True,  # an error's text gets into the log, and what somebody ordered does not belong there
    )
    event.listen(engine, "handle_error", _leave_read_only)
    return engine


def _leave_read_only(context: sa.engine.ExceptionContext) -> None:
    """After a failover the old primary may live on and take no writes: a new session may find the new one."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            # The switch to WAL does not wait for the busy timeout when another process makes it at the same moment.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("ordersys_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
