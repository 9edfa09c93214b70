"""The order store, the same cases on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from ordersys.core import errors, events, ids
from ordersys.core.events import Change
from ordersys.core.records import Line, Order, Status
from ordersys.core.seed import Seed
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.order import model, store
from ordersys.order.model import Accepted, Command, Refused, Settle, Void
from ordersys.order.store import CHAIN, OrderStore

ROLE = "order"
LINES = (Line("1", 2, 250), Line("2", 1, 999))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    migrations.upgrade(opened, CHAIN)
    yield opened
    opened.close()


@pytest.fixture
def orders(database: Database) -> OrderStore:
    return OrderStore(database)


def place(order_id: str = "", customer_id: str = "c") -> Command:
    return Command(
        command_id=ids.uuid7(),
        order_id=order_id or ids.uuid7(),
        change=Change.CREATED,
        customer_id=customer_id,
        lines=LINES,
        currency="EUR",
        traceparent=ids.new_traceparent(),
    )


def change(order_id: str, kind: Change, expected_version: int = 0) -> Command:
    return Command(
        command_id=ids.uuid7(),
        order_id=order_id,
        change=kind,
        expected_version=expected_version,
        lines=LINES[:1],
        currency="EUR",
    )


def apply(orders: OrderStore, *items: model.Command | Settle, now: int | None = None) -> list[model.Outcome]:
    return asyncio.run(orders.apply(items, now or ids.now_us(), ids.uuid7))


def accepted(outcome: model.Outcome) -> Order:
    assert isinstance(outcome, Accepted)
    return outcome.order


def log(orders: OrderStore, after: int = 0, order_id: str = "", customer_id: str = "") -> list[events.Event]:
    return asyncio.run(orders.events_after(after, order_id=order_id, customer_id=customer_id, limit=1000))


def refusals(outcomes: Sequence[model.Outcome]) -> list[str]:
    return [each.error.code if isinstance(each, Refused) else "" for each in outcomes]


def test_order_event_and_outbox_row_come_together(orders: OrderStore) -> None:
    command = place("o1")
    order = accepted(apply(orders, command, now=1_700_000_000_123_456)[0])
    assert asyncio.run(orders.order("o1")) == order
    (event,) = log(orders)
    assert (event.change, event.order, event.sequence, event.time) == (Change.CREATED, order, 1, 1_700_000_000_123_456)
    assert event.traceparent == command.traceparent
    (unsent,) = orders.unsent(10)
    assert (unsent.sequence, unsent.event_id, unsent.order_id) == (1, event.id, "o1")
    assert events.decode(unsent.body) == event


def test_a_whole_life_in_one_batch(orders: OrderStore) -> None:
    outcomes = apply(
        orders,
        place("o1"),
        change("o1", Change.LINES, expected_version=1),
        change("o1", Change.LINES, expected_version=1),
        change("o1", Change.SHIPPED),
        change("o1", Change.CANCELLED),
        change("o1", Change.DELIVERED, expected_version=3),
        change("nope", Change.SHIPPED),
    )
    assert refusals(outcomes) == ["", "", "version_conflict", "", "invalid_transition", "", "order_not_found"]
    final = asyncio.run(orders.order("o1"))
    assert final is not None
    assert (final.status, final.version, final.lines) == (Status.DELIVERED, 4, LINES[:1])
    assert [event.change.value for event in log(orders)] == ["created", "lines", "shipped", "delivered"]
    assert [event.order.version for event in log(orders)] == [1, 2, 3, 4]


def test_a_repeated_command_gets_its_first_result_and_no_second_event(orders: OrderStore) -> None:
    first = place("o1")
    refused = change("o1", Change.DELIVERED)
    made, no = apply(orders, first, refused)
    apply(orders, change("o1", Change.SHIPPED))
    again, still_no, within = apply(orders, first, refused, first)
    assert accepted(made) == accepted(again) == accepted(within)
    assert accepted(again).version == 1
    assert refusals([no]) == refusals([still_no]) == ["invalid_transition"]
    assert isinstance(no, Refused)
    assert isinstance(still_no, Refused)
    assert no.error.metadata == still_no.error.metadata
    assert len(log(orders)) == 2


def test_what_was_settled_as_not_executed_never_will_be(orders: OrderStore) -> None:
    late = place("o1")
    assert apply(orders, Settle(late.command_id)) == [Void()]
    assert apply(orders, late) == [Void()]
    assert asyncio.run(orders.order("o1")) is None
    assert log(orders) == []


def test_settling_tells_what_happened(orders: OrderStore) -> None:
    done, refused = place("o1"), change("nope", Change.SHIPPED)
    apply(orders, done, refused)
    told = apply(orders, Settle(done.command_id), Settle(refused.command_id))
    assert accepted(told[0]).id == "o1"
    assert refusals(told) == ["", "order_not_found"]


def test_a_command_and_its_settlement_in_one_batch_agree(orders: OrderStore) -> None:
    first, second = place("o1"), place("o2")
    outcomes = apply(orders, first, Settle(first.command_id), Settle(second.command_id), second)
    assert outcomes[0] == outcomes[1]
    assert outcomes[2:] == [Void(), Void()]


def test_sent_events_leave_the_outbox_and_stay_in_the_log(orders: OrderStore) -> None:
    apply(orders, *(place() for _ in range(5)))
    orders.mark_sent([1, 3])
    assert [each.sequence for each in orders.unsent(10)] == [2, 4, 5]
    assert [each.sequence for each in orders.unsent(2)] == [2, 4]
    orders.mark_sent([2, 4, 5])
    assert orders.unsent(10) == []
    assert len(log(orders)) == 5
    apply(orders, place())
    assert [each.sequence for each in orders.unsent(10)] == [6]  # a number is never used twice


def test_the_log_can_be_read_from_anywhere_and_by_order_and_customer(orders: OrderStore) -> None:
    apply(orders, place("o1", "ann"), place("o2", "bob"), change("o1", Change.SHIPPED))
    assert [event.sequence for event in log(orders, after=1)] == [2, 3]
    assert [event.sequence for event in log(orders, order_id="o1")] == [1, 3]
    assert [event.sequence for event in log(orders, customer_id="bob")] == [2]
    assert log(orders, after=3) == []


def test_the_log_since_a_moment_has_what_a_fast_clock_dated_too(orders: OrderStore) -> None:
    """Two replicas whose clocks differ: sequence and time do not grow together."""
    moments = (100, 400, 200, 500, 300, 600)
    for moment in moments:
        apply(orders, place(), now=moment)

    def since(moment: int, after: int = 0) -> list[int]:
        listed = orders.list_events(after=after, order_id="", change=None, since=moment, limit=10)
        return [each.event.sequence for each in asyncio.run(listed)]

    assert since(300) == [2, 4, 5, 6]
    assert since(300, after=2) == [4, 5, 6]
    assert since(100) == [1, 2, 3, 4, 5, 6]
    assert since(601) == []


def test_orders_are_listed_newest_first_in_pages_without_gaps(orders: OrderStore) -> None:
    made = [
        accepted(apply(orders, place(customer_id=f"c{number % 2}"), now=1000 + number // 3)[0]) for number in range(9)
    ]
    expected = sorted(made, key=lambda order: (order.created_at, order.id), reverse=True)
    seen: list[Order] = []
    while page := asyncio.run(
        orders.list_orders(
            customer_id="", status=None, before=(seen[-1].created_at, seen[-1].id) if seen else None, limit=2
        )
    ):
        seen += page
    assert seen == expected
    apply(orders, change(made[0].id, Change.SHIPPED))
    shipped = asyncio.run(orders.list_orders(customer_id="c0", status=Status.SHIPPED, before=None, limit=10))
    assert [order.id for order in shipped] == [made[0].id]
    assert asyncio.run(orders.list_orders(customer_id="c1", status=Status.SHIPPED, before=None, limit=10)) == []


def test_sequences_become_visible_in_order_with_several_writers(orders: OrderStore, database: Database) -> None:
    others = [Database(database.url.render_as_string(hide_password=False)) for _ in range(3)]

    async def write(target: OrderStore) -> None:
        for _ in range(10):
            await target.apply([place(), place()], ids.now_us(), ids.uuid7)

    async def watch() -> list[int]:
        seen: list[int] = []
        while len(seen) < 80:
            found = await orders.events_after(seen[-1] if seen else 0, order_id="", customer_id="", limit=1000)
            seen += [event.sequence for event in found]
        return seen

    async def story() -> list[int]:
        writers = [write(each) for each in (orders, *(OrderStore(other) for other in others))]
        async with asyncio.timeout(60):
            *_, seen = await asyncio.gather(*writers, watch())
        return seen

    seen = asyncio.run(story())
    for other in others:
        other.close()
    assert seen == list(range(1, 81))  # a reader that follows the log misses nothing


def test_one_order_changed_by_many_at_once_has_one_legal_history(orders: OrderStore, database: Database) -> None:
    apply(orders, place("o1"))
    others = [Database(database.url.render_as_string(hide_password=False)) for _ in range(3)]
    stores = [orders, *(OrderStore(each) for each in others)]

    async def story() -> list[list[model.Outcome]]:
        kinds = [Change.CANCELLED, Change.SHIPPED, Change.CANCELLED, Change.SHIPPED]
        calls = (
            each.apply([change("o1", kind)], ids.now_us(), ids.uuid7) for each, kind in zip(stores, kinds, strict=True)
        )
        return await asyncio.gather(*calls)

    outcomes = [outcome for batch in asyncio.run(story()) for outcome in batch]
    for other in others:
        other.close()
    assert sum(isinstance(each, Accepted) for each in outcomes) == 1
    assert [event.order.version for event in log(orders)] == [1, 2]


def test_a_failing_commit_leaves_nothing_behind(
    orders: OrderStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: events.Event) -> dict[str, object]:
        raise RuntimeError("after the order was written")

    command = place("o1")
    monkeypatch.setattr(store, "event_row", broken)
    with pytest.raises(RuntimeError):
        apply(orders, command)
    monkeypatch.undo()
    assert asyncio.run(orders.order("o1")) is None
    assert log(orders) == []
    assert accepted(apply(orders, command)[0]).version == 1
    assert log(orders)[0].sequence == 1


def test_seed_orders_are_loaded_once_and_not_announced(orders: OrderStore) -> None:
    order = Order(
        id="seeded",
        customer_id="c",
        status=Status.SHIPPED,
        lines=LINES,
        currency="EUR",
        version=2,
        created_at=5,
        updated_at=6,
    )
    assert orders.seed(Seed(products=(), orders=(order,)))
    assert not orders.seed(Seed(products=(), orders=(order,)))
    assert asyncio.run(orders.order("seeded")) == order
    assert log(orders) == []
    delivered = accepted(apply(orders, change("seeded", Change.DELIVERED))[0])
    assert (delivered.version, delivered.status) == (3, Status.DELIVERED)


def test_a_refusal_is_stored_in_its_own_words(orders: OrderStore) -> None:
    command = change("nope", Change.SHIPPED)
    for _ in range(2):
        (outcome,) = apply(orders, command)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, errors.OrderNotFound)
        assert outcome.error.metadata == {"order_id": "nope"}


def test_a_command_whose_event_is_forgotten_is_never_called_void(orders: OrderStore) -> None:
    """Void would give back the stock of an order that exists."""
    command = place("o1")
    apply(orders, command, now=1_000)
    shipped = accepted(apply(orders, change("o1", Change.SHIPPED), now=1_500)[0])
    orders.mark_sent([1, 2])
    while asyncio.run(orders.prune(2_000, 100)):
        pass
    assert log(orders) == []
    settled, repeated = apply(orders, Settle(command.command_id), command)
    assert accepted(settled) == accepted(repeated) == shipped
    assert log(orders) == []


# --- commands that a caller names by a key ---------------------------------------------------------------------------


def ship(order_id: str, key: str = "k", version: int = 1) -> Command:
    return model.advance(order_id, Status.SHIPPED, version, key=key)


def test_a_key_is_applied_once_and_answered_alike(orders: OrderStore) -> None:
    apply(orders, place("o1"))
    first, second = apply(orders, ship("o1"), ship("o1"))
    assert isinstance(first, Accepted)
    assert not first.replayed
    assert second == Accepted(first.order, replayed=True)
    apply(orders, change("o1", Change.DELIVERED))
    assert apply(orders, ship("o1")) == [second]
    assert [event.change for event in log(orders)] == [Change.CREATED, Change.SHIPPED, Change.DELIVERED]


def test_a_refusal_is_the_answer_to_its_key(orders: OrderStore) -> None:
    apply(orders, place("o1"))
    refused = [apply(orders, model.advance("o1", Status.DELIVERED, 0, key="k"))[0] for _ in range(2)]
    apply(orders, ship("o1", "other"))
    refused += apply(orders, model.advance("o1", Status.DELIVERED, 0, key="k"))
    assert [type(each.error) for each in refused if isinstance(each, Refused)] == [errors.InvalidTransition] * 3


@pytest.mark.parametrize(
    "other",
    [ship("o2"), ship("o1", version=2), model.advance("o1", Status.DELIVERED, 1, key="k")],
    ids=["order", "version", "status"],
)
def test_a_key_with_another_body_is_refused_and_changes_nothing(orders: OrderStore, other: Command) -> None:
    apply(orders, place("o1"), place("o2"))
    for batch in ([ship("o1"), other], [other]):
        outcome = apply(orders, *batch)[-1]
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, errors.IdempotencyKeyReused)
        assert outcome.error.metadata == {"idempotency_key": "k"}
    assert len(log(orders)) == 3


def test_a_key_that_comes_to_two_processes_at_once_is_applied_once(database_url: str, orders: OrderStore) -> None:
    other = Database(database_url)

    async def at_once(order_id: str) -> list[model.Outcome]:
        both = [
            store.apply([ship(order_id, order_id)], ids.now_us(), ids.uuid7) for store in (orders, OrderStore(other))
        ]
        return [outcome for outcomes in await asyncio.gather(*both) for outcome in outcomes]

    order_ids = [f"o{number}" for number in range(20)]
    try:
        apply(orders, *map(place, order_ids))
        for order_id in order_ids:
            outcomes = asyncio.run(at_once(order_id))
            assert sorted(each.replayed for each in outcomes if isinstance(each, Accepted)) == [False, True]
    finally:
        other.close()
    assert len(log(orders)) == 40


def test_a_command_and_its_settlement_at_two_processes_at_once_agree(database_url: str, orders: OrderStore) -> None:
    """One replica carries out what another has just been asked about: whoever comes second hears of the first."""
    other = Database(database_url)

    async def at_once(command: Command) -> list[model.Outcome]:
        stores = ((orders, command), (OrderStore(other), Settle(command.command_id)))
        asked = [store.apply([item], ids.now_us(), ids.uuid7) for store, item in stores]
        return [outcome for outcomes in await asyncio.gather(*asked) for outcome in outcomes]

    try:
        told = [asyncio.run(at_once(place())) for _ in range(40)]
    finally:
        other.close()
    assert all(carried_out == settled for carried_out, settled in told)
    assert len(log(orders)) == sum(isinstance(settled, Accepted) for _, settled in told)
