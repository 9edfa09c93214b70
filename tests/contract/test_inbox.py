"""The inbox keeps the same promises on SQLite and on PostgreSQL."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from ordersys.core import errors, ids
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.notify.inbox import CHAIN, Inbox, notify_inbox

ROLE = "notify"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    migrations.upgrade(database, CHAIN)
    yield database
    database.close()


def rows(database: Database) -> list[tuple[str, str, str, int]]:
    query = sa.select(notify_inbox).order_by(notify_inbox.c.queue, notify_inbox.c.event_id)
    return database.read(lambda connection: [tuple(row) for row in connection.execute(query)])


def test_a_recorded_event_is_known_afterwards(database: Database) -> None:
    inbox = Inbox(database)
    inbox.record("q", [("e1", "o1"), ("e2", "o1")], 1_700_000_000_000_001)

    assert inbox.known("q", ["e1", "e2", "e3"]) == {"e1", "e2"}
    assert rows(database) == [("q", "e1", "o1", 1_700_000_000_000_001), ("q", "e2", "o1", 1_700_000_000_000_001)]


def test_nothing_is_known_of_an_empty_inbox_and_nothing_asked_is_nothing_known(database: Database) -> None:
    inbox = Inbox(database)
    assert inbox.known("q", ["e1"]) == set()
    assert inbox.known("q", []) == set()
    inbox.record("q", [], 1)
    assert rows(database) == []


def test_each_queue_has_an_inbox_of_its_own(database: Database) -> None:
    inbox = Inbox(database)
    inbox.record("q", [("e1", "o1")], 1)
    assert inbox.known("other", ["e1"]) == set()
    inbox.record("other", [("e1", "o1")], 2)
    assert rows(database) == [("other", "e1", "o1", 2), ("q", "e1", "o1", 1)]


def test_recording_again_keeps_the_first_time(database: Database) -> None:
    inbox = Inbox(database)
    inbox.record("q", [("e1", "o1")], 1)
    inbox.record("q", [("e1", "o1"), ("e2", "o2"), ("e2", "o2")], 2)
    assert rows(database) == [("q", "e1", "o1", 1), ("q", "e2", "o2", 2)]


def test_it_survives_the_process(database: Database, database_url: str) -> None:
    Inbox(database).record("q", [("e1", "o1")], 1)
    database.close()
    later = Database(database_url)
    try:
        assert Inbox(later).known("q", ["e1"]) == {"e1"}
    finally:
        later.close()


def test_a_batch_is_recorded_as_a_whole_or_not_at_all(database: Database) -> None:
    inbox = Inbox(database)
    with pytest.raises(sa.exc.IntegrityError):
        inbox.record("q", [("e1", "o1"), ("e2", None)], 1)  # type: ignore[list-item]
    assert rows(database) == []


def test_two_copies_may_record_the_same_events_at_once(database: Database, database_url: str) -> None:
    copies = [Database(database_url) for _ in range(2)]
    batches = [[(f"{number}-{each}", f"o{each}") for each in range(50)] for number in range(20)]
    failures: list[Exception] = []
    barrier = threading.Barrier(len(copies))

    def run(copy: Database, backwards: bool) -> None:
        inbox = Inbox(copy)
        try:
            for batch in batches:
                barrier.wait(30)
                inbox.record("q", batch[::-1] if backwards else batch, ids.now_us())
        except Exception as error:  # noqa: BLE001 - shown by the main thread
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(copy, copy is copies[1])) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for copy in copies:
        copy.close()

    assert failures == []
    assert len(rows(database)) == 1000


def test_a_database_that_is_away_is_unavailable(postgres_url: str) -> None:
    gone = Database(postgres_url.rpartition("/")[0] + "/there_is_no_such_database")
    try:
        with pytest.raises(errors.Unavailable, match="there_is_no_such_database"):
            Inbox(gone).known("q", [])
        with pytest.raises(errors.Unavailable):
            Inbox(gone).record("q", [("e1", "o1")], 1)
    finally:
        gone.close()


def test_a_database_that_cannot_be_written_is_unavailable_and_nothing_is_recorded(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'inbox.db'}")
    migrations.upgrade(database, CHAIN)
    database.engine.dispose()
    sa.event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only=ON"))
    try:
        inbox = Inbox(database)
        with pytest.raises(errors.Unavailable, match="readonly"):
            inbox.record("q", [("e1", "o1")], 1)
        assert inbox.known("q", ["e1"]) == set()
    finally:
        database.close()
