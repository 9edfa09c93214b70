"""Every call that the two services offer to clients, as plain functions on records.

    with Orders("127.0.0.1:50051", "127.0.0.1:50052") as orders:
        placed = orders.place_order("customer-1", [("1", 2)])

Each raises what the service refused it with (see `core.errors`), and `Unavailable` when nobody answered in time.
"""

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

from ordersys.core import errors, events, ids, pages, records
from ordersys.core.backoff import Backoff
from ordersys.core.events import Change, Event, Logged
from ordersys.core.records import Order, Product, Status, StockAudit, StockMove
from ordersys.core.rpc.channel import ROUTINE_SECONDS, Channel
from ordersys.core.tls import Kept
from ordersys.core.v1 import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc
from ordersys.core.watch.tracing import Tracing

logger = logging.getLogger(__name__)

MAX_PAGE = 1000

Wanted = tuple[str, int]
"""A product id and how many units of it."""

Request = TypeVar("Request")


@dataclass(frozen=True, slots=True)
class Answer:
    """The order as a write left it; `replayed` when an earlier call with the same idempotency key had done it."""

    order: Order
    replayed: bool


@dataclass(frozen=True, slots=True)
class Adjusted:
    """The product as an adjustment left it; `replayed` as in `Answer`."""

    product: Product
    replayed: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Some orders, newest first; the token of the next page is empty on the last."""

    orders: list[Order]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many messages wait for a consumer, rest before another try, and are dead letters."""

    name: str
    ready: int
    retrying: int
    dead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """How far the events are on their way; `outbox_oldest` in microseconds since the epoch, 0 = the outbox is empty.

    Without `queues` the broker does not answer, and `broker_problem` says so.
    """

    outbox_depth: int
    outbox_oldest: int
    queues: tuple[QueueDepth, ...]
    broker_problem: str


class Orders:
    """Both services as one client; `deadline` is how many seconds a call may take with all its retries.

    Connects when it is first used. Writes make an idempotency key when none is given, so that the retries of a call
    are applied once; after `Unavailable` the error names the key that makes it safe to repeat the call.
    """

    def __init__(
        self,
        product_address: str,
        order_address: str,
        deadline: float = 5.0,
        *,
        tls: Kept | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._deadline = deadline
        self._products = Channel(product_address, tls=tls, tracing=tracing)
        self._orders = Channel(order_address, tls=tls, tracing=tracing)
        self._product_service = product_pb2_grpc.ProductServiceStub(self._products.raw)
        self._order_service = order_pb2_grpc.OrderServiceStub(self._orders.raw)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._products.close()
        self._orders.close()

    def get_data(self) -> str:
        """A one-line human summary of what the Product Service holds."""
        request = product_pb2.GetDataRequest()
        return self._products.call(self._product_service.GetData, request, deadline=self._deadline).message

    def list_products(self) -> list[Product]:
        """Every product, by id."""
        products: list[Product] = []
        token = ""
        while True:
            request = _request(product_pb2.ListProductsRequest, page_size=MAX_PAGE, page_token=token)
            page = self._products.call(self._product_service.ListProducts, request, deadline=self._deadline)
            products += map(records.product_from_proto, page.products)
            token = page.next_page_token
            if not token:
                return products

    def get_product(self, product_id: str) -> Product:
        request = _request(product_pb2.GetProductRequest, product_id=product_id)
        response = self._products.call(self._product_service.GetProduct, request, deadline=self._deadline)
        return records.product_from_proto(response.product)

    def adjust_stock(self, product_id: str, delta: int, reason: str = "", idempotency_key: str = "") -> Adjusted:
        """Add `delta` units to what is available, or take them away when it is negative."""
        with _repeatable(idempotency_key) as key:
            request = _request(
                product_pb2.AdjustStockRequest, product_id=product_id, delta=delta, reason=reason, idempotency_key=key
            )
            response = self._products.call(self._product_service.AdjustStock, request, deadline=self._deadline)
        return Adjusted(records.product_from_proto(response.product), response.replayed)

    def place_order(self, customer_id: str, lines: Sequence[Wanted], idempotency_key: str = "") -> Answer:
        with _repeatable(idempotency_key) as key:
            request = _request(
                product_pb2.PlaceOrderRequest, customer_id=customer_id, lines=_lines(lines), idempotency_key=key
            )
            response = self._products.call(self._product_service.PlaceOrder, request, deadline=self._deadline)
        return Answer(records.order_from_proto(response.order), response.replayed)

    def update_order(
        self, order_id: str, lines: Sequence[Wanted], *, expected_version: int = 0, idempotency_key: str = ""
    ) -> Answer:
        """Replace the lines of a placed order; `expected_version` 0 accepts any."""
        with _repeatable(idempotency_key) as key:
            request = _request(
                product_pb2.UpdateOrderRequest,
                order_id=order_id,
                lines=_lines(lines),
                expected_version=expected_version,
                idempotency_key=key,
            )
            response = self._products.call(self._product_service.UpdateOrder, request, deadline=self._deadline)
        return Answer(records.order_from_proto(response.order), response.replayed)

    def cancel_order(
        self, order_id: str, reason: str = "", *, expected_version: int = 0, idempotency_key: str = ""
    ) -> Answer:
        with _repeatable(idempotency_key) as key:
            request = _request(
                product_pb2.CancelOrderRequest,
                order_id=order_id,
                reason=reason,
                expected_version=expected_version,
                idempotency_key=key,
            )
            response = self._products.call(self._product_service.CancelOrder, request, deadline=self._deadline)
        return Answer(records.order_from_proto(response.order), response.replayed)

    def ship_order(self, order_id: str, *, expected_version: int = 0, idempotency_key: str = "") -> Answer:
        return self._advance(order_id, Status.SHIPPED, expected_version, idempotency_key)

    def deliver_order(self, order_id: str, *, expected_version: int = 0, idempotency_key: str = "") -> Answer:
        return self._advance(order_id, Status.DELIVERED, expected_version, idempotency_key)

    def _advance(self, order_id: str, status: Status, expected_version: int, idempotency_key: str) -> Answer:
        with _repeatable(idempotency_key) as key:
            request = _request(
                order_pb2.AdvanceOrderRequest,
                order_id=order_id,
                to_status=records.STATUS_TO_PROTO[status],
                expected_version=expected_version,
                idempotency_key=key,
            )
            response = self._orders.call(self._order_service.AdvanceOrder, request, deadline=self._deadline)
        return Answer(records.order_from_proto(response.order), response.replayed)

    def get_order(self, order_id: str) -> Order:
        request = _request(order_pb2.GetOrderRequest, order_id=order_id)
        response = self._orders.call(self._order_service.GetOrder, request, deadline=self._deadline)
        return records.order_from_proto(response.order)

    def list_orders(
        self, *, customer_id: str = "", status: Status | None = None, page_size: int = 0, page_token: str = ""
    ) -> Page:
        """One page of the orders of a customer ("" = all) in a status (None = any)."""
        request = _request(
            order_pb2.ListOrdersRequest,
            page_size=page_size,
            page_token=page_token,
            customer_id=customer_id,
            status=records.STATUS_TO_PROTO[status] if status else order_pb2.ORDER_STATUS_UNSPECIFIED,
        )
        page = self._orders.call(self._order_service.ListOrders, request, deadline=self._deadline)
        return Page([records.order_from_proto(order) for order in page.orders], page.next_page_token)

    def flow(self) -> Flow:
        answer = self._orders.call(self._order_service.GetFlow, order_pb2.GetFlowRequest(), deadline=self._deadline)
        return Flow(
            outbox_depth=answer.outbox_depth,
            outbox_oldest=records.microseconds(answer.outbox_oldest) if answer.HasField("outbox_oldest") else 0,
            queues=tuple(QueueDepth(each.name, each.ready, each.retrying, each.dead) for each in answer.queues),
            broker_problem=answer.broker_problem,
        )

    def events_after(self, sequence: int, limit: int) -> tuple[list[Event], bool]:
        """The first events of the log after a sequence, and whether there are more."""
        # A page of the log ends at a sequence: its token is where the next one starts.
        request = _request(order_pb2.ListEventsRequest, page_size=limit, page_token=pages.token(sequence))
        page = self._orders.call(self._order_service.ListEvents, request, deadline=self._deadline)
        return [events.from_proto(each.event) for each in page.events], bool(page.next_page_token)

    def log(self, *, order_id: str = "", change: Change | None = None, since: int = 0) -> Generator[Logged, None, None]:
        """The event log as it stands, oldest first; `since` in microseconds since the epoch, 0 = all that is kept."""
        token = ""
        while True:
            request = _request(
                order_pb2.ListEventsRequest,
                page_size=MAX_PAGE,
                page_token=token,
                order_id=order_id,
                change=change.value if change else "",
                since=records.timestamp(since) if since else None,
            )
            page = self._orders.call(self._order_service.ListEvents, request, deadline=self._deadline)
            for logged in page.events:
                yield Logged(event=events.from_proto(logged.event), published=logged.published)
            token = page.next_page_token
            if not token:
                return

    def audit_stock(self) -> tuple[list[StockAudit], int]:
        """Every product's books by id, and how many commands are pending, all of one moment."""
        request = product_pb2.AuditStockRequest()
        answer = self._products.call(self._product_service.AuditStock, request, deadline=self._deadline)
        names = [each.name for each in fields(StockAudit)]
        audits = [StockAudit(**{name: getattr(each, name) for name in names}) for each in answer.products]
        return audits, answer.pending

    def stock_moves(self, order_id: str) -> list[StockMove]:
        """The ledger's lines for one order, oldest first."""
        request = _request(product_pb2.ListStockMovesRequest, order_id=order_id)
        answer = self._products.call(self._product_service.ListStockMoves, request, deadline=self._deadline)
        return [
            StockMove(
                product_id=each.product_id,
                delta=each.delta,
                kind=each.kind,
                command_id=each.command_id,
                reason=each.reason,
                at=records.microseconds(each.at),
            )
            for each in answer.moves
        ]

    def watch(
        self, *, order_id: str = "", customer_id: str = "", after_sequence: int = 0, backoff: Backoff | None = None
    ) -> Generator[Event, None, None]:
        """Every event after a sequence, then live, each once and in order; never ends by itself.

        A lost stream is resumed where it broke, with growing pauses, for as long as it takes. `Unavailable` is raised
        only when the Order Service does not answer at the beginning.
        """
        backoff = backoff or Backoff(0.1, 5.0)
        last = after_sequence
        self.list_orders(page_size=1)  # a stream without events is silent: only an answer tells that somebody is there
        while True:
            request = _request(
                order_pb2.WatchOrdersRequest,
                order_id=order_id or None,
                customer_id=customer_id or None,
                after_sequence=last,
            )
            reason = "the stream ended"
            began = time.monotonic()
            try:
                with closing(self._orders.stream(self._order_service.WatchOrders, request)) as messages:
                    for message in messages:
                        backoff.reset()
                        if message.sequence > last:
                            last = message.sequence
                            yield events.from_proto(message)
            except errors.Unavailable as error:
                reason = error.message
            routine = time.monotonic() - began > ROUTINE_SECONDS
            if routine:
                backoff.reset()
            pause = backoff.pause()
            level = logging.DEBUG if routine else logging.WARNING
            logger.log(level, "watching again after sequence %d in %.1f s: %s", last, pause, reason)
            time.sleep(pause)


@contextmanager
def _repeatable(idempotency_key: str) -> Iterator[str]:
    """The key of one write; when nobody answered, the error says how to repeat it safely."""
    key = idempotency_key or ids.uuid7()
    try:
        yield key
    except errors.Unavailable as error:
        raise errors.Unavailable(
            f"{error.message} (it may have been done: to repeat it safely use idempotency key {key})",
            error.retry_after,
            {**error.metadata, "idempotency_key": key},
        ) from error


def _request(kind: type[Request], prefix: str = "", /, **values: Any) -> Request:
    """The message; raises InvalidArgument naming the field whose value its type cannot carry."""
    for field, value in values.items():
        try:
            kind(**{field: value})
        except ValueError as error:  # out of the number's range, or text that is not Unicode
            raise errors.InvalidArgument.of(prefix + field, f"{value!r}: {error}") from error
    return kind(**values)


def _lines(lines: Sequence[Wanted]) -> list[order_pb2.OrderLine]:
    return [
        _request(order_pb2.OrderLine, f"lines[{number}].", product_id=product_id, quantity=quantity)
        for number, (product_id, quantity) in enumerate(lines)
    ]
