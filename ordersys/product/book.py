"""The book: the slice of the stock database that one batch needs, read once and written back once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ordersys.core import errors
from ordersys.core.records import Product

Quantities = dict[str, int]
"""Units by product id."""

Answer = bytes | errors.OrdersysError
"""What a caller was told: the order or product as serialized protobuf, or the refusal."""


class Kind(StrEnum):
    """Why stock moved: each line of the ledger has one."""

    SEED = "seed"
    ADJUST = "adjust"
    RESERVE = "reserve"
    RELEASE = "release"


@dataclass(slots=True, kw_only=True)
class Reservation:
    """What one order holds, and at most one command on it that order-service has not answered yet.

    `held` belongs to the version that order-service confirmed last; `taken` was taken in addition for the pending
    command, and `wanted` is what the order will hold if that command is accepted.
    """

    order_id: str
    held: Quantities
    command_id: str = ""
    taken: Quantities = field(default_factory=dict)
    wanted: Quantities = field(default_factory=dict)
    placing: bool = False  # the pending command is the one that makes the order
    key: str = ""
    since: int = 0  # microseconds since the epoch

    @property
    def pending(self) -> bool:
        return bool(self.command_id)


@dataclass(slots=True, kw_only=True)
class KeyRecord:
    """An idempotency key with the fingerprint of its request, and the stored answer once there is one."""

    key: str
    fingerprint: str
    order_id: str
    command_id: str
    answer: Answer | None
    created_at: int  # microseconds since the epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One line of the append-only ledger: `available` is always the sum of a product's moves."""

    product_id: str
    delta: int
    kind: Kind
    order_id: str = ""
    command_id: str = ""
    reason: str = ""


@dataclass(slots=True)
class Book:
    """The slice of the database that one batch needs, and what the batch changed in it."""

    products: dict[str, Product] = field(default_factory=dict)
    available: Quantities = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    keys: dict[str, KeyRecord] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    touched_reservations: set[str] = field(default_factory=set)
    dropped_reservations: set[str] = field(default_factory=set)
    new_keys: set[str] = field(default_factory=set)
    answered_keys: set[str] = field(default_factory=set)
    dropped_keys: set[str] = field(default_factory=set)

    def move(self, quantities: Mapping[str, int], sign: int, kind: Kind, reservation: Reservation) -> None:
        """Take (-1) or give back (+1) the quantities of one order."""
        for product_id, quantity in quantities.items():
            if quantity:
                self.available[product_id] += sign * quantity
                self.moves.append(
                    Move(
                        product_id=product_id,
                        delta=sign * quantity,
                        kind=kind,
                        order_id=reservation.order_id,
                        command_id=reservation.command_id,
                    )
                )

    def reserve(self, reservation: Reservation) -> None:
        self.reservations[reservation.order_id] = reservation
        self.touched_reservations.add(reservation.order_id)
        self.move(reservation.taken, -1, Kind.RESERVE, reservation)

    def remember(self, record: KeyRecord) -> None:
        self.keys[record.key] = record
        self.new_keys.add(record.key)

    def answer(self, key: str, answer: Answer) -> None:
        self.keys[key].answer = answer
        self.answered_keys.add(key)

    def forget(self, key: str) -> None:
        del self.keys[key]
        self.new_keys.discard(key)
        self.dropped_keys.add(key)
