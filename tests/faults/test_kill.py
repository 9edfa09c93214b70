"""kill -9 under load, at random moments and at the one moment where it hurts most: rows 1 to 4 of the guarantees."""

import random
from collections.abc import Sequence
from contextlib import ExitStack

from e2e.processes import Backend, until
from faults import figures, verdict
from faults.books import Write
from faults.fleet import Fleet
from faults.load import PLENTY, Load
from faults.moments import Gate, gate, locked
from faults.once import asking, placings
from faults.wire import Wire

from ordersys.client.calls import Orders
from ordersys.core import errors
from ordersys.core.events import Change
from ordersys.core.records import Order

CALLERS = 8
NOTIFIERS = ("fanout", "topic")


def sure(rounds: int) -> int:
    """How often the exact moment is hit, of so many rounds: it takes longer than a random one."""
    return max(2, rounds // 3)


def random_kills(fleet: Fleet, load: Load, rounds: int, dice: random.Random, *names: str) -> None:
    """Kill one of these roles and start it again, so many times, with some answers in between."""
    for _ in range(rounds):
        load.goes_on(dice.randint(10, 100))
        name = dice.choice(names)
        fleet.kill(name)
        fleet.start(name)
    load.goes_on()


def test_row_01_order_service_is_killed_again_and_again(engine: str, backend: Backend, rounds: int, seed: int) -> None:
    fleet = Fleet(backend)
    with Load(backend, seed=seed) as load:
        random_kills(fleet, load, rounds, random.Random(seed), "order")  # noqa: S311 - to be repeated, not secret
    found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"), in_order=True)
    assert found["printed_again"] == 0  # the notifiers were never hurt
    figures.record(1, engine, kills=fleet.kills, **found)


def test_row_02_product_service_is_killed_between_reservation_and_answer(
    engine: str, backend: Backend, rounds: int, seed: int
) -> None:
    """Half of the callers repeat; the other half died with it, and recovery settles theirs alone."""
    fleet = Fleet(backend)
    with Load(backend, seed=seed) as load:
        random_kills(fleet, load, rounds, random.Random(seed), "product")  # noqa: S311 - to be repeated, not secret
    unheard = 0
    with Orders(backend.product_address, backend.order_address, 30) as orders:
        for number in range(sure(rounds)):
            writes = placings(f"sure-{number}", CALLERS, PLENTY[0])
            fleet.settled()
            if number % 2:
                nobody_is_asked(fleet, writes)
            else:
                nobody_hears_the_answer(fleet, writes, orders)
            fleet.start("product")
            told = [write.ask(orders) for write in writes[::2]]
            fleet.settled()
            unheard += len(on_record(orders, writes)) - len(told)
            told += [write.ask(orders) for write in writes[1::2]]
            assert [write.ask(orders) for write in writes[::2] + writes[1::2]] == told
            assert sorted(on_record(orders, writes)) == sorted(order.id for order in told if isinstance(order, Order))
    found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"), in_order=True)
    assert found["printed_again"] == 0
    figures.record(2, engine, kills=fleet.kills, reserved=sure(rounds) * CALLERS, done_unheard=unheard, **found)


def nobody_is_asked(fleet: Fleet, writes: Sequence[Write]) -> None:
    """Both services die with the stock reserved and no order on record: it has to go back."""
    fleet.stop("order")
    with asking(fleet.backend, writes, 30) as asked:
        until(lambda: fleet.pending() == len(writes), "the stock of all is reserved")
        fleet.kill("product", "order")
    assert all(isinstance(each.result().answer, errors.Unavailable) for each in asked)
    fleet.start("order")


def nobody_hears_the_answer(fleet: Fleet, writes: Sequence[Write], orders: Orders) -> None:
    """Orders are on record, and product-service dies without having heard of it."""
    with ExitStack() as lock:
        lock.enter_context(locked(fleet.backend, "order"))
        with asking(fleet.backend, writes, 30) as asked:
            until(lambda: fleet.pending() == len(writes), "the stock of all is reserved")
            fleet.stop("product")
            lock.close()
            until(lambda: bool(on_record(orders, writes)), "an order is on record")
            fleet.kill("product")
    assert all(isinstance(each.result().answer, errors.Unavailable) for each in asked)


def on_record(orders: Orders, writes: Sequence[Write]) -> list[str]:
    """The orders of the customer who asks for these."""
    return [order.id for order in orders.list_orders(customer_id=writes[0].customer, page_size=1000).orders]


def test_row_03_a_notifier_is_killed_in_the_middle_of_a_message(
    engine: str, backend: Backend, rounds: int, seed: int
) -> None:
    """Between effect and inbox the effect is had again; between inbox and ack the event comes again and is dropped."""
    with gate(backend) as before, Orders(backend.product_address, backend.order_address) as orders:
        fleet = Fleet(backend, settings=dict.fromkeys(NOTIFIERS, before.settings))
        with Load(backend, seed=seed) as load:
            dice = random.Random(seed)  # noqa: S311 - to be repeated, not secret
            random_kills(fleet, load, rounds, dice, *NOTIFIERS)
        unrecorded = [unrecorded_kill(fleet, orders, f"sure-{number}") for number in range(sure(rounds) // 2)]
        unacked = [unacked_kill(fleet, orders, before, f"sure-{number}") for number in range(sure(rounds) // 2)]
        found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"))
    assert [told(fleet, order_id) for order_id in unrecorded] == [4] * len(unrecorded)
    assert [told(fleet, order_id) for order_id in unacked] == [2] * len(unacked)
    figures.record(3, engine, kills=fleet.kills, unrecorded=len(unrecorded), unacked=len(unacked), **found)


def unrecorded_kill(fleet: Fleet, orders: Orders, customer: str) -> str:
    """Kill both notifiers when they have told of an order and not recorded that; the order."""
    all_recorded(fleet.backend, orders)
    with locked(fleet.backend, "notify"):
        order_id = orders.place_order(customer, [(PLENTY[0], 1)]).order.id
        until(lambda: told(fleet, order_id) == 2, "both have told of it")
        fleet.kill(*NOTIFIERS)
    fleet.start(*NOTIFIERS)
    return order_id


def unacked_kill(fleet: Fleet, orders: Orders, before: Gate, customer: str) -> str:
    """Kill both notifiers when they have recorded an order's event and the broker does not know that yet; the order."""
    all_recorded(fleet.backend, orders)
    with ExitStack() as shut:
        with locked(fleet.backend, "notify"):
            order_id = orders.place_order(customer, [(PLENTY[0], 1)]).order.id
            until(lambda: told(fleet, order_id) == 2, "both have told of it")
            shut.enter_context(before.shut())
        all_recorded(fleet.backend, orders)
        fleet.kill(*NOTIFIERS)
        before.cut()
    fleet.start(*NOTIFIERS)
    return order_id


def told(fleet: Fleet, order_id: str) -> int:
    """How many lines about an order there are in all."""
    return sum(len(role.events(order_id)) for name in NOTIFIERS for role in fleet.ever(name))


def all_recorded(backend: Backend, orders: Orders) -> None:
    """Wait until the notifiers have nothing left to do, so that what is placed next is what they are at work on."""
    log = [logged.event for logged in orders.log()]
    all_events = {("notify.topic", event.id) for event in log}
    created = {("notify.fanout", event.id) for event in log if event.change is Change.CREATED}
    until(lambda: verdict.inbox(backend) == all_events | created, "every event is recorded by both")


def test_row_04_the_relay_is_killed_between_publish_and_mark(
    engine: str, backend: Backend, rounds: int, seed: int
) -> None:
    with gate(backend) as before, Wire(backend) as wire:
        fleet = Fleet(backend, settings={"order": before.settings})
        with Load(backend, seed=seed) as load:
            random_kills(fleet, load, rounds, random.Random(seed), "order")  # noqa: S311 - to be repeated, not secret
        hits: list[str] = []
        with Orders(backend.product_address, backend.order_address, 30) as orders:
            for number in range(sure(rounds)):
                all_published(orders)
                with ExitStack() as lock:
                    with before.shut():
                        hits.append(orders.place_order("sure", [(PLENTY[0], 1)], f"sure-{number}").order.id)
                        lock.enter_context(locked(backend, "order"))
                    wire.sees(hits[-1])
                    fleet.kill("order")
                    before.cut()
                fleet.start("order")
        for order_id in hits:
            wire.sees(order_id, copies=2)
        found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"))
    assert found["printed_again"] == 0  # the notifiers were never hurt: each copy was dropped
    figures.record(4, engine, kills=fleet.kills, hits=len(hits), copies_on_the_wire=wire.repeated(), **found)


def all_published(orders: Orders) -> None:
    """Wait until the relay has nothing left to do, so that what is placed next is what it is at work on."""
    until(lambda: all(each.published for each in orders.log()), "the outbox is empty")
