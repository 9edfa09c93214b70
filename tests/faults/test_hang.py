"""A service that hangs: it takes connections, answers nothing, and may wake up again. Row 15 of the guarantees."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from e2e.processes import Backend, until
from faults import figures
from faults.books import Write
from faults.fleet import DEADLINE_SECONDS, Fleet
from faults.load import Load
from faults.moments import locked
from faults.once import Asked, asking, placings

from ordersys.client.calls import Orders
from ordersys.core import errors
from ordersys.core.records import Order

PRODUCT = "6"
STOCK = 75
CALLERS = 7
EACH = 10
LEFT = STOCK - CALLERS * EACH
PATIENCE_SECONDS = 10.0
"""The callers' own deadline: it must not be what ends their calls."""


def test_row_15_order_service_hangs_and_wakes_up_or_dies(engine: str, backend: Backend, rounds: int, seed: int) -> None:
    """Most of a product is asked for while it hangs: whatever became of that, nobody else may have it."""
    dice = random.Random(seed)  # noqa: S311 - to be repeated, not secret
    fleet = Fleet(backend)
    unknown: list[Asked] = []
    done = 0
    with Orders(backend.product_address, backend.order_address, 20) as orders:
        for number in range(max(len(HANGS), rounds // 3)):
            writes = placings(f"sure-{number}", CALLERS, PRODUCT, EACH)
            late = placings(f"late-{number}", 1, PRODUCT, EACH)[0]
            with HANGS[number % len(HANGS)](fleet):
                unknown += unanswered(backend, writes)
                assert orders.get_product(PRODUCT).available == LEFT
                assert late.ask(orders) == errors.InsufficientStock.code
            fleet.settled()  # by recovery: nobody has repeated anything
            done += sold_once(orders, writes)

    with Load(backend, seed=seed) as load:
        for _ in range(rounds):
            load.goes_on(dice.randint(10, 60))
            fleet.stop("order")
            load.stopping.wait(dice.uniform(0, 3 * DEADLINE_SECONDS))
            if dice.random() < 0.5:
                fleet.kill("order")
                fleet.start("order")
            else:
                fleet.go_on("order")
        load.goes_on()
    found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"), in_order=True)
    assert found["printed_again"] == 0
    slowest = max(each.seconds for each in unknown)
    figures.record(
        15, engine, kills=fleet.kills, unknown=len(unknown), slowest_answer=slowest, done_after_all=done, **found
    )


@contextmanager
def hangs_and_wakes_up(fleet: Fleet) -> Iterator[None]:
    fleet.stop("order")
    yield
    fleet.go_on("order")


@contextmanager
def hangs_and_dies(fleet: Fleet) -> Iterator[None]:
    fleet.stop("order")
    yield
    fleet.kill("order")
    fleet.start("order")


@contextmanager
def hangs_and_does_it(fleet: Fleet) -> Iterator[None]:
    """It has begun, waits for its database, and carries out what nobody waits for any more."""
    with locked(fleet.backend, "order"):
        yield


HANGS = (hangs_and_wakes_up, hangs_and_dies, hangs_and_does_it)


def unanswered(backend: Backend, writes: Sequence[Write]) -> list[Asked]:
    """Ask while order-service hangs: each is told `unavailable`, by product-service, because its deadline is over.

    Some wait behind others that hang already: the deadline is for all of it.
    """
    with asking(backend, writes, PATIENCE_SECONDS) as asked:
        answers = [each.result() for each in asked]
    for each in answers:
        assert isinstance(each.answer, errors.Unavailable), each
        assert each.answer.message.endswith("with the same key"), each  # as product-service says it, and nobody else
        assert each.seconds < 2 * DEADLINE_SECONDS, each
    return answers


def sold_once(orders: Orders, writes: Sequence[Write]) -> int:
    """How many of these orders are on record; then each is asked for again, stands once, and gives its stock back."""
    found = orders.list_orders(customer_id=writes[0].customer, page_size=100).orders
    assert orders.get_product(PRODUCT).available == STOCK - EACH * len(found)
    told = [order for order in (write.ask(orders) for write in writes) if isinstance(order, Order)]
    assert len({order.id for order in told}) == len(writes)
    assert {order.id for order in found} <= {order.id for order in told}
    assert len(orders.list_orders(customer_id=writes[0].customer, page_size=100).orders) == len(writes)
    assert orders.get_product(PRODUCT).available == LEFT
    for order in told:
        orders.cancel_order(order.id)
    until(lambda: orders.get_product(PRODUCT).available == STOCK, "all of it is back")
    return len(found)
