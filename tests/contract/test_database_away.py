"""A database that is away, cut off, full, read-only or misnamed: a clear error, nothing half-written, no password."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from contract.database_site import add, at_once, counters, filled, value
from sqlalchemy import event

from ordersys.core import errors
from ordersys.core.storage.database import Database


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    with closing(filled(postgres_url)) as opened:
        yield opened


# --- cut off ----------------------------------------------------------------------------------------------------


def test_a_connection_that_is_cut_in_the_middle_leaves_nothing_and_the_next_write_is_fine(postgres: Database) -> None:
    def cut(connection: sa.Connection) -> None:
        add(connection)
        own = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        assert at_once(lambda: postgres.read(terminate(own))) == [True]
        add(connection)

    with pytest.raises(errors.Unavailable) as raised:
        postgres.write(cut)
    assert raised.value.metadata == {"dependency": "database"}
    assert postgres.read(value) == 0
    postgres.write(add)
    assert postgres.read(value) == 1


def terminate(backend: int) -> Callable[[sa.Connection], Any]:
    return lambda connection: connection.execute(sa.select(sa.func.pg_terminate_backend(backend))).scalar_one()


def test_a_restart_of_the_server_costs_one_call_and_no_more(postgres: Database, postgres_url: str) -> None:
    postgres.read(lambda _: at_once(lambda: postgres.read(value)))  # two connections, idle from now on
    other = Database(postgres_url)
    everybody = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                        " AND datname = current_database()")  # fmt: skip
    try:
        other.read(lambda connection: connection.execute(everybody).all())
    finally:
        other.close()
    with pytest.raises(errors.Unavailable):
        postgres.write(add)
    postgres.write(add)
    assert postgres.read(value) == 1


# --- away -------------------------------------------------------------------------------------------------------


def unavailable(database: Database) -> errors.Unavailable:
    """The error that both a read and a write end with."""
    try:
        with pytest.raises(errors.Unavailable):
            database.write(lambda _: None)
        with pytest.raises(errors.Unavailable) as raised:
            database.read(lambda _: None)
    finally:
        database.close()
    assert raised.value.metadata == {"dependency": "database"}
    assert "secret" not in raised.value.message
    return raised.value


def test_a_server_that_is_away_is_unavailable_by_name_and_without_its_password() -> None:
    error = unavailable(Database("postgresql+psycopg://me:secret@127.0.0.1:1/orders?password=secret"))
    assert error.message.startswith("database postgresql+psycopg://me:***@127.0.0.1:1/orders: ")
    assert "refused" in error.message


def test_a_database_that_does_not_exist_is_unavailable(postgres_url: str) -> None:
    assert "does not exist" in unavailable(Database(f"{postgres_url}_not")).message


def test_a_server_that_never_answers_is_unavailable_within_seconds() -> None:
    """It takes the connection and is silent, as behind some firewalls."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql+psycopg://me:secret@127.0.0.1:{silent.getsockname()[1]}/orders"
        defaults = connect_arguments(Database(url))
        assert 1 <= defaults["connect_timeout"] <= 10
        assert connect_arguments(Database(f"{url}?connect_timeout=2"))["connect_timeout"] == "2"
        began = time.monotonic()
        database = Database(f"{url}?connect_timeout=2")
        with pytest.raises(errors.Unavailable, match="timeout"):
            database.read(lambda _: None)
        database.close()
        assert time.monotonic() - began < 15


def connect_arguments(database: Database) -> dict[str, Any]:
    """What the driver is given."""
    given: dict[str, Any] = {}

    class Enough(Exception):
        pass

    def note(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
        given.update(parameters)
        raise Enough

    event.listen(database.engine, "do_connect", note)
    with pytest.raises(Enough):
        database.read(lambda _: None)
    database.close()
    return given


def test_a_folder_in_the_place_of_the_file_is_unavailable(tmp_path: Path) -> None:
    assert "unable to open database file" in unavailable(Database(f"sqlite:///{tmp_path}")).message


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    with closing(filled(f"sqlite:///{tmp_path / 'made' / 'on the way' / 'test.db'}")) as opened:
        yield opened


def from_now_on(database: Database, pragma: str) -> None:
    """For every new connection; and there is no other. Works for root too, whom no file mode stops."""
    database.engine.dispose()
    event.listen(database.engine, "connect", lambda connection, _: connection.execute(f"PRAGMA {pragma}").close())


def test_a_database_that_cannot_be_written_is_unavailable_and_can_be_read(sqlite: Database) -> None:
    from_now_on(sqlite, "query_only=ON")
    with pytest.raises(errors.Unavailable, match="attempt to write a readonly database"):
        sqlite.write(add)
    assert sqlite.read(value) == 0


def test_a_full_disk_is_unavailable_leaves_nothing_half_written_and_may_pass(sqlite: Database) -> None:
    pages = sqlite.read(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar_one())
    from_now_on(sqlite, f"max_page_count={pages + 3}")

    def much(connection: sa.Connection) -> None:
        add(connection)
        rows = [{"id": 10 + number, "n": 0, "name": f"{number} " + "x" * 1000} for number in range(100)]
        connection.execute(counters.insert(), rows)

    with pytest.raises(errors.Unavailable, match="database or disk is full"):
        sqlite.write(much)
    assert sqlite.read(value) == 0
    sqlite.write(add)  # little still fits
    from_now_on(sqlite, "max_page_count=100000")
    sqlite.write(much)
    assert sqlite.read(value) == 2


def test_a_file_that_is_no_database_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database\n" * 100)
    database = Database(f"sqlite:///{tmp_path / 'notes.txt'}")
    with pytest.raises(errors.UsageError, match=r"notes\.txt: file is not a database"):
        database.read(lambda _: None)
    database.close()
    assert (tmp_path / "notes.txt").read_text() == "not a database\n" * 100


def test_every_connection_to_sqlite_is_durable_and_keeps_its_foreign_keys(sqlite: Database) -> None:
    def pragmas(connection: sa.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]

    for ask in (sqlite.read, sqlite.write):
        assert ask(pragmas) == ["wal", 2, 1, 10_000]  # 2 = FULL


# --- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "Could not parse"),
        ("secret", "Could not parse"),
        ("postgres//me:secret@db/orders", "Could not parse"),
        ("postgresql+psycopg://me:secret@db:54x32/orders", "its port is not a number"),
        ("postgresql+psycopg://me:secret", "its port is not a number"),
        ("postgresql+psycopg://me:half@secret@db/orders", "an @ in the user or the password must be written %40"),
        ("postgresql+nonsense://me:secret@db/orders", "postgresql.nonsense"),
        ("postgres://me:secret@db/orders", "postgres is not supported"),
        ("mysql://me:secret@db/orders", "mysql is not supported"),
        ("mssql+pyodbc://me:secret@db/orders", "mssql is not supported"),
        ("sqlite://", "in memory cannot be shared or survive: name a file"),
        ("sqlite:///", "name a file"),
        ("sqlite:///:memory:", "name a file"),
    ],
)
def test_a_url_of_no_use_is_a_usage_error_without_the_password(url: str, problem: str) -> None:
    with pytest.raises(errors.UsageError) as refused:
        Database(url)
    assert problem in refused.value.message
    assert "expected sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME" in refused.value.message
    assert "secret" not in refused.value.message
    assert refused.value.__cause__ is None


def test_an_option_that_does_not_exist_is_a_usage_error() -> None:
    database = Database("postgresql+psycopg://me:secret@127.0.0.1:1/orders?nonsense=1")
    with pytest.raises(errors.UsageError, match="nonsense") as refused:
        database.read(lambda _: None)
    database.close()
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("below", ["file/test.db", "file/folder/test.db"])
def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(errors.UsageError, match="its folder cannot be made"):
        Database(f"sqlite:///{tmp_path / below}")


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("postgresql+psycopg://me:secret@db:5432/orders", "postgresql+psycopg://me:***@db:5432/orders"),
        ("postgresql+psycopg://me:%40%3A%2F@db/orders", "postgresql+psycopg://me:***@db/orders"),
        ("postgresql+psycopg://me:a:/b@db/orders", "postgresql+psycopg://me:***@db/orders"),
        ("postgresql+psycopg://db/orders?password=secret", "postgresql+psycopg://db/orders"),
        ("postgresql+psycopg:///orders?sslpassword=secret&host=/run", "postgresql+psycopg:///orders?host=%2Frun"),
    ],
)
def test_a_label_never_has_the_password(url: str, label: str) -> None:
    database = Database(url)
    assert database.label == label
    database.close()
