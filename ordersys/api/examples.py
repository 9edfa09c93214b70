"""The examples of the OpenAPI document: what the shop of the seed data answers."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

_ORDER_ID = "019a7c1e-5b1f-7d3a-9c52-3f0a6c1b2d4e"
_MONEY = {"currency": "EUR", "amount": 2490}
_PRODUCT = {
    "id": "1",
    "name": "Espresso beans",
    "description": "Single-origin arabica, whole bean, 1 kg",
    "attributes": {"origin": "Ethiopia", "roast": "dark"},
    "price": _MONEY,
    "available": 120,
}
_ORDER = {
    "id": _ORDER_ID,
    "customer_id": "c-1",
    "status": "placed",
    "lines": [{"product_id": "1", "quantity": 2, "unit_price": _MONEY}],
    "total": {"currency": "EUR", "amount": 4980},
    "version": 1,
    "created_at": "2026-01-31T09:15:00.123456Z",
    "updated_at": "2026-01-31T09:15:00.123456Z",
}

BODIES: dict[str, Any] = {
    "Data": {"message": "6 products, 535 units available"},
    "Product": _PRODUCT,
    "ProductList": {"products": [_PRODUCT], "next_page_token": ""},
    "Order": _ORDER,
    "OrderList": {"orders": [_ORDER], "next_page_token": ""},
    "Health": {"status": "ok"},
    "Ready": {
        "status": "not_ready",
        "checks": {
            "product-service": {"status": "unavailable", "breaker": "open"},
            "order-service": {"status": "ready"},
        },
    },
    "Flow": {
        "outbox": {"depth": 0, "oldest_seconds": 0.0},
        "queues": [{"name": "notify.fanout", "ready": 0, "retrying": 0, "dead": 0}],
        "broker": "ok",
    },
}
"""By the name of the schema."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The problems of one status: what they have in common, and per code a detail and what else comes with it."""

    status: int
    description: str
    codes: dict[str, tuple[str, dict[str, Any]]]

    def examples(self) -> dict[str, Any]:
        """A whole problem per code."""
        return {
            code: {
                "type": f"urn:ordersys:problem:{code}",
                "title": HTTPStatus(self.status).phrase,
                "status": self.status,
                "detail": detail,
                "code": code,
                "trace_id": "8b3fd1c78b3fd1c78b3fd1c78b3fd1c7",
                **more,
            }
            for code, (detail, more) in self.codes.items()
        }


def _field(field: str, description: str) -> tuple[str, dict[str, Any]]:
    return f"{field}: {description}", {"errors": [{"field": field, "description": description}]}


def _about(detail: str, **metadata: str) -> tuple[str, dict[str, Any]]:
    return detail, {"metadata": metadata} if metadata else {}


PROBLEMS: dict[int, Refusal] = {
    each.status: each
    for each in (
        Refusal(
            400,
            "The request says something impossible; `errors` has one entry per field.",
            {"invalid_argument": _field("lines[0].quantity", "Input should be greater than or equal to 1")},
        ),
        Refusal(
            401,
            "No credentials, or none that are right.",
            {"unauthenticated": _about("send an API key in X-API-Key, or a token as Authorization: Bearer")},
        ),
        Refusal(
            403,
            "The credentials are right, and not for this.",
            {"permission_denied": _about("this needs the scope orders:write", scope="orders:write")},
        ),
        Refusal(
            404,
            "There is no such thing, or it is not the caller's.",
            {
                "order_not_found": _about(f"there is no order '{_ORDER_ID}'", order_id=_ORDER_ID),
                "product_not_found": _about("there is no product '99'", product_id="99"),
            },
        ),
        Refusal(
            409,
            "What is there does not allow it.",
            {
                "insufficient_stock": _about(
                    "product '1': 5 requested, 2 available", product_id="1", requested="5", available="2"
                ),
                "order_refused": _about("51 stems: at most 50 at a time", rule="at-most-50", reason="too_many_stems"),
                "invalid_transition": _about(
                    f"order '{_ORDER_ID}' is shipped: it cannot be cancelled",
                    order_id=_ORDER_ID,
                    status="shipped",
                    wanted="cancelled",
                ),
                "version_conflict": _about(
                    f"order '{_ORDER_ID}' is at version 2, not 1: read it again",
                    order_id=_ORDER_ID,
                    expected_version="1",
                    version="2",
                ),
            },
        ),
        Refusal(
            412,
            "`If-Match` names another version than the order has.",
            {
                "version_conflict": _about(
                    f"order '{_ORDER_ID}' is at version 2, not 1: read it again",
                    order_id=_ORDER_ID,
                    expected_version="1",
                    version="2",
                )
            },
        ),
        Refusal(413, "The body is larger than 256 KiB.", {"payload_too_large": _about("the body is too large")}),
        Refusal(
            415,
            "The body is not JSON by its `Content-Type`.",
            {"unsupported_media_type": _about("expected a JSON body with Content-Type: application/json")},
        ),
        Refusal(
            422,
            "This `Idempotency-Key` was used before with another request.",
            {
                "idempotency_key_reused": _about(
                    "idempotency key 'k-1' was used before with another request", idempotency_key="k-1"
                )
            },
        ),
        Refusal(
            429,
            "Too many requests; `Retry-After` says when the next will pass.",
            {"rate_limited": _about("more than 600 requests in 60 s; wait before the next")},
        ),
        Refusal(
            500,
            "A fault of ours; the log has more under `trace_id`.",
            {"internal": _about("internal error")},
        ),
        Refusal(
            503,
            "Nobody can answer now; repeat the request after `Retry-After`, a write with the same `Idempotency-Key`.",
            {
                "unavailable": _about(
                    "the order backend cannot answer now; repeat the request later, a write with the same"
                    " Idempotency-Key"
                )
            },
        ),
    )
}
"""By status."""
