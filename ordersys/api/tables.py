"""The gateway's tables. The migrations make them; a test holds both together."""

import sqlalchemy as sa

from ordersys.core.storage.database import TEXT
from ordersys.core.storage.roles import Right

metadata = sa.MetaData()
api_keys = sa.Table(  # a row is never removed: once there has been a key, the API stays closed
    "api_keys",
    metadata,
    sa.Column("id", TEXT, primary_key=True),
    sa.Column("name", TEXT, nullable=False),
    sa.Column("digest", TEXT, nullable=False),  # SHA-256 of the secret
    sa.Column("scopes", TEXT, nullable=False),  # separated by spaces
    sa.Column("customer_id", TEXT, nullable=False),  # '' = every customer's orders
    sa.Column("created_at", sa.BigInteger, nullable=False),  # microseconds since the epoch, as all times here
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("last_used_at", sa.BigInteger),
    sa.Column("revoked_at", sa.BigInteger),
)
RIGHTS = (Right("api_keys", "SELECT, UPDATE (last_used_at)"),)
"""Of the gateway's own role: keys are made and revoked by whoever owns the table."""
