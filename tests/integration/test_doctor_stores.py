"""The doctor on real databases and brokers: each fault is found, what is fine is not complained about."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import servers
import sqlalchemy as sa

from ordersys import databases as stores
from ordersys import settings, wiring
from ordersys.broker.broker import Depth, Message, Outcome
from ordersys.core import ids, topology
from ordersys.core.storage.database import Database
from ordersys.core.storage.looked_into import PostgresFacts
from ordersys.operate.doctor import databases, queues
from ordersys.operate.doctor.findings import Check, Finding, Level, examine
from ordersys.settings import Settings

MINUTE = 60_000_000


def looked(checks: list[Check]) -> dict[str, Finding]:
    found = examine(checks, 60)
    assert len({each.check for each in found}) == len(found)
    return {each.check: each for each in found}


def bad(found: dict[str, Finding]) -> dict[str, str]:
    return {name: each.level.value for name, each in found.items() if each.level is not Level.OK}


def used(chosen: Settings) -> Settings:
    """The same, after a first start of every role, with one order on its way to the broker, and an API key."""
    stores.seed_all(chosen)
    with stores.api_keys(chosen) as keys:
        keys.create("me", ["admin"])
    upgraded(chosen, "notify", lambda _: None)
    return chosen


def upgraded(chosen: Settings, service: str, work: Callable[[sa.Connection], object]) -> None:
    """Something done to a service's database, which has the newest schema."""
    from ordersys.core.storage import migrations

    [(url, chain)] = [(url, chain) for name, url, chain in stores.chains(chosen) if name == service]
    with closing(Database(url)) as database:
        migrations.upgrade(database, chain)
        database.write(work)


def run(chosen: Settings, service: str, *statements: str) -> None:
    upgraded(chosen, service, lambda connection: [connection.execute(sa.text(each)) for each in statements])


@pytest.fixture(params=["sqlite", "postgres"])
def chosen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """All services on one engine, used before."""
    if request.param == "sqlite":
        yield used(settings.load({"home": tmp_path}))
        return
    with servers.postgres_database() as url:
        names = ("product", "order", "notify", "api")
        yield used(settings.load({"home": tmp_path, **{f"{name}_database_url": url for name in names}}))


# --- databases ----------------------------------------------------------------------------------------------------


def test_databases_in_order(chosen: Settings) -> None:
    found = looked(databases.checks(chosen))
    assert bad(found) == {}
    assert {"database product", "schema product", "schema notify", "outbox", "reservations", "API keys"} <= set(found)


def test_before_the_first_start_there_is_nothing_wrong_and_nothing_is_made(tmp_path: Path) -> None:
    chosen = settings.load({"home": tmp_path / "home"})
    found = looked([*databases.checks(chosen), *queues.checks(chosen)])
    assert bad(found) == {"API keys": "warning"}  # the API would be open
    assert "not made yet" in found["database order"].found
    assert list(tmp_path.iterdir()) == []


def test_a_schema_that_is_due_and_one_that_is_too_new(chosen: Settings) -> None:
    run(chosen, "product", "UPDATE product_schema_version SET version_num = 'product_0000'")
    run(chosen, "order", "UPDATE order_schema_version SET version_num = 'order_9999'")
    found = looked(databases.checks(chosen))
    assert bad(found) == {"schema product": "warning", "schema order": "problem"}
    assert found["schema product"].fix == "ordersys db upgrade"
    assert "order_9999 is newer than this ordersys" in found["schema order"].found
    assert "outbox" not in found  # nobody knows what its rows mean


@pytest.mark.parametrize(("minutes", "level"), [(0, "ok"), (2, "warning"), (60, "problem")])
def test_events_that_wait_in_the_outbox_for_too_long(chosen: Settings, minutes: int, level: str) -> None:
    made = ids.now_us() - minutes * MINUTE
    run(
        chosen,
        "order",
        "INSERT INTO order_outbox (sequence) VALUES (900001)",
        "INSERT INTO order_events (sequence, event_id, order_id, customer_id, change, at, body)"
        f" VALUES (900001, 'e', 'o', 'c', 'created', {made}, '')",
    )
    found = looked(databases.checks(chosen))["outbox"]
    assert found.level == level
    if minutes:
        assert f"not confirmed by the broker, the oldest for {minutes} min" in found.found


@pytest.mark.parametrize(("minutes", "level"), [(0, "ok"), (3, "warning"), (60, "problem")])
def test_reservations_that_nobody_settles(chosen: Settings, minutes: int, level: str) -> None:
    run(
        chosen,
        "product",
        'INSERT INTO reservations (order_id, held, command_id, taken, wanted, "placing", key, since)'
        f" VALUES ('o', '{{}}', 'c', '{{}}', '{{}}', true, '', {ids.now_us() - minutes * MINUTE})",
    )
    found = looked(databases.checks(chosen))["reservations"]
    assert (found.level, "1 command unsettled" in found.found) == (level, minutes > 0)


def test_orders_from_the_future_tell_that_the_clock_was_set_back(chosen: Settings) -> None:
    run(chosen, "order", f"UPDATE orders SET created_at = {ids.now_us() + 60 * MINUTE}")
    found = looked(databases.checks(chosen))
    assert bad(found) == {"clock of the orders": "problem"}


def test_keys_that_expire_or_are_of_no_use(chosen: Settings) -> None:
    run(chosen, "api", f"UPDATE api_keys SET expires_at = {ids.now_us() + 60 * MINUTE}")
    assert "expires at" in looked(databases.checks(chosen))["API keys"].found
    run(chosen, "api", "UPDATE api_keys SET revoked_at = 1")
    found = looked(databases.checks(chosen))["API keys"]
    assert (found.level, "all are revoked" in found.found) == (Level.WARNING, True)
    run(chosen, "api", "DELETE FROM api_keys")
    found = looked(databases.checks(chosen))["API keys"]
    assert (found.level, "open to everybody on this machine" in found.found) == (Level.WARNING, True)


def test_an_open_api_beyond_this_machine_is_a_problem(tmp_path: Path) -> None:
    found = looked(databases.checks(settings.load({"home": tmp_path, "api_bind": "0.0.0.0:8080"})))
    assert bad(found) == {"API keys": "problem"}
    tokens = {"api_jwt_jwks_url": "https://i/k", "api_jwt_issuer": "i", "api_jwt_audience": "a"}
    assert bad(looked(databases.checks(settings.load({"home": tmp_path, "api_bind": "0.0.0.0:8080", **tokens})))) == {}


def test_files_that_are_damaged_foreign_or_without_a_log(tmp_path: Path) -> None:
    chosen = used(settings.load({"home": tmp_path}))
    whole = bytearray((tmp_path / "order.db").read_bytes())
    whole[4096 * 2 : 4096 * 6] = b"\xff" * 4096 * 4
    (tmp_path / "order.db").write_bytes(whole)
    (tmp_path / "notify.db").write_text("a shopping list " * 1000)
    with closing(sqlite3.connect(tmp_path / "api.db")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    found = looked(databases.checks(chosen))
    levels = {name: level for name, level in bad(found).items() if name.startswith("database")}
    assert levels == {"database order": "problem", "database notify": "problem", "database api": "warning"}
    assert "not a database" in found["database notify"].found
    assert found["database api"].fix.endswith("'PRAGMA journal_mode=WAL'")


def test_postgres_that_does_not_wait_for_the_disk(postgres_url: str, tmp_path: Path) -> None:
    name = postgres_url.rpartition("/")[2]
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    found = looked(databases.checks(settings.load({"home": tmp_path, "order_database_url": postgres_url})))
    assert bad(found) == {"database order": "problem", "API keys": "warning"}
    assert "synchronous_commit is off" in found["database order"].found


def test_postgres_in_another_encoding(tmp_path: Path) -> None:
    if reason := servers.postgres_missing():
        servers.missing(reason)
    name = f"ordersys_test_ascii_{ids.uuid7()[-12:]}"
    with psycopg.connect(f"{servers.POSTGRES}/postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
        try:
            url = f"{servers.POSTGRES.replace('postgresql', 'postgresql+psycopg')}/{name}"
            found = looked(databases.checks(settings.load({"home": tmp_path, "order_database_url": url})))
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    assert "its encoding is SQL_ASCII, not UTF8" in found["database order"].found
    assert found["schema order"].found == "empty: the first start makes it"


@pytest.mark.parametrize(("skew", "level"), [(0.2, "ok"), (-2.0, "warning"), (2.0, "warning"), (-90.0, "problem")])
def test_the_clock_of_the_database_server(skew: float, level: str) -> None:
    facts = PostgresFacts(
        version="15",
        encoding="UTF8",
        synchronous_commit="on",
        fsync="on",
        connections=1,
        max_connections=100,
        skew=skew,
        standby=False,
    )
    found = databases._skew("database order", facts)
    assert found.level == level
    assert ("ahead of" in found.found) == (skew > 1)


def test_one_database_for_all_is_told_once(postgres_url: str, tmp_path: Path) -> None:
    urls = {f"{name}_database_url": postgres_url for name in ("product", "order", "notify", "api")}
    found = looked(databases.checks(used(settings.load({"home": tmp_path, **urls}))))
    assert [name for name in found if name.startswith("database ")] == ["database product"]
    assert bad(found) == {}


# --- broker -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'broker.db'}"
        return
    with servers.vhost() as url:
        yield url


def publish(url: str, queue: str, count: int = 1) -> None:
    with closing(wiring.broker(settings.load({"broker_url": url}))) as broker:
        broker.declare(topology.standard())
        messages = [
            Message(exchange="", routing_key=queue, body=b"{}", message_id=str(each), content_type="text/plain")
            for each in range(count)
        ]
        assert set(broker.publisher().publish(messages)) <= {Outcome.CONFIRMED}


def test_a_broker_in_order(broker_url: str) -> None:
    publish(broker_url, "notify.topic", 0)
    found = looked(queues.checks(settings.load({"broker_url": broker_url})))
    assert bad(found) == {}
    assert set(found) == {"broker", "topology", "dead letters", "queues"}


def test_a_topology_that_is_not_there(broker_url: str) -> None:
    chosen = settings.load({"broker_url": broker_url})
    with closing(wiring.broker(chosen)) as broker:
        broker.declare(topology.Topology(topology.EXCHANGES, topology.standard().queues[:1]))
    found = looked(queues.checks(chosen))
    assert bad(found) == {"topology": "problem"}
    assert "missing: queue notify.topic" in found["topology"].found
    assert found["topology"].fix == "ordersys topology declare"


def test_waits_that_were_never_declared(broker_url: str) -> None:
    publish(broker_url, "notify.topic", 0)
    found = looked(queues.checks(settings.load({"broker_url": broker_url, "retry_waits": "1,2,3,4"})))
    assert "notify.topic.retry.4" in found["topology"].found


def test_dead_letters_and_a_queue_that_nobody_consumes(broker_url: str) -> None:
    publish(broker_url, "notify.fanout.dlq", 2)
    publish(broker_url, "notify.topic", 3)
    chosen = settings.load({"broker_url": broker_url})
    # A quorum queue may tell its length a little late.
    deadline = time.monotonic() + 30
    while bad(found := looked(queues.checks(chosen))) != {"dead letters": "problem", "queues": "warning"}:
        assert time.monotonic() < deadline, found
    assert "2 notifications that nobody will try again by itself: notify.fanout 2" in found["dead letters"].found
    assert "3 messages in notify.topic" in found["queues"].found
    assert found["queues"].fix == "ordersys notify --mode topic"


def test_a_queue_that_gets_shorter_is_not_stuck() -> None:
    before, after = {"q": Depth(5, 0, 0)}, {"q": Depth(4, 2, 0)}
    [found] = queues.waiting(before, after)
    assert (found.level, found.found) == (Level.OK, "none is stuck, 2 messages rest before another try")


def test_a_broker_that_is_not_there_says_where() -> None:
    [found] = examine(queues.checks(settings.load({"broker_url": "amqp://me:s3cret@127.0.0.1:1/"})), 60)
    assert (found.level, "127.0.0.1:1" in found.found, "s3cret" in str(found)) == (Level.PROBLEM, True, False)


def test_a_damaged_broker_file(tmp_path: Path) -> None:
    (tmp_path / "broker.db").write_text("a shopping list " * 1000)
    [found] = examine(queues.checks(settings.load({"home": tmp_path})), 60)
    assert (found.level, "not a database" in found.found) == (Level.PROBLEM, True)
