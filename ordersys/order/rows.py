"""Orders, events and commands as rows of their tables, and back."""

import json
from typing import Any

from ordersys.core import events
from ordersys.core.events import Event
from ordersys.core.records import Line, Order, Status


def command_row(
    command_id: str,
    fingerprint: str,
    *,
    order_id: str | None = None,
    sequence: int | None = None,
    refusal: str | None = None,
) -> dict[str, Any]:
    return {
        "command_id": command_id,
        "fingerprint": fingerprint,
        "order_id": order_id,
        "sequence": sequence,
        "refusal": refusal,
    }


def order_of(row: Any) -> Order:
    return Order(
        id=row.id,
        customer_id=row.customer_id,
        status=Status(row.status),
        lines=tuple(Line(*line) for line in json.loads(row.lines)),
        currency=row.currency,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def order_row(order: Order) -> dict[str, Any]:
    return {
        "id": order.id,
        "customer_id": order.customer_id,
        "status": order.status.value,
        "lines": json.dumps([[line.product_id, line.quantity, line.unit_price] for line in order.lines]),
        "currency": order.currency,
        "version": order.version,
        "created_at": order.created_at,
        "updated_at": order.updated_at,
    }


def event_row(event: Event) -> dict[str, Any]:
    return {
        "sequence": event.sequence,
        "event_id": event.id,
        "order_id": event.order.id,
        "customer_id": event.order.customer_id,
        "change": event.change.value,
        "at": event.time,
        "body": events.encode(event),
    }
