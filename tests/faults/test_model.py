"""Row 19: random lives of many orders, with losses and crashes at every step, against a small model.

After every step the system and the model say the same of every order, of what is on the shelf and of every event.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
import servers
from e2e import processes
from faults import figures
from faults.joined import Hurt, System, read
from faults.order_model import UNAVAILABLE, Ask, Key, Lines, Model, Order, Told
from faults.stores import NOW, Pair, Rows, pair, product
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from ordersys.core.records import Status
from ordersys.core.seed import Seed

STOCK = {"a": 12, "b": 5}
STEPS = 30
LIVES_PER_ROUND = 15
FAR = 2 * NOW

Value = TypeVar("Value")

PRODUCT = st.sampled_from(["a", "a", "a", "b", "b", "unknown"])
LINES = st.lists(st.tuples(PRODUCT, st.integers(1, 6)), min_size=1, max_size=3).map(tuple)
WHO = st.sampled_from([0, 1])
HURT = st.none() | st.builds(Hurt, at=st.sampled_from([1, 2, 2, 3, 3, 4, 5]), happens=st.booleans(), dies=st.booleans())
VERSION = st.sampled_from([0, 0, 0, 1, 2, 3])
COPIES = st.sampled_from([1, 1, 1, 3])
ONE_OF_THEM = st.integers(0, 99)


class Lives(RuleBasedStateMachine):
    """The machine: its rules are what clients, operators, the network and misfortune do."""

    def __init__(self, pair: Pair, empty: tuple[Rows, Rows], counts: Counter[str]) -> None:
        super().__init__()
        pair.product.set_back(empty[0])
        pair.order.set_back(empty[1])
        self._runner = asyncio.Runner()
        self._pair = pair
        self._system = self._run(_made(pair))
        self._model = Model(STOCK)
        self._numbers = itertools.count(1)
        self._asked: dict[str, Ask] = {}  # by command id
        self._counts = counts
        self._sound = True
        counts["lives"] += 1

    def teardown(self) -> None:
        """Whatever was lost: after one round of recovery nothing is pending."""
        if self._sound:
            self.recover(0, None)
            assert not self._model.pending
        self._runner.close()

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        async def bounded() -> Value:
            async with asyncio.timeout(20):
                return await work

        self._sound = False  # until the model has been found to agree
        return self._runner.run(bounded())

    # --- what happens to them -----------------------------------------------------------------------------------------

    @rule(who=WHO, lines=LINES, keyed=st.booleans(), copies=COPIES, hurt=HURT)
    def place(self, who: int, lines: Lines, keyed: bool, copies: int, hurt: Hurt | None) -> None:
        self._ask(who, Ask(kind="place", key=self._key(keyed), lines=lines), copies, hurt)

    @rule(who=WHO, which=ONE_OF_THEM, lines=LINES, version=VERSION, keyed=st.booleans(), copies=COPIES, hurt=HURT)
    def update(
        self, who: int, which: int, lines: Lines, version: int, keyed: bool, copies: int, hurt: Hurt | None
    ) -> None:
        order_id = self._order(which)
        ask = Ask(kind="update", key=self._key(keyed), order_id=order_id, lines=lines, version=version)
        self._ask(who, ask, copies, hurt)

    @rule(who=WHO, which=ONE_OF_THEM, version=VERSION, keyed=st.booleans(), copies=COPIES, hurt=HURT)
    def cancel(self, who: int, which: int, version: int, keyed: bool, copies: int, hurt: Hurt | None) -> None:
        ask = Ask(kind="cancel", key=self._key(keyed), order_id=self._order(which), version=version)
        self._ask(who, ask, copies, hurt)

    @rule(who=WHO, name=PRODUCT, delta=st.integers(-8, 8).filter(bool), keyed=st.booleans(), copies=COPIES, hurt=HURT)
    def adjust(self, who: int, name: str, delta: int, keyed: bool, copies: int, hurt: Hurt | None) -> None:
        self._ask(who, Ask(kind="adjust", key=self._key(keyed), product_id=name, delta=delta), copies, hurt)

    @precondition(lambda self: self._model.keys)
    @rule(who=WHO, which=ONE_OF_THEM, copies=COPIES, hurt=HURT)
    def repeat(self, who: int, which: int, copies: int, hurt: Hurt | None) -> None:
        """The same key and body once more."""
        self._ask(who, _one_of(list(self._model.keys.values()), which).ask, copies, hurt)

    @precondition(lambda self: any(key.told is not None for key in self._model.keys.values()))
    @rule(who=WHO, which=ONE_OF_THEM, lines=LINES, hurt=HURT)
    def reuse(self, who: int, which: int, lines: Lines, hurt: Hurt | None) -> None:
        """A key that has its answer, with another body."""
        answered = [key.ask for key in self._model.keys.values() if key.told is not None]
        self._ask(who, replace(_one_of(answered, which), lines=(*lines, ("a", 7))), 1, hurt)

    @rule(which=ONE_OF_THEM, status=st.sampled_from([Status.SHIPPED, Status.DELIVERED]), version=VERSION)
    def advance(self, which: int, status: Status, version: int) -> None:
        order_id = self._order(which)
        kind = "ship" if status is Status.SHIPPED else "deliver"
        expected = self._model.at_orders(kind, order_id, version, ())
        assert self._run(self._system.advance(order_id, status, version)) == expected
        if isinstance(expected, Order):
            self._model.happen(kind, expected)
        self._agree()

    @precondition(lambda self: self._system.sent)
    @rule(which=ONE_OF_THEM)
    def deliver(self, which: int) -> None:
        """A command reaches order-service late, or once more."""
        index = which % len(self._system.sent)
        ask = self._asked[self._system.sent[index].command_id]
        known = ask.command_id in self._system.outcomes
        expected = self._model.at_orders(ask.kind, ask.order_id, ask.version, ask.lines)
        result = self._run(self._system.deliver(index))
        self._counts["delivered late or twice"] += 1
        if not known:
            assert (read(result.accepted) if result.HasField("accepted") else result.refused.code) == expected
            if isinstance(expected, Order):
                self._model.happen(ask.kind, expected, ask.command_id)
            elif ask.key:
                self._model.keys[ask.key].refusals.add(expected)
        self._agree()

    @rule(who=WHO, hurt=HURT)
    def recover(self, who: int, hurt: Hurt | None) -> None:
        hit = self._run(self._system.settle_pending(who, hurt))
        self._counts["hurt"] += hit
        assert hit or not self._pending()
        self._agree()

    @rule(who=WHO)
    def restart(self, who: int) -> None:
        """Everything that a process knew in memory is gone."""
        self._system.restart(who)
        self._system.restart_orders()
        self._agree()

    # --- what comes of it ---------------------------------------------------------------------------------------------

    def _key(self, keyed: bool) -> str:
        return f"key-{next(self._numbers)}" if keyed else ""

    def _order(self, which: int) -> str:
        """One of the orders that were asked for, whatever became of it; at first one that nobody asked for."""
        return _one_of([ask.order_id for ask in self._asked.values() if ask.kind == "place"] or ["nobody's"], which)

    def _ask(self, who: int, template: Ask, copies: int, hurt: Hurt | None) -> None:
        """Ask, several times at once if it has a key; hold the answers against the model, and bring it up to date."""
        asks = [self._made(template) for _ in range(copies if template.key else 1)]
        answers, hit = self._run(self._system.ask(who, asks, hurt))
        self._counts["asked"] += len(asks)
        self._counts["hurt"] += hit
        told = {each for each, _ in answers}
        pending, orders = self._pending(), self._orders()
        # A placement has its order id from the call that was the first: the others only wait for its answer.
        new = (orders.keys() | pending.keys()) - self._model.orders.keys()
        ask = next((each for each in asks if each.order_id in new), asks[0])
        allowed, fresh = self._model.allowed(ask)
        assert told <= (allowed | {UNAVAILABLE} if hit else allowed), (told, allowed)
        assert hit or len(told) == 1
        firsts = [not replayed for each, replayed in answers if not isinstance(each, str)]
        assert sum(firsts) == bool(firsts and fresh)
        if fresh:
            self._effects(ask, told, orders.get(ask.order_id), pending.get(ask.order_id) == ask.command_id, hit)
        if ask.key and "idempotency_key_reused" not in allowed:
            self._remember(asks, ask, told, allowed)
        self._agree()

    def _made(self, template: Ask) -> Ask:
        """The command as the door makes it, with ids of its own."""
        number = next(self._numbers)
        order_id = f"order-{number}" if template.kind == "place" else template.order_id
        ask = replace(template, command_id=f"command-{number}", order_id=order_id)
        self._asked[ask.command_id] = ask
        return ask

    def _effects(self, ask: Ask, told: set[Told], order: Order | None, pending: bool, hit: bool) -> None:
        """It is asked for the first time, or never happened before: see whether it has happened now."""
        expected = self._model.evaluate(ask)
        if ask.kind == "adjust":
            if isinstance(expected, int) and self._shelf()[ask.product_id] == expected:
                self._model.count(ask, expected)
            else:
                assert not any(isinstance(each, int) for each in told), "answered, and it did not happen"
            return
        taken, refused_by_stock = self._model.take(ask), self._model.at_stock(ask)
        if isinstance(expected, Order) and order == expected:
            self._model.happen(ask.kind, expected, ask.command_id)
        else:
            assert not any(isinstance(each, Order) for each in told), "answered, and it did not happen"
        assert not pending or (hit and not refused_by_stock)
        if pending:
            self._model.pending[ask.order_id] = taken

    def _remember(self, asks: Sequence[Ask], ask: Ask, told: set[Told], allowed: set[Told]) -> None:
        key = self._model.keys.setdefault(ask.key, Key(ask))
        final = told - {UNAVAILABLE}
        if final and key.told is None:
            [key.told] = final
        elif key.told is None:
            key.attempts += asks
            key.refusals |= {each for each in allowed if isinstance(each, str)}

    # --- what can be seen ---------------------------------------------------------------------------------------------

    def _orders(self) -> dict[str, Order]:
        found = self._run(self._pair.order.orders.list_orders(customer_id="", status=None, before=None, limit=10_000))
        lines = {each.id: tuple((line.product_id, line.quantity) for line in each.lines) for each in found}
        return {each.id: Order(each.id, each.status.value, each.version, lines[each.id]) for each in found}

    def _shelf(self) -> dict[str, int]:
        return {each.id: each.available for each in self._run(self._pair.product.products.list_products("", 10))}

    def _pending(self) -> dict[str, str]:
        """Command ids by order id; what the model had pending and is no more was settled."""
        found = dict(self._run(self._pair.product.products.pending(FAR, 10_000)))
        for order_id, pending in list(self._model.pending.items()):
            if found.get(order_id) != pending.ask.command_id:
                del self._model.pending[order_id]
        return found

    def _agree(self) -> None:
        model = self._model
        assert self._pending() == {order_id: each.ask.command_id for order_id, each in model.pending.items()}
        assert self._orders() == model.orders
        assert self._shelf() == model.available()
        audits, _ = self._run(self._pair.product.products.audit())
        for each in audits:
            units = (each.ledger, each.seeded + each.adjusted, each.reserved, each.held)
            left, stock = model.available()[each.product_id], model.stock[each.product_id]
            assert units == (left, stock, stock - left, stock - left)
        log = self._run(self._pair.order.orders.list_events(after=0, order_id="", change=None, since=0, limit=10_000))
        assert [each.event.sequence for each in log] == list(range(1, len(log) + 1))
        events = [(each.event.order.id, each.event.change.value, each.event.order.version) for each in log]
        assert events == model.events
        self._sound = True


def _one_of(these: Sequence[Value], which: int) -> Value:
    return these[which % len(these)]


async def _made(pair: Pair) -> System:
    """Services have to be made on the loop that they run on."""
    return System(pair)


@contextmanager
def two_services(engine: str, folder: Path) -> Iterator[Pair]:
    with ExitStack() as opened:
        urls = [f"sqlite:///{folder / name}.db" for name in ("product", "order")]
        if engine == "servers":
            urls = [opened.enter_context(servers.postgres_database()) for _ in urls]
        both = opened.enter_context(pair(*urls))
        both.product.products.seed(Seed(products=tuple(product(*each) for each in STOCK.items()), orders=()), NOW)
        yield both


@pytest.mark.timeout(3600)  # what fails is made smaller first, and that takes as long as hypothesis lets it
@pytest.mark.parametrize("engine", processes.ENGINES)
def test_row_19_system_and_model_agree_after_every_step(engine: str, tmp_path: Path, rounds: int, seed: int) -> None:
    counts: Counter[str] = Counter()
    with two_services(engine, tmp_path) as both:
        empty = both.product.rows(), both.order.rows()
        factory = hypothesis.seed(seed)(lambda: Lives(both, empty, counts))
        chosen = hypothesis.settings(
            max_examples=LIVES_PER_ROUND * rounds,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(factory, settings=chosen)
    figures.record(19, engine, **{name.replace(" ", "_"): number for name, number in counts.items()}, disagreements=0)


@pytest.mark.parametrize("engine", processes.ENGINES)
def test_a_command_that_is_settled_after_its_event_was_forgotten_keeps_its_stock(engine: str, tmp_path: Path) -> None:
    """The process dies with the answer of order-service, and is away for longer than events are kept."""

    async def live(both: Pair) -> None:
        system = System(both)
        ask = Ask(kind="place", key="k", command_id="c", order_id="o", lines=(("a", 5),))
        assert await system.ask(0, [ask], Hurt(at=2, happens=True, dies=True)) == ([(UNAVAILABLE, False)], True)
        both.order.orders.mark_sent([1])
        assert await both.order.orders.prune(FAR, 10) == 1
        assert await both.product.products.pending(FAR, 10) == [("o", "c")]
        await system.settle_pending(1, None)
        assert await both.product.products.pending(FAR, 10) == []
        [(told, replayed)], _ = await system.ask(1, [ask], None)
        assert (told, replayed) == (Order("o", "placed", 1, (("a", 5),)), True)
        left = {each.id: each.available for each in await both.product.products.list_products("", 10)}
        assert left == {"a": STOCK["a"] - 5, "b": STOCK["b"]}

    with two_services(engine, tmp_path) as both, asyncio.Runner() as runner:
        runner.run(live(both))
