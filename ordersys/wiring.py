"""The composition root: settings in, running parts out. The only file that names concrete adapters."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, TextIO

from ordersys.broker.broker import Broker
from ordersys.core import ids, migrations, retention, seed, topology
from ordersys.core.database import Database
from ordersys.core.server import GrpcServer
from ordersys.core.topology import Queue, Topology
from ordersys.lifecycle import Part
from ordersys.settings import Settings

if TYPE_CHECKING:
    from ordersys.api.access import Guard
    from ordersys.api.store import KeyStore
    from ordersys.notify.consumer import Notifier
    from ordersys.notify.inbox import Attempt

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 0.5
_API_THREADS = 64
"""For requests that are answered and done."""

Where = Callable[[], str]
"""An address that is known once the part that listens on it has started."""


def broker(settings: Settings) -> Broker:
    """The broker that the URL names; nothing is connected yet."""
    if settings.broker_url.startswith("sqlite:"):
        from ordersys.broker.sqlite import SqliteBroker

        return SqliteBroker(settings.broker_url)
    from ordersys.broker.rabbitmq import RabbitBroker

    return RabbitBroker(settings.broker_url)


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


def openapi() -> str:
    """The description of the REST API as JSON text; nothing is connected."""
    from ordersys.api import docs

    return docs.printed()


@contextmanager
def _opened(url: str, chain: migrations.Chain) -> Iterator[Database]:
    database = Database(url)
    try:
        migrations.upgrade(database, chain)
        yield database
    finally:
        database.close()


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait((task,))


class _Started:
    """What a part has started so far, undone in reverse when it stops, also when it could not start wholly."""

    def __init__(self) -> None:
        self._undo = AsyncExitStack()
        self._grace = 0.0

    def undo(self, step: Callable[[float], Awaitable[object]]) -> None:
        """Do this when the part stops, before what was noted earlier; `step` is given the seconds it may take."""
        self._undo.push_async_callback(lambda: step(self._grace))

    async def stop(self, grace: float) -> None:
        self._grace = grace
        await self._undo.aclose()

    def ended(self) -> bool:
        return False

    async def open_database(self, url: str, chain: migrations.Chain) -> Database:
        database = Database(url)
        self.undo(lambda _: asyncio.to_thread(database.close))
        await asyncio.to_thread(migrations.upgrade, database, chain)
        return database

    def keep_pruning(self, what: str, prune: retention.Prune, days: float) -> None:
        pruning = asyncio.create_task(retention.keep_pruning(what, prune, days * 86_400), name=f"prune {what}")
        self.undo(lambda _: _cancel(pruning))

    def open_broker(self, settings: Settings) -> Broker:
        opened = broker(settings)
        self.undo(lambda _: asyncio.to_thread(opened.close))
        return opened


class ProductPart(_Started):
    """The Product Service with its recovery."""

    name = "Product Service"

    def __init__(self, settings: Settings, orders: Where) -> None:
        super().__init__()
        self._settings = settings
        self._orders = orders
        self.address = settings.product_bind

    async def start(self) -> None:
        from ordersys.product.authority import GrpcAuthority
        from ordersys.product.recovery import Recovery
        from ordersys.product.service import ProductService
        from ordersys.product.servicer import SERVICE, ProductServicer
        from ordersys.product.store import CHAIN, ProductStore

        settings = self._settings
        database = await self.open_database(settings.product_database_url, CHAIN)
        store = ProductStore(database)
        await asyncio.to_thread(lambda: store.seed(seed.load(settings.data), ids.now_us()))
        authority = GrpcAuthority(self._orders(), settings.deadline_seconds)
        self.undo(lambda _: authority.close())
        service = ProductService(store, authority, deadline=settings.deadline_seconds)
        self.undo(lambda _: service.drain())
        # What is younger may still be on its way in another process, whose own deadline has not passed.
        recovery = Recovery(store, service, age=2 * settings.deadline_seconds)
        recovering = asyncio.create_task(recovery.run(), name="recovery")
        self.undo(lambda _: _cancel(recovering))
        self.keep_pruning("idempotency keys", store.prune, settings.key_retention_days)
        server = GrpcServer(settings.product_bind, [SERVICE], ProductServicer(service).add_to)
        await server.start()
        self.undo(server.stop)
        self.address = server.address
        logger.info("%s listens on %s", self.name, self.address)


class OrderPart(_Started):
    """The Order Service with its relay."""

    name = "Order Service"

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self.address = settings.order_bind

    async def start(self) -> None:
        from ordersys.order.relay import Relay
        from ordersys.order.service import OrderService
        from ordersys.order.servicer import SERVICE, OrderServicer
        from ordersys.order.store import CHAIN, OrderStore

        settings = self._settings
        database = await self.open_database(settings.order_database_url, CHAIN)
        store = OrderStore(database)
        await asyncio.to_thread(lambda: store.seed(seed.load(settings.data)))
        opened, standard = self.open_broker(settings), topology.standard(settings.retry_waits)
        relay = Relay(store, opened, standard)
        relay.start()
        self.undo(lambda grace: asyncio.to_thread(relay.stop, max(1.0, grace)))
        self.keep_pruning("events", store.prune, settings.event_retention_days)
        service = OrderService(store, relay.wake, depths=lambda: opened.depths(standard.queues))
        self.undo(lambda _: service.drain())
        server = GrpcServer(settings.order_bind, [SERVICE], OrderServicer(service).add_to)
        await server.start()
        self.undo(server.stop)
        self.undo(lambda _: service.close_watches())
        self.address = server.address
        logger.info("%s listens on %s", self.name, self.address)


class NotifierPart(_Started):
    """One notification service on one queue."""

    def __init__(self, settings: Settings, queue: Queue, stream: TextIO, *, json: bool, label: str = "") -> None:
        super().__init__()
        self._settings = settings
        self._queue = queue
        self._sink = (stream, json, label)
        self._notifier: Notifier | None = None
        self.name = f"Notification Service {queue.name}"

    async def start(self) -> None:
        from ordersys.notify.consumer import Notifier
        from ordersys.notify.inbox import CHAIN, Inbox
        from ordersys.notify.sinks import LogSink

        settings = self._settings
        database = await self.open_database(settings.notify_database_url, CHAIN)
        consumed = self.open_broker(settings)
        standard = topology.standard(settings.retry_waits)
        others = tuple(each for each in standard.queues if each.name != self._queue.name)
        # At start a broker that cannot be reached is the caller's to hear of; later the notifier waits for it.
        await asyncio.to_thread(consumed.declare, Topology(standard.exchanges, (*others, self._queue)))
        inbox = Inbox(database)

        async def prune(before: int, limit: int) -> int:
            return await asyncio.to_thread(inbox.prune, before, limit)

        self.keep_pruning("handled events", prune, settings.event_retention_days)
        stream, json, label = self._sink
        sink = LogSink(stream, json=json, label=label)
        notifier = self._notifier = Notifier(consumed, self._queue, inbox, sink, name=self.name)
        notifier.start()
        self.undo(lambda grace: asyncio.to_thread(notifier.stop, max(1.0, grace)))
        logger.info("%s consumes", self.name)

    def ended(self) -> bool:
        """True once nobody reads what it prints any more."""
        return self._notifier is not None and self._notifier.ended


class ApiPart(_Started):
    """The REST gateway."""

    name = "REST API"

    def __init__(self, settings: Settings, products: Where, orders: Where) -> None:
        super().__init__()
        self._settings = settings
        self._services = (products, orders)
        self.address = settings.api_bind

    async def start(self) -> None:
        from ordersys.api.app import Options, create_app
        from ordersys.api.rates import rates_of
        from ordersys.api.server import ApiServer
        from ordersys.core.channel import Channel

        settings = self._settings
        guard = await self._guard()
        products, orders = (Channel(where()) for where in self._services)
        self.undo(lambda _: asyncio.to_thread(products.close))
        self.undo(lambda _: asyncio.to_thread(orders.close))
        options = Options(
            access=guard,
            rates=rates_of(settings.api_rate_limit),
            cors_origins=settings.api_cors_origins,
            max_streams=settings.api_max_streams,
            checks={"key-database": guard.reachable},
        )
        # A little more than the services give themselves: their own answer, that nobody answered them, is to arrive.
        deadline = settings.deadline_seconds + _ANSWER_SECONDS
        app = create_app(products, orders, deadline=deadline, options=options)
        # A stream holds one thread as long as it lasts.
        server = ApiServer(app, settings.api_bind, _API_THREADS + settings.api_max_streams)
        await asyncio.to_thread(server.start)
        self.undo(lambda grace: asyncio.to_thread(server.stop, grace))
        self.undo(lambda _: asyncio.to_thread(app.extensions["ordersys.feed"].close))
        self.address = server.address
        logger.info("%s listens on http://%s", self.name, self.address)
        guard.say_if_open()

    async def _guard(self) -> "Guard":
        from ordersys.api.access import Guard
        from ordersys.api.keyring import KeyRing
        from ordersys.api.store import CHAIN, KeyStore
        from ordersys.api.tokens import tokens_of

        settings = self._settings
        tokens = tokens_of(
            jwks_url=settings.api_jwt_jwks_url,
            public_key_file=settings.api_jwt_public_key_file,
            issuer=settings.api_jwt_issuer,
            audience=settings.api_jwt_audience,
            algorithms=settings.api_jwt_algorithms,
            customer_claim=settings.api_jwt_customer_claim,
        )
        if tokens is not None:
            self.undo(lambda _: asyncio.to_thread(tokens.close))
        keys = KeyRing(KeyStore(await self.open_database(settings.api_database_url, CHAIN)))
        self.undo(lambda _: asyncio.to_thread(keys.close))
        return await asyncio.to_thread(Guard, settings.api_bind, keys, tokens)


class Everything:
    """All roles in one process, built from the same parts as the single commands; `stream` takes a queue's events."""

    def __init__(self, settings: Settings, stream: Callable[[Queue], TextIO], *, json: bool = False) -> None:
        self.order = OrderPart(settings)
        self.product = ProductPart(settings, lambda: dialled(self.order.address))
        self.api = ApiPart(settings, lambda: dialled(self.product.address), lambda: dialled(self.order.address))
        self.notifiers = [
            NotifierPart(settings, queue, stream(queue), json=json, label=queue.name)
            for queue in topology.standard(settings.retry_waits).queues
        ]

    @property
    def parts(self) -> Sequence[Part]:
        return [self.order, self.product, *self.notifiers, self.api]


def dialled(address: str) -> str:
    """Where to call what listens on this address: a wildcard is reached over loopback."""
    host, _, port = address.rpartition(":")
    if host in ("0.0.0.0", ""):  # noqa: S104 - compared, not bound
        return f"127.0.0.1:{port}"
    return f"[::1]:{port}" if host == "[::]" else address
