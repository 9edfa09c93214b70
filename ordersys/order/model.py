"""The rules of an order, pure: which change is allowed in which status, and what it makes of the order."""

from dataclasses import dataclass

from ordersys.core import errors
from ordersys.core.events import Change
from ordersys.core.records import Line, Order, Status

TRANSITIONS: dict[Change, tuple[tuple[Status, ...], Status]] = {
    Change.LINES: ((Status.PLACED,), Status.PLACED),
    Change.SHIPPED: ((Status.PLACED,), Status.SHIPPED),
    Change.DELIVERED: ((Status.SHIPPED,), Status.DELIVERED),
    Change.CANCELLED: ((Status.PLACED,), Status.CANCELLED),
}
"""The status machine: change -> the statuses it is allowed in, and the status it leads to."""

ADVANCES = {Status.SHIPPED: Change.SHIPPED, Status.DELIVERED: Change.DELIVERED}
"""The statuses that AdvanceOrder leads to: the transitions that move no stock."""

_KEYED = "key:"  # before the key of a caller, to tell it from the command ids of the Product Service
_WORDS = {Change.LINES: "changed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One change to one order. `command_id` is empty for a change that is not protected against repetition.

    The same command id with another `fingerprint` is another command, and refused.
    """

    command_id: str
    order_id: str
    change: Change
    expected_version: int = 0  # 0 = any
    customer_id: str = ""
    lines: tuple[Line, ...] = ()
    currency: str = ""
    traceparent: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Settle:
    """Ask what became of a command; if it was not executed by now, it never will be."""

    command_id: str


@dataclass(frozen=True, slots=True)
class Accepted:
    order: Order
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    error: errors.OrdersysError


@dataclass(frozen=True, slots=True)
class Void:
    pass


Outcome = Accepted | Refused | Void
"""What became of a command; VOID = it was not executed and never will be."""


def apply(order: Order | None, command: Command, now: int) -> Order:
    """The order after the command; raises what forbids it. `now` is in microseconds since the epoch."""
    if command.change is Change.CREATED:
        if order is not None:
            raise errors.VersionConflict.of(order.id, 0, order.version)
        return Order(
            id=command.order_id,
            customer_id=command.customer_id,
            status=Status.PLACED,
            lines=command.lines,
            currency=command.currency,
            version=1,
            created_at=now,
            updated_at=now,
        )
    if order is None:
        raise errors.OrderNotFound.of(command.order_id)
    if command.expected_version not in (0, order.version):
        raise errors.VersionConflict.of(order.id, command.expected_version, order.version)
    allowed, status = TRANSITIONS[command.change]
    if order.status not in allowed:
        raise errors.InvalidTransition.of(order.id, order.status, _WORDS.get(command.change, command.change.value))
    new_lines = command.change is Change.LINES
    return Order(
        id=order.id,
        customer_id=order.customer_id,
        status=status,
        lines=command.lines if new_lines else order.lines,
        currency=command.currency if new_lines else order.currency,
        version=order.version + 1,
        created_at=order.created_at,
        updated_at=max(now, order.updated_at),
    )


def advance(
    order_id: str, to_status: Status | None, expected_version: int, *, key: str = "", traceparent: str = ""
) -> Command:
    """The command that AdvanceOrder asks for; raises InvalidArgument for a status it does not lead to."""
    change = check_advance(to_status)
    return Command(
        command_id=f"{_KEYED}{key}" if key else "",
        order_id=order_id,
        change=change,
        expected_version=expected_version,
        traceparent=traceparent,
        fingerprint=f"{change} {expected_version} {order_id}" if key else "",
    )


def reused(command: Command) -> errors.IdempotencyKeyReused:
    """What a command is refused with whose id was used before for something else."""
    return errors.IdempotencyKeyReused.of(command.command_id.removeprefix(_KEYED))


def check_advance(to_status: Status | None) -> Change:
    """The change that AdvanceOrder asks for; raises InvalidArgument for a status it does not lead to."""
    if to_status is None or to_status not in ADVANCES:
        names = " or ".join(f"ORDER_STATUS_{status.name}" for status in ADVANCES)
        raise errors.InvalidArgument.of("to_status", f"must be {names}")
    return ADVANCES[to_status]
