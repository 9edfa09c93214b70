"""Products, the stock ledger, reservations and idempotency keys."""

import sqlalchemy as sa
from alembic import op

from ordersys.core.storage.database import TEXT

revision = "product_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "products",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("description", TEXT, nullable=False),
        sa.Column("attributes", TEXT, nullable=False),
        sa.Column("currency", TEXT, nullable=False),
        sa.Column("price", sa.BigInteger, nullable=False),
        sa.Column("available", sa.BigInteger, nullable=False),
        sa.CheckConstraint("available >= 0", name="products_never_oversold"),
    )
    op.create_table(
        "stock_ledger",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("product_id", TEXT, sa.ForeignKey("products.id"), nullable=False),
        sa.Column("delta", sa.BigInteger, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("order_id", TEXT, nullable=False),
        sa.Column("command_id", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("stock_ledger_product", "stock_ledger", ["product_id"])
    op.create_index("stock_ledger_order", "stock_ledger", ["order_id"])
    op.create_table(
        "reservations",
        sa.Column("order_id", TEXT, primary_key=True),
        sa.Column("held", TEXT, nullable=False),
        sa.Column("command_id", TEXT, nullable=False),
        sa.Column("taken", TEXT, nullable=False),
        sa.Column("wanted", TEXT, nullable=False),
        sa.Column("placing", sa.Boolean, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "reservations_pending",
        "reservations",
        ["since"],
        sqlite_where=sa.text("command_id <> ''"),
        postgresql_where=sa.text("command_id <> ''"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("key", TEXT, primary_key=True),
        sa.Column("fingerprint", TEXT, nullable=False),
        sa.Column("order_id", TEXT, nullable=False),
        sa.Column("command_id", TEXT, nullable=False),
        sa.Column("answer", sa.LargeBinary),
        sa.Column("refusal", TEXT),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("idempotency_keys_age", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    for table in ("idempotency_keys", "reservations", "stock_ledger", "products"):
        op.drop_table(table)
