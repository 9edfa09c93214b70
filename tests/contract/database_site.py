"""Two tables and what to do with them, for the tests of the database itself."""

import threading
from collections.abc import Callable

import sqlalchemy as sa

from ordersys.core.storage.database import TEXT, Database

metadata = sa.MetaData()
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("name", TEXT, unique=True),
)
parts = sa.Table(  # a row may name a counter that comes later in the same transaction
    "parts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("of", sa.ForeignKey(counters.c.id, deferrable=True, initially="DEFERRED")),
)


def filled(url: str) -> Database:
    """A database with two counters at 0."""
    opened = Database(url)
    opened.write(metadata.create_all)
    opened.write(lambda connection: connection.execute(counters.insert(), [{"id": 1, "n": 0}, {"id": 2, "n": 0}]))
    return opened


def add(connection: sa.Connection, counter: int = 1) -> None:
    connection.execute(counters.update().where(counters.c.id == counter).values(n=counters.c.n + 1))


def value(connection: sa.Connection, counter: int = 1) -> int:
    return int(connection.execute(sa.select(counters.c.n).where(counters.c.id == counter)).scalar_one())


def insert(**row: object) -> Callable[[sa.Connection], object]:
    return lambda connection: connection.execute(counters.insert(), [row])


def at_once(*works: Callable[[], object]) -> list[object]:
    """Each in a thread of its own; their results or errors."""
    results: list[object] = [None] * len(works)

    def run(index: int) -> None:
        try:
            results[index] = works[index]()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results
