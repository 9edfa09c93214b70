"""The stores on databases whose steps can be made to fail, and what they are asked to do."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from faults.steps import Steps

from ordersys.core import errors
from ordersys.core.records import Line, Order, Product, Status
from ordersys.core.seed import Seed
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.notify import inbox
from ordersys.order import store as order_store
from ordersys.order import tables as order_tables
from ordersys.product import model
from ordersys.product import store as product_store
from ordersys.product import tables as product_tables
from ordersys.product.book import Answer
from ordersys.product.model import Fate, Settlement, Wanted

NOW = 1_700_000_000_000_000
CHAINS = (product_store.CHAIN, order_store.CHAIN, inbox.CHAIN)
TABLES = [
    *product_tables.metadata.sorted_tables,
    *order_tables.metadata.sorted_tables,
    *inbox.metadata.sorted_tables,
]
_COUNTERS = ((product_tables.stock_ledger, "id"), (inbox.notify_failures, "id"))
"""Numbers that an engine draws and does not take back: they may have holes."""

Rows = dict[str, list[dict[str, Any]]]


class Stores:
    """All tables in one database; it can be set back to any state it had."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        sa.event.listen(self.database.engine, "connect", _do_not_wait_for_the_disk)
        self.steps = Steps(self.database.engine)
        for chain in CHAINS:
            migrations.upgrade(self.database, chain)
        self.products = product_store.ProductStore(self.database)
        self.orders = order_store.OrderStore(self.database)
        self.inbox = inbox.Inbox(self.database)
        self.engine = self.database.engine.dialect.name
        self.empty = self.rows()

    def rows(self) -> Rows:
        """Everything that is stored."""

        def work(connection: sa.Connection) -> Rows:
            return {
                table.name: sorted((dict(row._mapping) for row in connection.execute(table.select())), key=str)
                for table in TABLES
            }

        return self.database.read(work)

    def state(self) -> Rows:
        """The same without the numbers that may have holes."""
        rows = self.rows()
        for table, column in _COUNTERS:
            kept = [{name: value for name, value in row.items() if name != column} for row in rows[table.name]]
            rows[table.name] = sorted(kept, key=str)
        return rows

    def set_back(self, rows: Rows) -> None:
        def work(connection: sa.Connection) -> None:
            for table in reversed(TABLES):
                connection.execute(table.delete())
            for table in TABLES:
                if rows[table.name]:
                    connection.execute(table.insert(), rows[table.name])

        self.database.write(work)


def _do_not_wait_for_the_disk(connection: Any, _record: Any) -> None:
    """Nobody pulls the plug in these tests."""
    sqlite = isinstance(connection, sqlite3.Connection)
    connection.execute("PRAGMA synchronous=OFF" if sqlite else "SET synchronous_commit TO off")
    connection.commit()


@dataclass(frozen=True)
class Pair:
    """A database of its own for each service."""

    product: Stores
    order: Stores


@contextmanager
def pair(product_url: str, order_url: str) -> Iterator[Pair]:
    made = Pair(Stores(product_url), Stores(order_url))
    try:
        yield made
    finally:
        made.product.database.close()
        made.order.database.close()


def product(product_id: str, available: int) -> Product:
    return Product(
        id=product_id, name=product_id, description="", attributes={}, currency="EUR", price=100, available=available
    )


def seeded(order_id: str) -> Order:
    return Order(
        id=order_id,
        customer_id="c",
        status=Status.PLACED,
        lines=(Line("a", 2, 100),),
        currency="EUR",
        version=1,
        created_at=NOW,
        updated_at=NOW,
    )


SEED = Seed(products=(product("a", 100), product("b", 100)), orders=(seeded("s1"), seeded("s2")))


def place(number: int, *lines: tuple[str, int]) -> model.PlaceOrder:
    return model.PlaceOrder(
        command_id=f"place-{number}",
        key=f"key-{number}",
        fingerprint="f",
        order_id=f"o{number}",
        customer_id="c",
        lines=tuple(Wanted(*line) for line in lines),
        traceparent="",
    )


def update(order_id: str, *lines: tuple[str, int]) -> model.UpdateOrder:
    return model.UpdateOrder(
        command_id=f"update-{order_id}",
        key=f"update-{order_id}",
        fingerprint="f",
        order_id=order_id,
        lines=tuple(Wanted(*line) for line in lines),
        expected_version=0,
        traceparent="",
    )


def cancel(order_id: str) -> model.CancelOrder:
    return model.CancelOrder(
        command_id=f"cancel-{order_id}",
        key=f"cancel-{order_id}",
        fingerprint="f",
        order_id=order_id,
        reason="",
        expected_version=0,
        traceparent="",
    )


def settle(command: model.OrderCommand, fate: Fate) -> Settlement:
    answers: dict[Fate, Answer | None] = {
        Fate.ACCEPTED: b"the order",
        Fate.REFUSED: errors.InvalidTransition.of(command.order_id, "shipped", "changed"),
        Fate.VOID: None,
    }
    return Settlement(order_id=command.order_id, command_id=command.command_id, fate=fate, answer=answers[fate])


def adjust(delta: int) -> model.AdjustStock:
    return model.AdjustStock(
        command_id=f"adjust{delta}", key=f"adjust{delta}", fingerprint="f", product_id="b", delta=delta, reason="count"
    )
