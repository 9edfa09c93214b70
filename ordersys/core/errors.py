"""The error tree. Each class has a stable code that callers in any language may rely on.

OrdersysError
 ├ InvalidArgument         invalid_argument         the request names an impossible value; one entry per field
 ├ ProductNotFound         product_not_found
 ├ OrderNotFound           order_not_found
 ├ DeadLetterNotFound      dead_letter_not_found
 ├ KeyNotFound             key_not_found            an API key, not an idempotency key
 ├ InsufficientStock       insufficient_stock
 ├ OrderRefused            order_refused            a rule of the shop's own says no
 ├ InvalidTransition       invalid_transition       the order's status does not allow the change
 ├ VersionConflict         version_conflict         the order changed since the caller read it
 ├ IdempotencyKeyReused    idempotency_key_reused   same key, other body
 ├ Unauthenticated         unauthenticated
 ├ PermissionDenied        permission_denied
 ├ Unavailable             unavailable              try again; what was asked may have happened
 │  └ NoAnswer             unavailable              the same, and not even a refusal came
 ├ Internal                internal                 a fault of ours; says nothing of the inside
 └ UsageError              usage                    wrong setting, flag or file on this machine; never crosses the wire
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request and what is wrong with it (google.rpc.BadRequest.FieldViolation)."""

    field: str
    description: str


class OrdersysError(Exception):
    """Anything ordersys refuses or cannot do; `message` is for people, `code` and `metadata` for programs."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})


class InvalidArgument(OrdersysError):
    code = "invalid_argument"

    def __init__(self, violations: Sequence[FieldViolation], message: str | None = None) -> None:
        super().__init__(message or "; ".join(f"{each.field}: {each.description}" for each in violations))
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str) -> "InvalidArgument":
        return cls([FieldViolation(field, description)])


class ProductNotFound(OrdersysError):
    code = "product_not_found"

    @classmethod
    def of(cls, product_id: str) -> "ProductNotFound":
        return cls(f"there is no product {product_id!r}", {"product_id": product_id})


class OrderNotFound(OrdersysError):
    code = "order_not_found"

    @classmethod
    def of(cls, order_id: str) -> "OrderNotFound":
        return cls(f"there is no order {order_id!r}", {"order_id": order_id})


class DeadLetterNotFound(OrdersysError):
    code = "dead_letter_not_found"

    @classmethod
    def of(cls, letter_ids: Sequence[str]) -> "DeadLetterNotFound":
        return cls(f"no such dead letter: {', '.join(letter_ids)}; `ordersys dlq list` shows those there are")


class KeyNotFound(OrdersysError):
    code = "key_not_found"

    @classmethod
    def of(cls, key_id: str) -> "KeyNotFound":
        return cls(f"there is no API key {key_id!r}; `ordersys keys list` shows those there are")


class InsufficientStock(OrdersysError):
    code = "insufficient_stock"

    @classmethod
    def of(cls, product_id: str, requested: int, available: int) -> "InsufficientStock":
        return cls(
            f"product {product_id!r}: {requested} requested, {available} available",
            {"product_id": product_id, "requested": str(requested), "available": str(available)},
        )


class OrderRefused(OrdersysError):
    code = "order_refused"

    @classmethod
    def of(cls, rule: str, reason: str, message: str) -> "OrderRefused":
        """`reason` is the rule's own code, for programs."""
        return cls(message, {"rule": rule, "reason": reason})


class InvalidTransition(OrdersysError):
    code = "invalid_transition"

    @classmethod
    def of(cls, order_id: str, status: str, wanted: str) -> "InvalidTransition":
        return cls(
            f"order {order_id!r} is {status}: it cannot be {wanted}",
            {"order_id": order_id, "status": status, "wanted": wanted},
        )


class VersionConflict(OrdersysError):
    code = "version_conflict"

    @classmethod
    def of(cls, order_id: str, expected: int, actual: int) -> "VersionConflict":
        return cls(
            f"order {order_id!r} is at version {actual}, not {expected}: read it again",
            {"order_id": order_id, "expected_version": str(expected), "version": str(actual)},
        )


class IdempotencyKeyReused(OrdersysError):
    code = "idempotency_key_reused"

    @classmethod
    def of(cls, key: str) -> "IdempotencyKeyReused":
        return cls(f"idempotency key {key!r} was used before with another request", {"idempotency_key": key})


class Unauthenticated(OrdersysError):
    code = "unauthenticated"


class PermissionDenied(OrdersysError):
    code = "permission_denied"


class Unavailable(OrdersysError):
    """Nobody could answer now. Unknown is not failed: what was asked may have happened, so repeat it with its key."""

    code = "unavailable"

    def __init__(
        self, message: str, retry_after: float = 0.5, metadata: Mapping[str, str] | None = None, *, told: str = ""
    ) -> None:
        super().__init__(message, metadata)
        self.retry_after = retry_after  # seconds, google.rpc.RetryInfo
        self.told = told or message  # what callers over the network hear: our hosts and users are not their business


class NoAnswer(Unavailable):
    """The service itself said nothing: no connection, or no answer before the deadline."""


class Internal(OrdersysError):
    code = "internal"

    def __init__(self, message: str = "internal error", metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, metadata)


class UsageError(OrdersysError):
    code = "usage"


REFUSALS: dict[str, type[OrdersysError]] = {
    each.code: each
    for each in (
        ProductNotFound,
        OrderNotFound,
        InsufficientStock,
        OrderRefused,
        InvalidTransition,
        VersionConflict,
        IdempotencyKeyReused,
        Unauthenticated,
        PermissionDenied,
    )
}
"""The errors that code, message and metadata describe completely: they can be stored and sent as those three."""


def refusal(code: str, message: str, metadata: Mapping[str, str]) -> OrdersysError:
    """The error that `code` names, rebuilt from its three parts; an unknown code becomes Internal."""
    return REFUSALS.get(code, Internal)(message, metadata)
