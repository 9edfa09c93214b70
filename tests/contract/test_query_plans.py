"""Nothing that runs again and again reads a table that grows with the orders from end to end: the planners say so.

What is exempt adds up whole books, on purpose and seldom: `inventory audit`, and the drift of the stock.
"""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from faults.stores import CHAINS, NOW, SEED, Stores, adjust, cancel, place, settle, update

from ordersys.core import events, ids
from ordersys.core.events import Change, Event
from ordersys.core.records import Line, Status
from ordersys.core.storage import migrations
from ordersys.order import model as order_model
from ordersys.product.model import Fate

GROWING = {
    *("orders", "order_events", "order_commands"),
    *("stock_ledger", "reservations", "idempotency_keys"),
    *("notify_inbox",),
}
OF_THE_PENDING = "reservations_pending"
"""An index of few rows, however many orders there are."""
_SCAN = re.compile(r"(?:SCAN|SEARCH(?! \w+ USING)) (\w+)(?: USING (?:COVERING )?INDEX (\w+))?")


class Statements:
    """What was executed, each with the parameters of its first time."""

    def __init__(self, engine: sa.Engine) -> None:
        self.seen: dict[str, Any] = {}
        sa.event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _c: object, _u: object, text: str, parameters: Any, _x: object, many: bool) -> None:
        if re.match(r"SELECT|INSERT|UPDATE|DELETE|WITH", text) and "alembic_version" not in text:
            self.seen.setdefault(text, parameters[0] if many else parameters)


ROWS = 20_000
MOST_IN_VAIN = 1_000
_PAST = [  # a planner with statistics says what it would do with many rows: SQLite's has none, and needs none
    "INSERT INTO orders SELECT 'p' || i, 'c' || mod(i, 100), 'placed', '[]', 'EUR', 1, i, i FROM {numbers}",
    "INSERT INTO order_events SELECT i, 'e' || i, 'p' || i, 'c' || mod(i, 9), 'created', i, '{event}' FROM {numbers}",
    "INSERT INTO order_commands SELECT 'p' || i, 'p' || i, i, NULL, repeat('x', 64) FROM {numbers}",
    "INSERT INTO stock_ledger SELECT -i, 'a', -1, 'reserve', 'p' || i, 'p' || i, '', i FROM {numbers}",
    "INSERT INTO reservations SELECT 'p' || i, '{{}}', '', '{{}}', '{{}}', FALSE, '', i FROM {numbers}",
    "INSERT INTO idempotency_keys SELECT 'p' || i, repeat('x', 64), 'p' || i, 'p' || i, 'x', NULL, i FROM {numbers}",
    "INSERT INTO notify_inbox SELECT 'q', 'e' || i, 'p' || i, i FROM {numbers}",
    "UPDATE order_sequence SET last = " + str(ROWS),
    "ANALYZE",
]


@pytest.fixture
def stores(database_url: str) -> Iterator[Stores]:
    """A system with a past, whose orders were made a microsecond apart."""
    opened = Stores(database_url)
    opened.products.seed(SEED, 0)
    opened.orders.seed(SEED)
    if opened.engine == "postgresql":
        event = Event(id="e", sequence=1, change=Change.CREATED, time=NOW, order=SEED.orders[0])
        words = {"numbers": f"generate_series(1, {ROWS}) AS i", "event": events.encode(event)}
        opened.database.write(lambda connection: [connection.exec_driver_sql(each.format(**words)) for each in _PAST])
    yield opened
    opened.database.close()


def test_nothing_that_runs_often_reads_a_growing_table_from_end_to_end(stores: Stores) -> None:
    statements = Statements(stores.database.engine)
    asyncio.run(everything(stores))
    seen = dict(statements.seen)
    assert len(seen) > 45
    assert {table for table in GROWING if any(f" {table} " in f"{text} " for text in seen)} == GROWING
    plans = {text: explained(stores.database.engine, text, parameters) for text, parameters in seen.items()}
    assert {text: scans for text, scans in plans.items() if scans} == {}


SCANS = (
    "SELECT count(*) FROM order_events",
    "SELECT * FROM stock_ledger WHERE reason = 'x'",
    "SELECT count(*) FROM reservations WHERE command_id = 'x' OR since > 0",
    "SELECT max(updated_at) FROM orders",
    "SELECT id FROM orders ORDER BY updated_at LIMIT 1",
    "DELETE FROM order_commands WHERE order_id = 'x'",
)


def test_a_scan_is_found(stores: Stores) -> None:
    assert [text for text in SCANS if not explained(stores.database.engine, text, ())] == []


def test_where_the_log_since_a_moment_begins_is_looked_up(stores: Stores) -> None:
    """The filter alone would read the log up to there: it is a search of the planner's, and still a scan."""
    statements = Statements(stores.database.engine)
    asyncio.run(stores.orders.list_events(after=0, order_id="", change=None, since=ROWS - 9, limit=10))
    [(text, parameters)] = statements.seen.items()
    assert "order_events_age" in str(plan(stores.database.engine, text, parameters))


async def everything(stores: Stores) -> None:
    """Each statement of a start, of every batch, poll, page and pruning, at least once."""
    for chain in CHAINS:
        migrations.upgrade(stores.database, chain)
        migrations.is_current(stores.database, chain)
    now = ROWS
    await the_product_service(stores, now)
    await the_order_service(stores, now)
    stores.inbox.known("q", ["e1"])
    stores.inbox.record("q", [("e1", "o1")], now)
    stores.inbox.history("o1")
    stores.inbox.prune(100, 10)


async def the_product_service(stores: Stores, now: int) -> None:
    products = stores.products
    products.seed(SEED, now)  # as at every start
    commands = [place(1, ("a", 1)), place(2, ("b", 1)), adjust(1)]
    await products.decide(commands, now)
    await products.oldest_pending()
    await products.pending(now, 10)
    await products.decide([settle(commands[0], Fate.ACCEPTED), settle(commands[1], Fate.VOID)], now)
    await products.decide([update("s1", ("a", 1)), cancel("s2")], now)
    await products.summary()
    await products.product("a")
    await products.list_products("a", 10)
    await products.moves("s1")
    await products.prune(100, 10)


async def the_order_service(stores: Stores, now: int) -> None:
    orders = stores.orders
    orders.seed(SEED)

    def command(number: int, change: Change) -> order_model.Command:
        lines = (Line("a", 1, 100),)
        return order_model.Command(
            command_id=f"c{number}", order_id="o1", change=change, customer_id="c", lines=lines, currency="EUR"
        )

    await orders.apply([command(1, Change.CREATED), command(2, Change.LINES)], now, ids.uuid7)
    await orders.apply([order_model.Settle("c1"), order_model.Settle("void")], now, ids.uuid7)
    await orders.order("o1")
    for customer_id, status, before in (("", None, None), ("c", None, (now, "o1")), ("", Status.PLACED, (now, "o1"))):
        await orders.list_orders(customer_id=customer_id, status=status, before=before, limit=10)
    for order_id, customer_id in (("", ""), ("o1", ""), ("", "c")):
        await orders.events_after(1, order_id=order_id, customer_id=customer_id, limit=10)
    for after, order_id, since in ((0, "", 0), (1, "", 0), (0, "", now - 9), (1, "", now - 9), (0, "o1", now - 9)):
        await orders.list_events(after=after, order_id=order_id, change=None, since=since, limit=10)
    await orders.outbox()
    sequences = [each.sequence for each in orders.unsent(10)]
    orders.mark_sent(sequences)
    await orders.prune(100, 10)


def explained(engine: sa.Engine, text: str, parameters: Any) -> list[str]:
    """What of the planner's answer reads a growing table from end to end."""
    found = plan(engine, text, parameters)
    if engine.dialect.name == "sqlite":
        return [line for line in found if scans(line, limited=" LIMIT " in text)]
    return list(whole(found, limited=False))


def plan(engine: sa.Engine, text: str, parameters: Any) -> Any:
    """The planner's answer: lines of text from SQLite, a tree of nodes from PostgreSQL."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            return [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", parameters)]
        how = "ANALYZE, FORMAT JSON" if text.startswith("SELECT") else "FORMAT JSON"
        [found] = connection.exec_driver_sql(f"EXPLAIN ({how}) {text}", parameters or None).scalar_one()
        return found["Plan"]


def scans(detail: str, *, limited: bool) -> bool:
    """A line of SQLite (https://www.sqlite.org/eqp.html). Along an index as far as a LIMIT is no scan."""
    found = _SCAN.match(detail)
    return bool(found and found[1] in GROWING and found[2] != OF_THE_PENDING and not (limited and found[2]))


def whole(node: dict[str, Any], *, limited: bool) -> Iterator[str]:
    """The same of a plan of PostgreSQL. A join may read what is below it to the end before the LIMIT is reached."""
    kind, table = node["Node Type"], node.get("Relation Name", "")
    if table in GROWING and kind == "Seq Scan" and not (limited and "Filter" not in node):
        yield f"{kind} {table}"
    if (in_vain := node.get("Rows Removed by Filter", 0)) > MOST_IN_VAIN:  # of SELECTs: those are carried out
        yield f"{kind} {table}: {in_vain} rows read in vain"
    index = node.get("Index Name", OF_THE_PENDING)
    if table in GROWING and index != OF_THE_PENDING and "Index Cond" not in node and not limited:
        yield f"{kind} {table} {index}"
    for number, below in enumerate(node.get("Plans", ())):
        goes_on = limited and (kind in ("LockRows", "Result") or (kind == "Nested Loop" and number == 0))
        yield from whole(below, limited=kind == "Limit" or goes_on)
