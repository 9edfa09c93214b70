"""/api/v1/orders: placing an order and reading it."""

from flask import Response, jsonify, request
from flask_openapi3 import APIBlueprint, Tag
from pydantic import BaseModel, ConfigDict, Field

from ordersys.api import problems
from ordersys.api.schemas import Money, Parameters
from ordersys.api.upstream import Upstream
from ordersys.core import fields, ids, records
from ordersys.core.records import Status
from ordersys.core.v1 import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc

PATH = "/api/v1/orders"


class WantedLine(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    product_id: str = Field(min_length=1, max_length=fields.MAX_ID)
    quantity: int = Field(ge=1, le=fields.MAX_QUANTITY)


class WantedOrder(BaseModel):
    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={"example": {"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 2}]}},
    )

    customer_id: str = Field(min_length=1, max_length=fields.MAX_ID)
    lines: list[WantedLine] = Field(min_length=1, max_length=fields.MAX_LINES)


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


class OrderPath(BaseModel):
    id: str = Field(description="order id")


class WriteHeader(Parameters):
    idempotency_key: str = Field(
        "",
        alias="Idempotency-Key",
        max_length=fields.MAX_KEY,
        description="the same key with the same body is applied once and answered alike; with another body it is 422",
    )


def resource(product_service: Upstream, order_service: Upstream) -> APIBlueprint:
    """Placed at the door of the stock, the Product Service; read from the record of orders, the Order Service."""
    products = product_pb2_grpc.ProductServiceStub(product_service.channel.raw)
    orders = order_pb2_grpc.OrderServiceStub(order_service.channel.raw)
    blueprint = APIBlueprint("orders", __name__, url_prefix=PATH, abp_tags=[Tag(name="orders")])

    @blueprint.post(
        "", operation_id="place_order", responses={"201": Order, **problems.documented(404, 409, 413, 415, 422)}
    )
    def place_order(header: WriteHeader, body: WantedOrder) -> Response:
        """Reserves stock for every line and records the order, or changes nothing."""
        wanted = product_pb2.PlaceOrderRequest(
            # A key of our own makes the retries inside this one request safe; it does not protect the caller's.
            idempotency_key=header.idempotency_key or ids.uuid7(),
            customer_id=body.customer_id,
            lines=[order_pb2.OrderLine(product_id=each.product_id, quantity=each.quantity) for each in body.lines],
        )
        order = product_service.call(products.PlaceOrder, wanted).order
        response = _answer(order)
        response.status_code = 201
        response.location = f"{PATH}/{order.id}"
        return response

    @blueprint.get("/<id>", operation_id="get_order", responses={"200": Order, **problems.documented(404)})
    def get_order(path: OrderPath) -> Response:
        """One order as it is now; 304 when `If-None-Match` names its version."""
        wanted = order_pb2.GetOrderRequest(order_id=path.id)
        response = _answer(order_service.call(orders.GetOrder, wanted).order)
        response.make_conditional(request)
        return response

    return blueprint


def _answer(message: order_pb2.Order) -> Response:
    """The bare order, with its version as a strong ETag."""
    response = jsonify(records.order_json(records.order_from_proto(message)))
    response.set_etag(str(message.version))
    return response
