"""Rows 8, 9, 10 and 18: what many callers ask for at the same moment comes out as if they had queued."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from e2e.processes import until
from faults import crowd, figures
from faults.crowd import Site, Watched, at_once

from ordersys.client.calls import Adjusted, Answer, Orders
from ordersys.core import errors
from ordersys.core.records import Order, Status


@pytest.fixture(scope="module", params=["embedded", "servers", "pair"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Site]]:
    with crowd.site(request.param, tmp_path_factory.mktemp(f"races-{request.param}")) as site:
        yield request.param, site


@pytest.fixture
def engine(running: tuple[str, Site]) -> str:
    return running[0]


@pytest.fixture
def site(running: tuple[str, Site]) -> Iterator[Site]:
    yield running[1]
    running[1].backend.show()


def test_row_08_200_callers_for_100_in_stock(site: Site, engine: str, rounds: int) -> None:
    sold = refused = looked = 0
    lowest = 100
    for turn in range(rounds):
        site.stock("7", 100)
        with Watched(site, "7") as watched:
            answers = at_once(
                [
                    partial(client.place_order, f"rush-{turn}-{number}", [("7", 1)])
                    for number, client in enumerate(site.clients(200))
                ]
            )
        placed = [each.order for each in answers if isinstance(each, Answer)]
        told = [each for each in answers if isinstance(each, errors.OrdersysError)]
        assert len({order.id for order in placed}) == 100
        assert [(each.code, each.metadata) for each in told] == [
            ("insufficient_stock", {"product_id": "7", "requested": "1", "available": "0"})
        ] * 100
        assert site.available("7") == 0
        assert watched.seen == sorted(watched.seen, reverse=True)  # it only falls while nothing is given back
        sold, refused, looked = sold + len(placed), refused + len(told), looked + len(watched.seen)
        lowest = min(lowest, *watched.seen)
    assert lowest >= 0
    site.balances()
    figures.record(8, engine, rounds=rounds, sold=sold, refused=refused, reads=looked, lowest_seen=lowest)


def test_row_09_one_key_from_50_callers_is_one_order(site: Site, engine: str, rounds: int) -> None:
    site.stock("2", 1000)
    callers = orders = 0
    for turn in range(3 * rounds):
        before = site.available("2")
        calls = [
            partial(client.place_order, f"same-{turn}", [("2", 3)], f"row-09-{turn}") for client in site.clients(50)
        ]
        answers = at_once(calls)
        assert [each for each in answers if not isinstance(each, Answer)] == []
        told = [each for each in answers if isinstance(each, Answer)]
        first = told[0].order
        assert [each.order for each in told] == [first] * 50
        assert sum(not each.replayed for each in told) == 1
        for client in site.clients(len(site.addresses)):
            assert client.place_order(f"same-{turn}", [("2", 3)], f"row-09-{turn}") == Answer(first, replayed=True)
            with pytest.raises(errors.IdempotencyKeyReused):
                client.place_order(f"same-{turn}", [("2", 4)], f"row-09-{turn}")
        assert [each.id for each in site.client.list_orders(customer_id=f"same-{turn}").orders] == [first.id]
        assert site.available("2") == before - 3
        callers, orders = callers + len(told), orders + 1
    site.balances()
    figures.record(9, engine, keys=3 * rounds, callers=callers, orders=orders, different_answers=0)


def test_row_09_two_bodies_with_one_key_at_once_and_one_of_them_wins(site: Site, engine: str, rounds: int) -> None:
    site.stock("2", 1000)
    won: Counter[int] = Counter()
    for turn in range(3 * rounds):
        before = site.available("2")
        calls = [
            partial(client.place_order, f"two-{turn}", [("2", 1 + number // 2 % 2)], f"row-09-two-{turn}")
            for number, client in enumerate(site.clients(40))  # both bodies come to each Product Service
        ]
        answers = at_once(calls)
        told = [each for each in answers if isinstance(each, Answer)]
        refused = [each for each in answers if isinstance(each, errors.OrdersysError)]
        assert {each.code for each in refused} == {"idempotency_key_reused"}
        assert len({each.order.id for each in told}) == 1
        assert (len(told), len(refused)) == (20, 20)
        quantity = told[0].order.lines[0].quantity
        assert site.available("2") == before - quantity
        won[quantity] += 1
    site.balances()
    figures.record(9, engine, two_bodies=3 * rounds, first_won=won[1], second_won=won[2])


def test_row_09_one_key_moves_stock_and_cancels_once(site: Site, engine: str, rounds: int) -> None:
    site.stock("2", 1000)
    for turn in range(rounds):
        adjusted = at_once(
            [partial(each.adjust_stock, "2", -7, "broken", f"row-09-adjust-{turn}") for each in site.clients(50)]
        )
        assert {each.product.available for each in adjusted if isinstance(each, Adjusted)} == {1000 - 7}
        assert sum(isinstance(each, Adjusted) and not each.replayed for each in adjusted) == 1
        order = site.client.place_order("one-key", [("2", 5)]).order
        cancelled = at_once(
            [partial(each.cancel_order, order.id, idempotency_key=f"row-09-cancel-{turn}") for each in site.clients(50)]
        )
        assert sum(isinstance(each, Answer) and not each.replayed for each in cancelled) == 1
        assert {each.order.version for each in cancelled if isinstance(each, Answer)} == {2}
        assert not [each for each in [*adjusted, *cancelled] if isinstance(each, errors.OrdersysError)]
        assert site.available("2") == 1000 - 7
        site.stock("2", 1000)
    site.balances()
    figures.record(9, engine, adjustments=rounds, cancellations=rounds, callers=100 * rounds)


def test_row_10_two_lines_of_one_product_count_together(site: Site, engine: str) -> None:
    site.stock("8", 10)
    before = len(_all_orders(site, "twice"))
    with pytest.raises(errors.InsufficientStock) as refused:
        site.client.place_order("twice", [("8", 6), ("1", 1), ("8", 5)])
    assert refused.value.metadata == {"product_id": "8", "requested": "11", "available": "10"}
    assert site.available("8") == 10
    assert len(_all_orders(site, "twice")) == before
    order = site.client.place_order("twice", [("8", 6), ("8", 4)]).order
    assert [line.quantity for line in order.lines] == [6, 4]
    with pytest.raises(errors.InsufficientStock) as refused:
        site.client.update_order(order.id, [("8", 6), ("8", 5)])
    assert refused.value.metadata == {"product_id": "8", "requested": "1", "available": "0"}
    assert site.client.get_order(order.id) == order

    site.stock("6", 100)
    answers = at_once([partial(each.place_order, "twice", [("6", 2), ("6", 4)]) for each in site.clients(40)])
    told = [each for each in answers if isinstance(each, errors.OrdersysError)]
    assert [(each.code, each.metadata["requested"], each.metadata["available"]) for each in told] == [
        ("insufficient_stock", "6", "4")
    ] * (40 - 16)
    assert site.available("6") == 100 - 16 * 6
    site.balances()
    figures.record(10, engine, sold=16, refused=len(told), left=site.available("6"))


def test_row_18_update_cancel_and_ship_of_one_order_at_once_leave_one_legal_history(
    site: Site, engine: str, rounds: int
) -> None:
    site.stock("1", 10_000)
    ends: Counter[str] = Counter()
    accepted = refused = 0
    for turn in range(3 * rounds):
        before = site.available("1")
        order = site.client.place_order("row-18", [("1", 10)]).order
        answers = at_once(_commands(site.clients(40), order, turn))
        told = [each if isinstance(each, Order) else each.order for each in answers if isinstance(each, Answer | Order)]
        errors_told = [each for each in answers if isinstance(each, errors.OrdersysError)]
        assert {each.code for each in errors_told} <= {"invalid_transition", "version_conflict"}

        history = site.history(order.id)
        assert crowd.legal(history), [(event.change, event.order.version) for event in history]
        assert sorted(told, key=lambda each: each.version) == [event.order for event in history[1:]]
        last = history[-1].order
        assert site.client.get_order(order.id) == last
        kept = 0 if last.status is Status.CANCELLED else sum(line.quantity for line in last.lines)
        assert site.available("1") == before - kept
        ends[last.status.value] += 1
        accepted, refused = accepted + len(told), refused + len(errors_told)
    site.balances()
    figures.record(18, engine, orders=3 * rounds, accepted=accepted, refused=refused, illegal=0, **ends)


def _commands(clients: list[Orders], order: Order, turn: int) -> list[partial[Answer | Order]]:
    """Updates of any version and of the first one; cancellations and shipments that wait for a version to be reached.

    Which version differs by turn: otherwise one kind would always be the first, and the last.
    """
    kinds = [
        lambda client, number: partial(client.update_order, order.id, [("1", 1 + number)]),
        lambda client, number: partial(client.update_order, order.id, [("1", 50 + number)], expected_version=1),
        lambda client, _: partial(_at, 1 + 5 * turn % 12, client, order.id, client.cancel_order),
        lambda client, _: partial(_at, 1 + 7 * turn % 12 + 8 * (turn % 2), client, order.id, client.ship_order),
        lambda client, number: partial(client.update_order, order.id, [("1", 100 - number)]),
    ]
    return [kinds[(number + turn) % len(kinds)](client, number) for number, client in enumerate(clients)]


def _at(version: int, client: Orders, order_id: str, end: Callable[[str], Answer | Order]) -> Answer | Order:
    def is_due() -> bool:
        order = client.get_order(order_id)
        return order.version >= version or order.status is not Status.PLACED

    until(is_due, f"the order has version {version} or has come to an end")
    return end(order_id)


def test_row_18_of_callers_who_read_one_version_one_writes_the_next(site: Site, engine: str, rounds: int) -> None:
    site.stock("1", 10_000)
    written = refused = 0
    for _ in range(rounds):
        order = site.client.place_order("row-18-version", [("1", 1)]).order
        for version in (1, 2, 3):
            answers = at_once(
                [
                    partial(client.update_order, order.id, [("1", 2 + number)], expected_version=version)
                    for number, client in enumerate(site.clients(20))
                ]
            )
            assert [each.order.version for each in answers if isinstance(each, Answer)] == [version + 1]
            told = [each for each in answers if isinstance(each, errors.OrdersysError)]
            assert {(each.code, each.metadata["version"]) for each in told} == {("version_conflict", str(version + 1))}
            written, refused = written + 1, refused + len(told)
        assert [event.order.version for event in site.history(order.id)] == [1, 2, 3, 4]
    site.balances()
    figures.record(18, engine, versions_written=written, conflicts=refused, lost_updates=0)


def _all_orders(site: Site, customer: str) -> list[Order]:
    return site.client.list_orders(customer_id=customer, page_size=1000).orders
