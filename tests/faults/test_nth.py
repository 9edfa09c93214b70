"""The n-th SQL statement and the n-th commit fail, for every n, in process and on both engines.

First each transaction of each store by itself: what fails leaves the database as it was, and repeated it leads to
exactly what it would have led to unhurt. Then both services together: whole lives of orders, with each step of either
database failing once, or its service dying there.
"""

import itertools
from collections.abc import Iterator

import pytest
import servers
import sqlalchemy as sa
from faults import figures, stores
from faults.flows import FLOWS, Flow
from faults.shop import live
from faults.steps import Hurt, Steps
from faults.stores import CHAINS, NOW, SEED, Pair, Stores

from ordersys.core import errors
from ordersys.core.seed import Seed
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database

WAYS = (Hurt.REFUSED, Hurt.ANSWER_LOST, Hurt.CRASH)


@pytest.fixture(scope="module")
def sqlite_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("nth")
    with stores.pair(f"sqlite:///{folder / 'product.db'}", f"sqlite:///{folder / 'order.db'}") as pair:
        yield pair


@pytest.fixture(scope="module")
def postgres_pair() -> Iterator[Pair]:
    with (
        servers.postgres_database() as product_url,
        servers.postgres_database() as order_url,
        stores.pair(product_url, order_url) as pair,
    ):
        yield pair


@pytest.fixture(params=["sqlite", "postgres"])
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(f"{request.param}_pair")
    return found


@pytest.fixture
def one(pair: Pair) -> Stores:
    return pair.product


@pytest.mark.parametrize("room", FLOWS)
def test_a_transaction_that_fails_anywhere_has_done_nothing_and_can_be_repeated(one: Stores, room: str) -> None:
    failures = 0
    for name, flow in FLOWS[room].items():
        unhurt = Unhurt(one, flow)
        assert unhurt.ended != unhurt.began, "a transaction that writes nothing proves nothing"
        for at, how in itertools.product(range(1, unhurt.steps + 1), (Hurt.REFUSED, Hurt.ANSWER_LOST)):
            one.set_back(unhurt.rows)
            one.steps.fail(at, how)
            with pytest.raises(errors.Unavailable):
                flow.act(one)
            committed = at == unhurt.steps and how is Hurt.ANSWER_LOST  # the last step is the commit
            assert one.state() == (unhurt.ended if committed else unhurt.began), (name, at, how)
            flow.act(one)
            assert one.state() == unhurt.ended, (name, at, how)
            failures += 1
    figures.record("nth", one.engine, what=f"{room} transactions", failures=failures, half_written=0, not_repeatable=0)


@pytest.mark.parametrize("room", FLOWS)
def test_a_transaction_that_loses_a_conflict_anywhere_is_done_again_by_itself(postgres_pair: Pair, room: str) -> None:
    one = postgres_pair.product
    conflicts = 0
    for name, flow in FLOWS[room].items():
        unhurt = Unhurt(one, flow)
        for at in range(1, unhurt.steps + 1):
            one.set_back(unhurt.rows)
            one.steps.fail(at, Hurt.CONFLICT)
            flow.act(one)
            assert one.steps.hit
            assert one.state() == unhurt.ended, (name, at)
            conflicts += 1
    figures.record("nth", one.engine, what=f"{room} transactions", conflicts=conflicts, told_to_callers=0)


class Unhurt:
    """A flow without any failure: how many steps it takes, from where to where."""

    def __init__(self, one: Stores, flow: Flow) -> None:
        one.set_back(one.empty)
        for each in flow.before:
            each(one)
        self.rows, self.began = one.rows(), one.state()
        one.steps.fail(0, Hurt.REFUSED)
        flow.act(one)
        self.steps, self.ended = one.steps.count, one.state()


def test_a_migration_that_fails_anywhere_has_done_nothing_and_can_be_repeated(database_url: str) -> None:
    database = Database(database_url)
    steps = Steps(database.engine)
    failures = 0
    for chain in CHAINS:
        before = _schema(database)
        for at in itertools.count(1):
            steps.fail(at, Hurt.REFUSED)
            try:
                migrations.upgrade(database, chain)
            except errors.Unavailable:
                assert _schema(database) == before, (chain, at)
                failures += 1
            else:
                assert not steps.hit
                steps.heal()
                break
        assert _schema(database) != before
    figures.record("nth", database.engine.dialect.name, what="migrations", failures=failures, half_written=0)
    database.close()


def _schema(database: Database) -> dict[str, list[str]]:
    def work(connection: sa.Connection) -> dict[str, list[str]]:
        inspector = sa.inspect(connection)
        return {
            table: sorted(str(each["name"]) for each in inspector.get_indexes(table))
            for table in inspector.get_table_names()
        }

    return database.read(work)


@pytest.mark.parametrize("service", ["product", "order"])
def test_an_orders_life_survives_a_failure_anywhere(pair: Pair, service: str, rounds: int) -> None:
    """Each commit fails in every way, each statement in one of them in turn; with more rounds in two, then in all."""
    for each in (pair.product, pair.order):
        each.set_back(each.empty)
    pair.product.products.seed(Seed(SEED.products, ()), NOW)
    begin = pair.product.rows(), pair.order.rows()
    hurt: Stores = getattr(pair, service)
    failures = repeats = 0
    for at in itertools.count(1):
        ways = 1 + rounds // 5
        for number in range(len(WAYS)):
            if number >= ways and not hurt.steps.hit_commit:
                break
            pair.product.set_back(begin[0])
            pair.order.set_back(begin[1])
            repeats += live(pair, hurt, at, WAYS[(at + number) % len(WAYS)])
            failures += hurt.steps.hit
        if not hurt.steps.hit:
            break
    assert at > 20
    figures.record(
        "nth", hurt.engine, what=f"lives, {service} hurt", failures=failures, repeats=repeats, stock_difference=0
    )
