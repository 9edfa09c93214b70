"""What the whole system must do, as small as it can be said: a few dictionaries, and no knowledge of how it is done.

Only order-service decides what happens to an order. A command that got no answer may keep stock until it is settled;
it is `pending` then, and what it keeps is what the order held plus what the command would add.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Lines = tuple[tuple[str, int], ...]
Kind = Literal["place", "update", "cancel", "adjust"]

CHANGES = {"place": "created", "update": "lines", "cancel": "cancelled", "ship": "shipped", "deliver": "delivered"}
UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Order:
    """One version of an order."""

    id: str
    status: str
    version: int
    lines: Lines


Told = Order | int | str
"""What a caller is told: the order, the units available after an adjustment, or the code of an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One command. A repetition has the same key and body, and ids of its own."""

    kind: Kind
    command_id: str = ""
    order_id: str = ""
    key: str = ""
    lines: Lines = ()
    version: int = 0
    product_id: str = ""
    delta: int = 0


@dataclass(slots=True)
class Key:
    """What is known of an idempotency key: whose it is, the answer once one was given, and the attempts without one."""

    ask: Ask
    told: Told | None = None
    attempts: list[Ask] = field(default_factory=list)
    refusals: set[str] = field(default_factory=set)  # what an attempt without an answer may have been refused with


@dataclass(frozen=True, slots=True)
class Pending:
    """A command without an answer, and what the order keeps until it is settled."""

    ask: Ask
    keeps: Mapping[str, int]


class Model:
    def __init__(self, stock: Mapping[str, int]) -> None:
        self.stock = dict(stock)  # seeded and adjusted
        self.orders: dict[str, Order] = {}
        self.pending: dict[str, Pending] = {}  # by order id
        self.happened: dict[str, Told] = {}  # by command id: what its caller is to be told
        self.events: list[tuple[str, str, int]] = []  # order id, change, version
        self.keys: dict[str, Key] = {}

    def keeps(self, order_id: str) -> Mapping[str, int]:
        """The units that an order takes from the shelf."""
        if order_id in self.pending:
            return self.pending[order_id].keeps
        order = self.orders.get(order_id)
        return units(order.lines) if order and order.status != "cancelled" else {}

    def available(self) -> dict[str, int]:
        left = Counter(self.stock)
        for order_id in self.orders.keys() | self.pending.keys():
            left.subtract(self.keeps(order_id))
        return dict(left)

    def at_stock(self, ask: Ask) -> str:
        """The refusal before order-service is asked; "" when the command goes on."""
        if ask.kind != "place" and ask.order_id not in self.orders:
            return "order_not_found"
        wanted = units(ask.lines)
        if any(product_id not in self.stock for product_id in wanted):
            return "product_not_found"
        held, available = self.keeps(ask.order_id), self.available()
        short = any(number - held.get(name, 0) > available[name] for name, number in wanted.items())
        return "insufficient_stock" if short else ""

    def at_orders(self, kind: str, order_id: str, version: int, lines: Lines) -> Order | str:
        """What order-service makes of it: the order after the change, or the refusal."""
        order = self.orders.get(order_id)
        if kind == "place":
            return "version_conflict" if order else Order(order_id, "placed", 1, lines)
        if order is None:
            return "order_not_found"
        if version not in (0, order.version):
            return "version_conflict"
        before, after = {
            "update": ("placed", "placed"),
            "cancel": ("placed", "cancelled"),
            "ship": ("placed", "shipped"),
            "deliver": ("shipped", "delivered"),
        }[kind]
        if order.status != before:
            return "invalid_transition"
        return replace(order, status=after, version=order.version + 1, lines=lines if kind == "update" else order.lines)

    def evaluate(self, ask: Ask) -> Told:
        """The answer to a command that is asked for the first time now, with nothing pending on its order."""
        if ask.kind == "adjust":
            if ask.product_id not in self.stock:
                return "product_not_found"
            left = self.available()[ask.product_id] + ask.delta
            return left if left >= 0 else "insufficient_stock"
        return self.at_stock(ask) or self.at_orders(ask.kind, ask.order_id, ask.version, ask.lines)

    def happen(self, kind: str, order: Order, command_id: str = "") -> None:
        """Order-service has done it."""
        self.orders[order.id] = order
        self.events.append((order.id, CHANGES[kind], order.version))
        if command_id:
            self.happened[command_id] = order

    def count(self, ask: Ask, left: int) -> None:
        """The stock has been adjusted."""
        self.stock[ask.product_id] += ask.delta
        self.happened[ask.command_id] = left

    def take(self, ask: Ask) -> Pending:
        """What the order keeps while this command is pending; to be asked before it happens."""
        held, wanted = Counter(self.keeps(ask.order_id)), Counter(units(ask.lines))
        return Pending(ask, held | wanted)

    def same(self, key: Key, ask: Ask) -> bool:
        """Whether it is the request that the key stands for; a placement has no order id of its own."""
        order_id = key.ask.order_id if ask.kind == "place" else ask.order_id
        return replace(ask, command_id=key.ask.command_id, order_id=order_id) == key.ask

    def allowed(self, ask: Ask) -> tuple[set[Told], bool]:
        """The answers that are right now with nothing pending, and whether the command may have its effect now."""
        key = self.keys.get(ask.key) if ask.key else None
        if key is None:
            return {self.evaluate(ask)}, True
        if not self.same(key, ask):
            return {"idempotency_key_reused"}, False
        if key.told is not None:
            return {key.told}, False
        done = {self.happened[each.command_id] for each in key.attempts if each.command_id in self.happened}
        if done:
            return set(done), False
        return {self.evaluate(ask), *key.refusals}, True


def units(lines: Lines) -> dict[str, int]:
    total: Counter[str] = Counter()
    for product_id, quantity in lines:
        total[product_id] += quantity
    return dict(total)
