"""Statements that are put into SQL once: the same on both engines, for every text, for lists of any length."""

from collections.abc import Iterator
from contextlib import closing

import pytest
import sqlalchemy as sa

from ordersys.core.storage.database import TEXT, Database
from ordersys.core.storage.statement import Statement, among, listed

words = sa.Table(
    "words",
    sa.MetaData(),
    sa.Column("word", TEXT, primary_key=True),
    sa.Column("uses", sa.BigInteger, nullable=False),
    sa.Column("note", TEXT),
)
INSERT = Statement(lambda _: words.insert())
INSERT_BARE = Statement(lambda _: words.insert(), ["word", "uses"])
USE = Statement(lambda _: words.update().where(words.c.word == sa.bindparam("of")).values(uses=words.c.uses + 1))
FIND = Statement(
    lambda engine: words.select().where(among(words.c.word, "names", engine)).order_by(words.c.word).with_for_update()
)
TEXTS = ["a", "Ä", "日本", "'; DROP TABLE words --", '"quoted"', "back\\slash", "{1,2}", "%s", ":name", "😀", " "]


@pytest.fixture
def made(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url)) as database:
        database.write(words.create)
        yield database


def found(database: Database, names: list[str]) -> list[str]:
    return database.write(
        lambda connection: [row.word for row in FIND.one(connection, {"names": listed(connection, names)})]
    )


def test_every_text_comes_back_and_is_found(made: Database) -> None:
    rows = [{"word": word, "uses": 0, "note": word} for word in TEXTS]
    made.write(lambda connection: INSERT.many(connection, rows))
    for word in TEXTS:
        assert found(made, [word, "no such word"]) == [word]
    assert found(made, TEXTS) == sorted(TEXTS)
    assert found(made, []) == []


def test_a_list_may_be_longer_than_an_engine_allows_parameters(made: Database) -> None:
    rows = [{"word": f"{number:06d}", "uses": 0} for number in range(40_000)]
    made.write(lambda connection: INSERT_BARE.many(connection, rows))
    assert len(found(made, [row["word"] for row in rows[::2]])) == 20_000


def test_what_a_statement_itself_fixes_need_not_be_given(made: Database) -> None:
    def work(connection: sa.Connection) -> int:
        INSERT_BARE.one(connection, {"word": "a", "uses": 40})
        USE.many(connection, [{"of": "a"}, {"of": "a"}, {"of": "b"}])
        return int(connection.execute(sa.select(words.c.uses)).scalar_one())

    assert made.write(work) == 42


def test_no_rows_are_nothing_to_do(made: Database) -> None:
    made.write(lambda connection: INSERT.many(connection, []))
    assert made.read(lambda connection: connection.execute(sa.select(sa.func.count()).select_from(words)).scalar()) == 0


def test_what_violates_a_constraint_is_an_integrity_error_and_undone(made: Database) -> None:
    rows = [{"word": word, "uses": 0, "note": None} for word in ("a", "b", "a")]
    with pytest.raises(sa.exc.IntegrityError):
        made.write(lambda connection: INSERT.many(connection, rows))
    assert found(made, ["a", "b"]) == []
