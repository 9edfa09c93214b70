"""Looking into a database: everything can be read, nothing is left behind, nothing can be written."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from integration.grpc_site import taken_port

from ordersys.core import errors
from ordersys.core.storage import looked_into
from ordersys.core.storage.database import Database
from ordersys.core.storage.looked_into import LookedInto, Missing


@contextmanager
def opened(url: str) -> Iterator[Database]:
    with closing(Database(url)) as database:
        yield database


@contextmanager
def looked(url: str) -> Iterator[LookedInto]:
    with closing(LookedInto(url)) as database:
        yield database


def fill(url: str, rows: int = 1) -> None:
    def work(connection: sa.Connection) -> None:
        connection.execute(sa.text("CREATE TABLE things (id INTEGER, name TEXT)"))
        connection.execute(
            sa.text("INSERT INTO things VALUES (:id, :name)"), [{"id": n, "name": "x" * 100} for n in range(rows)]
        )

    with opened(url) as database:
        database.write(work)


def count(database: Database) -> int:
    return database.read(lambda connection: connection.execute(sa.text("SELECT count(*) FROM things")).scalar_one())


def test_what_is_there_can_be_read_and_not_written(database_url: str) -> None:
    fill(database_url, 3)
    with looked(database_url) as database:
        assert count(database) == 3
        with pytest.raises((errors.Unavailable, sa.exc.InternalError), match=r"read.?only"):
            database.write(lambda connection: connection.execute(sa.text("INSERT INTO things VALUES (7, 'x')")))
        assert count(database) == 3


def test_looking_leaves_no_file_behind(tmp_path: Path) -> None:
    made = tmp_path / "a name #1%.db"
    fill(f"sqlite:///{made}")
    before = (made.stat().st_mtime_ns, made.read_bytes())
    with looked(f"sqlite:///{made}") as database:
        assert count(database) == 1
        facts = looked_into.sqlite_facts(database, 5)
        assert list(tmp_path.iterdir()) == [made]
    assert (facts.wal, facts.damage, facts.bytes) == (True, "", made.stat().st_size)
    assert list(tmp_path.iterdir()) == [made]
    assert (made.stat().st_mtime_ns, made.read_bytes()) == before


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"not made yet: .*none\.db"):
        LookedInto(f"sqlite:///{tmp_path / 'folder' / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


def test_what_others_write_meanwhile_is_seen(database_url: str) -> None:
    fill(database_url)
    insert = sa.text("INSERT INTO things VALUES (2, 'y')")
    with looked(database_url) as database:
        assert count(database) == 1
        with opened(database_url) as writer:
            writer.write(lambda connection: connection.execute(insert))
            assert count(database) == 2  # it stands in the write-ahead log only
        assert count(database) == 2  # it is in the file now


def test_who_comes_while_a_file_is_read_without_a_lock_makes_it_read_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    fill(url)
    seen = []

    def work(connection: sa.Connection) -> int:
        found: int = connection.execute(sa.text("SELECT count(*) FROM things")).scalar_one()
        if not seen:
            with opened(url) as writer:
                writer.write(lambda other: other.execute(sa.text("INSERT INTO things VALUES (2, 'y')")))
        seen.append(found)
        return found

    with looked(url) as database:
        assert database.read(work) == 2
    assert seen == [1, 2]


def test_damage_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    fill(f"sqlite:///{file}", 2_000)
    whole = bytearray(file.read_bytes())
    for page in range(5, 20):
        whole[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    file.write_bytes(whole)
    with looked(f"sqlite:///{file}") as database:
        assert looked_into.sqlite_facts(database, 5).damage


def test_the_search_for_damage_ends_in_time(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    fill(f"sqlite:///{file}", 100_000)
    with looked(f"sqlite:///{file}") as database:
        assert looked_into.sqlite_facts(database, 0).damage is None
        assert count(database) == 100_000  # and whoever comes next is not bounded


def test_a_file_without_write_ahead_log_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE things (id INTEGER)")
    assert not looked_into.wal(file)
    with looked(f"sqlite:///{file}") as database:
        assert not looked_into.sqlite_facts(database, 5).wal


def test_what_is_no_database_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    file.write_text("not a database, however long it may be " * 100)
    with looked(f"sqlite:///{file}") as database, pytest.raises(errors.OrdersysError, match="not a database"):
        count(database)


def test_facts_of_postgres(postgres_url: str) -> None:
    with looked(postgres_url) as database:
        facts = looked_into.postgres_facts(database)
    assert (facts.encoding, facts.synchronous_commit, facts.fsync, facts.standby) == ("UTF8", "on", "on", False)
    assert 1 <= facts.connections < facts.max_connections
    assert abs(facts.skew) < 1
    assert facts.version[0].isdigit()


def test_a_server_that_says_nothing_is_given_up_soon() -> None:
    began = time.monotonic()
    with (
        taken_port() as silent,
        looked(f"postgresql+psycopg://someone@{silent}/nothing") as database,
        pytest.raises(errors.Unavailable),
    ):
        looked_into.postgres_facts(database)
    assert time.monotonic() - began < 10
