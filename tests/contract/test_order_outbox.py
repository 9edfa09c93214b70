"""How much waits in the outbox, the same on SQLite and on PostgreSQL."""

import asyncio

from ordersys.core import ids
from ordersys.core.events import Change
from ordersys.core.records import Line
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.order.model import Command
from ordersys.order.store import CHAIN, OrderStore

ROLE = "order"


def place(orders: OrderStore, now: int) -> None:
    command = Command(
        command_id=ids.uuid7(),
        order_id=ids.uuid7(),
        change=Change.CREATED,
        customer_id="c",
        lines=(Line("1", 2, 250),),
        currency="EUR",
        traceparent=ids.new_traceparent(),
    )
    asyncio.run(orders.apply([command], now, ids.uuid7))


def test_the_outbox_says_how_many_wait_and_since_when(database_url: str) -> None:
    database = Database(database_url)
    migrations.upgrade(database, CHAIN)
    orders = OrderStore(database)
    assert asyncio.run(orders.outbox()) == (0, 0)

    for now in (1_750_000_000_000_001, 1_750_000_000_000_002, 1_750_000_000_000_003):
        place(orders, now)
    assert asyncio.run(orders.outbox()) == (3, 1_750_000_000_000_001)

    first, second, third = (each.sequence for each in orders.unsent(10))
    orders.mark_sent([first])
    assert asyncio.run(orders.outbox()) == (2, 1_750_000_000_000_002)
    orders.mark_sent([second, third])
    assert asyncio.run(orders.outbox()) == (0, 0)
    database.close()
