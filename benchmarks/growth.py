"""A past: databases in which so many orders were placed, one after the other, and their events sent.

    python benchmarks/growth.py FOLDER ORDERS

Made with SQL and not through the services, which would take an hour for a million.
"""

import sys
from pathlib import Path

import sqlalchemy as sa

from ordersys import settings
from ordersys.core import ids, seed
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.order import store as order_store
from ordersys.product import store as product_store

_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :orders)"
_ID = "printf('01900000-%04x-7%03x-%s-%012x', i >> 12, i & 4095, '{}', i)"
_ORDER, _COMMAND, _EVENT, _KEY = (_ID.format(kind) for kind in ("8000", "9000", "a000", "b000"))
_CUSTOMER = "printf('customer-%d', i % 10000)"
_AT = ":now - (:orders - i) * 1000"
_EVENT_BODY = f"""json_object('specversion', '1.0', 'id', {_EVENT}, 'type', 'ordersys.order.created.v1',
 'source', '/ordersys/order-service', 'subject', {_ORDER}, 'time', '2026-01-01T00:00:00.000000Z', 'sequence',
 CAST(i AS TEXT), 'datacontenttype', 'application/json', 'traceparent',
 '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', 'data', json_object('order_id', {_ORDER}, 'customer_id',
 {_CUSTOMER}, 'status', 'placed', 'version', 1, 'change', 'created', 'lines', json('[]'), 'total',
 json_object('currency', 'EUR', 'amount', 0), 'created_at', '2026-01-01T00:00:00.000000Z', 'updated_at',
 '2026-01-01T00:00:00.000000Z'))"""
ORDER_ROWS = [
    f"""INSERT INTO orders (id, customer_id, status, lines, currency, version, created_at, updated_at) {_NUMBERS}
 SELECT {_ORDER}, {_CUSTOMER}, 'placed', '[["1", 1, 1999]]', 'EUR', 1, {_AT}, {_AT} FROM n""",
    f"""INSERT INTO order_events (sequence, event_id, order_id, customer_id, change, at, body) {_NUMBERS}
 SELECT i, {_EVENT}, {_ORDER}, {_CUSTOMER}, 'created', {_AT}, {_EVENT_BODY} FROM n""",
    f"""INSERT INTO order_commands (command_id, order_id, sequence, refusal, fingerprint) {_NUMBERS}
 SELECT {_COMMAND}, {_ORDER}, i, NULL, '' FROM n""",
    "UPDATE order_sequence SET last = :orders",
]
PRODUCT_ROWS = [
    f"""INSERT INTO stock_ledger (product_id, delta, kind, order_id, command_id, reason, at) {_NUMBERS}
 SELECT '1', -1, 'reserve', {_ORDER}, {_COMMAND}, '', {_AT} FROM n""",
    """INSERT INTO stock_ledger (product_id, delta, kind, order_id, command_id, reason, at)
 VALUES ('1', :orders, 'adjust', '', '', 'stock of the past', :now)""",
    f"""INSERT INTO reservations (order_id, held, command_id, taken, wanted, placing, key, since) {_NUMBERS}
 SELECT {_ORDER}, '{{"1": 1}}', '', '{{}}', '{{}}', 0, '', {_AT} FROM n""",
    f"""INSERT INTO idempotency_keys (key, fingerprint, order_id, command_id, answer, refusal, created_at) {_NUMBERS}
 SELECT {_KEY}, printf('%064x', i), {_ORDER}, {_COMMAND}, zeroblob(180), NULL, {_AT} FROM n""",
]


def fill(folder: Path, orders: int) -> dict[str, str]:
    """The settings of a system with this past."""
    content, now = seed.load(settings.default_data()), ids.now_us()
    urls = {f"{name}_database_url": f"sqlite:///{folder / name}.db" for name in ("product", "order")}
    product, order = (Database(url) for url in urls.values())
    migrations.upgrade(product, product_store.CHAIN)
    migrations.upgrade(order, order_store.CHAIN)
    product_store.ProductStore(product).seed(content, now)
    for database, rows in ((order, ORDER_ROWS), (product, PRODUCT_ROWS)):
        for row in rows:
            database.write(lambda connection, row=row: connection.execute(sa.text(row), {"orders": orders, "now": now}))
        database.close()
    return urls


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]))
