"""The next release of ordersys: this one with one more migration in every room, each an expanding change."""

import shutil
from pathlib import Path

import ordersys
from ordersys import settings
from ordersys.core.storage import migrations

_MIGRATIONS = {
    "product": """
    op.add_column("products", sa.Column("weight_grams", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("UPDATE products SET weight_grams = 250")
    op.create_index("stock_ledger_age", "stock_ledger", ["at"])
    op.create_table("shelves", sa.Column("product_id", sa.Text, sa.ForeignKey("products.id"), primary_key=True))
""",
    # On SQLite a new constraint takes a new table, into which every row is copied.
    "order": """
    with op.batch_alter_table("order_events") as batch:
        batch.create_unique_constraint("order_events_once", ["event_id"])
    op.add_column("orders", sa.Column("channel", sa.Text, nullable=False, server_default="web"))
    op.create_index("orders_by_channel", "orders", ["channel"])
""",
    "notify": """
    op.add_column("notify_inbox", sa.Column("tries", sa.Integer, nullable=False, server_default="1"))
""",
}
ADDED = {("products", "weight_grams"): 250, ("orders", "channel"): "web", ("notify_inbox", "tries"): 1}
"""The columns that rows have in the next release and not in this one, and what is in those of old rows."""


def next_release(folder: Path) -> Path:
    """A copy of the package with the further revisions; whoever has this folder on PYTHONPATH runs it."""
    package = Path(ordersys.__file__).parent
    shutil.copytree(package, folder / "ordersys", ignore=shutil.ignore_patterns("__pycache__"))
    # Where a wheel has them; a checkout has them elsewhere.
    shutil.copytree(settings.default_data(), folder / "ordersys" / "seed_data", dirs_exist_ok=True)
    for room, upgrade in _MIGRATIONS.items():
        file = folder / "ordersys" / room / "migrations" / "9999_next.py"
        file.write_text(
            f'import sqlalchemy as sa\nfrom alembic import op\nrevision = "{room}_next"\n'
            f'down_revision = "{newest(room)}"\n\ndef upgrade():{upgrade}',
            encoding="utf-8",
        )
    return folder


def newest(room: str) -> str:
    """The newest revision of this release."""
    return str(migrations._script(migrations.Chain(f"ordersys.{room}")).get_current_head())
