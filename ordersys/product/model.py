"""The rules of stock, pure: no I/O, no clock, no randomness that is not handed in.

A batch is decided on a `Book`, each command in the order of arrival; one that is refused moves no stock.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ordersys.core import errors, fields
from ordersys.core.errors import FieldViolation
from ordersys.core.records import Line, Product, Proposal, product_to_proto
from ordersys.product.book import Answer, Book, KeyRecord, Kind, Move, Quantities, Reservation

MAX_DELTA = 1_000_000_000
MAX_AVAILABLE = 1_000_000_000_000


class Fate(StrEnum):
    """What order-service said became of a command; VOID = it was not executed and never will be."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One line of a request: so many units of a product, not priced yet."""

    product_id: str
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What every command carries. The ids are made by the caller; `key` is empty when it is not protected."""

    command_id: str
    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceOrder(Command):
    order_id: str
    customer_id: str
    lines: tuple[Wanted, ...]
    traceparent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOrder(Command):
    order_id: str
    lines: tuple[Wanted, ...]
    expected_version: int
    traceparent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelOrder(Command):
    order_id: str
    reason: str
    expected_version: int
    traceparent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustStock(Command):
    product_id: str
    delta: int
    reason: str


OrderCommand = PlaceOrder | UpdateOrder | CancelOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """Order-service's word on a command that took stock; `answer` is what repetitions of its key will be told."""

    order_id: str
    command_id: str
    fate: Fate
    answer: Answer | None  # None for VOID


# --- what became of a command -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Taken:
    """The stock is taken and the command is pending: order-service has to be asked. `lines` carry their price."""

    command: OrderCommand
    lines: tuple[Line, ...]
    currency: str


@dataclass(frozen=True, slots=True)
class Answered:
    """There is a final answer, made now or stored by an earlier call with the same key (`replayed`)."""

    answer: Answer
    replayed: bool


@dataclass(frozen=True, slots=True)
class Unsettled:
    """An earlier command on this order or key has no answer yet: it has to be settled first."""

    order_id: str
    command_id: str
    since: int


@dataclass(frozen=True, slots=True)
class Settled:
    """False when somebody else had settled it before."""

    applied: bool


Decision = Taken | Answered | Unsettled | Settled

Judge = Callable[[Proposal], errors.OrdersysError | None]
"""The shop's own rules (see `rules.Rules`): why it does not take an order, None when it does."""


def decide(
    book: Book, command: OrderCommand | AdjustStock | Settlement, now: int, judge: Judge | None = None
) -> Decision:
    """Decide one command on the book; a refusal is an answer, and moves no stock.

    A rule's refusal is remembered with the key like any answer; an impossible value is not, it is refused anyway, nor
    is a fault, which may be gone the next time.
    """
    if isinstance(command, Settlement):
        return _settle(book, command)
    known = book.keys.get(command.key) if command.key else None
    if known is not None:
        return _again(known, command)
    try:
        decision = _adjust(book, command) if isinstance(command, AdjustStock) else _take(book, command, now, judge)
    except errors.OrdersysError as error:
        decision = Answered(error, replayed=False)
    unkeyed = not command.key or isinstance(decision, Unsettled)
    passing = errors.InvalidArgument | errors.Internal
    if unkeyed or (isinstance(decision, Answered) and isinstance(decision.answer, passing)):
        return decision
    book.remember(
        KeyRecord(
            key=command.key,
            fingerprint=command.fingerprint,
            order_id="" if isinstance(command, AdjustStock) else command.order_id,
            command_id=command.command_id,
            answer=decision.answer if isinstance(decision, Answered) else None,
            created_at=now,
        )
    )
    return decision


def _again(known: KeyRecord, command: Command) -> Decision:
    if known.fingerprint != command.fingerprint:
        return Answered(errors.IdempotencyKeyReused.of(command.key), replayed=False)
    if known.answer is None:
        return Unsettled(known.order_id, known.command_id, known.created_at)
    return Answered(known.answer, replayed=True)


def _adjust(book: Book, command: AdjustStock) -> Answered:
    product = _product(book, command.product_id)
    available = book.available[product.id]
    if available + command.delta < 0:
        raise errors.InsufficientStock.of(product.id, -command.delta, available)
    if available + command.delta > MAX_AVAILABLE:
        raise errors.InvalidArgument.of("delta", f"the stock would be more than {MAX_AVAILABLE} units")
    book.available[product.id] = available + command.delta
    book.moves.append(
        Move(
            product_id=product.id,
            delta=command.delta,
            kind=Kind.ADJUST,
            command_id=command.command_id,
            reason=command.reason,
        )
    )
    adjusted = with_available(product, available + command.delta)
    return Answered(product_to_proto(adjusted).SerializeToString(), replayed=False)


def _take(book: Book, command: OrderCommand, now: int, judge: Judge | None) -> Taken | Unsettled:
    reservation = book.reservations.get(command.order_id)
    if isinstance(command, PlaceOrder):
        held: Quantities = {}
    else:
        if reservation is None:
            raise errors.OrderNotFound.of(command.order_id)
        if reservation.pending:
            return Unsettled(reservation.order_id, reservation.command_id, reservation.since)
        held = reservation.held
    wanted: Quantities = {}
    lines: tuple[Line, ...] = ()
    currency = ""
    if not isinstance(command, CancelOrder):
        wanted = summed(command.lines)
        lines, currency = _priced(book, command.lines)
        if judge is not None and (refused := judge(_proposal(command, lines, currency))) is not None:
            raise refused
    # Only what grows is taken now; what shrinks is given back once order-service has accepted.
    grown = {each: quantity - held.get(each, 0) for each, quantity in wanted.items() if quantity > held.get(each, 0)}
    for product_id, quantity in grown.items():
        if quantity > book.available[product_id]:
            raise errors.InsufficientStock.of(product_id, quantity, book.available[product_id])
    book.reserve(
        Reservation(
            order_id=command.order_id,
            held=held,
            command_id=command.command_id,
            taken=grown,
            wanted=wanted,
            placing=isinstance(command, PlaceOrder),
            key=command.key,
            since=now,
        )
    )
    return Taken(command, lines, currency)


def _settle(book: Book, settlement: Settlement) -> Settled:
    reservation = book.reservations.get(settlement.order_id)
    if reservation is None or reservation.command_id != settlement.command_id:
        return Settled(applied=False)
    if settlement.fate is Fate.ACCEPTED:
        after = reservation.wanted
        before = add(reservation.held, reservation.taken)
        back = {each: quantity - after.get(each, 0) for each, quantity in before.items()}
    else:
        after = reservation.held
        back = reservation.taken
    book.move(back, +1, Kind.RELEASE, reservation)
    key = reservation.key
    if reservation.placing and settlement.fate is not Fate.ACCEPTED:
        del book.reservations[reservation.order_id]
        book.touched_reservations.discard(reservation.order_id)
        book.dropped_reservations.add(reservation.order_id)
    else:
        book.reservations[reservation.order_id] = Reservation(order_id=reservation.order_id, held=after)
        book.touched_reservations.add(reservation.order_id)
    if key and key in book.keys:
        if settlement.answer is None:
            book.forget(key)  # it never happened: the caller's repetition is a first time
        else:
            book.answer(key, settlement.answer)
    return Settled(applied=True)


def _proposal(command: PlaceOrder | UpdateOrder, lines: tuple[Line, ...], currency: str) -> Proposal:
    placing = isinstance(command, PlaceOrder)
    customer_id = command.customer_id if isinstance(command, PlaceOrder) else ""
    return Proposal(order_id=command.order_id, customer_id=customer_id, lines=lines, currency=currency, placing=placing)


def _product(book: Book, product_id: str) -> Product:
    product = book.products.get(product_id)
    if product is None:
        raise errors.ProductNotFound.of(product_id)
    return product


def _priced(book: Book, lines: Sequence[Wanted]) -> tuple[tuple[Line, ...], str]:
    """The lines with today's prices, and the one currency they share."""
    currency = _product(book, lines[0].product_id).currency
    priced = []
    for index, line in enumerate(lines):
        product = _product(book, line.product_id)
        if product.currency != currency:
            raise errors.InvalidArgument.of(
                f"lines[{index}].product_id",
                f"product {product.id!r} is sold in {product.currency}, the first line in {currency}:"
                " one order has one currency",
            )
        priced.append(Line(line.product_id, line.quantity, product.price))
    return tuple(priced), currency


def with_available(product: Product, available: int) -> Product:
    return Product(
        id=product.id,
        name=product.name,
        description=product.description,
        attributes=product.attributes,
        currency=product.currency,
        price=product.price,
        available=available,
    )


def summed(lines: Iterable[Wanted | Line]) -> Quantities:
    """Units by product: lines that name the same product count together."""
    total: Quantities = {}
    for line in lines:
        total[line.product_id] = total.get(line.product_id, 0) + line.quantity
    return total


def add(one: Mapping[str, int], other: Mapping[str, int]) -> Quantities:
    total = dict(one)
    for product_id, quantity in other.items():
        total[product_id] = total.get(product_id, 0) + quantity
    return total


def fingerprint(rpc: str, *parts: object) -> str:
    """What makes two requests the same: the call and everything in it but the key."""
    return hashlib.sha256(json.dumps([rpc, *parts], separators=(",", ":")).encode()).hexdigest()


# --- what a request may say -------------------------------------------------------------------------------------


def check_lines(lines: Sequence[Wanted]) -> list[FieldViolation]:
    if not lines:
        return [FieldViolation("lines", "an order needs at least one line")]
    if len(lines) > fields.MAX_LINES:
        return [FieldViolation("lines", f"has {len(lines)} lines, at most {fields.MAX_LINES} are allowed")]
    found: list[FieldViolation] = []
    for index, line in enumerate(lines):
        found += fields.text(f"lines[{index}].product_id", line.product_id)
        if not 1 <= line.quantity <= fields.MAX_QUANTITY:
            found.append(
                FieldViolation(f"lines[{index}].quantity", f"is {line.quantity}, must be 1 to {fields.MAX_QUANTITY}")
            )
    return found


def check_delta(delta: int) -> list[FieldViolation]:
    if delta == 0 or abs(delta) > MAX_DELTA:
        return [FieldViolation("delta", f"is {delta}, must be -{MAX_DELTA} to {MAX_DELTA} and not 0")]
    return []
