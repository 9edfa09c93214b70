"""The databases of the services, opened for one command and closed again; or looked into without a trace."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ordersys.core import ids, seed
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.core.storage.looked_into import LookedInto
from ordersys.settings import Settings

if TYPE_CHECKING:
    from ordersys.api.keys import Key
    from ordersys.api.store import KeyStore
    from ordersys.notify.inbox import Attempt


def chains(settings: Settings) -> list[tuple[str, str, migrations.Chain]]:
    """(service, database URL, its migrations) of every service that has a database."""
    from ordersys.api import store as api_store
    from ordersys.notify import inbox
    from ordersys.order import store as order_store
    from ordersys.product import store as product_store

    return [
        ("product", settings.product_database_url, product_store.CHAIN),
        ("order", settings.order_database_url, order_store.CHAIN),
        ("notify", settings.notify_database_url, inbox.CHAIN),
        ("api", settings.api_database_url, api_store.CHAIN),
    ]


def seed_all(settings: Settings) -> dict[str, bool]:
    """Load the seed files into the databases that are empty; which services' were."""
    from ordersys.order import store as order_store
    from ordersys.product import store as product_store

    content = seed.load(settings.data)
    with _opened(settings.product_database_url, product_store.CHAIN) as database:
        products = product_store.ProductStore(database).seed(content, ids.now_us())
    with _opened(settings.order_database_url, order_store.CHAIN) as database:
        orders = order_store.OrderStore(database).seed(content)
    return {"product": products, "order": orders}


def notified(settings: Settings, order_id: str) -> "list[Attempt]":
    """What the notifiers made of an order's events, oldest first."""
    from ordersys.notify.inbox import CHAIN, Inbox

    with _opened(settings.notify_database_url, CHAIN) as database:
        return Inbox(database).history(order_id)


def stock_ledger(settings: Settings) -> dict[str, int]:
    """The sum of every product's ledger: what must be available."""
    from ordersys.product.store import CHAIN, ProductStore

    with _opened(settings.product_database_url, CHAIN) as database:
        return ProductStore(database).ledger()


@contextmanager
def api_keys(settings: Settings) -> "Iterator[KeyStore]":
    """The API's keys, to make and to revoke some."""
    from ordersys.api.store import CHAIN, KeyStore

    with _opened(settings.api_database_url, CHAIN) as database:
        yield KeyStore(database)


@contextmanager
def _opened(url: str, chain: migrations.Chain) -> Iterator[Database]:
    database = Database(url)
    try:
        migrations.upgrade(database, chain)
        yield database
    finally:
        database.close()


# --- looked into --------------------------------------------------------------------------------------------------


def outbox(database: LookedInto) -> tuple[int, int]:
    """How many events wait for the broker's confirm, and when the oldest was made (microseconds; 0 with none)."""
    from ordersys.order.store import OrderStore

    return asyncio.run(OrderStore(database).outbox())


def newest_order(database: LookedInto) -> int:
    """When the newest order was made, in microseconds since the epoch; 0 without any."""
    from ordersys.order.store import OrderStore

    newest = OrderStore(database).list_orders(customer_id="", status=None, before=None, limit=1)
    found = asyncio.run(newest)
    return found[0].created_at if found else 0


def unsettled(database: LookedInto, before: int, limit: int) -> int:
    """How many commands were taken before this moment (microseconds) and have no answer; counts up to `limit`."""
    from ordersys.product.store import ProductStore

    return len(asyncio.run(ProductStore(database).pending(before, limit)))


def keys_of(database: LookedInto) -> "list[Key]":
    """Every key there has ever been."""
    from ordersys.api.store import KeyStore

    return KeyStore(database).all()
