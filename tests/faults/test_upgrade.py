"""The schema is upgraded with data in place, on both engines: row 20 of the guarantees."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from e2e.processes import Backend, free_port, until
from faults import dump, figures, releases
from faults.fleet import SERVICES, Fleet
from faults.load import Load

from ordersys.core.storage.database import Database

Stored = dict[str, list[dict[str, Any]]]
"""Rows by table."""

DUMPS = sorted(Path(__file__).parent.glob("revision_*.json"))
PROCESSES = 5
FOREVER = {"ORDERSYS_EVENT_RETENTION_DAYS": "36500", "ORDERSYS_KEY_RETENTION_DAYS": "36500"}
"""Nothing is pruned: the data of an old release is old."""


@pytest.fixture
def next_release(tmp_path: Path) -> dict[str, str]:
    """The settings that make a role one of the next release."""
    return {"PYTHONPATH": str(releases.next_release(tmp_path / "next"))}


@contextmanager
def databases(backend: Backend) -> Iterator[dict[str, Database]]:
    """Each room's database of a deployment."""
    urls = {
        room: backend.environment.get(f"ORDERSYS_{room.upper()}_DATABASE_URL", f"sqlite:///{backend.home / room}.db")
        for room in dump.ROOMS
    }
    opened = {room: Database(url) for room, url in urls.items()}
    try:
        yield opened
    finally:
        for database in opened.values():
            database.close()


def stored(backend: Backend) -> Stored:
    """Everything but the revisions themselves."""
    with databases(backend) as opened:
        found = {room: dump.take(database, room) for room, database in opened.items()}
    return {table: rows for tables in found.values() for table, rows in tables.items() if "schema_version" not in table}


def as_before(after: Stored, before: Stored) -> Stored:
    """What is stored, without the columns that a newer release has added."""
    return {
        table: [{column: new[column] for column in old} for old, new in zip(rows, after[table], strict=True)]
        for table, rows in before.items()
    }


def test_row_20_the_schema_is_upgraded_under_load_and_then_the_roles(
    engine: str, backend: Backend, next_release: dict[str, str], seed: int
) -> None:
    settings: dict[str, dict[str, str]] = {name: {} for name in SERVICES}
    fleet = Fleet(backend, settings=settings)
    with Load(backend, seed=seed) as load:
        load.goes_on(100)
        upgraded = backend.run("db", "upgrade", "--json", **next_release).document
        assert {upgraded[room]["to"] for room in dump.ROOMS} == {f"{room}_next" for room in dump.ROOMS}
        load.goes_on(200)  # the old code goes on with the new schema
        late = backend.run("serve-order", "--bind", f"127.0.0.1:{free_port()}")
        assert late.code == 2
        assert "install the newer ordersys" in late.complaint
        for names in (("order", "topic"), ("product", "fanout")):
            assert [fleet[name].stop() for name in names] == [0, 0]
            for name in names:
                settings[name].update(next_release)
            fleet.start(*names)
            load.goes_on()
    found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"), in_order=True)
    figures.record(20, engine, how="under load", **found)


@pytest.mark.parametrize("file", DUMPS, ids=lambda file: file.stem)
def test_row_20_the_data_of_an_old_release_is_taken_over(
    engine: str, backend: Backend, next_release: dict[str, str], file: Path
) -> None:
    """By many processes that start at once, and by the release after this one too."""
    old = json.loads(file.read_text(encoding="utf-8"))
    backend.environment.update({**next_release, **FOREVER})
    with databases(backend) as opened:
        for room, database in opened.items():
            dump.put_back(database, room, old["databases"][room])
    before = stored(backend)
    upgraded_at_once(backend, {room: tables[f"{room}_schema_version"] for room, tables in old["databases"].items()})
    after = stored(backend)
    assert all({row[column] for row in after[table]} == {value} for (table, column), value in releases.ADDED.items())
    assert as_before(after, before) == before

    fleet = Fleet(backend)
    assert backend.client("list-orders")["orders"] == old["orders"]
    place = ["place-order", "--customer", "ann", "--idempotency-key"]
    again = backend.client(*place, "placed", "--line", "1:2", "--line", "4:1")
    assert again == {"order": old["placed"], "replayed": True}
    refused = backend.run("client", *place, "refused", "--line", "1:1", "--line", "8:900000")
    assert (refused.code, "insufficient_stock" in refused.complaint) == (1, True)
    backend.settled()  # the one that nobody had answered
    backend.balances()
    late = backend.client("place-order", "--customer", "late", "--idempotency-key", "late-0", "--line", "1:5")
    assert late["replayed"] is False

    placed = next(order for order in old["orders"] if order["status"] == "placed")
    backend.client("update-order", placed["id"], "--line", "1:1", "--expected-version", str(placed["version"]))
    cancelled = backend.client("cancel-order", placed["id"])["order"]
    assert (cancelled["status"], cancelled["version"]) == ("cancelled", placed["version"] + 2)
    subjects = [*old["waiting"], late["order"]["id"], placed["id"], placed["id"]]
    until(lambda: len(fleet["topic"].events()) >= len(subjects), "what waited is heard of, and what is new")
    assert sorted(event["subject"] for event in fleet["topic"].events()) == sorted(subjects)
    backend.balances()
    rows = sum(len(rows) for rows in before.values())
    figures.record(20, engine, how=file.stem, rows=rows, rows_lost=0, rows_changed=0, orders=len(old["orders"]))


def upgraded_at_once(backend: Backend, revisions: dict[str, list[dict[str, str]]]) -> None:
    """Several processes find the old schema, and one of them upgrades it."""
    upgrades = [backend.start("db", "upgrade", "--json") for _ in range(PROCESSES)]
    assert [each.ends() for each in upgrades] == [0] * PROCESSES
    for room, [revision] in revisions.items():
        done = [json.loads(each.out)[room] for each in upgrades]
        assert {each["to"] for each in done} == {f"{room}_next"}
        came_from = sorted(each["from"] for each in done)
        assert came_from == sorted([revision["version_num"]] + [f"{room}_next"] * (PROCESSES - 1))
