"""The rules of stock: what a batch decides, and that a refusal moves nothing."""

import copy
from typing import Any

import pytest

from ordersys.core import errors
from ordersys.core.records import Product
from ordersys.core.v1 import product_pb2
from ordersys.product import model
from ordersys.product.book import Book, KeyRecord, Kind, Move, Reservation
from ordersys.product.model import Fate, Settlement, Wanted

NOW = 1_000


def product(product_id: str, available: int, price: int = 100, currency: str = "EUR") -> Product:
    return Product(
        id=product_id,
        name=product_id,
        description="",
        attributes={},
        currency=currency,
        price=price,
        available=available,
    )


def book(**stock: int) -> Book:
    made = Book()
    for product_id, available in stock.items():
        made.products[product_id] = product(product_id, available)
        made.available[product_id] = available
    return made


def place(*lines: tuple[str, int], order_id: str = "o1", key: str = "", fingerprint: str = "f") -> model.PlaceOrder:
    return model.PlaceOrder(
        command_id=f"place-{order_id}",
        key=key,
        fingerprint=fingerprint,
        order_id=order_id,
        customer_id="c",
        lines=tuple(Wanted(*line) for line in lines),
        traceparent="",
    )


def update(*lines: tuple[str, int], order_id: str = "o1", key: str = "") -> model.UpdateOrder:
    return model.UpdateOrder(
        command_id=f"update-{order_id}",
        key=key,
        fingerprint="f",
        order_id=order_id,
        lines=tuple(Wanted(*line) for line in lines),
        expected_version=0,
        traceparent="",
    )


def cancel(order_id: str = "o1") -> model.CancelOrder:
    return model.CancelOrder(
        command_id=f"cancel-{order_id}",
        key="",
        fingerprint="f",
        order_id=order_id,
        reason="",
        expected_version=0,
        traceparent="",
    )


def adjust(product_id: str, delta: int, key: str = "") -> model.AdjustStock:
    return model.AdjustStock(
        command_id="adjust", key=key, fingerprint="f", product_id=product_id, delta=delta, reason="count"
    )


def settle(command: model.OrderCommand, fate: Fate) -> Settlement:
    answers: dict[Fate, bytes | errors.OrdersysError | None] = {
        Fate.ACCEPTED: b"order",
        Fate.REFUSED: errors.VersionConflict.of(command.order_id, 1, 2),
        Fate.VOID: None,
    }
    return Settlement(order_id=command.order_id, command_id=command.command_id, fate=fate, answer=answers[fate])


def placed(stock: Book, *lines: tuple[str, int], order_id: str = "o1") -> Book:
    command = place(*lines, order_id=order_id)
    assert isinstance(model.decide(stock, command, NOW), model.Taken)
    assert model.decide(stock, settle(command, Fate.ACCEPTED), NOW) == model.Settled(applied=True)
    return stock


def refusal(decision: model.Decision) -> errors.OrdersysError:
    assert isinstance(decision, model.Answered)
    assert isinstance(decision.answer, errors.OrdersysError)
    assert not decision.replayed
    return decision.answer


def assert_ledger_explains_stock(stock: Book, **at_start: int) -> None:
    for product_id, units in at_start.items():
        moved = sum(move.delta for move in stock.moves if move.product_id == product_id)
        assert stock.available[product_id] == units + moved


def test_placing_takes_the_stock_and_leaves_the_command_pending() -> None:
    stock = book(a=5)
    decision = model.decide(stock, place(("a", 3)), NOW)
    assert isinstance(decision, model.Taken)
    assert [(line.product_id, line.quantity, line.unit_price) for line in decision.lines] == [("a", 3, 100)]
    assert stock.available == {"a": 2}
    assert stock.moves == [Move(product_id="a", delta=-3, kind=Kind.RESERVE, order_id="o1", command_id="place-o1")]
    assert stock.reservations["o1"].pending
    assert stock.reservations["o1"].since == NOW


def test_the_last_unit_can_be_sold_and_the_next_one_cannot() -> None:
    stock = book(a=1)
    assert isinstance(model.decide(stock, place(("a", 1)), NOW), model.Taken)
    error = refusal(model.decide(stock, place(("a", 1), order_id="o2"), NOW))
    assert isinstance(error, errors.InsufficientStock)
    assert error.metadata == {"product_id": "a", "requested": "1", "available": "0"}


def test_lines_of_one_product_are_summed_before_the_check() -> None:
    stock = book(a=5)
    error = refusal(model.decide(stock, place(("a", 3), ("a", 3)), NOW))
    assert error.metadata == {"product_id": "a", "requested": "6", "available": "5"}
    decision = model.decide(stock, place(("a", 3), ("a", 2)), NOW)
    assert isinstance(decision, model.Taken)
    assert len(decision.lines) == 2  # the order keeps the lines as they were written
    assert stock.available == {"a": 0}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (place(("a", 6)), errors.InsufficientStock),
        (place(("a", 1), ("b", 6)), errors.InsufficientStock),
        (place(("a", 1), ("nope", 1)), errors.ProductNotFound),
        (place(("a", 1), ("dollars", 1)), errors.InvalidArgument),
        (update(("a", 1), order_id="unknown"), errors.OrderNotFound),
        (cancel("unknown"), errors.OrderNotFound),
        (update(("a", 1), ("b", 9), order_id="held"), errors.InsufficientStock),
        (adjust("a", -6), errors.InsufficientStock),
        (adjust("nope", 1), errors.ProductNotFound),
        (adjust("a", model.MAX_AVAILABLE), errors.InvalidArgument),
    ],
)
def test_a_refusal_changes_nothing(command: Any, kind: type[errors.OrdersysError]) -> None:
    stock = placed(book(a=6, b=6), ("a", 1), ("b", 1), order_id="held")
    stock.products["dollars"] = product("dollars", 9, currency="USD")
    stock.available["dollars"] = 9
    before = copy.deepcopy(stock)
    assert isinstance(refusal(model.decide(stock, command, NOW)), kind)
    assert stock == before


def test_a_refused_placement_gives_its_stock_back_and_leaves_no_order() -> None:
    for fate in (Fate.REFUSED, Fate.VOID):
        stock = book(a=5)
        command = place(("a", 3))
        model.decide(stock, command, NOW)
        model.decide(stock, settle(command, fate), NOW)
        assert stock.available == {"a": 5}
        assert "o1" not in stock.reservations
        assert stock.dropped_reservations == {"o1"}
        assert_ledger_explains_stock(stock, a=5)


def test_an_update_takes_what_grows_at_once_and_gives_back_what_shrinks_only_when_accepted() -> None:
    stock = placed(book(a=10, b=10), ("a", 4), ("b", 2))
    command = update(("a", 1), ("b", 5))
    assert isinstance(model.decide(stock, command, NOW), model.Taken)
    assert stock.available == {"a": 6, "b": 5}
    model.decide(stock, settle(command, Fate.ACCEPTED), NOW)
    assert stock.available == {"a": 9, "b": 5}
    assert stock.reservations["o1"] == Reservation(order_id="o1", held={"a": 1, "b": 5})
    assert_ledger_explains_stock(stock, a=10, b=10)


@pytest.mark.parametrize("fate", [Fate.REFUSED, Fate.VOID])
def test_an_update_that_did_not_happen_gives_back_exactly_what_it_took(fate: Fate) -> None:
    stock = placed(book(a=10, b=10), ("a", 4))
    command = update(("a", 1), ("b", 5))
    model.decide(stock, command, NOW)
    model.decide(stock, settle(command, fate), NOW)
    assert stock.available == {"a": 6, "b": 10}
    assert stock.reservations["o1"] == Reservation(order_id="o1", held={"a": 4})


def test_cancelling_gives_back_only_when_accepted() -> None:
    stock = placed(book(a=10), ("a", 4))
    assert isinstance(model.decide(stock, cancel(), NOW), model.Taken)
    assert stock.available == {"a": 6}
    model.decide(stock, settle(cancel(), Fate.REFUSED), NOW)
    assert stock.available == {"a": 6}
    model.decide(stock, cancel(), NOW)
    model.decide(stock, settle(cancel(), Fate.ACCEPTED), NOW)
    assert stock.available == {"a": 10}
    assert stock.reservations["o1"].held == {}


def test_a_command_on_a_cancelled_order_is_left_to_the_authority_and_refusing_it_keeps_the_order_known() -> None:
    stock = placed(book(a=10), ("a", 4))
    model.decide(stock, cancel(), NOW)
    model.decide(stock, settle(cancel(), Fate.ACCEPTED), NOW)
    command = update(("a", 2))
    assert isinstance(model.decide(stock, command, NOW), model.Taken)
    model.decide(stock, settle(command, Fate.REFUSED), NOW)
    assert stock.available == {"a": 10}
    assert "o1" in stock.reservations


def test_settling_twice_moves_stock_once() -> None:
    stock = placed(book(a=10), ("a", 4))
    model.decide(stock, cancel(), NOW)
    assert model.decide(stock, settle(cancel(), Fate.ACCEPTED), NOW) == model.Settled(applied=True)
    assert model.decide(stock, settle(cancel(), Fate.ACCEPTED), NOW) == model.Settled(applied=False)
    assert stock.available == {"a": 10}


def test_the_settlement_of_an_earlier_command_does_not_touch_the_pending_one() -> None:
    stock = placed(book(a=10), ("a", 4))
    model.decide(stock, cancel(), NOW)
    late = settle(place(("a", 4)), Fate.VOID)
    assert model.decide(stock, late, NOW) == model.Settled(applied=False)
    assert stock.reservations["o1"].command_id == "cancel-o1"


def test_a_second_command_on_an_order_waits_until_the_first_is_settled() -> None:
    stock = placed(book(a=10), ("a", 4))
    model.decide(stock, cancel(), NOW)
    decision = model.decide(stock, update(("a", 9)), NOW + 5)
    assert decision == model.Unsettled("o1", "cancel-o1", NOW)
    assert stock.available == {"a": 6}


class TestIdempotency:
    def test_a_key_is_remembered_with_the_effect_and_answered_with_the_settlement(self) -> None:
        stock = book(a=5)
        command = place(("a", 1), key="k")
        model.decide(stock, command, NOW)
        assert stock.keys["k"].answer is None
        assert model.decide(stock, command, NOW) == model.Unsettled("o1", "place-o1", NOW)
        model.decide(stock, settle(command, Fate.ACCEPTED), NOW)
        again = place(("a", 1), order_id="another", key="k")
        assert model.decide(stock, again, NOW) == model.Answered(b"order", replayed=True)
        assert stock.available == {"a": 4}

    def test_another_body_with_the_key_is_refused(self) -> None:
        stock = book(a=5)
        model.decide(stock, place(("a", 1), key="k"), NOW)
        error = refusal(model.decide(stock, place(("a", 2), key="k", fingerprint="g"), NOW))
        assert isinstance(error, errors.IdempotencyKeyReused)

    def test_a_refusal_by_a_rule_is_the_first_answer_again_even_when_stock_has_come(self) -> None:
        stock = book(a=0)
        refusal(model.decide(stock, place(("a", 1), key="k"), NOW))
        stock.available["a"] = 10
        decision = model.decide(stock, place(("a", 1), key="k"), NOW)
        assert isinstance(decision, model.Answered)
        assert decision.replayed
        assert isinstance(decision.answer, errors.InsufficientStock)

    def test_a_void_command_frees_its_key(self) -> None:
        stock = book(a=5)
        command = place(("a", 1), key="k")
        model.decide(stock, command, NOW)
        model.decide(stock, settle(command, Fate.VOID), NOW)
        assert stock.dropped_keys == {"k"}
        assert isinstance(model.decide(stock, place(("a", 1), order_id="o2", key="k"), NOW), model.Taken)
        assert stock.dropped_keys == {"k"}  # the old row goes before the new one comes
        assert stock.new_keys == {"k"}

    def test_an_adjustment_is_applied_once(self) -> None:
        stock = book(a=5)
        first = model.decide(stock, adjust("a", 3, key="k"), NOW)
        second = model.decide(stock, adjust("a", 3, key="k"), NOW)
        assert isinstance(first, model.Answered)
        assert isinstance(first.answer, bytes)
        assert second == model.Answered(first.answer, replayed=True)
        assert product_pb2.Product.FromString(first.answer).available == 8
        assert stock.available == {"a": 8}

    def test_without_a_key_every_call_counts(self) -> None:
        stock = book(a=5)
        for _ in range(2):
            model.decide(stock, adjust("a", 3), NOW)
        assert stock.available == {"a": 11}
        assert stock.keys == {}

    def test_an_impossible_value_is_not_remembered(self) -> None:
        stock = book(a=5)
        stock.products["dollars"] = product("dollars", 9, currency="USD")
        stock.available["dollars"] = 9
        refusal(model.decide(stock, place(("a", 1), ("dollars", 1), key="k"), NOW))
        assert stock.keys == {}

    def test_the_fingerprint_tells_calls_and_fields_apart(self) -> None:
        made = {
            model.fingerprint("PlaceOrder", "c", [("a", 1)]),
            model.fingerprint("PlaceOrder", "c", [("a", 11)]),
            model.fingerprint("PlaceOrder", "c1", [("a", 1)]),
            model.fingerprint("UpdateOrder", "c", [("a", 1)]),
            model.fingerprint("PlaceOrder", "c", [("a", 1), ("a", 1)]),
        }
        assert len(made) == 5


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        ([], "lines"),
        ([Wanted("a", 1)] * 101, "lines"),
        ([Wanted("a", 1), Wanted("a", 0)], "lines[1].quantity"),
        ([Wanted("a", -1)], "lines[0].quantity"),
        ([Wanted("a", 1_000_001)], "lines[0].quantity"),
        ([Wanted("", 1)], "lines[0].product_id"),
        ([Wanted("x" * 129, 1)], "lines[0].product_id"),
        ([Wanted("a\x00b", 1)], "lines[0].product_id"),
    ],
)
def test_impossible_lines_are_named(lines: list[Wanted], field: str) -> None:
    assert [each.field for each in model.check_lines(lines)] == [field]


def test_possible_lines_pass() -> None:
    assert model.check_lines([Wanted("a", 1), Wanted("ü-9", 1_000_000)]) == []
    assert [bool(model.check_delta(delta)) for delta in (0, 1, -1, 10**9, -(10**9), 10**9 + 1)] == [
        True, False, False, False, False, True,
    ]  # fmt: skip


def test_key_records_keep_the_moment_of_their_first_call() -> None:
    stock = book(a=5)
    command = place(("a", 1), key="k")
    model.decide(stock, command, NOW)
    model.decide(stock, settle(command, Fate.ACCEPTED), NOW + 9)
    assert stock.keys["k"] == KeyRecord(
        key="k", fingerprint="f", order_id="o1", command_id="place-o1", answer=b"order", created_at=NOW
    )
