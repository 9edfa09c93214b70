"""The product store, the same cases on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from ordersys.core import errors, ids
from ordersys.core.records import Line, Order, Product, Status
from ordersys.core.seed import Seed
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.product import model, store
from ordersys.product.model import Fate, Settlement, Wanted
from ordersys.product.store import CHAIN, ProductStore

ROLE = "product"


def product(product_id: str, available: int) -> Product:
    return Product(
        id=product_id,
        name=f"Product {product_id}",
        description="ünïcode 'quoted'",
        attributes={"size": "L"},
        currency="EUR",
        price=250,
        available=available,
    )


SEED = Seed(products=(product("1", 100), product("2", 10), product("3", 0)), orders=())


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    migrations.upgrade(opened, CHAIN)
    yield opened
    opened.close()


@pytest.fixture
def products(database: Database) -> ProductStore:
    made = ProductStore(database)
    assert made.seed(SEED, ids.now_us())
    return made


def place(*lines: tuple[str, int], key: str = "", fingerprint: str = "f") -> model.PlaceOrder:
    return model.PlaceOrder(
        command_id=ids.uuid7(),
        key=key,
        fingerprint=fingerprint,
        order_id=ids.uuid7(),
        customer_id="c",
        lines=tuple(Wanted(*line) for line in lines),
        traceparent="",
    )


def update(order_id: str, *lines: tuple[str, int]) -> model.UpdateOrder:
    return model.UpdateOrder(
        command_id=ids.uuid7(),
        key="",
        fingerprint="f",
        order_id=order_id,
        lines=tuple(Wanted(*line) for line in lines),
        expected_version=0,
        traceparent="",
    )


def settle(command: model.OrderCommand, fate: Fate = Fate.ACCEPTED) -> Settlement:
    answers = {
        Fate.ACCEPTED: b"the order",
        Fate.REFUSED: errors.InvalidTransition.of("o", "shipped", "x"),
        Fate.VOID: None,
    }
    return Settlement(order_id=command.order_id, command_id=command.command_id, fate=fate, answer=answers[fate])  # type: ignore[arg-type]


async def decide(products: ProductStore, *commands: store.AnyCommand) -> list[model.Decision]:
    return await products.decide(commands, ids.now_us())


def available(products: ProductStore) -> dict[str, int]:
    return {each.id: each.available for each in asyncio.run(products.list_products("", 100))}


def ledger(database: Database) -> dict[str, int]:
    query = sa.select(store.stock_ledger.c.product_id, sa.func.sum(store.stock_ledger.c.delta)).group_by(
        store.stock_ledger.c.product_id
    )
    return {product_id: int(total) for product_id, total in database.read(lambda c: c.execute(query).all())}


def test_the_seed_is_loaded_once_and_opens_the_ledger(products: ProductStore, database: Database) -> None:
    assert available(products) == {"1": 100, "2": 10, "3": 0}
    assert ledger(database) == {"1": 100, "2": 10, "3": 0}
    assert not products.seed(SEED, ids.now_us())
    assert available(products) == {"1": 100, "2": 10, "3": 0}
    found = asyncio.run(products.product("2"))
    assert found == SEED.products[1]
    assert asyncio.run(products.product("nope")) is None


def test_seed_orders_hold_their_stock_and_the_inventory_counts_what_is_left(database: Database) -> None:
    def order(order_id: str, status: Status) -> Order:
        return Order(
            id=order_id,
            customer_id="c",
            status=status,
            lines=(Line("1", 3, 250), Line("1", 1, 250)),
            currency="EUR",
            version=1,
            created_at=1,
            updated_at=1,
        )

    products = ProductStore(database)
    orders = (order("placed", Status.PLACED), order("cancelled", Status.CANCELLED))
    products.seed(Seed(products=SEED.products, orders=orders), ids.now_us())
    assert available(products)["1"] == 100
    assert ledger(database)["1"] == 100
    command = update("placed", ("1", 1))
    asyncio.run(decide(products, command))
    asyncio.run(decide(products, settle(command)))
    assert available(products)["1"] == 103
    assert ledger(database)["1"] == 103


def test_a_batch_is_decided_in_order_and_written_at_once(products: ProductStore, database: Database) -> None:
    commands = [place(("2", 6)), place(("2", 6)), place(("2", 4)), place(("nope", 1)), place(("1", 1), ("2", 1))]
    decisions = asyncio.run(decide(products, *commands))
    kinds = [
        type(each.answer).__name__ if isinstance(each, model.Answered) else type(each).__name__ for each in decisions
    ]
    assert kinds == ["Taken", "InsufficientStock", "Taken", "ProductNotFound", "InsufficientStock"]
    assert available(products) == {"1": 100, "2": 0, "3": 0} == ledger(database)


def test_settlements_and_new_commands_share_a_batch(products: ProductStore, database: Database) -> None:
    first = place(("2", 10))
    asyncio.run(decide(products, first))
    second = place(("2", 10))
    decisions = asyncio.run(decide(products, settle(first, Fate.REFUSED), second))
    assert decisions[0] == model.Settled(applied=True)
    assert isinstance(decisions[1], model.Taken)
    assert ledger(database)["2"] == 0


def test_a_key_and_its_answer_survive_and_a_void_key_is_free_again(products: ProductStore) -> None:
    async def story() -> None:
        accepted, refused, void = (place(("1", 1), key=key) for key in ("a", "r", "v"))
        await decide(products, accepted, refused, void)
        pending = await decide(products, place(("1", 1), key="a"))
        assert pending == [model.Unsettled(accepted.order_id, accepted.command_id, pending[0].since)]  # type: ignore[union-attr]
        await decide(products, settle(accepted), settle(refused, Fate.REFUSED), settle(void, Fate.VOID))
        again = await decide(
            products,
            place(("1", 1), key="a"),
            place(("1", 1), key="r"),
            place(("1", 1), key="v"),
            place(("1", 1), key="a", fingerprint="other"),
        )
        assert again[0] == model.Answered(b"the order", replayed=True)
        assert isinstance(again[1], model.Answered)
        assert isinstance(again[1].answer, errors.InvalidTransition)
        assert again[1].answer.metadata == {"order_id": "o", "status": "shipped", "wanted": "x"}
        assert isinstance(again[2], model.Taken)
        assert isinstance(again[3], model.Answered)
        assert isinstance(again[3].answer, errors.IdempotencyKeyReused)

    asyncio.run(story())


def test_pending_commands_are_found_by_age_until_they_are_settled(products: ProductStore) -> None:
    async def story() -> None:
        old, young = place(("1", 1)), place(("1", 1))
        await products.decide([old], 1_000)
        await products.decide([young], 2_000)
        assert await products.pending(1_500, 10) == [(old.order_id, old.command_id)]
        assert len(await products.pending(2_000, 10)) == 2
        assert len(await products.pending(2_000, 1)) == 1
        assert (await products.summary()).pending == 2
        await decide(products, settle(old), settle(young, Fate.VOID))
        assert await products.pending(5_000, 10) == []

    asyncio.run(story())


def test_200_buyers_at_once_get_exactly_the_100_there_are(products: ProductStore, database: Database) -> None:
    """Several stores on one database, as several processes would be."""

    async def buy(buyer: ProductStore) -> list[model.Decision]:
        return [(await decide(buyer, place(("1", 1))))[0] for _ in range(50)]

    async def story() -> list[list[model.Decision]]:
        return await asyncio.gather(*(buy(each) for each in buyers))

    others = [Database(database.url.render_as_string(hide_password=False)) for _ in range(3)]
    buyers = [products, *(ProductStore(each) for each in others)]
    decisions = [each for batch in asyncio.run(story()) for each in batch]
    for other in others:
        other.close()
    assert sum(isinstance(each, model.Taken) for each in decisions) == 100
    refused = [each.answer for each in decisions if isinstance(each, model.Answered)]
    assert len(refused) == 100
    assert {type(each) for each in refused} == {errors.InsufficientStock}
    assert available(products)["1"] == 0 == ledger(database)["1"]


def test_one_key_taken_by_two_processes_at_once_has_one_effect(products: ProductStore, database: Database) -> None:
    other = Database(database.url.render_as_string(hide_password=False))

    async def story() -> list[object]:
        both = (decide(each, place(("1", 1), key="same")) for each in (products, ProductStore(other)))
        return await asyncio.gather(*both, return_exceptions=True)

    results = asyncio.run(story())
    other.close()
    # The slower one sees the key as taken, or fails on it as a whole and is run again by its batcher.
    taken = [each for each in results if isinstance(each, list) and isinstance(each[0], model.Taken)]
    assert len(taken) == 1
    assert available(products)["1"] == 99


def test_a_failing_commit_leaves_nothing_behind(
    products: ProductStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def many(self, *_: object) -> None:
            raise RuntimeError("after the ledger was written")

    monkeypatch.setattr(store, "_put_reservation", Broken())
    with pytest.raises(RuntimeError):
        asyncio.run(decide(products, place(("1", 1), key="k")))
    monkeypatch.undo()
    assert available(products) == {"1": 100, "2": 10, "3": 0} == ledger(database)
    assert isinstance(asyncio.run(decide(products, place(("1", 1), key="k")))[0], model.Taken)


def test_products_come_in_one_order_on_both_engines(database: Database) -> None:
    names = ["10", "2", "A", "Z", "a", "b-1", "b_1", "É"]
    ProductStore(database).seed(Seed(products=tuple(product(each, 1) for each in names), orders=()), 1)
    products = ProductStore(database)
    seen: list[str] = []
    while page := asyncio.run(products.list_products(seen[-1] if seen else "", 3)):
        seen += [each.id for each in page]
    assert seen == sorted(names)


def test_more_names_than_one_statement_takes(products: ProductStore, database: Database) -> None:
    commands = [place(("1", 1), ("2", 0), key=f"k{number}") for number in range(1200)]
    decisions = asyncio.run(decide(products, *commands))
    assert sum(isinstance(each, model.Taken) for each in decisions) == 100
    assert ledger(database)["1"] == 0
