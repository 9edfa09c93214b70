"""What only the embedded broker promises: leases, an idle consumer that costs nothing, and a file others may lock."""

import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.broker_site import Site, message_ids, rest, take, to

from ordersys.broker import sqlite_consumer
from ordersys.broker.broker import Findings, Outcome
from ordersys.broker.sqlite_consumer import LEASE_SECONDS
from ordersys.core import errors, ids
from ordersys.core.topology import Binding, Exchange, Kind, Queue, Topology


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


@pytest.fixture
def site(file: Path) -> Iterator[Site]:
    site = Site(f"sqlite:///{file}")
    yield site
    site.close()


@pytest.fixture
def locked(file: Path) -> Iterator[sqlite3.Connection]:
    """Another writer: it holds the file between its BEGIN IMMEDIATE and its ROLLBACK."""
    connection = sqlite3.connect(file, isolation_level=None)
    yield connection
    connection.close()


def test_a_consumer_whose_lease_ran_out_cannot_settle_what_another_holds(site: Site) -> None:
    queue = site.queue(waits=(0.0,))
    site.publish(queue, "a", "b")
    stopped = site.process("hold", queue.name, "2")
    assert stopped.stdout is not None
    assert stopped.stdin is not None
    assert stopped.stdout.readline() == "holding\n"
    stopped.send_signal(signal.SIGSTOP)
    subscription = site.subscribe(queue, 1)
    [delivery] = take(subscription, 1, LEASE_SECONDS + 5)
    assert (delivery.message_id, delivery.redelivered) == ("a", True)

    stopped.send_signal(signal.SIGCONT)
    stopped.stdin.write("ack\n")
    stopped.stdin.flush()
    assert stopped.stdout.readline() == "acked\n"  # neither: "a" is ours, and "b" was taken from it
    subscription.reject(delivery)
    assert message_ids(take(site.subscribe(queue), 2)) == ["a", "b"]


def test_an_idle_consumer_writes_nothing_and_costs_next_to_nothing(site: Site, locked: sqlite3.Connection) -> None:
    queue = site.queue()
    site.publish(queue, "1")
    subscription = site.subscribe(queue)
    subscription.ack(take(subscription, 1))
    before = _version(locked)
    started = time.process_time()
    assert subscription.receive(1, 2.0) == []  # longer than a renewal of the lease would wait
    assert time.process_time() - started < 0.1
    assert _version(locked) == before


def _version(connection: sqlite3.Connection) -> int:
    """Changes when anybody else commits (https://www.sqlite.org/pragma.html#pragma_data_version)."""
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version


def test_a_settlement_that_cannot_be_written_now_is_written_later(
    site: Site, locked: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_consumer, "BUSY_SECONDS", 0.1)
    queue = site.queue()
    site.publish(queue, *"abc")
    subscription = site.subscribe(queue)
    held = take(subscription, 3)
    locked.execute("BEGIN IMMEDIATE")
    subscription.ack(held[:1])
    subscription.reject(held[1])
    with pytest.raises(errors.Unavailable, match="locked"):
        subscription.retry(held[2], "reason")
    locked.execute("ROLLBACK")

    [again] = take(subscription, 1)
    assert (again.message_id, again.redelivered) == ("b", True)
    assert subscription.retry(held[2], "reason") is True
    subscription.ack([again])
    assert message_ids(take(subscription, 1)) == ["c"]
    subscription.close()
    assert message_ids(take(site.subscribe(queue), 1)) == ["c"]


def test_a_locked_file_fails_a_batch_in_time_and_leaves_nothing_of_it(site: Site, locked: sqlite3.Connection) -> None:
    queue = site.queue()
    publisher = site.broker().publisher()
    assert publisher.publish([to(queue, "1")]) == [Outcome.CONFIRMED]
    locked.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    assert publisher.publish([to(queue, "2"), to(queue, "3")], timeout=0.2) == [Outcome.FAILED] * 2
    assert time.monotonic() - started < 2
    locked.execute("ROLLBACK")
    assert publisher.publish([to(queue, "4")], timeout=0.2) == [Outcome.CONFIRMED]
    subscription = site.subscribe(queue)
    assert message_ids(take(subscription, 2)) == ["1", "4"]
    assert rest(subscription, 0.1) == []


def test_a_lease_from_before_the_clock_was_set_back_has_run_out(site: Site, locked: sqlite3.Connection) -> None:
    queue = site.queue()
    site.publish(queue, "1")
    locked.execute("INSERT INTO consumers VALUES ('gone', ?)", (ids.now_us() + 3_600_000_000,))
    locked.execute("UPDATE messages SET consumer = 'gone', deliveries = 1")
    [delivery] = take(site.subscribe(queue), 1, 2.0)
    assert delivery.redelivered


def test_a_file_of_a_newer_ordersys_or_of_something_else_is_refused(site: Site, locked: sqlite3.Connection) -> None:
    locked.execute("CREATE TABLE orders (id TEXT)")
    with pytest.raises(errors.UsageError, match="database of something else"):
        site.broker().ping()
    locked.execute("PRAGMA user_version = 99")
    with pytest.raises(errors.UsageError, match="newer ordersys"):
        site.broker().ping()


def test_a_damaged_file_is_unavailable(site: Site, file: Path) -> None:
    file.write_text("this is no database\n" * 100)
    with pytest.raises(errors.Unavailable, match=r"broker\.db: file is not a database"):
        site.broker().ping()


def test_the_inspection_finds_what_is_missing_and_what_differs_and_changes_nothing(site: Site, file: Path) -> None:
    fanout, topic = Exchange("x", Kind.FANOUT), Exchange("x", Kind.TOPIC)
    queue, more = Queue("q", (), (0.0,)), Queue("q", (Binding("x", "a.#"),), (0.0, 0.0))
    everything = ("exchange x", "queue q", "queue q.dlq", "queue q.retry")
    assert site.broker().inspect(Topology((fanout,), (queue,))) == Findings(missing=everything)
    assert not file.exists()

    site.broker().declare(Topology((fanout,), (queue,)))
    assert site.broker().inspect(Topology((fanout,), (queue,))) == Findings()
    for _ in range(2):
        assert site.broker().inspect(Topology((topic,), (more, Queue("q.retry", (), ())))) == Findings(
            missing=("queue q.retry.2", "queue q.retry.dlq", "queue q.retry.retry", "binding of q to x a.#"),
            differing=("exchange x", "queue q.retry"),
        )
