"""RabbitMQ and PostgreSQL stop, crash and come back under load: rows 5 to 7 of the guarantees.

On nodes of the tests' own: nobody else's server is hurt.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e.processes import Backend, until
from faults import figures, nodes
from faults.books import Write
from faults.fleet import DEADLINE_SECONDS, SERVICES, Fleet
from faults.load import PLENTY, Load
from faults.nodes import Node, PostgresCluster, RabbitNode
from faults.once import asking, placings

from ordersys.client.calls import Orders
from ordersys.core import errors

DATABASES = [f"ORDERSYS_{name}_DATABASE_URL" for name in ("PRODUCT", "ORDER", "NOTIFY")]
DEADLINE = {"ORDERSYS_DEADLINE_SECONDS": str(DEADLINE_SECONDS)}


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitNode]:
    with nodes.rabbitmq_node() as node:
        yield node


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresCluster]:
    with nodes.postgres_cluster() as cluster:
        yield cluster


@pytest.fixture
def on_rabbitmq(rabbitmq: RabbitNode, tmp_path: Path) -> Iterator[Backend]:
    """Embedded databases, so that the broker is all that is hurt."""
    with Backend(tmp_path, {**DEADLINE, "ORDERSYS_BROKER_URL": rabbitmq.start().vhost()}) as backend:
        yield backend


@pytest.fixture
def on_postgres(postgres: PostgresCluster, tmp_path: Path) -> Iterator[Backend]:
    """One database for all, and the embedded broker, so that the database is all that is hurt."""
    url = postgres.start().database()
    with Backend(tmp_path, {**DEADLINE, **dict.fromkeys(DATABASES, url)}) as backend:
        yield backend


def turns(rounds: int, *ways: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Ways of hurting a server, each at least once, and more often with more rounds: a server takes seconds."""
    return itertools.islice(itertools.cycle(ways), max(len(ways), rounds // 3))


def test_row_05_rabbitmq_restarts_and_crashes_under_load(
    on_rabbitmq: Backend, rabbitmq: RabbitNode, rounds: int, seed: int
) -> None:
    """Nobody who places an order notices; whatever happened meanwhile is heard of when it is back."""
    fleet = Fleet(on_rabbitmq)
    hurts = answered_without_it = 0
    with Load(on_rabbitmq, seed=seed) as load:
        for go_down in turns(rounds, rabbitmq.stop, rabbitmq.kill):
            load.goes_on()
            go_down()
            before = load.answered
            load.goes_on(100)
            answered_without_it += load.answered - before
            rabbitmq.start()
            hurts += 1
        load.goes_on()
        books = load.stop()
    assert books.repeats == 0, "somebody was told `unavailable`"
    assert_alive(fleet)
    found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"), in_order=True)
    assert found["printed_again"] == 0
    figures.record(
        5,
        "rabbitmq",
        hurts=hurts,
        answered_without_it=answered_without_it,
        longest_silence=books.silence(),
        **found,
    )


def test_row_06_rabbitmq_is_not_there_for_the_whole_run(
    on_rabbitmq: Backend, rabbitmq: RabbitNode, rounds: int, seed: int
) -> None:
    """The outbox takes it all, and when RabbitMQ is there it goes out, each order's events in their order."""
    rabbitmq.stop()
    Fleet(on_rabbitmq, "product", "order")
    with Load(on_rabbitmq, seed=seed, callers=16, pause=0.005) as load:
        load.goes_on(200 * rounds)
        books = load.stop()
    assert books.repeats == 0, "somebody was told `unavailable`"
    with Orders(on_rabbitmq.product_address, on_rabbitmq.order_address) as orders:
        waiting = list(orders.log())
    assert not any(each.published for each in waiting)

    rabbitmq.start()
    began = time.monotonic()
    notifiers = Fleet(on_rabbitmq, "fanout", "topic")
    found = load.verdict(notifiers.ever("fanout"), notifiers.ever("topic"), in_order=True)
    figures.record(6, "rabbitmq", waited=len(waiting), drained_in_seconds=time.monotonic() - began, **found)


def test_row_07_postgresql_restarts_and_crashes_under_load(
    on_postgres: Backend, postgres: PostgresCluster, rounds: int, seed: int
) -> None:
    """Whoever asks meanwhile is told `unavailable` and why; whoever asks again with the same key is answered once."""
    fleet = Fleet(on_postgres)
    told: list[Write] = []
    hurts = 0
    with Load(on_postgres, seed=seed) as load:
        for go_down in turns(rounds, postgres.stop, postgres.crash, postgres.kill):
            load.goes_on(100)
            go_down()
            told += told_unavailable(on_postgres, postgres, f"sure-{hurts}")
            assert_alive(fleet)
            postgres.start()
            hurts += 1
        load.goes_on()
        books = load.stop()
    with Orders(on_postgres.product_address, on_postgres.order_address, 30) as orders:
        answers = [write.ask(orders) for write in told]
        assert [write.ask(orders) for write in told] == answers
    found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"), in_order=True)
    figures.record(
        7,
        "postgresql",
        hurts=hurts,
        told_unavailable=len(told) + books.repeats,
        longest_silence=books.silence(),
        **found,
    )


def told_unavailable(backend: Backend, down: Node, customer: str) -> list[Write]:
    """What was asked for by callers who are told why it cannot be, and do not insist."""
    writes = placings(customer, 4, PLENTY[0])
    with asking(backend, writes, 5) as asked:
        answers = [each.result().answer for each in asked]
    for answer in answers:
        assert isinstance(answer, errors.Unavailable), answer
        assert answer.message.startswith("the database cannot be reached or written now"), answer
        assert str(down.port) not in answer.message, answer  # where it is, only the log says
    return writes


def assert_alive(fleet: Fleet) -> None:
    ended = [fleet[name].name for name in SERVICES if not fleet[name].running]
    assert not ended, f"ended by themselves: {ended}"


def test_text_survives_in_a_database_that_has_no_encoding(postgres: PostgresCluster, tmp_path: Path) -> None:
    """What `initdb` makes where no locale is set: the server hands text out as it came in, as bytes."""
    url = postgres.start().database("SQL_ASCII")
    with Backend(tmp_path, dict.fromkeys(DATABASES, url)) as backend:
        fleet = Fleet(backend)
        order = backend.place("1:1", customer="Çelik 日本")
        assert backend.client("get-order", order["id"])["order"] == order
        until(lambda: len(fleet["topic"].events(order["id"])) == 1, "it is heard of")
        assert fleet["topic"].events(order["id"])[0]["data"]["customer_id"] == "Çelik 日本"
        backend.balances()
