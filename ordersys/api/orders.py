"""/api/v1/orders: an order through its whole life."""

from typing import Any, Literal

from flask import Response, jsonify, request
from flask_openapi3 import APIBlueprint, Tag
from pydantic import BaseModel, ConfigDict, Field

from ordersys.api import access, http, problems
from ordersys.api.access import Scope
from ordersys.api.schemas import (
    ChangeHeader,
    Id,
    MaybeId,
    Money,
    NoQuery,
    OptionalBody,
    Page,
    Reason,
    Whole,
    WriteHeader,
    answered,
)
from ordersys.api.upstream import Upstream
from ordersys.core import errors, fields, records
from ordersys.core.records import Status
from ordersys.core.v1 import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc

PATH = "/api/v1/orders"


class WantedLine(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    product_id: Id
    quantity: Whole = Field(ge=1, le=fields.MAX_QUANTITY)


class WantedLines(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", json_schema_extra={"example": {"lines": [{"product_id": "1", "quantity": 3}]}}
    )

    lines: list[WantedLine] = Field(min_length=1, max_length=fields.MAX_LINES)


class WantedOrder(WantedLines):
    model_config = ConfigDict(
        json_schema_extra={"example": {"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 2}]}}
    )

    customer_id: Id


class Cancellation(OptionalBody):
    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra={"example": {"reason": "changed my mind"}})

    reason: Reason = Field("", description="why, for the stock ledger")


class Line(BaseModel):
    product_id: str
    quantity: int
    unit_price: Money


class Order(BaseModel):
    id: str = Field(description="UUIDv7")
    customer_id: str
    status: Status
    lines: list[Line]
    total: Money
    version: int = Field(description="starts at 1 and grows by 1 with every change; also the ETag")
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    updated_at: str = Field(json_schema_extra={"format": "date-time"})


class OrderList(BaseModel):
    orders: list[Order]
    next_page_token: str = Field(description="empty on the last page")


class OrderPath(BaseModel):
    id: Id = Field(description="order id")


class OrderFilter(Page):
    customer_id: MaybeId = Field("", description="empty: every customer whom the caller may see")
    status: Literal["", "placed", "shipped", "delivered", "cancelled"] = Field("", description="empty: every status")


class Orders:
    """What every operation on orders does with the Order Service, and for whom."""

    def __init__(self, upstream: Upstream) -> None:
        self.service = order_pb2_grpc.OrderServiceStub(upstream.channel.raw)
        self._upstream = upstream

    def list(self, query: OrderFilter) -> order_pb2.ListOrdersResponse:
        wanted = order_pb2.ListOrdersRequest(
            page_size=query.page_size,
            page_token=query.page_token,
            customer_id=access.customer(query.customer_id),
            status=records.STATUS_TO_PROTO[Status(query.status)]
            if query.status
            else order_pb2.ORDER_STATUS_UNSPECIFIED,
        )
        return self._upstream.call(self.service.ListOrders, wanted)

    def read(self, order_id: str) -> order_pb2.Order:
        """The order; raises OrderNotFound, also when it is not the caller's: nobody learns that it exists."""
        order = self._upstream.call(self.service.GetOrder, order_pb2.GetOrderRequest(order_id=order_id)).order
        if access.caller().customer_id not in ("", order.customer_id):
            raise errors.OrderNotFound.of(order_id)
        return order

    def expected(self, order_id: str) -> int:
        """The version that the caller expects of an order that is theirs; 0 = any; raises VersionConflict.

        An order keeps its customer for ever, so it may be read before the write.
        """
        version = http.expected_version(request.headers.get("If-Match"))
        if version is not None and not access.caller().customer_id:
            return version
        actual = self.read(order_id).version
        if version is None:
            raise errors.VersionConflict(
                f'order {order_id!r} is at version {actual}: If-Match must be its strong ETag, "{actual}"',
                {"order_id": order_id, "version": str(actual)},
            )
        return version

    def advance(self, order_id: str, status: Status, header: WriteHeader) -> Response:
        if access.caller().customer_id:
            raise errors.PermissionDenied(f"a customer's credentials cannot mark an order as {status}")
        expected = self.expected(order_id)
        with header.key() as key:
            wanted = order_pb2.AdvanceOrderRequest(
                order_id=order_id,
                to_status=records.STATUS_TO_PROTO[status],
                expected_version=expected,
                idempotency_key=key,
            )
            return _written(self._upstream.call(self.service.AdvanceOrder, wanted))


def resource(product_service: Upstream, order_service: Upstream) -> APIBlueprint:
    """Changed at the door of the stock, the Product Service; read from the record of orders, the Order Service."""
    products = product_pb2_grpc.ProductServiceStub(product_service.channel.raw)
    orders = Orders(order_service)
    blueprint = APIBlueprint("orders", __name__, url_prefix=PATH, abp_tags=[Tag(name="orders")])

    @blueprint.post(
        "", operation_id="place_order", responses={"201": Order, **problems.documented(403, 404, 409, 413, 415, 422)}
    )
    @access.needs(Scope.ORDERS_WRITE)
    def place_order(query: NoQuery, header: WriteHeader, body: WantedOrder) -> Response:
        """Reserves stock for every line and records the order, or changes nothing."""
        customer_id = access.customer(body.customer_id)
        with header.key() as key:
            wanted = product_pb2.PlaceOrderRequest(
                idempotency_key=key, customer_id=customer_id, lines=_lines(body.lines)
            )
            placed = product_service.call(products.PlaceOrder, wanted)
        response = _written(placed)
        response.status_code = 201
        response.location = f"{PATH}/{placed.order.id}"
        return response

    @blueprint.get("", operation_id="list_orders", responses={"200": OrderList, **problems.documented(403)})
    @access.needs(Scope.ORDERS_READ)
    def list_orders(query: OrderFilter) -> dict[str, Any]:
        """Orders, the newest first."""
        page = orders.list(query)
        found = [records.order_json(records.order_from_proto(each)) for each in page.orders]
        return {"orders": found, "next_page_token": page.next_page_token}

    @blueprint.get("/<id>", operation_id="get_order", responses={"200": Order, **problems.documented(403, 404)})
    @access.needs(Scope.ORDERS_READ)
    def get_order(path: OrderPath, query: NoQuery) -> Response:
        """One order as it is now; 304 when `If-None-Match` names its version."""
        return _answer(orders.read(path.id))

    changed = {"200": Order, **problems.documented(403, 404, 409, 412, 413, 415, 422)}

    @blueprint.patch("/<id>", operation_id="update_order", responses=changed)
    @access.needs(Scope.ORDERS_WRITE)
    def update_order(path: OrderPath, query: NoQuery, header: ChangeHeader, body: WantedLines) -> Response:
        """Replaces the lines of a placed order; stock moves by the difference."""
        expected = orders.expected(path.id)
        with header.key() as key:
            wanted = product_pb2.UpdateOrderRequest(
                idempotency_key=key, order_id=path.id, lines=_lines(body.lines), expected_version=expected
            )
            return _written(product_service.call(products.UpdateOrder, wanted))

    @blueprint.post("/<id>/cancel", operation_id="cancel_order", responses=changed)
    @access.needs(Scope.ORDERS_WRITE)
    def cancel_order(path: OrderPath, query: NoQuery, header: ChangeHeader, body: Cancellation) -> Response:
        """Cancels a placed order; its stock returns."""
        expected = orders.expected(path.id)
        with header.key() as key:
            wanted = product_pb2.CancelOrderRequest(
                idempotency_key=key, order_id=path.id, reason=body.reason, expected_version=expected
            )
            return _written(product_service.call(products.CancelOrder, wanted))

    @blueprint.post("/<id>/ship", operation_id="ship_order", responses=changed)
    @access.needs(Scope.ORDERS_WRITE)
    def ship_order(path: OrderPath, query: NoQuery, header: ChangeHeader) -> Response:
        """Marks a placed order as shipped."""
        return orders.advance(path.id, Status.SHIPPED, header)

    @blueprint.post("/<id>/deliver", operation_id="deliver_order", responses=changed)
    @access.needs(Scope.ORDERS_WRITE)
    def deliver_order(path: OrderPath, query: NoQuery, header: ChangeHeader) -> Response:
        """Marks a shipped order as delivered."""
        return orders.advance(path.id, Status.DELIVERED, header)

    return blueprint


def _lines(wanted: list[WantedLine]) -> list[order_pb2.OrderLine]:
    return [order_pb2.OrderLine(product_id=each.product_id, quantity=each.quantity) for each in wanted]


def _answer(message: order_pb2.Order) -> Response:
    """The bare order, with its version as a strong ETag."""
    response = jsonify(records.order_json(records.order_from_proto(message)))
    response.set_etag(str(message.version))
    return response


def _written(
    answer: "product_pb2.PlaceOrderResponse | product_pb2.UpdateOrderResponse | product_pb2.CancelOrderResponse"
    " | order_pb2.AdvanceOrderResponse",
) -> Response:
    return answered(_answer(answer.order), replayed=answer.replayed)
