"""One database on two engines: what is committed is there, what is not is not, and writers do not hurt each other."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from contract.database_site import add, at_once, counters, filled, insert, parts, value
from sqlalchemy import event, exc

from ordersys.core import errors
from ordersys.core.storage.database import Database, upsert


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(filled(database_url)) as opened:
        yield opened


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    with closing(filled(postgres_url)) as opened:
        yield opened


def test_a_url_that_names_no_driver_means_ours(postgres_url: str) -> None:
    with closing(Database(postgres_url.replace("postgresql+psycopg://", "postgresql://"))) as opened:
        assert opened.ready()


# --- whether it is ready ----------------------------------------------------------------------------------------


def test_one_that_can_be_written_is_ready(database: Database) -> None:
    assert [database.ready() for _ in range(3)] == [True] * 3
    database.write(add)
    assert database.ready()


def test_an_sqlite_that_took_no_write_is_not_ready_until_it_takes_one(tmp_path: Path) -> None:
    full, refused = [True], sa.text("PRAGMA query_only")

    def fill(connection: Any, _record: Any, _proxy: Any) -> None:
        connection.execute(f"PRAGMA query_only = {int(full[0])}")  # as little is taken as on a full disk

    with closing(filled(f"sqlite:///{tmp_path / 'test.db'}")) as database:
        event.listen(database.engine, "checkout", fill)
        assert database.ready()  # nobody has tried to write yet
        with pytest.raises(errors.Unavailable):
            database.write(add)
        for _ in range(2):
            with pytest.raises(errors.Unavailable):
                database.ready()
        full[0] = False
        assert database.ready()
        full[0] = True
        assert database.ready()  # the last write went through
        assert database.read(lambda connection: connection.execute(refused).scalar_one()) == 1


def test_a_postgres_that_only_reads_is_not_ready(postgres: Database) -> None:
    only_read = postgres.url.update_query_dict({"options": "-c default_transaction_read_only=on"})
    with closing(Database(only_read.render_as_string(hide_password=False))) as standby:
        assert (standby.ready(), postgres.ready()) == (False, True)


def test_a_postgres_that_is_away_is_unavailable(postgres: Database) -> None:
    away = Database(postgres.url.set(port=1).render_as_string(hide_password=False))
    with closing(away), pytest.raises(errors.Unavailable):
        away.ready()


# --- all or nothing ---------------------------------------------------------------------------------------------


def test_what_is_written_is_there_for_everybody_and_the_result_is_returned(
    database: Database, database_url: str
) -> None:
    def work(connection: sa.Connection) -> str:
        add(connection)
        return "done"

    assert database.write(work) == "done"
    other = Database(database_url)
    try:
        assert other.read(value) == 1
    finally:
        other.close()


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug"), errors.InsufficientStock.of("1", 2, 1), KeyboardInterrupt()]
)
def test_what_raises_is_undone_wholly_and_its_error_comes_through(database: Database, error: BaseException) -> None:
    def work(connection: sa.Connection) -> None:
        add(connection, 1)
        add(connection, 2)
        raise error

    with pytest.raises(type(error)) as raised:
        database.write(work)
    assert raised.value is error
    assert [database.read(lambda connection, each=each: value(connection, each)) for each in (1, 2)] == [0, 0]
    database.write(add)
    assert database.read(value) == 1


def test_a_violated_constraint_comes_through_as_integrity_error_and_undoes_all(database: Database) -> None:
    def work(connection: sa.Connection) -> None:
        add(connection)
        connection.execute(counters.insert(), [{"id": 1, "n": 5}])

    with pytest.raises(exc.IntegrityError):
        database.write(work)
    assert database.read(value) == 0


def test_a_commit_that_fails_is_not_a_success(database: Database) -> None:
    def work(connection: sa.Connection) -> str:
        add(connection)
        connection.execute(parts.insert(), [{"id": 1, "of": 99}])
        return "all is well, so far"

    with pytest.raises(exc.IntegrityError):
        database.write(work)
    assert database.read(value) == 0
    assert database.read(lambda connection: connection.execute(sa.select(parts)).all()) == []
    database.write(add)
    assert database.read(value) == 1


def test_nobody_sees_a_transaction_before_its_commit_and_no_reader_waits_for_it(database: Database) -> None:
    written, go_on = threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> str:
        add(connection)
        written.set()
        assert go_on.wait(30)
        return threading.current_thread().name

    async def main() -> None:
        writing = asyncio.ensure_future(database.write_soon(slow))
        await asyncio.to_thread(written.wait, 30)
        seen = [await database.read_soon(value) for _ in range(3)]
        assert not writing.done()
        go_on.set()
        assert (await writing).startswith("sql-write")
        assert [*seen, await database.read_soon(value)] == [0, 0, 0, 1]

    asyncio.run(main())


def test_writes_of_an_event_loop_happen_one_after_the_other(database: Database) -> None:
    running = 0
    most = 0

    def work(connection: sa.Connection) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        now = value(connection)
        time.sleep(0.002)
        connection.execute(counters.update().where(counters.c.id == 1).values(n=now + 1))
        running -= 1

    async def main() -> None:
        await asyncio.gather(*[database.write_soon(work) for _ in range(20)])

    asyncio.run(main())
    assert (most, database.read(value)) == (1, 20)


def test_a_reader_of_one_snapshot_sees_one_moment(database: Database) -> None:
    def look(connection: sa.Connection) -> tuple[int, int]:
        database.one_snapshot(connection)
        before = value(connection)
        assert at_once(lambda: database.write(add)) == [None]
        return before, value(connection)

    assert database.read(look) == (0, 0)
    assert database.read(value) == 1


# --- many at once -----------------------------------------------------------------------------------------------


def test_many_threads_may_write_and_read_at_once(database: Database) -> None:
    def work() -> None:
        for _ in range(10):
            database.write(add)
            assert database.read(value) > 0

    assert at_once(*[work] * 8) == [None] * 8
    assert database.read(value) == 80


WRITER = """
import sys
import sqlalchemy as sa
from ordersys.core.storage.database import Database

database = Database(sys.argv[1])

def make(connection):
    database.exclusive(connection)
    connection.execute(sa.text("CREATE TABLE IF NOT EXISTS tally (n INTEGER NOT NULL)"))
    if connection.execute(sa.text("SELECT count(*) FROM tally")).scalar_one() == 0:
        connection.execute(sa.text("INSERT INTO tally VALUES (0)"))

def add(connection):
    database.exclusive(connection)
    now = connection.execute(sa.text("SELECT n FROM tally")).scalar_one()
    connection.execute(sa.text("UPDATE tally SET n = :n"), {"n": now + 1})
    return now + 1

database.write(make)
for _ in range(int(sys.argv[2])):
    print("committed", database.write(add), flush=True)
database.close()
"""


def writer(url: str, times: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-P", "-c", WRITER, url, str(times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tally(url: str) -> int:
    database = Database(url)
    try:
        return database.read(lambda connection: int(connection.execute(sa.text("SELECT n FROM tally")).scalar_one()))
    finally:
        database.close()


def test_four_processes_may_begin_with_a_new_database_and_write_at_once(database_url: str) -> None:
    running = [writer(database_url, 50) for _ in range(4)]
    ended = [process.communicate(timeout=90) for process in running]
    assert [complaints for _, complaints in ended] == [""] * 4
    assert sorted(int(line.split()[1]) for out, _ in ended for line in out.splitlines()) == list(range(1, 201))
    assert tally(database_url) == 200


def test_what_was_said_to_be_committed_survives_kill_9(database_url: str) -> None:
    for _ in range(3):
        process = writer(database_url, 1_000_000)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(20)]
        process.kill()
        said += process.stdout.readlines()  # not `communicate`, which would pass over what is read ahead
        process.communicate()
        promised = [int(line.split()[1]) for line in said if line.endswith("\n")][-1]
        # The last transaction may have been durable before there was time to say so.
        assert tally(database_url) in (promised, promised + 1)


def test_only_one_at_a_time_is_exclusive(database: Database, database_url: str) -> None:
    steps: list[str] = []
    inside = threading.Event()
    other = Database(database_url)

    def first(connection: sa.Connection) -> None:
        database.exclusive(connection)
        steps.append("first begins")
        inside.set()
        time.sleep(0.2)  # the second would come in now, if it could
        steps.append("first ends")

    def second(connection: sa.Connection) -> None:
        other.exclusive(connection)
        steps.append("second")

    def after_the_first() -> None:
        assert inside.wait(30)
        other.write(second)

    try:
        assert at_once(lambda: database.write(first), after_the_first) == [None, None]
    finally:
        other.close()
    assert steps == ["first begins", "first ends", "second"]


# --- conflicts on PostgreSQL ------------------------------------------------------------------------------------


def test_of_two_transactions_that_block_each_other_one_is_repeated(postgres: Database) -> None:
    both_hold_one = threading.Barrier(2)
    attempts: list[int] = []

    def moving(first: int, second: int) -> Callable[[sa.Connection], None]:
        def work(connection: sa.Connection) -> None:
            attempts.append(first)
            add(connection, first)
            if attempts.count(first) == 1:
                both_hold_one.wait(30)
            add(connection, second)

        return work

    assert at_once(lambda: postgres.write(moving(1, 2)), lambda: postgres.write(moving(2, 1))) == [None, None]
    assert sorted(attempts) in ([1, 1, 2], [1, 2, 2])
    assert [postgres.read(lambda connection, each=each: value(connection, each)) for each in (1, 2)] == [2, 2]


def test_of_two_transactions_that_cannot_be_put_in_an_order_one_is_repeated(postgres: Database) -> None:
    both_have_read = threading.Barrier(2)
    attempts: list[str] = []

    def adding(name: str) -> Callable[[sa.Connection], None]:
        def work(connection: sa.Connection) -> None:
            attempts.append(name)
            postgres.one_snapshot(connection)
            now = value(connection)
            if attempts.count(name) == 1:
                both_have_read.wait(30)
            connection.execute(counters.update().where(counters.c.id == 1).values(n=now + 1))

        return work

    assert at_once(lambda: postgres.write(adding("a")), lambda: postgres.write(adding("b"))) == [None, None]
    assert len(attempts) == 3
    assert postgres.read(value) == 2


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
def test_a_conflict_that_does_not_end_is_unavailable_after_a_few_attempts(postgres: Database, sqlstate: str) -> None:
    attempts = 0

    def work(connection: sa.Connection) -> None:
        nonlocal attempts
        attempts += 1
        add(connection)
        connection.execute(sa.text(f"DO $$ BEGIN RAISE SQLSTATE '{sqlstate}'; END $$"))

    with pytest.raises(errors.Unavailable):
        postgres.write(work)
    assert attempts == 5
    assert postgres.read(value) == 0


# --- the same on both engines -----------------------------------------------------------------------------------


def test_text_is_ordered_byte_by_byte(database: Database) -> None:
    names = ["b", "a", "B", "ä", "_", "aa", "10", "9", "東", "🚚", " "]
    for number, name in enumerate(names):
        database.write(insert(id=10 + number, n=0, name=name))
    ordered = sa.select(counters.c.name).where(counters.c.id >= 10).order_by(counters.c.name)
    assert list(database.read(lambda connection: connection.execute(ordered).scalars().all())) == sorted(names)


def test_an_upsert_is_written_once(database: Database) -> None:
    def work(connection: sa.Connection) -> None:
        statement = upsert(connection.dialect.name, counters).values(id=1, n=7)
        connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"n": statement.excluded.n}))
        connection.execute(upsert(connection.dialect.name, counters).values(id=1, n=9).on_conflict_do_nothing())

    database.write(work)
    assert database.read(value) == 7


def test_what_is_still_in_use_when_it_is_closed_is_closed_afterwards(database_url: str) -> None:
    database = filled(database_url)
    connections: list[Any] = []
    using, done = threading.Event(), threading.Event()

    def work(connection: sa.Connection) -> None:
        connections.append(connection.connection.dbapi_connection)
        using.set()
        assert done.wait(30)

    reader = threading.Thread(target=database.read, args=(work,))
    reader.start()
    assert using.wait(30)
    database.close()
    done.set()
    reader.join()
    with pytest.raises((sqlite3.ProgrammingError, psycopg.OperationalError), match="closed"):
        connections[0].execute("SELECT 1")


def test_a_closed_database_has_no_threads_left(database_url: str) -> None:
    database = Database(database_url)

    async def main() -> None:
        await asyncio.gather(
            database.write_soon(lambda _: None), *[database.read_soon(lambda _: None) for _ in range(8)]
        )

    asyncio.run(main())
    assert [thread for thread in threading.enumerate() if thread.name.startswith("sql-")]
    database.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sql-")]
