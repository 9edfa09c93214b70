"""What order-service announces: a CloudEvents 1.0 envelope around the order as the change left it.

The body on the broker is the structured JSON form (CloudEvents JSON Event Format 1.0), content type
`application/cloudevents+json`. `change` says what happened; type and routing key follow from it.
"""

import json
import reprlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from ordersys.core import fields, ids
from ordersys.core.records import (
    Line,
    Order,
    Status,
    lines_json,
    microseconds,
    order_from_proto,
    order_to_proto,
    timestamp,
)
from ordersys.core.v1 import order_pb2

CONTENT_TYPE = "application/cloudevents+json"
SOURCE = "/ordersys/order-service"
CREATED = "ordersys.order.created.v1"
UPDATED = "ordersys.order.updated.v1"

_LONGEST_NUMBER = 18  # digits that surely fit 64 bits


class Change(StrEnum):
    CREATED = "created"
    LINES = "lines"
    CANCELLED = "cancelled"
    SHIPPED = "shipped"
    DELIVERED = "delivered"


Named = TypeVar("Named", bound=StrEnum)


class MalformedEvent(ValueError):
    """A body that is not an event of ours; the message names what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change to one order. `sequence` grows over all events; `time` is in microseconds since the epoch."""

    id: str
    sequence: int
    change: Change
    time: int
    order: Order
    traceparent: str = ""

    @property
    def type(self) -> str:
        return CREATED if self.change is Change.CREATED else UPDATED


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One event of the event log; `published` is False while it waits in the outbox for the broker's confirm."""

    event: Event
    published: bool


def to_json(event: Event) -> dict[str, Any]:
    """The structured JSON form: envelope attributes, then `data`."""
    order = event.order
    document: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": SOURCE,
        "type": event.type,
        "subject": order.id,
        "time": ids.rfc3339(event.time),
        "datacontenttype": "application/json",
        "sequence": str(event.sequence),
    }
    if event.traceparent:
        document["traceparent"] = event.traceparent
    document["data"] = {
        "order_id": order.id,
        "customer_id": order.customer_id,
        "status": order.status.value,
        "version": order.version,
        "change": event.change.value,
        "lines": lines_json(order.lines, order.currency),
        "total": {"currency": order.currency, "amount": order.total},
        "created_at": ids.rfc3339(order.created_at),
        "updated_at": ids.rfc3339(order.updated_at),
    }
    return document


def encode(event: Event) -> str:
    """The body that goes to the broker."""
    return json.dumps(to_json(event), separators=(",", ":"), ensure_ascii=False)


def decode(body: bytes | str) -> Event:
    """The event in a body from the broker; raises MalformedEvent naming what is missing or wrong."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedEvent(f"not JSON: {error}") from error
    try:
        event = _from_json(document)
    except KeyError as error:
        raise MalformedEvent(f"not an order event: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise MalformedEvent(f"not an order event: {error}") from error
    if event.type != document["type"]:
        raise MalformedEvent(f"not an order event: {document['type']} and the change {event.change} contradict")
    return event


def _from_json(document: dict[str, Any]) -> Event:
    kind = _text(document, "type")
    if kind not in (CREATED, UPDATED):
        raise MalformedEvent(f"type: expected {CREATED} or {UPDATED}, got {kind[:50]!r}")
    sequence = _text(document, "sequence")
    if not (sequence.isascii() and sequence.isdigit() and len(sequence) <= _LONGEST_NUMBER):
        raise MalformedEvent(f"sequence: expected a whole number as text, got {sequence[:50]!r}")
    data = _field(document, "data")
    return Event(
        id=_id(document, "id"),
        sequence=int(sequence),
        change=_one_of(Change, data, "change"),
        time=ids.parse_rfc3339(_text(document, "time")),
        traceparent=_text(document, "traceparent") if document.get("traceparent") else "",
        order=Order(
            id=_id(data, "order_id"),
            customer_id=_id(data, "customer_id"),
            status=_one_of(Status, data, "status"),
            lines=tuple(
                Line(
                    _text(line, "product_id"), _number(line, "quantity"), _number(_field(line, "unit_price"), "amount")
                )
                for line in _list(data, "lines")
            ),
            currency=_text(_field(data, "total"), "currency"),
            version=_number(data, "version"),
            created_at=ids.parse_rfc3339(_text(data, "created_at")),
            updated_at=ids.parse_rfc3339(_text(data, "updated_at")),
        ),
    )


def _field(values: object, name: str) -> Any:
    if not isinstance(values, dict):
        raise MalformedEvent(f"expected an object with {name!r}, got {_shown(values)}")
    return values[name]


def _shown(value: object) -> str:
    """The beginning of a value, however deep or large it is."""
    return reprlib.repr(value)[:60]


def _id(values: object, name: str) -> str:
    value = _text(values, name)
    if not value or not fields.storable(value):
        raise MalformedEvent(f"{name}: expected an id, got {_shown(value)}")
    return value


def _text(values: object, name: str) -> str:
    value = _field(values, name)
    if not isinstance(value, str):
        raise MalformedEvent(f"{name}: expected text, got {_shown(value)}")
    value.encode()  # half of a surrogate pair is not text: UnicodeEncodeError is a ValueError
    return value


def _one_of(kind: type[Named], values: object, name: str) -> Named:
    value = _text(values, name)
    if value not in kind.__members__.values():
        raise MalformedEvent(f"{name}: expected one of {', '.join(kind)}, got {value[:50]!r}")
    return kind(value)


def _list(values: object, name: str) -> list[Any]:
    value = _field(values, name)
    if not isinstance(value, list):
        raise MalformedEvent(f"{name}: expected a list, got {_shown(value)}")
    return value


def _number(values: object, name: str) -> int:
    value = _field(values, name)
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise MalformedEvent(f"{name}: expected a whole number of 64 bits, got {_shown(value)}")
    return value


def traceparent_of(body: str) -> str:
    """The trace context in a body of ours, "" for none: that of what made the event.

    https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/extensions/distributed-tracing.md
    """
    return str(json.loads(body).get("traceparent", ""))


def to_proto(event: Event) -> order_pb2.OrderEvent:
    return order_pb2.OrderEvent(
        id=event.id,
        sequence=event.sequence,
        type=event.type,
        change=event.change.value,
        time=timestamp(event.time),
        traceparent=event.traceparent,
        order=order_to_proto(event.order),
    )


def from_proto(message: order_pb2.OrderEvent) -> Event:
    return Event(
        id=message.id,
        sequence=message.sequence,
        change=Change(message.change),
        time=microseconds(message.time),
        traceparent=message.traceparent,
        order=order_from_proto(message.order),
    )
