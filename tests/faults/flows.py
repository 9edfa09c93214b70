"""Every kind of transaction that the stores make: what it does, and what was done before it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from faults.stores import NOW, SEED, Stores, adjust, cancel, place, settle, update

from ordersys.core.events import Change
from ordersys.core.records import Line
from ordersys.order import model as order_model
from ordersys.product import store as product_store
from ordersys.product.model import Fate

PLACED = place(1, ("a", 3), ("b", 1))
CHANGED = update("s1", ("a", 1), ("b", 4))
GIVEN_UP = cancel("s2")

Act = Callable[[Stores], object]


def decide(*commands: product_store.AnyCommand) -> Act:
    return lambda stores: asyncio.run(stores.products.decide(commands, NOW))


def command(order_id: str, change: Change, lines: tuple[Line, ...] = ()) -> order_model.Command:
    return order_model.Command(
        command_id=f"{change}-{order_id}",
        order_id=order_id,
        change=change,
        customer_id="c",
        lines=lines,
        currency="EUR",
    )


NEW = command("n1", Change.CREATED, (Line("a", 1, 100), Line("b", 2, 100)))


def apply(*items: order_model.Command | order_model.Settle) -> Act:
    def act(stores: Stores) -> object:
        return asyncio.run(
            stores.orders.apply(items, NOW, lambda: "always the same id, so that states can be compared")
        )

    return act


@dataclass(frozen=True)
class Flow:
    """What was done before, each a transaction of its own, and the transaction that is looked at."""

    before: Sequence[Act]
    act: Act


def shop(stores: Stores) -> None:
    stores.products.seed(SEED, NOW)
    stores.orders.seed(SEED)


FLOWS: Mapping[str, Mapping[str, Flow]] = {
    "product": {
        "seed": Flow([], lambda stores: stores.products.seed(SEED, NOW)),
        "place": Flow([shop], decide(PLACED)),
        "place, refused": Flow([shop], decide(place(2, ("a", 1), ("b", 1000)))),
        "placement accepted": Flow([shop, decide(PLACED)], decide(settle(PLACED, Fate.ACCEPTED))),
        "placement refused": Flow([shop, decide(PLACED)], decide(settle(PLACED, Fate.REFUSED))),
        "placement void": Flow([shop, decide(PLACED)], decide(settle(PLACED, Fate.VOID))),
        "update": Flow([shop], decide(CHANGED)),
        "update accepted": Flow([shop, decide(CHANGED)], decide(settle(CHANGED, Fate.ACCEPTED))),
        "update refused": Flow([shop, decide(CHANGED)], decide(settle(CHANGED, Fate.REFUSED))),
        "cancel": Flow([shop], decide(GIVEN_UP)),
        "cancel accepted": Flow([shop, decide(GIVEN_UP)], decide(settle(GIVEN_UP, Fate.ACCEPTED))),
        "cancel void": Flow([shop, decide(GIVEN_UP)], decide(settle(GIVEN_UP, Fate.VOID))),
        "adjust": Flow([shop], decide(adjust(5))),
        "a batch of everything": Flow(
            [shop, decide(PLACED)],
            decide(
                settle(PLACED, Fate.ACCEPTED), place(3, ("b", 7)), CHANGED, GIVEN_UP, adjust(-9), place(4, ("b", 999))
            ),
        ),
        "prune": Flow(
            [shop, decide(adjust(1), adjust(2), PLACED)],
            lambda stores: asyncio.run(stores.products.prune(NOW + 1, 10)),
        ),
    },
    "order": {
        "seed": Flow([], lambda stores: stores.orders.seed(SEED)),
        "place": Flow([shop], apply(NEW)),
        "update": Flow([shop], apply(command("s1", Change.LINES, (Line("b", 9, 100),)))),
        "cancel": Flow([shop], apply(command("s1", Change.CANCELLED))),
        "ship": Flow([shop], apply(command("s1", Change.SHIPPED))),
        "refused": Flow([shop], apply(command("s1", Change.DELIVERED))),
        "settle what never came": Flow([shop], apply(order_model.Settle("lost"))),
        "a batch of everything": Flow(
            [shop],
            apply(
                NEW,
                command("n1", Change.LINES, (Line("b", 9, 100),)),
                command("s1", Change.CANCELLED),
                command("s2", Change.SHIPPED),
                command("s2", Change.LINES),
                order_model.Settle("lost"),
                order_model.Settle(NEW.command_id),
            ),
        ),
        "events sent": Flow(
            [shop, apply(NEW, command("s1", Change.SHIPPED))],
            lambda stores: stores.orders.mark_sent([1, 2]),
        ),
        "prune": Flow(
            [shop, apply(NEW, command("s1", Change.SHIPPED)), lambda stores: stores.orders.mark_sent([1])],
            lambda stores: asyncio.run(stores.orders.prune(NOW + 1, 10)),
        ),
    },
    "notify": {
        "record": Flow([], lambda stores: stores.inbox.record("q", [("e1", "o1"), ("e2", "o1")], NOW)),
        "prune": Flow(
            [lambda stores: stores.inbox.record("q", [("e1", "o1"), ("e2", "o1")], NOW)],
            lambda stores: stores.inbox.prune(NOW + 1, 10),
        ),
    },
}
