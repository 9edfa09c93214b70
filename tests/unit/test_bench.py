"""The load generator's arithmetic, its verdict on planted wrongs, and its page."""

import json
from html.parser import HTMLParser
from io import BytesIO

import pytest

from ordersys.bench import page, plan, run
from ordersys.bench.plan import Placed, Plan, Seen, Via
from ordersys.bench.run import Result
from ordersys.bench.system import Ear
from ordersys.bench.verdict import Verdict, judge
from ordersys.client.calls import Page
from ordersys.core.records import Line, Order, Status, StockAudit

PLAN = Plan(
    via=Via.GRPC,
    address="127.0.0.1:1",
    customer_id="bench-1",
    products=("1", "2"),
    hot=0.5,
    callers=10,
    orders=101,
    seconds=1.0,
    rate=30.0,
    deadline=1.0,
    patience=1.0,
    seed=7,
)


def order(order_id: str) -> Order:
    return Order(
        id=order_id,
        customer_id="bench-1",
        status=Status.PLACED,
        lines=(Line("1", 1, 100),),
        currency="EUR",
        version=1,
        created_at=1,
        updated_at=1,
    )


def audit(**changed: int) -> StockAudit:
    right = {"available": 7, "ledger": 7, "seeded": 10, "adjusted": 0, "reserved": 3, "held": 3}
    return StockAudit(product_id="1", **{**right, **changed})


class Books:
    """What the services would answer; the verdict asks for no more."""

    def __init__(self, recorded: list[str], audited: StockAudit | None = None, pending: int = 0) -> None:
        self.recorded = recorded
        self.audited = audited or audit()
        self.pending = pending

    def audit_stock(self) -> tuple[list[StockAudit], int]:
        return [self.audited], self.pending

    def list_orders(self, *, page_size: int, page_token: str, customer_id: str) -> Page:
        """Two pages, so that the second is asked for."""
        assert customer_id == "bench-1"
        half = len(self.recorded) // 2
        chosen = self.recorded[half:] if page_token else self.recorded[:half]
        return Page([order(each) for each in chosen], "" if page_token else "next")


def ear(*order_ids: str) -> Ear:
    lines = [json.dumps({"data": {"order_id": each, "change": "created"}}) + "\n" for each in order_ids]
    lines.append(json.dumps({"data": {"order_id": "x", "change": "cancelled"}}) + "\n")
    made = Ear("notify.fanout", BytesIO("".join(lines).encode()))
    made._thread.join()
    return made


def seen(*order_ids: str, unknown: int = 0) -> Seen:
    return Seen(placed=[Placed(each, 1.0, 1.5) for each in order_ids], unknown=unknown)


def verdict(books: Books, saw: Seen, *ears: Ear) -> Verdict:
    return judge(books, "bench-1", saw, ears)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ordersys.bench.verdict.SETTLE_SECONDS", 0.0)


def test_all_is_right_when_every_answered_order_is_there_and_was_told() -> None:
    assert verdict(Books(["a", "b", "c"]), seen("a", "b", "c"), ear("a", "b", "c"), ear("c", "b", "a")).right


def test_an_order_that_was_answered_and_is_not_there_is_lost() -> None:
    assert verdict(Books(["a"]), seen("a", "b")).lost == 1


@pytest.mark.parametrize(
    ("books", "saw"),
    [
        (Books(["a", "b"]), seen("a")),
        (Books(["a"]), seen("a", "a")),
        (Books(["a", "b", "c"]), seen("a", unknown=1)),
    ],
    ids=["nobody asked for it", "two calls got one order", "more than were given up"],
)
def test_an_order_too_many_is_doubled(books: Books, saw: Seen) -> None:
    assert verdict(books, saw).doubled == 1


def test_a_call_that_was_given_up_may_have_placed_its_order() -> None:
    assert verdict(Books(["a", "b"]), seen("a", unknown=1)).right


@pytest.mark.parametrize("wrong", [{"available": 8}, {"ledger": 6}, {"reserved": 2}, {"seeded": 11}])
def test_books_that_do_not_balance_are_oversold(wrong: dict[str, int]) -> None:
    assert verdict(Books(["a"], audit(**wrong)), seen("a")).oversold >= 1


def test_stock_below_zero_is_oversold_even_when_the_books_agree() -> None:
    below = audit(available=-2, ledger=-2, reserved=12)
    assert verdict(Books(["a"], below), seen("a")).oversold == 2


def test_what_is_still_pending_is_unsettled() -> None:
    assert verdict(Books(["a"], pending=3), seen("a")).unsettled == 3


def test_what_a_notifier_did_not_tell_or_told_again_is_counted() -> None:
    found = verdict(Books(["a", "b"]), seen("a", "b"), ear("a", "a"), ear("a", "b"))
    assert (found.unheard, found.told_twice, found.right) == (1, 1, False)


# --- figures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "value"), [(50, 50), (90, 90), (99, 99), (99.9, 100), (100, 100), (0.5, 1)])
def test_a_percentile_is_the_value_at_its_rank(share: float, value: int) -> None:
    assert plan.percentile(range(1, 101), share) == value


def test_nothing_measured_is_zero() -> None:
    assert plan.spread([]) == {"p50": 0.0, "p90": 0.0, "p99": 0.0, "p99.9": 0.0, "max": 0.0}
    assert run.throughput([]) == 0.0


def test_the_parts_of_a_plan_are_the_whole() -> None:
    parts = run._parts(PLAN, 3)
    assert [
        sum(values) for values in zip(*[(each.callers, each.orders, each.rate) for each in parts], strict=True)
    ] == [
        10,
        101,
        30.0,
    ]
    assert len({each.seed for each in parts}) == 3


def result(placed: list[Placed], warmup: float = 0.0, name: str = "notify.fanout") -> Result:
    right = Verdict(lost=0, doubled=0, oversold=0, unsettled=0, unheard=0, told_twice=0)
    heard = {name: {each.order_id: each.ended + 0.1 for each in placed}}
    return Result(plan=PLAN, clients=2, seen=Seen(placed=placed), heard=heard, verdict=right, warmup=warmup)


def test_the_warmup_is_left_out_of_the_figures_but_not_of_the_orders() -> None:
    placed = [
        Placed("slow", 0.0, 1.0),
        *[Placed(str(number), 2 + number / 10, 2.01 + number / 10) for number in range(10)],
    ]
    found = result(placed, warmup=1.5).document()
    assert (found["orders"], found["latency_ms"]["max"]) == (11, 10.0)
    assert found["notified_ms"]["notify.fanout"]["p50"] == 110.0


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(value and "://" in value for _, value in attrs), "the page must not load anything"

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_the_page_has_both_plots_and_every_name_as_text(count: int) -> None:
    placed = [Placed(str(number), number / 50, number / 50 + 0.02) for number in range(count)]
    tags = Tags()
    tags.feed(page.page(result(placed, name="<script>alert(1)</script>")))
    assert "script" not in tags.tags
    assert "heard at <script>alert(1)</script>" in tags.words
    assert tags.tags.count("svg") == (2 if count else 1)
