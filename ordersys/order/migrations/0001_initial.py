"""Orders, the event log, the outbox, and what became of every command."""

import sqlalchemy as sa
from alembic import op

from ordersys.core.storage.database import TEXT

SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # the row id itself on SQLite

revision = "order_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("customer_id", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("lines", TEXT, nullable=False),
        sa.Column("currency", TEXT, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_index("orders_newest", "orders", ["created_at", "id"])
    op.create_index("orders_by_customer", "orders", ["customer_id", "created_at", "id"])
    op.create_index("orders_by_status", "orders", ["status", "created_at", "id"])
    op.create_table(
        "order_events",
        sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=False),
        sa.Column("event_id", TEXT, nullable=False),
        sa.Column("order_id", TEXT, nullable=False),
        sa.Column("customer_id", TEXT, nullable=False),
        sa.Column("change", TEXT, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("body", TEXT, nullable=False),
    )
    op.create_index("order_events_by_order", "order_events", ["order_id", "sequence"])
    op.create_index("order_events_age", "order_events", ["at"])
    op.create_index("order_events_by_customer", "order_events", ["customer_id", "sequence"])
    op.create_table(
        "order_outbox",
        sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=False),
    )
    op.create_table(
        "order_commands",
        sa.Column("command_id", TEXT, primary_key=True),
        sa.Column("order_id", TEXT),
        sa.Column("sequence", sa.BigInteger),
        sa.Column("refusal", TEXT),
        sa.Column("fingerprint", TEXT, nullable=False),
    )
    op.create_table(
        "order_sequence",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO order_sequence (id, last) VALUES (1, 0)")


def downgrade() -> None:
    for table in ("order_sequence", "order_commands", "order_outbox", "order_events", "orders"):
        op.drop_table(table)
