"""Taking turns: of the processes that share a database, one at a time does a certain work.

A transaction that holds an advisory lock of PostgreSQL (https://www.postgresql.org/docs/current/explicit-locking.html
#ADVISORY-LOCKS) is the turn: no table, no lease, no clocks to agree. The server takes it back the moment its holder
dies, and from one that hangs after SILENT_SECONDS.
"""

import sqlalchemy as sa
from sqlalchemy import exc

from ordersys.core.storage.database import Database

SILENT_SECONDS = 3.0
"""How long who has the turn may say nothing until the server passes it on."""
_OURS = 0x6F72_6465  # "orde": the first half of the lock's number, the table's own number is the other
_TAKE = (
    "SELECT set_config('idle_in_transaction_session_timeout', %(silent)s, true),"
    f" pg_try_advisory_xact_lock({_OURS}, %(table)s::regclass::oid::integer)"
)


class Turn:
    """The turn to work on a table; belongs to one thread. On SQLite, which is for one process, it is always ours."""

    def __init__(self, database: Database, table: sa.Table) -> None:
        self._database = database
        self._table = table.name
        self._held: sa.Connection | None = None

    def take(self) -> bool:
        """True when it is ours, for SILENT_SECONDS from now; raises `Unavailable`.

        Whoever had it and was silent for longer may have lost it in between: what was begun then may be done twice.
        """
        if self._database.is_sqlite or self._kept():
            return True
        try:
            connection = self._database.engine.connect()
            try:
                row = {"silent": str(int(SILENT_SECONDS * 1000)), "table": self._table}
                taken = bool(connection.exec_driver_sql(_TAKE, row).one()[1])
            except BaseException:
                connection.close()
                raise
        except (exc.DBAPIError, exc.TimeoutError) as error:
            raise self._database.translated(error) from error
        if taken:
            self._held = connection
        else:
            connection.close()
        return taken

    def give_up(self) -> None:
        """Somebody else may have it, at once."""
        if self._held is not None:
            held, self._held = self._held, None
            try:
                held.rollback()
            except exc.DBAPIError:  # the way to the server is broken: then it takes the turn back by itself
                held.invalidate()
            held.close()

    def _kept(self) -> bool:
        """Tell the server that its holder is alive; False when there is none, or it has lost the turn."""
        if self._held is None:
            return False
        try:
            self._held.exec_driver_sql("SELECT 1")
        except exc.DBAPIError:
            self._held.invalidate()
            self.give_up()
            return False
        return True
