"""Every statement and every commit of one engine, counted; the n-th can be made to fail as real ones do."""

import sqlite3
from collections.abc import Callable
from enum import Enum
from typing import Any

import sqlalchemy as sa


class Hurt(Enum):
    REFUSED = "refused"  # the step is not carried out
    ANSWER_LOST = "answer lost"  # it is carried out, and nobody hears of it
    CRASH = "crash"  # it is not carried out, and neither is anything after it: the process is dead
    CONFLICT = "conflict"  # PostgreSQL undoes the transaction and asks to begin it again


class Steps:
    """Wraps the dialect of an engine: what it is asked to do goes through here.

    On PostgreSQL the connection is really closed, so the server undoes what was not committed; on SQLite the driver
    reports an I/O error. `count` is of the steps since `fail`, `hit` whether it has come to the one that fails, and
    `hit_commit` whether that is a commit.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.fail(0, Hurt.REFUSED)
        dialect = engine.dialect
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(dialect, name, self._statement(getattr(dialect, name)))
        dialect.do_commit = self._commit(dialect.do_commit)  # type: ignore[method-assign, assignment]

    def fail(self, at: int, how: Hurt) -> None:
        """Count from now on, and fail step `at`: 1 is the next, 0 is none."""
        self.count = 0
        self.hit = self.hit_commit = False
        self._at = at
        self._how = how

    def heal(self) -> None:
        self._at = 0

    @property
    def dead(self) -> bool:
        """True when nothing will work until it is healed."""
        return self.hit and bool(self._at) and self._how is Hurt.CRASH

    def _statement(self, carry_out: Callable[..., None]) -> Callable[..., None]:
        def statement(cursor: Any, *arguments: Any, **named: Any) -> None:
            self._step(cursor.connection, lambda: carry_out(cursor, *arguments, **named))

        return statement

    def _commit(self, carry_out: Callable[[Any], None]) -> Callable[[Any], None]:
        def commit(pooled: Any) -> None:
            self.hit_commit |= self.count + 1 == self._at
            self._step(pooled.dbapi_connection, lambda: carry_out(pooled))

        return commit

    def _step(self, connection: Any, carry_out: Callable[[], None]) -> None:
        self.count += 1
        due = self.dead or self.count == self._at
        if not due or self._how is Hurt.ANSWER_LOST:
            carry_out()
        if due:
            self.hit = True
            self._break(connection)

    def _break(self, connection: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            raise sqlite3.OperationalError("disk I/O error")
        import psycopg

        if self._how is Hurt.CONFLICT:
            raise psycopg.errors.SerializationFailure("could not serialize access due to concurrent update")
        connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")
