"""Taking turns on one database: one at a time, and nobody keeps the others waiting who is dead or hangs."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from e2e.processes import until

from ordersys.core import errors
from ordersys.core.storage import turn
from ordersys.core.storage.database import Database
from ordersys.core.storage.turn import Turn

metadata = sa.MetaData()
work = sa.Table("work", metadata, sa.Column("id", sa.Integer, primary_key=True))
other_work = sa.Table("other_work", metadata, sa.Column("id", sa.Integer, primary_key=True))


@pytest.fixture
def databases(postgres_url: str) -> Iterator[tuple[Database, Database]]:
    """What two processes have opened."""
    one, two = Database(postgres_url), Database(postgres_url)
    one.write(metadata.create_all)
    yield one, two
    one.close()
    two.close()


@pytest.fixture
def turns(databases: tuple[Database, Database]) -> tuple[Turn, Turn]:
    one, two = databases
    return Turn(one, work), Turn(two, work)


def end_sessions_of_holders(database: Database) -> None:
    """As the server does when the process at the other end has died."""
    query = """
        SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
    ended = database.read(lambda connection: connection.exec_driver_sql(query).scalars().all())
    assert ended == [True]


def test_one_has_it_until_it_gives_up(turns: tuple[Turn, Turn]) -> None:
    one, two = turns
    for _ in range(3):
        assert (one.take(), two.take()) == (True, False)
    one.give_up()
    one.give_up()
    assert (two.take(), one.take()) == (True, False)
    two.give_up()
    assert one.take()
    one.give_up()


def test_another_table_is_another_turn(databases: tuple[Database, Database]) -> None:
    one, two = Turn(databases[0], work), Turn(databases[1], other_work)
    assert (one.take(), two.take()) == (True, True)
    one.give_up()
    two.give_up()


def test_who_dies_has_lost_it_at_once(databases: tuple[Database, Database], turns: tuple[Turn, Turn]) -> None:
    one, two = turns
    assert one.take()
    end_sessions_of_holders(databases[1])
    assert (two.take(), one.take()) == (True, False)
    end_sessions_of_holders(databases[0])
    assert (one.take(), two.take()) == (True, False)  # who has lost it takes it again like everybody else
    one.give_up()


def test_what_was_lost_can_be_given_up(databases: tuple[Database, Database], turns: tuple[Turn, Turn]) -> None:
    one, two = turns
    assert one.take()
    end_sessions_of_holders(databases[1])
    one.give_up()
    assert (two.take(), one.take()) == (True, False)


def test_who_hangs_loses_it_and_hears_of_it(turns: tuple[Turn, Turn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "SILENT_SECONDS", 0.2)
    one, two = turns
    assert one.take()
    until(two.take, "the server passes it on")
    monkeypatch.setattr(turn, "SILENT_SECONDS", 60.0)
    two.give_up()
    assert two.take()
    assert not one.take()
    two.give_up()
    assert one.take()
    one.give_up()


def test_a_database_that_is_away_is_said_to_be() -> None:
    away = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    with pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:1"):
        Turn(away, work).take()
    away.close()


def test_on_sqlite_it_is_always_ours(tmp_path: object) -> None:
    database = Database(f"sqlite:///{tmp_path}/one.db")
    one, two = Turn(database, work), Turn(database, work)
    assert (one.take(), two.take()) == (True, True)
    one.give_up()
    database.close()
