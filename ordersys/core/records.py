"""The order and the product as every role knows them, with their two forms: JSON and protobuf."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from ordersys.core import errors, ids
from ordersys.core.v1 import order_pb2, product_pb2


class Status(StrEnum):
    PLACED = "placed"
    SHIPPED = "shipped"
    DELIVERED = "delivered"
    CANCELLED = "cancelled"


STATUS_TO_PROTO = {
    Status.PLACED: order_pb2.ORDER_STATUS_PLACED,
    Status.SHIPPED: order_pb2.ORDER_STATUS_SHIPPED,
    Status.DELIVERED: order_pb2.ORDER_STATUS_DELIVERED,
    Status.CANCELLED: order_pb2.ORDER_STATUS_CANCELLED,
}
STATUS_FROM_PROTO = {number: status for status, number in STATUS_TO_PROTO.items()}


@dataclass(frozen=True, slots=True)
class Line:
    """So many units of a product at a price per unit, in minor units of the order's currency."""

    product_id: str
    quantity: int
    unit_price: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One version of an order. Times are microseconds since the epoch, money is in minor units."""

    id: str
    customer_id: str
    status: Status
    lines: tuple[Line, ...]
    currency: str
    version: int
    created_at: int
    updated_at: int

    @property
    def total(self) -> int:
        return sum(line.quantity * line.unit_price for line in self.lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An order as it is asked for, before anybody has taken it: lines with today's prices, in minor units.

    `placing` is False when the lines of an order are to be replaced; whose order that is, the Product Service does not
    know, and `customer_id` is "".
    """

    order_id: str
    customer_id: str
    lines: tuple[Line, ...]
    currency: str
    placing: bool

    @property
    def total(self) -> int:
        return sum(line.quantity * line.unit_price for line in self.lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What can be sold, its price per unit in minor units, and how many units are available now."""

    id: str
    name: str
    description: str
    attributes: Mapping[str, str]
    currency: str
    price: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StockMove:
    """One line of the stock ledger; `at` is in microseconds since the epoch."""

    product_id: str
    delta: int
    kind: str
    command_id: str
    reason: str
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StockAudit:
    """Units of one product as the shelf, the ledger and the reservations have them."""

    product_id: str
    available: int
    ledger: int
    seeded: int
    adjusted: int
    reserved: int
    held: int


def order_json(order: Order) -> dict[str, Any]:
    return {
        "id": order.id,
        "customer_id": order.customer_id,
        "status": order.status.value,
        "lines": lines_json(order.lines, order.currency),
        "total": {"currency": order.currency, "amount": order.total},
        "version": order.version,
        "created_at": ids.rfc3339(order.created_at),
        "updated_at": ids.rfc3339(order.updated_at),
    }


def lines_json(lines: Iterable[Line], currency: str) -> list[dict[str, Any]]:
    return [
        {
            "product_id": line.product_id,
            "quantity": line.quantity,
            "unit_price": {"currency": currency, "amount": line.unit_price},
        }
        for line in lines
    ]


def product_json(product: Product) -> dict[str, Any]:
    return {
        "id": product.id,
        "name": product.name,
        "description": product.description,
        "attributes": dict(product.attributes),
        "price": {"currency": product.currency, "amount": product.price},
        "available": product.available,
    }


def order_to_proto(order: Order) -> order_pb2.Order:
    return order_pb2.Order(
        id=order.id,
        customer_id=order.customer_id,
        status=STATUS_TO_PROTO[order.status],
        lines=lines_to_proto(order.lines, order.currency),
        total=order_pb2.Money(currency=order.currency, amount=order.total),
        version=order.version,
        created_at=timestamp(order.created_at),
        updated_at=timestamp(order.updated_at),
    )


def order_from_proto(message: order_pb2.Order) -> Order:
    return Order(
        id=message.id,
        customer_id=message.customer_id,
        status=_status(message.status),
        lines=lines_from_proto(message.lines),
        currency=message.total.currency,
        version=message.version,
        created_at=microseconds(message.created_at),
        updated_at=microseconds(message.updated_at),
    )


def _status(number: order_pb2.OrderStatus.ValueType) -> Status:
    status = STATUS_FROM_PROTO.get(number)
    if status is None:
        raise errors.Internal(f"order status {number} is not known here: the service is newer than this ordersys")
    return status


def lines_to_proto(lines: Iterable[Line], currency: str) -> list[order_pb2.OrderLine]:
    return [
        order_pb2.OrderLine(
            product_id=line.product_id,
            quantity=line.quantity,
            unit_price=order_pb2.Money(currency=currency, amount=line.unit_price),
        )
        for line in lines
    ]


def lines_from_proto(lines: Iterable[order_pb2.OrderLine]) -> tuple[Line, ...]:
    return tuple(Line(line.product_id, line.quantity, line.unit_price.amount) for line in lines)


def product_to_proto(product: Product) -> product_pb2.Product:
    return product_pb2.Product(
        id=product.id,
        name=product.name,
        description=product.description,
        attributes=product.attributes,
        price=order_pb2.Money(currency=product.currency, amount=product.price),
        available=product.available,
    )


def product_from_proto(message: product_pb2.Product) -> Product:
    return Product(
        id=message.id,
        name=message.name,
        description=message.description,
        attributes=dict(message.attributes),
        currency=message.price.currency,
        price=message.price.amount,
        available=message.available,
    )


def timestamp(us: int) -> Timestamp:
    return Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1000)


def microseconds(message: Timestamp) -> int:
    return message.seconds * 1_000_000 + message.nanos // 1000


def refusal_to_proto(error: errors.OrdersysError) -> order_pb2.Refusal:
    return order_pb2.Refusal(code=error.code, message=error.message, metadata=error.metadata)


def refusal_from_proto(message: order_pb2.Refusal) -> errors.OrdersysError:
    return errors.refusal(message.code, message.message, message.metadata)
