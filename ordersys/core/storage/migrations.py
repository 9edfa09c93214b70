"""Alembic migrations from the installed package, one chain per service, the same on both engines.

Each service keeps its revisions in `<room>/migrations/` and its own version table, so that several services may also
share one database. Applied at start; safe when several processes start at once.
"""

import threading
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ordersys.core import errors
from ordersys.core.storage.database import Database, NotPermitted
from ordersys.core.storage.roles import Right

if TYPE_CHECKING:  # loaded where there is something to migrate: it takes a quarter of a role's start
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

_alembic_op = threading.Lock()  # `alembic.op` is one per process: services that start together take turns


@dataclass(frozen=True, slots=True)
class Chain:
    """The migrations of one service: the package that holds them, named like `ordersys.order`.

    `rights` is what the service itself does with the tables that they make.
    """

    package: str
    rights: tuple[Right, ...] = ()

    @property
    def version_table(self) -> str:
        return f"{self.package.rpartition('.')[2]}_schema_version"

    @property
    def least(self) -> tuple[Right, ...]:
        """The rights, with that to see which revision the schema is at."""
        return (*self.rights, Right(self.version_table, "SELECT"))


def upgrade(database: Database, chain: Chain) -> tuple[str, str]:
    """Bring the schema to the newest revision; returns the revisions before and after ("" = empty database).

    Raises UsageError when the database was upgraded by a newer ordersys than this one, or when there is something to
    do and this user may not do it.
    """
    newest = _newest(chain)
    if newest and database.read(lambda connection: _revision(connection, chain)) == newest:
        return newest, newest
    from alembic.operations import Operations

    def work(connection: sa.Connection) -> tuple[str, str]:
        database.exclusive(connection)
        script = _script(chain)
        context = _context(connection, chain, script)
        before = context.get_current_revision() or ""
        _refuse_newer(script, before, database)
        with _alembic_op, Operations.context(context):
            context.run_migrations()
        return before, context.get_current_revision() or ""

    try:
        return database.write(work)
    except NotPermitted as error:
        raise errors.UsageError(
            f"the schema in {database.label} is not at revision {newest}, and this user may not change it:"
            f" run `ordersys db upgrade` as its owner, then `ordersys db permissions` ({error.reason})"
        ) from error


def current(database: Database, chain: Chain) -> tuple[str, str]:
    """The revision the database is at ("" = none) and the newest this ordersys has."""
    script = _script(chain)
    found = database.read(lambda connection: _context(connection, chain, script).get_current_revision())
    return found or "", script.get_current_head() or ""


def is_current(database: Database, chain: Chain) -> bool:
    """Whether the schema is the one that this ordersys knows.

    A newer one is let pass: in a rolling upgrade those that are to be replaced serve on until they are.
    """
    return database.read(lambda connection: _revision(connection, chain)) >= _newest(chain)


def _newest(chain: Chain) -> str:
    """The newest revision by the names of the files: `0002_more.py` in the room `order` is `order_0002`."""
    names = [each.name for each in (resources.files(chain.package) / "migrations").iterdir()]
    numbers = [name[:4] for name in names if name[:4].isdigit()]
    return f"{chain.package.rpartition('.')[2]}_{max(numbers)}" if numbers else ""


def _revision(connection: sa.Connection, chain: Chain) -> str:
    if not sa.inspect(connection).has_table(chain.version_table):
        return ""
    table = sa.table(chain.version_table, sa.column("version_num", sa.String))
    return connection.execute(sa.select(table.c.version_num)).scalar_one_or_none() or ""


def _script(chain: Chain) -> "ScriptDirectory":
    from alembic.script import ScriptDirectory

    folder = Path(str(resources.files(chain.package))) / "migrations"
    return ScriptDirectory(str(folder), version_locations=[str(folder)])


def _context(connection: sa.Connection, chain: Chain, script: "ScriptDirectory") -> "MigrationContext":
    from alembic.migration import MigrationContext

    def to_head(revision: str | tuple[str, ...], _context: "MigrationContext") -> list[object]:
        return list(script._upgrade_revs("head", revision))  # type: ignore[arg-type]  # noqa: SLF001

    return MigrationContext.configure(
        connection, opts={"version_table": chain.version_table, "fn": to_head, "script": script}
    )


def _refuse_newer(script: "ScriptDirectory", revision: str, database: Database) -> None:
    known = {each.revision for each in script.walk_revisions()}
    if revision and revision not in known:
        raise errors.UsageError(
            f"{database.label} is at schema revision {revision}, which this ordersys does not know: it is older than"
            " the one that upgraded the database; install the newer ordersys"
        )
