"""The Product Service's tables, and the one transaction per batch that decides and writes it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ordersys.core import errors
from ordersys.core.records import Order, Product, Status, StockAudit, StockMove
from ordersys.core.seed import Seed
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database, upsert
from ordersys.core.storage.statement import Statement, among, listed
from ordersys.product import model
from ordersys.product.book import Answer, Book, KeyRecord, Kind, Move, Quantities, Reservation
from ordersys.product.tables import RIGHTS, idempotency_keys, products, reservations, stock_ledger

CHAIN = migrations.Chain("ordersys.product", RIGHTS)

AnyCommand = model.OrderCommand | model.AdjustStock | model.Settlement


@dataclass(frozen=True, slots=True)
class Summary:
    """What the service holds."""

    products: int
    units: int
    pending: int


class ProductStore:
    """The Product Service's database. Blocking; raises `Unavailable` when it cannot be reached or written.

    `judge` is asked before an order takes stock, inside the transaction.
    """

    def __init__(self, database: Database, judge: model.Judge | None = None) -> None:
        self.database = database
        self._judge = judge

    async def decide(self, commands: Sequence[AnyCommand], now: int) -> list[model.Decision]:
        """Decide the batch in order and write what it changed, all in one durable transaction; one decision each."""

        def work(connection: sa.Connection) -> list[model.Decision]:
            book = _load(connection, commands)
            decisions = [model.decide(book, command, now, self._judge) for command in commands]
            _save(connection, book, now)
            return decisions

        try:
            return await self.database.write_soon(work)
        except sa.exc.IntegrityError:
            # Another process took one of the keys in the same moment: now it can be seen.
            return await self.database.write_soon(work)

    async def product(self, product_id: str) -> Product | None:
        row = await self.database.read_soon(
            lambda connection: connection.execute(products.select().where(products.c.id == product_id)).first()
        )
        return _product(row) if row else None

    async def list_products(self, after: str, limit: int) -> list[Product]:
        query = products.select().where(products.c.id > after).order_by(products.c.id).limit(limit)
        rows = await self.database.read_soon(lambda connection: connection.execute(query).all())
        return [_product(row) for row in rows]

    async def summary(self) -> Summary:
        def work(connection: sa.Connection) -> Summary:
            units = sa.func.coalesce(sa.func.sum(products.c.available), 0)
            count, total = connection.execute(sa.select(sa.func.count(), units).select_from(products)).one()
            pending = sa.select(sa.func.count()).select_from(reservations).where(sa.text("command_id <> ''"))
            return Summary(count, int(total), connection.execute(pending).scalar_one())

        return await self.database.read_soon(work)

    async def audit(self) -> tuple[list[StockAudit], int]:
        """Every product's books by id, and how many commands are pending, all of one moment."""

        def work(connection: sa.Connection) -> tuple[list[StockAudit], int]:
            self.database.one_snapshot(connection)
            totals = sa.select(
                stock_ledger.c.product_id, stock_ledger.c.kind, sa.func.sum(stock_ledger.c.delta)
            ).group_by(stock_ledger.c.product_id, stock_ledger.c.kind)
            moved: dict[tuple[str, str], int] = {
                (product_id, kind): int(units) for product_id, kind, units in connection.execute(totals)
            }
            held: Quantities = {}
            pending = 0
            rows = connection.execute(sa.select(reservations.c.held, reservations.c.taken, reservations.c.command_id))
            for holds, taken, command_id in rows:
                held = model.add(model.add(held, json.loads(holds)), json.loads(taken))
                pending += bool(command_id)
            query = sa.select(products.c.id, products.c.available).order_by(products.c.id)
            return [_audit(row.id, row.available, moved, held) for row in connection.execute(query)], pending

        return await self.database.read_soon(work)

    async def moves(self, order_id: str) -> list[StockMove]:
        """The ledger's lines for one order, oldest first."""
        query = stock_ledger.select().where(stock_ledger.c.order_id == order_id).order_by(stock_ledger.c.id)
        rows = await self.database.read_soon(lambda connection: connection.execute(query).all())
        return [_move(row) for row in rows]

    async def prune(self, before: int, limit: int) -> int:
        """Forget at most `limit` idempotency keys that were answered and are older than this; how many."""
        old = (
            sa.select(idempotency_keys.c.key)
            .where(idempotency_keys.c.created_at < before)
            .where(sa.or_(idempotency_keys.c.answer.is_not(None), idempotency_keys.c.refusal.is_not(None)))
            .order_by(idempotency_keys.c.created_at)
            .limit(limit)
        )
        gone = idempotency_keys.delete().where(idempotency_keys.c.key.in_(old))
        return await self.database.write_soon(lambda connection: connection.execute(gone).rowcount)

    def ledger(self) -> dict[str, int]:
        """The sum of every product's moves: what must be available."""
        total = sa.func.coalesce(sa.func.sum(stock_ledger.c.delta), 0)
        query = (
            sa.select(products.c.id, total)
            .select_from(products.outerjoin(stock_ledger, stock_ledger.c.product_id == products.c.id))
            .group_by(products.c.id)
            .order_by(products.c.id)
        )
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return {product_id: int(units) for product_id, units in rows}

    async def oldest_pending(self) -> tuple[int, int]:
        """How many commands are not settled, and since when the oldest is (microseconds; 0 with none)."""
        oldest = sa.func.coalesce(sa.func.min(reservations.c.since), 0)
        query = sa.select(sa.func.count(), oldest).select_from(reservations).where(sa.text("command_id <> ''"))
        count, since = await self.database.read_soon(lambda connection: connection.execute(query).one())
        return count, since

    async def drift(self) -> int:
        """By how many units the shelves differ from the ledger, all products together; one statement, one moment."""
        moved = sa.select(stock_ledger.c.product_id, sa.func.sum(stock_ledger.c.delta).label("units")).group_by(
            stock_ledger.c.product_id
        )
        sums = moved.subquery()
        apart = sa.func.abs(products.c.available - sa.func.coalesce(sums.c.units, 0))
        query = sa.select(sa.func.coalesce(sa.func.sum(apart), 0)).select_from(
            products.outerjoin(sums, sums.c.product_id == products.c.id)
        )
        return int(await self.database.read_soon(lambda connection: connection.execute(query).scalar_one()))

    async def pending(self, before: int, limit: int) -> list[tuple[str, str]]:
        """(order id, command id) of commands that were taken before this moment and are not settled, oldest first."""
        query = (
            sa.select(reservations.c.order_id, reservations.c.command_id)
            .where(sa.text("command_id <> ''"), reservations.c.since <= before)
            .order_by(reservations.c.since)
            .limit(limit)
        )
        rows = await self.database.read_soon(lambda connection: connection.execute(query).all())
        return [(order_id, command_id) for order_id, command_id in rows]

    def seed(self, seed: Seed, now: int) -> bool:
        """Load the seed into an empty database; False, changing nothing, when there are products already."""

        def work(connection: sa.Connection) -> bool:
            self.database.exclusive(connection)
            if connection.execute(sa.select(products.c.id).limit(1)).first() is not None:
                return False
            book = seeded(seed)
            if seed.products:
                connection.execute(products.insert(), [_product_row(each) for each in seed.products])
            _save(connection, book, now)
            return True

        return self.database.write(work)


def seeded(seed: Seed) -> Book:
    """The book of the first day: the ledger opens with what is for sale and what the seed orders hold."""
    book = Book()
    book.available = {product.id: 0 for product in seed.products}
    live = [order for order in seed.orders if order.status is not Status.CANCELLED]
    in_orders: Quantities = {}
    for order in live:
        in_orders = model.add(in_orders, model.summed(order.lines))
    for product in seed.products:
        units = product.available + in_orders.get(product.id, 0)
        book.available[product.id] += units
        book.moves.append(Move(product_id=product.id, delta=units, kind=Kind.SEED))
    for order in seed.orders:
        _hold(book, order, held=model.summed(order.lines) if order in live else {})
    return book


def _hold(book: Book, order: Order, held: Quantities) -> None:
    book.reserve(Reservation(order_id=order.id, held={}, taken=held))
    book.reservations[order.id] = Reservation(order_id=order.id, held=held)


def _load(connection: sa.Connection, commands: Sequence[AnyCommand]) -> Book:
    """What the batch needs, locked in one order everywhere: reservations, then products, each by id."""
    book = Book()
    order_ids = {each.order_id for each in commands if not isinstance(each, model.AdjustStock | model.PlaceOrder)}
    for row in _rows(connection, _reservations_of, order_ids):
        book.reservations[row.order_id] = _reservation(row)
    keys = {each.key for each in commands if not isinstance(each, model.Settlement)}
    keys |= {each.key for each in book.reservations.values()}
    for row in _rows(connection, _keys_of, keys - {""}):
        book.keys[row.key] = _key_record(row)
    named: set[str] = set()
    for command in commands:
        if isinstance(command, model.AdjustStock):
            named.add(command.product_id)
        elif isinstance(command, model.PlaceOrder | model.UpdateOrder):
            named.update(line.product_id for line in command.lines)
    for reservation in book.reservations.values():
        named.update(reservation.held, reservation.taken, reservation.wanted)
    for row in _rows(connection, _products_of, named):
        book.products[row.id] = _product(row)
        book.available[row.id] = row.available
    return book


def _rows(connection: sa.Connection, query: Statement, names: set[str]) -> Sequence[Any]:
    if not names:
        return ()
    return query.one(connection, {"names": listed(connection, sorted(names))}).all()


def _save(connection: sa.Connection, book: Book, now: int) -> None:
    moved = sorted({move.product_id for move in book.moves})
    _set_available.many(connection, ({"product": each, "now_available": book.available[each]} for each in moved))
    _insert_move.many(connection, (_move_row(move, now) for move in book.moves))
    _drop_reservation.many(connection, ({"name": each} for each in sorted(book.dropped_reservations)))
    touched = sorted(book.touched_reservations)
    _put_reservation.many(connection, (_reservation_row(book.reservations[each]) for each in touched))
    _drop_key.many(connection, ({"name": each} for each in sorted(book.dropped_keys)))
    # Not an upsert: when two processes take one key at once the second must fail and look again.
    _insert_key.many(connection, (_key_row(book.keys[each]) for each in sorted(book.new_keys)))
    answered = (_key_row(book.keys[each]) for each in sorted(book.answered_keys - book.new_keys))
    _set_answer.many(
        connection, ({"name": row["key"], "answer": row["answer"], "refusal": row["refusal"]} for row in answered)
    )


def _put(engine: str) -> Any:
    insert = upsert(engine, reservations)
    updated = {column.name: insert.excluded[column.name] for column in reservations.columns if not column.primary_key}
    return insert.on_conflict_do_update(index_elements=["order_id"], set_=updated)


def _named(column: "sa.Column[str]", *, lock: bool = False) -> Statement:
    """The rows of the column's table that have one of the `names` in it, in order."""

    def build(engine: str) -> Any:
        query = column.table.select().where(among(column, "names", engine)).order_by(column)
        return query.with_for_update() if lock else query

    return Statement(build)


_reservations_of = _named(reservations.c.order_id, lock=True)
_products_of = _named(products.c.id, lock=True)
_keys_of = _named(idempotency_keys.c.key)
_set_available = Statement(
    lambda _: (
        products.update()
        .where(products.c.id == sa.bindparam("product"))
        .values(available=sa.bindparam("now_available"))
    )
)
_insert_move = Statement(
    lambda _: stock_ledger.insert(), [each.name for each in stock_ledger.columns if each.name != "id"]
)
_put_reservation = Statement(_put)
_drop_reservation = Statement(lambda _: reservations.delete().where(reservations.c.order_id == sa.bindparam("name")))
_insert_key = Statement(lambda _: idempotency_keys.insert())
_drop_key = Statement(lambda _: idempotency_keys.delete().where(idempotency_keys.c.key == sa.bindparam("name")))
_set_answer = Statement(
    lambda _: idempotency_keys.update().where(idempotency_keys.c.key == sa.bindparam("name")), ["answer", "refusal"]
)


def _product(row: Any) -> Product:
    return Product(
        id=row.id,
        name=row.name,
        description=row.description,
        attributes=json.loads(row.attributes),
        currency=row.currency,
        price=row.price,
        available=row.available,
    )


def _product_row(product: Product) -> dict[str, Any]:
    return {
        "id": product.id,
        "name": product.name,
        "description": product.description,
        "attributes": json.dumps(dict(product.attributes)),
        "currency": product.currency,
        "price": product.price,
        "available": 0,  # its moves say how many
    }


def _audit(product_id: str, available: int, moved: dict[tuple[str, str], int], held: Quantities) -> StockAudit:
    units = {kind: moved.get((product_id, kind.value), 0) for kind in Kind}
    return StockAudit(
        product_id=product_id,
        available=available,
        ledger=sum(units.values()),
        seeded=units[Kind.SEED],
        adjusted=units[Kind.ADJUST],
        reserved=-units[Kind.RESERVE] - units[Kind.RELEASE],
        held=held.get(product_id, 0),
    )


def _move(row: Any) -> StockMove:
    return StockMove(
        product_id=row.product_id,
        delta=row.delta,
        kind=row.kind,
        command_id=row.command_id,
        reason=row.reason,
        at=row.at,
    )


def _move_row(move: Move, now: int) -> dict[str, Any]:
    return {
        "product_id": move.product_id,
        "delta": move.delta,
        "kind": move.kind.value,
        "order_id": move.order_id,
        "command_id": move.command_id,
        "reason": move.reason,
        "at": now,
    }


def _reservation(row: Any) -> Reservation:
    return Reservation(
        order_id=row.order_id,
        held=json.loads(row.held),
        command_id=row.command_id,
        taken=json.loads(row.taken),
        wanted=json.loads(row.wanted),
        placing=row.placing,
        key=row.key,
        since=row.since,
    )


def _reservation_row(reservation: Reservation) -> dict[str, Any]:
    return {
        "order_id": reservation.order_id,
        "held": json.dumps(reservation.held),
        "command_id": reservation.command_id,
        "taken": json.dumps(reservation.taken),
        "wanted": json.dumps(reservation.wanted),
        "placing": reservation.placing,
        "key": reservation.key,
        "since": reservation.since,
    }


def _key_record(row: Any) -> KeyRecord:
    answer: Answer | None = None if row.answer is None else bytes(row.answer)
    if row.refusal is not None:
        answer = errors.refusal(**json.loads(row.refusal))
    return KeyRecord(
        key=row.key,
        fingerprint=row.fingerprint,
        order_id=row.order_id,
        command_id=row.command_id,
        answer=answer,
        created_at=row.created_at,
    )


def _key_row(record: KeyRecord) -> dict[str, Any]:
    refusal = None
    if isinstance(record.answer, errors.OrdersysError):
        error = record.answer
        refusal = json.dumps({"code": error.code, "message": error.message, "metadata": error.metadata})
    return {
        "key": record.key,
        "fingerprint": record.fingerprint,
        "order_id": record.order_id,
        "command_id": record.command_id,
        "answer": record.answer if isinstance(record.answer, bytes) else None,
        "refusal": refusal,
        "created_at": record.created_at,
    }
