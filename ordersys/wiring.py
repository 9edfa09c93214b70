"""The composition root: settings in, running parts out. The only file that names concrete adapters."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TextIO

from ordersys import extensions
from ordersys.broker.broker import Broker
from ordersys.core import errors, ids, seed, tls, topology
from ordersys.core.rpc import callers
from ordersys.core.rpc.limits import Limits
from ordersys.core.rpc.server import GrpcServer, Observer
from ordersys.core.topology import Queue, Topology
from ordersys.core.watch import spans
from ordersys.core.watch.metrics import Registry
from ordersys.core.watch.readiness import Check
from ordersys.core.watch.traces import Traces
from ordersys.lifecycle import Part
from ordersys.role import Role, cancel, checks_of
from ordersys.settings import Settings, dialled

if TYPE_CHECKING:
    from ordersys.api.access import Guard
    from ordersys.notify.consumer import Notifier

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

    return RabbitBroker(settings.broker_url, settings.broker_tls_files)


def openapi() -> str:
    """The description of the REST API as JSON text; nothing is connected."""
    from ordersys.api import docs

    return docs.printed()


def _own_tls(settings: Settings, name: str, bind: str) -> tls.Kept | None:
    """The certificates of a service that listens there; raises UsageError when they are wrong, or it needs some."""
    own = settings.tls()
    tls.refuse_exposed(f"the {name}", bind, tls=own is not None, insecure=settings.insecure)
    return own


def _rules(settings: Settings) -> dict[str, callers.Rule] | None:
    """Who may call what; None when callers need not show who they are."""
    if not settings.tls_files or settings.tls_client_cert == "none":
        return None
    return callers.rules(settings.tls_product_identity, settings.tls_admin_identities)


class ProductPart(Role):
    """The Product Service with its recovery."""

    name = "Product Service"

    def __init__(
        self,
        settings: Settings,
        orders: Where,
        traces: Traces,
        registry: Registry | None = None,
        *,
        worker: int | None = None,
    ) -> None:
        super().__init__("product-service", traces, registry, worker)
        self._settings = settings
        self._orders = orders
        self.address = settings.product_bind

    async def start(self) -> None:
        from ordersys.core.watch.measured import CallMetrics
        from ordersys.product.authority import GrpcAuthority
        from ordersys.product.metrics import DRIFT_SECONDS, LOOK_SECONDS, ProductMetrics
        from ordersys.product.recovery import Recovery
        from ordersys.product.service import ProductService
        from ordersys.product.servicer import MAX_REQUEST_BYTES, SERVICE, ProductServicer
        from ordersys.product.store import CHAIN, ProductStore

        settings = self._settings
        rules = await asyncio.to_thread(extensions.rules, settings)
        own = _own_tls(settings, self.name, settings.product_bind)
        await self.show(settings, "product_admin_bind")
        measured = ProductMetrics(self.registry)
        database = await self.open_database(settings.product_database_url, CHAIN)
        store = ProductStore(database, rules)
        await asyncio.to_thread(lambda: store.seed(seed.load(settings.data), ids.now_us()))
        tracing = self.tracing
        authority = GrpcAuthority(self._orders(), settings.deadline_seconds, own, tracing)
        self.undo(lambda _: authority.close())
        service = ProductService(store, authority, deadline=settings.deadline_seconds, metrics=measured)
        self.undo(lambda _: service.drain())
        # What is younger may still be on its way in another process, whose own deadline has not passed.
        recovery = Recovery(store, service, age=2 * settings.deadline_seconds)
        recovering = asyncio.create_task(recovery.run(), name="recovery")
        self.undo(lambda _: cancel(recovering))
        self.keep_pruning("idempotency keys", store.prune, settings.key_retention_days)
        self.keep_sampling("the unsettled commands", partial(measured.look_at_pending, store), LOOK_SECONDS)
        self.keep_sampling("the drift of the stock", partial(measured.look_at_drift, store), DRIFT_SECONDS)
        observers: list[Observer] = [*spans.observers(tracing), CallMetrics(self.registry, "product-service")]
        server = GrpcServer(
            settings.product_bind,
            [SERVICE],
            ProductServicer(service).add_to,
            observers=observers,
            tls=own,
            rules=_rules(settings),
            limits=Limits(request_bytes=MAX_REQUEST_BYTES),
            shared=self.worker is not None,
        )
        # Without order-service orders cannot be placed, and everything else goes on (docs/decisions/0016-readiness.md).
        asked = Check("order-service", authority.reachable, needed=False)
        await self.look_after([*checks_of(database, CHAIN), asked], server.health)
        await server.start()
        self.undo(server.stop)
        self.address = server.address
        if rules is not None:
            logger.info("%s refuses orders by the rules %s", self.name, ", ".join(settings.rules))
        logger.info("%s listens on %s%s", self.name, self.address, self.watched)


class OrderPart(Role):
    """The Order Service with its relay."""

    name = "Order Service"

    def __init__(
        self, settings: Settings, traces: Traces, registry: Registry | None = None, *, worker: int | None = None
    ) -> None:
        super().__init__("order-service", traces, registry, worker)
        self._settings = settings
        self.address = settings.order_bind

    async def start(self) -> None:
        from ordersys.core.watch.measured import CallMetrics
        from ordersys.order.metrics import LOOK_SECONDS, OrderMetrics
        from ordersys.order.relay import Relay, RelayMetrics
        from ordersys.order.service import OrderService
        from ordersys.order.servicer import MAX_REQUEST_BYTES, SERVICE, OrderServicer
        from ordersys.order.store import CHAIN, OrderStore

        settings = self._settings
        own = _own_tls(settings, self.name, settings.order_bind)
        await self.show(settings, "order_admin_bind")
        measured = OrderMetrics(self.registry)
        database = await self.open_database(settings.order_database_url, CHAIN)
        store = OrderStore(database)
        await asyncio.to_thread(lambda: store.seed(seed.load(settings.data)))
        opened, standard = self.closing(broker(settings)), topology.standard(settings.retry_waits)
        tracing = self.tracing
        relay = Relay(store, opened, standard, RelayMetrics(self.registry), tracing, turn=store.turn())
        relay.start()
        self.undo(lambda grace: asyncio.to_thread(relay.stop, max(1.0, grace)))
        self.keep_pruning("events", store.prune, settings.event_retention_days)
        depths = partial(opened.depths, standard.queues)
        service = OrderService(store, relay.wake, depths=depths, metrics=measured)
        self.undo(lambda _: service.drain())
        self.keep_sampling("the outbox", partial(measured.look_at_outbox, store), LOOK_SECONDS)
        self.keep_sampling("the queues", partial(measured.look_at_queues, depths), LOOK_SECONDS)
        observers: list[Observer] = [*spans.observers(tracing), CallMetrics(self.registry, "order-service")]
        server = GrpcServer(
            settings.order_bind,
            [SERVICE],
            OrderServicer(service, tracing).add_to,
            observers=observers,
            tls=own,
            rules=_rules(settings),
            limits=Limits(request_bytes=MAX_REQUEST_BYTES),
            shared=self.worker is not None,
        )
        # While the broker is away orders are taken and their events wait in the outbox, which is in the database.
        asked = Check("broker", partial(answers, opened), needed=False)
        await self.look_after([*checks_of(database, CHAIN), asked], server.health)
        await server.start()
        self.undo(server.stop)
        self.undo(lambda _: service.close_watches())
        self.address = server.address
        logger.info("%s listens on %s%s", self.name, self.address, self.watched)


class NotifierPart(Role):
    """One notification service on one queue."""

    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        stream: TextIO,
        traces: Traces,
        *,
        json: bool,
        label: str = "",
        sink: str = "log",
        registry: Registry | None = None,
    ) -> None:
        super().__init__("notification-service", traces, registry)
        self._settings = settings
        self._queue = queue
        self._sink = partial(extensions.sink, settings, sink, stream, json=json, label=label)
        self._notifier: Notifier | None = None
        self.name = f"Notification Service {queue.name}"

    async def start(self) -> None:
        from ordersys.notify.consumer import Notifier
        from ordersys.notify.inbox import CHAIN, Inbox
        from ordersys.notify.metrics import NotifierMetrics

        settings = self._settings
        sink, batch = await asyncio.to_thread(self._sink)
        await self.show(settings, "notify_admin_bind")
        database = await self.open_database(settings.notify_database_url, CHAIN)
        consumed = self.closing(broker(settings))
        standard = topology.standard(settings.retry_waits)
        others = tuple(each for each in standard.queues if each.name != self._queue.name)
        # At start a broker that cannot be reached is the caller's to hear of; later the notifier waits for it.
        await asyncio.to_thread(consumed.declare, Topology(standard.exchanges, (*others, self._queue)))
        inbox = Inbox(database)

        async def prune(before: int, limit: int) -> int:
            return await asyncio.to_thread(inbox.prune, before, limit)

        self.keep_pruning("handled events", prune, settings.event_retention_days)
        measured = NotifierMetrics(self.registry, self._queue.name)
        notifier = self._notifier = Notifier(
            consumed, self._queue, inbox, sink, name=self.name, batch=batch, metrics=measured, tracing=self.tracing
        )
        notifier.start()
        self.undo(lambda grace: asyncio.to_thread(notifier.stop, max(1.0, grace)))
        await self.look_after([*checks_of(database, CHAIN), Check("broker", partial(answers, consumed))])
        logger.info("%s consumes%s", self.name, self.watched)

    def ended(self) -> bool:
        """True once nobody reads what it prints any more."""
        return self._notifier is not None and self._notifier.ended


class ApiPart(Role):
    """The REST gateway."""

    name = "REST API"

    def __init__(
        self, settings: Settings, products: Where, orders: Where, traces: Traces, registry: Registry | None = None
    ) -> None:
        super().__init__("api", traces, registry)
        self._settings = settings
        self._services = (products, orders)
        self.address = settings.api_bind

    async def start(self) -> None:
        from ordersys.api.app import Options, create_app
        from ordersys.api.rates import rates_of
        from ordersys.api.server import ApiServer
        from ordersys.api.tls import Tls
        from ordersys.core.rpc.channel import Channel

        settings = self._settings
        https = Tls(settings.api_tls_files) if settings.api_tls_files else None
        await self.show(settings)
        guard = await self._guard()
        tls.refuse_exposed(f"the {self.name}", settings.api_bind, tls=https is not None, insecure=settings.insecure)
        own, tracing = settings.tls(), self.tracing
        products, orders = (Channel(where(), tls=own, tracing=tracing) for where in self._services)
        self.undo(lambda _: asyncio.to_thread(products.close))
        self.undo(lambda _: asyncio.to_thread(orders.close))
        options = Options(
            access=guard,
            rates=rates_of(settings.api_rate_limit),
            cors_origins=settings.api_cors_origins,
            max_streams=settings.api_max_streams,
            checks=[Check("database", guard.reachable)],
            registry=self.registry,
            tracing=tracing,
        )
        # A little more than the services give themselves: their own answer, that nobody answered them, is to arrive.
        deadline = settings.deadline_seconds + _ANSWER_SECONDS
        app = create_app(products, orders, deadline=deadline, options=options)
        # A stream holds one thread as long as it lasts.
        server = ApiServer(app, settings.api_bind, _API_THREADS + settings.api_max_streams, tls=https)
        await asyncio.to_thread(server.start)
        self.undo(lambda grace: asyncio.to_thread(server.stop, grace))
        self.undo(lambda _: asyncio.to_thread(app.extensions["ordersys.feed"].close))
        await asyncio.to_thread(app.extensions["ordersys.readiness"].start)
        self.undo(lambda _: asyncio.to_thread(app.extensions["ordersys.readiness"].stop))
        self.address = server.address
        logger.info("%s listens on %s://%s", self.name, "https" if https else "http", self.address)
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
        settings = _trusting_itself(settings)
        shared = Registry()  # the API's /metrics shows all of it
        self.traces = traces = Traces(settings.traces)
        self.order = OrderPart(settings, traces, shared)
        self.product = ProductPart(settings, lambda: dialled(self.order.address), traces, shared)
        self.api = ApiPart(
            settings, lambda: dialled(self.product.address), lambda: dialled(self.order.address), traces, shared
        )
        self.notifiers = [
            NotifierPart(settings, queue, stream(queue), traces, json=json, label=queue.name, registry=shared)
            for queue in topology.standard(settings.retry_waits).queues
        ]

    @property
    def parts(self) -> Sequence[Part]:
        return [self.traces, self.order, self.product, *self.notifiers, self.api]


def _trusting_itself(settings: Settings) -> Settings:
    """With one certificate for all roles, its name is that of all callers."""
    own = settings.tls()
    if own is None or _rules(settings) is None:
        return settings
    names = own.current().names
    if not names:
        raise errors.UsageError(f"ORDERSYS_TLS_CERT_FILE: the certificate in {settings.tls_cert_file} names nobody")
    admins = (*settings.tls_admin_identities, *names)
    return settings.model_copy(update={"tls_product_identity": names[0], "tls_admin_identities": admins})


def answers(opened: Broker) -> bool:
    """Whether the broker answers now; raises `Unavailable` with the reason when it does not."""
    opened.depths(())
    return True
