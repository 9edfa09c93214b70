"""The shop's own rules: asked before stock is taken, answered like any refusal, and a fault of theirs harms nobody."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from unit.test_product_model import book, cancel, place, placed, product, refusal, settle, update

from ordersys.core import errors, ids
from ordersys.core.records import Line, Proposal
from ordersys.core.seed import Seed
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.product import model
from ordersys.product.book import Book
from ordersys.product.model import Fate
from ordersys.product.rules import Refusal, Rules
from ordersys.product.store import CHAIN, ProductStore

NOW = 1_000


class Asked:
    """A rule that remembers what it was asked, and answers the same to all."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer
        self.proposals: list[Proposal] = []

    def __call__(self, proposal: Proposal) -> Refusal | None:
        self.proposals.append(proposal)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


NO = Refusal("too_much", "at most 10 units")


def decide(stock: Book, command: model.OrderCommand, *rules: Asked) -> model.Decision:
    return model.decide(stock, command, NOW, Rules({f"rule-{number}": rule for number, rule in enumerate(rules)}))


def test_a_rule_sees_the_order_with_its_prices() -> None:
    rule = Asked()
    assert isinstance(decide(book(a=5, b=5), place(("a", 2), ("b", 1)), rule), model.Taken)
    [proposal] = rule.proposals
    assert proposal == Proposal(
        order_id="o1",
        customer_id="c",
        lines=(Line("a", 2, 100), Line("b", 1, 100)),
        currency="EUR",
        placing=True,
    )
    assert proposal.total == 300


def test_a_refused_order_takes_nothing_and_names_the_rule() -> None:
    stock = book(a=5)
    error = refusal(decide(stock, place(("a", 2)), Asked(), Asked(NO)))
    assert isinstance(error, errors.OrderRefused)
    assert (error.code, error.message) == ("order_refused", "at most 10 units")
    assert error.metadata == {"rule": "rule-1", "reason": "too_much"}
    assert (stock.available, stock.moves, stock.reservations) == ({"a": 5}, [], {})


def test_the_first_rule_that_refuses_decides_and_comes_before_the_stock() -> None:
    last = Asked(Refusal("later", "never said"))
    error = refusal(decide(book(a=0), place(("a", 1)), Asked(NO), last))
    assert error.metadata["reason"] == "too_much"
    assert last.proposals == []


def test_other_lines_are_judged_too_and_a_cancellation_never_is() -> None:
    rule = Asked()
    stock = placed(book(a=5), ("a", 1))
    decide(stock, update(("a", 3)), rule)
    [proposal] = rule.proposals
    assert (proposal.order_id, proposal.customer_id, proposal.placing) == ("o1", "", False)
    assert proposal.lines == (Line("a", 3, 100),)

    stock = placed(book(a=5), ("a", 1))
    assert refusal(decide(stock, update(("a", 3)), Asked(NO))).code == "order_refused"
    assert stock.available == {"a": 4}
    assert isinstance(decide(stock, cancel(), Asked(NO)), model.Taken)


def test_a_repetition_gets_the_first_answer_whatever_the_rules_say_now() -> None:
    stock = book(a=5)
    decide(stock, place(("a", 1), key="k"), Asked(NO))
    changed = Asked()
    again = decide(stock, place(("a", 1), key="k", order_id="o2"), changed)
    assert isinstance(again, model.Answered)
    assert again.replayed
    assert isinstance(again.answer, errors.OrderRefused)

    taken = place(("a", 1), key="other", order_id="o3")
    decide(stock, taken, changed)
    model.decide(stock, settle(taken, Fate.ACCEPTED), NOW)
    again = decide(stock, place(("a", 1), key="other", order_id="o4"), Asked(NO))
    assert isinstance(again, model.Answered)
    assert again.answer == b"order"


@pytest.mark.parametrize(
    ("answer", "logged"),
    [
        (ZeroDivisionError("by the rule"), "ZeroDivisionError: by the rule"),
        (errors.Unavailable("no database in a rule"), "no database in a rule"),
        ("no", "a rule returns a Refusal or None, not str"),
        (Refusal("Too much!", "x"), "the code 'Too much!' is not in snake_case"),
    ],
)
def test_a_fault_of_a_rule_refuses_that_order_with_internal_and_is_not_remembered(
    answer: object, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    stock = book(a=5)
    error = refusal(decide(stock, place(("a", 1), key="k"), Asked(answer)))
    assert (error.code, error.message, error.metadata) == ("internal", "internal error", {})
    assert "the rule rule-0 failed on order o1, which is refused" in caplog.text
    assert logged in caplog.text
    assert isinstance(decide(stock, place(("a", 1), key="k"), Asked()), model.Taken)


def test_a_message_is_made_fit_to_be_stored_and_sent() -> None:
    error = refusal(decide(book(a=1), place(("a", 1)), Asked(Refusal("long", "\0\n" + "x" * 10_000))))
    assert error.message == "\\x00\\n" + "x" * 494


def test_one_refusal_leaves_the_rest_of_the_batch_alone(tmp_path: Path) -> None:
    def few(proposal: Proposal) -> Refusal | None:
        units = sum(line.quantity for line in proposal.lines)
        if units == 13:
            raise RuntimeError("unlucky")
        return NO if units > 10 else None

    async def both(products: ProductStore, commands: Sequence[model.OrderCommand]) -> list[model.Decision]:
        return await products.decide(commands, ids.now_us())

    database = Database(f"sqlite:///{tmp_path / 'product.db'}")
    migrations.upgrade(database, CHAIN)
    products = ProductStore(database, Rules({"few": few}))
    products.seed(Seed(products=(product("a", 100),), orders=()), ids.now_us())
    wanted = [place(("a", units), order_id=f"o{units}", key=f"k{units}") for units in (1, 11, 13, 10)]
    decisions = asyncio.run(both(products, wanted))
    again = asyncio.run(both(products, [place(("a", 11), order_id="other", key="k11")]))
    available = asyncio.run(products.product("a"))
    database.close()

    codes = [each.answer.code for each in decisions if isinstance(each, model.Answered)]  # type: ignore[union-attr]
    assert [type(each) for each in decisions] == [model.Taken, model.Answered, model.Answered, model.Taken]
    assert codes == ["order_refused", "internal"]
    assert available is not None
    assert available.available == 100 - 11
    [kept] = again
    assert isinstance(kept, model.Answered)
    assert isinstance(kept.answer, errors.OrderRefused)
    assert (kept.replayed, kept.answer.metadata) == (True, {"rule": "few", "reason": "too_much"})
