"""What a deployment has stored, as JSON that is put back into any engine at the schema revision it was taken from.

`cd tests && python -m faults.dump FILE` runs this ordersys, hurts it a little, and writes such a dump with what its
callers were told. The file of a release is kept for good: every later release must be able to go on from there.
"""

import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from e2e.processes import Backend, free_port, until
from faults.fleet import Fleet
from faults.once import asking, placings

from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database

ROOMS = ("product", "order", "notify")
DRAWN = {("stock_ledger", "id"), ("notify_failures", "id")}
"""Numbers that an engine draws by itself, in the order of insertion."""

Rows = dict[str, list[dict[str, Any]]]


def take(database: Database, room: str) -> Rows:
    """Every row of every table of a room, as JSON has it, in the order of the primary key."""

    def work(connection: sa.Connection) -> Rows:
        return {
            table.name: [
                {column: _to_json(value) for column, value in row._mapping.items()}
                for row in connection.execute(table.select().order_by(*table.primary_key.columns))
            ]
            for table in _tables(connection, room)
        }

    return database.read(work)


def put_back(database: Database, room: str, dumped: Rows) -> None:
    """Bring an empty database to the revision of the dump and fill it."""
    chain = migrations.Chain(f"ordersys.{room}")
    [version] = dumped[chain.version_table]

    def work(connection: sa.Connection) -> None:
        _migrate(connection, chain, version["version_num"])
        tables = {table.name: table for table in _tables(connection, room)}
        assert tables.keys() == dumped.keys(), f"{room}: revision {version['version_num']} has other tables now"
        for name, rows in dumped.items():
            connection.execute(tables[name].delete())
            if rows:
                assert rows[0].keys() == set(tables[name].columns.keys()), f"{name} has other columns now"
                connection.execute(tables[name].insert(), [_from_json(name, row) for row in rows])

    database.write(work)


def _tables(connection: sa.Connection, room: str) -> list[sa.Table]:
    """Those of the room's migrations, found by what they are: this must work for the tables of any release."""
    names = {
        "product": ("products", "stock_ledger", "reservations", "idempotency_keys"),
        "order": ("orders", "order_"),
        "notify": ("notify_",),
    }[room]
    metadata = sa.MetaData()
    metadata.reflect(connection, only=lambda name, _: name.startswith((*names, f"{room}_schema_version")))
    return metadata.sorted_tables


def _migrate(connection: sa.Connection, chain: migrations.Chain, revision: str) -> None:
    script = migrations._script(chain)

    def steps(current: Any, _context: MigrationContext) -> list[Any]:
        return list(script._upgrade_revs(revision, current))

    opts = {"version_table": chain.version_table, "fn": steps, "script": script}
    context = MigrationContext.configure(connection, opts=opts)
    with Operations.context(context):
        context.run_migrations()


def _to_json(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _from_json(table: str, row: dict[str, Any]) -> dict[str, Any]:
    return {
        column: base64.b64decode(value["base64"]) if isinstance(value, dict) else value
        for column, value in row.items()
        if (table, column) not in DRAWN
    }


def make() -> dict[str, Any]:
    """A dump with an order in every state, a refusal, events that wait, and a command that nobody has answered."""
    with tempfile.TemporaryDirectory() as folder, Backend(Path(folder), {}) as backend:
        fleet = Fleet(backend)
        place = ["place-order", "--customer", "ann", "--idempotency-key"]
        first = backend.client(*place, "placed", "--line", "1:2", "--line", "4:1")["order"]
        changed, cancelled, shipped, delivered = (
            backend.place(f"{number}:3", customer="bob") for number in range(1, 5)
        )
        backend.client("update-order", changed["id"], "--line", "5:7")
        backend.client("cancel-order", cancelled["id"])
        for each in (shipped, delivered):
            backend.client("ship-order", each["id"])
        backend.client("deliver-order", delivered["id"])
        backend.client("adjust-stock", "3", "-4", "--reason", "broken")
        refused = [*place, "refused", "--line", "1:1", "--line", "8:900000"]
        assert backend.run("client", *refused).code == 1
        until(lambda: len(fleet["topic"].events()) >= 10, "everything is heard of")
        for name in ("fanout", "topic", "order"):
            fleet[name].stop()

        nobody = f"amqp://guest:guest@127.0.0.1:{free_port()}/%2F"
        fleet = Fleet(backend, "order", settings={"order": {"ORDERSYS_BROKER_URL": nobody}})
        waiting = [backend.place("2:2", customer="eve")["id"], first["id"]]
        backend.client("ship-order", first["id"])
        orders = backend.client("list-orders")["orders"]
        fleet.stop("order")
        with asking(backend, placings("late", 1, "1", 5), 30):
            until(lambda: fleet.pending() == 1, "its stock is reserved")
            backend.__exit__()  # everything dies in this moment
        databases = {room: Database(f"sqlite:///{backend.home / room}.db") for room in ROOMS}
        dumped = {room: take(database, room) for room, database in databases.items()}
        for database in databases.values():
            database.close()
    return {"orders": orders, "placed": first, "waiting": waiting, "databases": dumped}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
