"""JSON Schemas (2020-12) of the events on the broker, one per type, as consumers in any language may rely on them.

They promise what order-service itself makes sure of, and no more: every limit here would have to stay.
"""

from typing import Any

from ordersys.core import events, fields
from ordersys.core.events import Change
from ordersys.core.records import Status
from ordersys.order import model

Json = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = (events.CREATED, events.UPDATED)


def schema(kind: str) -> Json:
    """The schema of one event type, with all that it refers to."""
    made = Change.CREATED if kind == events.CREATED else None
    return {
        "$schema": DIALECT,
        "$id": f"urn:ordersys:schema:{kind}",
        "title": "Order created" if made else "Order updated",
        "description": (
            "A CloudEvents 1.0 event in structured JSON form around the order as the change left it."
            " Ignore what you do not know: attributes and fields may be added."
        ),
        "type": "object",
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {
                "type": "string",
                "format": "uuid",
                "description": "UUIDv7, and the message_id on the broker: drop what you have handled before.",
            },
            "source": {"const": events.SOURCE},
            "type": {"const": kind},
            "subject": _id("The order's id."),
            "time": _moment("When the change was recorded."),
            "datacontenttype": {"const": "application/json"},
            "sequence": {
                "type": "string",
                "pattern": "^[0-9]{1,18}$",
                "description": "Grows with every event of every order, as text; compare it as a number.",
            },
            "traceparent": {
                "type": "string",
                "minLength": 1,
                "description": "W3C Trace Context of the request that made the change; absent when there was none.",
            },
            "data": _data(made),
        },
        "required": [
            *("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "sequence", "data"),
        ],
        "$defs": {"money": _money(), "line": _line()},
    }


def _data(made: Change | None) -> Json:
    properties = {
        "order_id": _id("UUIDv7 text, unless the order came with the seed data."),
        "customer_id": _id("Who ordered."),
        "status": {"const": Status.PLACED} if made else {"enum": list(Status)},
        "version": {"const": 1} if made else _whole(2, "Grows by 1 with every change: ignore what is older."),
        "change": {"const": made} if made else {"enum": list(model.TRANSITIONS)},
        "lines": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/line"}},
        "total": {"$ref": "#/$defs/money", "description": "The sum of all lines."},
        "created_at": _moment("When the order was placed."),
        "updated_at": _moment("When it was changed last."),
    }
    found: Json = {"type": "object", "properties": properties, "required": list(properties)}
    if not made:
        found["oneOf"] = [
            {"properties": {"change": {"const": change}, "status": {"const": status}}}
            for change, (_, status) in model.TRANSITIONS.items()
        ]
    return found


def _money() -> Json:
    return {
        "type": "object",
        "properties": {
            "currency": {"type": "string", "minLength": 1, "description": "ISO 4217."},
            "amount": _whole(0, "In minor units: 1999 is 19.99 EUR."),
        },
        "required": ["currency", "amount"],
    }


def _line() -> Json:
    return {
        "type": "object",
        "properties": {
            "product_id": _id("What was ordered."),
            "quantity": _whole(1, "Units of it."),
            "unit_price": {
                "$ref": "#/$defs/money",
                "description": "Per unit, at the moment the line was accepted.",
            },
        },
        "required": ["product_id", "quantity", "unit_price"],
    }


def _id(description: str) -> Json:
    return {"type": "string", "minLength": 1, "maxLength": fields.MAX_ID, "description": description}


def _whole(least: int, description: str) -> Json:
    return {"type": "integer", "minimum": least, "description": description}


def _moment(description: str) -> Json:
    return {"type": "string", "format": "date-time", "description": f"{description} RFC 3339, UTC, microseconds."}
