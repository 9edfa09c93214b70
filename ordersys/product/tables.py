"""The Product Service's tables. The migrations make them; a test holds both together."""

import sqlalchemy as sa

from ordersys.core.storage.database import TEXT
from ordersys.core.storage.roles import Right

metadata = sa.MetaData()
products = sa.Table(
    "products",
    metadata,
    sa.Column("id", TEXT, primary_key=True),
    sa.Column("name", TEXT, nullable=False),
    sa.Column("description", TEXT, nullable=False),
    sa.Column("attributes", TEXT, nullable=False),  # JSON object
    sa.Column("currency", TEXT, nullable=False),
    sa.Column("price", sa.BigInteger, nullable=False),  # minor units
    sa.Column("available", sa.BigInteger, nullable=False),
    sa.CheckConstraint("available >= 0", name="products_never_oversold"),
)
stock_ledger = sa.Table(  # append-only: available is always the sum of delta
    "stock_ledger",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("product_id", TEXT, sa.ForeignKey("products.id"), nullable=False),
    sa.Column("delta", sa.BigInteger, nullable=False),
    sa.Column("kind", TEXT, nullable=False),
    sa.Column("order_id", TEXT, nullable=False),
    sa.Column("command_id", TEXT, nullable=False),
    sa.Column("reason", TEXT, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Index("stock_ledger_product", "product_id"),
    sa.Index("stock_ledger_order", "order_id"),
    sqlite_autoincrement=True,
)
reservations = sa.Table(  # one row per order; command_id <> '' while a command on it is pending
    "reservations",
    metadata,
    sa.Column("order_id", TEXT, primary_key=True),
    sa.Column("held", TEXT, nullable=False),  # JSON object, units by product id; so are taken and wanted
    sa.Column("command_id", TEXT, nullable=False),
    sa.Column("taken", TEXT, nullable=False),
    sa.Column("wanted", TEXT, nullable=False),
    sa.Column("placing", sa.Boolean, nullable=False),
    sa.Column("key", TEXT, nullable=False),
    sa.Column("since", sa.BigInteger, nullable=False),
)
sa.Index(
    "reservations_pending",
    reservations.c.since,
    sqlite_where=sa.text("command_id <> ''"),
    postgresql_where=sa.text("command_id <> ''"),
)
idempotency_keys = sa.Table(  # answer and refusal are both null while the first call is pending
    "idempotency_keys",
    metadata,
    sa.Column("key", TEXT, primary_key=True),
    sa.Column("fingerprint", TEXT, nullable=False),
    sa.Column("order_id", TEXT, nullable=False),
    sa.Column("command_id", TEXT, nullable=False),
    sa.Column("answer", sa.LargeBinary),
    sa.Column("refusal", TEXT),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index("idempotency_keys_age", "created_at"),
)
RIGHTS = (  # of the service's own role: the ledger is only ever added to
    Right("products", "SELECT, INSERT, UPDATE (available)"),
    Right("stock_ledger", "SELECT, INSERT", sequence="stock_ledger_id_seq"),
    Right("reservations", "SELECT, INSERT, UPDATE, DELETE"),
    Right("idempotency_keys", "SELECT, INSERT, UPDATE (answer, refusal), DELETE"),
)
