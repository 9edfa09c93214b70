"""The inbox: which events each queue's notifiers have handled."""

import sqlalchemy as sa
from alembic import op

from ordersys.core.storage.database import TEXT

revision = "notify_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "notify_inbox",
        sa.Column("queue", TEXT, primary_key=True),
        sa.Column("event_id", TEXT, primary_key=True),
        sa.Column("order_id", TEXT, nullable=False),
        sa.Column("handled_at", sa.BigInteger, nullable=False),
    )
    op.create_index("notify_inbox_age", "notify_inbox", ["handled_at"])
    op.create_index("notify_inbox_order", "notify_inbox", ["order_id"])
    op.create_table(
        "notify_failures",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("queue", TEXT, nullable=False),
        sa.Column("event_id", TEXT, nullable=False),
        sa.Column("order_id", TEXT, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_index("notify_failures_age", "notify_failures", ["at"])
    op.create_index("notify_failures_order", "notify_failures", ["order_id"])


def downgrade() -> None:
    op.drop_table("notify_failures")
    op.drop_table("notify_inbox")
