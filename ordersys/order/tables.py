"""The Order Service's tables. The migrations make them; a test holds both together."""

import sqlalchemy as sa

from ordersys.core.storage.database import TEXT
from ordersys.core.storage.roles import Right

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # the row id itself on SQLite

metadata = sa.MetaData()
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", TEXT, primary_key=True),
    sa.Column("customer_id", TEXT, nullable=False),
    sa.Column("status", TEXT, nullable=False),
    sa.Column("lines", TEXT, nullable=False),  # JSON list of [product id, quantity, unit price]
    sa.Column("currency", TEXT, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Index("orders_newest", "created_at", "id"),
    sa.Index("orders_by_customer", "customer_id", "created_at", "id"),
    sa.Index("orders_by_status", "status", "created_at", "id"),
)
order_events = sa.Table(  # the event log; sequence is given under a lock, so it becomes visible in order
    "order_events",
    metadata,
    sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=False),
    sa.Column("event_id", TEXT, nullable=False),
    sa.Column("order_id", TEXT, nullable=False),
    sa.Column("customer_id", TEXT, nullable=False),
    sa.Column("change", TEXT, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("body", TEXT, nullable=False),  # the CloudEvent as it is published
    sa.Index("order_events_by_order", "order_id", "sequence"),
    sa.Index("order_events_age", "at"),
    sa.Index("order_events_by_customer", "customer_id", "sequence"),
)
order_outbox = sa.Table(  # the events that the broker has not confirmed yet
    "order_outbox",
    metadata,
    sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=False),
)
order_commands = sa.Table(  # what became of each: accepted (its order and event), refused, or void (neither)
    "order_commands",
    metadata,
    sa.Column("command_id", TEXT, primary_key=True),
    sa.Column("order_id", TEXT),
    sa.Column("sequence", sa.BigInteger),
    sa.Column("refusal", TEXT),
    sa.Column("fingerprint", TEXT, nullable=False),  # empty where the id alone says what was asked
)
order_sequence = sa.Table(
    "order_sequence",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("last", sa.BigInteger, nullable=False),
)
RIGHTS = (  # of the service's own role: what became of a command is never changed, nor is an event
    Right("orders", "SELECT, INSERT, UPDATE"),
    Right("order_events", "SELECT, INSERT, DELETE"),
    Right("order_outbox", "SELECT, INSERT, DELETE"),
    Right("order_commands", "SELECT, INSERT"),
    Right("order_sequence", "SELECT, UPDATE (last)"),
)
