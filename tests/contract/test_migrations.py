"""Every service room's chain of migrations, on both engines: what a start of any process relies on."""

import importlib
import pkgutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
import sqlalchemy as sa

import ordersys
from ordersys.core import errors
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.core.storage.migrations import Chain

ROOMS = ("product", "order", "notify", "api")


def _modules(room: str) -> Iterator[Any]:
    folder = Path(ordersys.__file__).parent / room
    for module in pkgutil.iter_modules([str(folder)]):
        yield importlib.import_module(f"ordersys.{room}.{module.name}")


def _named(room: str, kind: type) -> Any:
    """The one object of this kind that the room's modules name."""
    found = {id(each): each for module in _modules(room) for each in vars(module).values() if isinstance(each, kind)}
    assert len(found) == 1, f"ordersys.{room} has {len(found)} objects of {kind.__name__}: expected one"
    return next(iter(found.values()))


def _service_rooms() -> list[str]:
    folder = Path(ordersys.__file__).parent
    return [room for room in ROOMS if (folder / room / "migrations").is_dir()]


@pytest.fixture(params=_service_rooms())
def room(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def chain(room: str) -> Chain:
    chain: Chain = _named(room, Chain)
    assert chain.package == f"ordersys.{room}"
    return chain


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def test_the_notifiers_have_a_chain() -> None:
    assert "notify" in _service_rooms()


def test_a_fresh_database_reaches_the_newest_revision_and_stays_there(database: Database, chain: Chain) -> None:
    newest = migrations.current(database, chain)[1]
    assert migrations.current(database, chain) == ("", newest)

    assert migrations.upgrade(database, chain) == ("", newest)
    assert migrations.current(database, chain) == (newest, newest)
    assert migrations.upgrade(database, chain) == (newest, newest)


def test_where_nothing_is_to_be_migrated_alembic_is_not_loaded(
    database_url: str, database: Database, chain: Chain
) -> None:
    """It takes a quarter of the time of a start."""
    migrations.upgrade(database, chain)
    program = (
        "import sys; from ordersys.core.storage import database, migrations;"
        f"print(migrations.upgrade(database.Database({database_url!r}), migrations.Chain({chain.package!r})));"
        "print('alembic' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    newest = migrations.current(database, chain)[1]
    assert ran.stdout.splitlines() == [str((newest, newest)), "False"]


def test_the_migrations_make_the_tables_that_the_code_expects(database: Database, chain: Chain, room: str) -> None:
    metadata: sa.MetaData = _named(room, sa.MetaData)
    migrations.upgrade(database, chain)
    migrated = _schema(database, without={chain.version_table})

    database.write(metadata.drop_all)
    assert _schema(database, without={chain.version_table}) == {}
    database.write(metadata.create_all)
    assert migrated == _schema(database, without={chain.version_table})


def _schema(database: Database, without: set[str]) -> dict[str, Any]:
    """Everything an inspector tells of every table, in a form that can be compared."""

    def work(connection: sa.Connection) -> dict[str, Any]:
        inspector = sa.inspect(connection)
        return {
            table: {
                "columns": _plain(inspector.get_columns(table)),
                "primary key": _plain(inspector.get_pk_constraint(table)),
                "foreign keys": sorted(_plain(inspector.get_foreign_keys(table)), key=str),
                "unique": sorted(_plain(inspector.get_unique_constraints(table)), key=str),
                "checks": sorted(_plain(inspector.get_check_constraints(table)), key=str),
                "indexes": sorted(_plain(inspector.get_indexes(table)), key=str),
                "autoincrement": _has_autoincrement(connection, table),
            }
            for table in inspector.get_table_names()
            if table not in without
        }

    return database.read(work)


def _plain(value: Any) -> Any:
    """SQL types and clauses are equal to nothing but themselves: compare their text."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value)


def _has_autoincrement(connection: sa.Connection, table: str) -> bool:
    """SQLite never uses an id of such a table again, and no inspector tells (https://www.sqlite.org/autoinc.html)."""
    if connection.dialect.name != "sqlite":
        return False
    query = sa.text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :name")
    return "AUTOINCREMENT" in str(connection.execute(query, {"name": table}).scalar_one()).upper()


def test_a_database_from_a_newer_ordersys_is_refused_and_left_alone(database: Database, chain: Chain) -> None:
    migrations.upgrade(database, chain)
    database.write(
        lambda connection: connection.execute(sa.text(f"UPDATE {chain.version_table} SET version_num = '9999'"))
    )
    with pytest.raises(errors.UsageError, match=r"9999.*install the newer ordersys"):
        migrations.upgrade(database, chain)
    assert migrations.current(database, chain)[0] == "9999"


@pytest.mark.parametrize(
    ("revision", "current"), [("newest", True), ("{room}_9999", True), ("{room}_0000", False), (None, False)]
)
def test_a_schema_is_current_unless_it_is_older_than_this_ordersys_or_gone(
    database: Database, chain: Chain, room: str, revision: str | None, current: bool
) -> None:
    migrations.upgrade(database, chain)
    if revision is None:
        database.write(lambda connection: connection.execute(sa.text(f"DROP TABLE {chain.version_table}")))
    elif revision != "newest":
        update = sa.text(f"UPDATE {chain.version_table} SET version_num = '{revision.format(room=room)}'")
        database.write(lambda connection: connection.execute(update))
    assert migrations.is_current(database, chain) is current


def test_a_migration_that_fails_leaves_nothing_behind(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"half_done_{database.engine.dialect.name}"
    _package(tmp_path, name, "op.create_table('kept', sa.Column('id', sa.Integer)); raise RuntimeError('broken')")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(RuntimeError, match="broken"):
        migrations.upgrade(database, Chain(name))

    assert database.read(lambda connection: sa.inspect(connection).get_table_names()) == []
    assert migrations.current(database, Chain(name)) == ("", "0001")


def _package(folder: Path, name: str, upgrade: str) -> None:
    (folder / name / "migrations").mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    (folder / name / "migrations" / "0001_initial.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = '0001'\ndown_revision = None\n"
        f"def upgrade():\n    {upgrade}\n",
        encoding="utf-8",
    )


def test_the_services_may_share_one_database(database: Database) -> None:
    chains: list[Chain] = [_named(room, Chain) for room in _service_rooms()]
    for chain in chains:
        migrations.upgrade(database, chain)
    for chain in chains:
        before, newest = migrations.current(database, chain)
        assert before == newest


UPGRADE = """
import sys
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
before, after = migrations.upgrade(database, migrations.Chain(sys.argv[2]))
print(before or "empty", after)
"""


def test_five_processes_may_start_at_once_on_an_empty_one(database_url: str, database: Database, chain: Chain) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, database_url, chain.package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in processes]

    assert [process.returncode for process in processes] == [0] * 5, results
    newest = migrations.current(database, chain)[1]
    assert sorted(out for out, _ in results) == sorted([f"empty {newest}\n"] + [f"{newest} {newest}\n"] * 4)


def test_threads_may_upgrade_different_databases_at_once(tmp_path: Path, chain: Chain) -> None:
    """As `ordersys up` does: Alembic's `op` is one per process."""
    databases = [Database(f"sqlite:///{tmp_path / f'{number}.db'}") for number in range(6)]
    results: list[object] = []
    barrier = threading.Barrier(len(databases))

    def run(database: Database) -> None:
        barrier.wait(30)
        try:
            results.append(migrations.upgrade(database, chain))
        except Exception as error:  # noqa: BLE001 - shown by the main thread
            results.append(error)

    threads = [threading.Thread(target=run, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest = migrations.current(databases[0], chain)[1]
    tables = [_schema(database, without=set()) for database in databases]
    for database in databases:
        database.close()

    assert results == [("", newest)] * len(databases)
    assert all(each == tables[0] for each in tables)


def test_an_unreachable_server_is_unavailable(chain: Chain, postgres_url: str) -> None:
    gone = Database(postgres_url.rpartition("/")[0] + "/there_is_no_such_database")
    try:
        with pytest.raises(errors.Unavailable, match="there_is_no_such_database"):
            migrations.upgrade(gone, chain)
    finally:
        gone.close()


def test_upgrading_waits_for_whoever_upgrades_now(chain: Chain) -> None:
    """PostgreSQL: the advisory lock; whoever comes second finds the work done."""
    with servers.postgres_database() as url:
        first, second = Database(url), Database(url)
        try:
            with first.engine.connect() as connection, connection.begin():
                first.exclusive(connection)
                done = threading.Event()

                def run() -> None:
                    migrations.upgrade(second, chain)
                    done.set()

                thread = threading.Thread(target=run)
                thread.start()
                assert not done.wait(0.3)
            thread.join(30)
            assert done.is_set()
        finally:
            first.close()
            second.close()
