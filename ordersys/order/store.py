"""The Order Service's tables: order, event and outbox row are one transaction per batch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from ordersys.core import errors, events
from ordersys.core.events import Change, Event, Logged
from ordersys.core.records import Order, Status
from ordersys.core.seed import Seed
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.core.storage.statement import Statement, among, listed
from ordersys.core.storage.turn import Turn
from ordersys.order import model
from ordersys.order.rows import command_row, event_row, order_of, order_row
from ordersys.order.tables import RIGHTS, order_commands, order_events, order_outbox, order_sequence, orders

CHAIN = migrations.Chain("ordersys.order", RIGHTS)

_SKEWED_EVENTS = 1000
"""So many events may have later sequences and earlier times than another: far more than clocks in step make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsent:
    """One event in the outbox."""

    sequence: int
    event_id: str
    order_id: str
    change: Change
    body: str


class OrderStore:
    """The Order Service's database. Raises `Unavailable` when it cannot be reached or written."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def apply(
        self, items: Sequence[model.Command | model.Settle], now: int, new_id: Callable[[], str]
    ) -> list[model.Outcome]:
        """Carry out the batch in order, in one durable transaction; one outcome each.

        A command whose id is known already is not carried out again: its first outcome is the outcome.
        """

        def work(connection: sa.Connection) -> list[model.Outcome]:
            return _Batch(connection, now).run(items, new_id)

        try:
            return await self.database.write_soon(work)
        except sa.exc.IntegrityError:
            # Another process was at work on one of the commands in the same moment: now its outcome can be seen.
            return await self.database.write_soon(work)

    async def order(self, order_id: str) -> Order | None:
        query = orders.select().where(orders.c.id == order_id)
        row = await self.database.read_soon(lambda connection: connection.execute(query).first())
        return order_of(row) if row else None

    async def list_orders(
        self, *, customer_id: str, status: Status | None, before: tuple[int, str] | None, limit: int
    ) -> list[Order]:
        """Newest first, older than `before` (created_at, id)."""
        query = orders.select().order_by(orders.c.created_at.desc(), orders.c.id.desc()).limit(limit)
        if customer_id:
            query = query.where(orders.c.customer_id == customer_id)
        if status:
            query = query.where(orders.c.status == status.value)
        if before:
            query = query.where(sa.tuple_(orders.c.created_at, orders.c.id) < sa.tuple_(*before))
        rows = await self.database.read_soon(lambda connection: connection.execute(query).all())
        return [order_of(row) for row in rows]

    async def events_after(self, sequence: int, *, order_id: str, customer_id: str, limit: int) -> list[Event]:
        """The event log after a sequence, oldest first."""
        query = (
            sa.select(order_events.c.body)
            .where(order_events.c.sequence > sequence)
            .order_by(order_events.c.sequence)
            .limit(limit)
        )
        if order_id:
            query = query.where(order_events.c.order_id == order_id)
        if customer_id:
            query = query.where(order_events.c.customer_id == customer_id)
        rows = await self.database.read_soon(lambda connection: connection.execute(query).all())
        return [events.decode(body) for (body,) in rows]

    async def list_events(
        self, *, after: int, order_id: str, change: Change | None, since: int, limit: int
    ) -> list[Logged]:
        """The event log after a sequence and since a moment, oldest first, with what the broker has not confirmed."""
        query = (
            sa.select(order_events.c.body, order_outbox.c.sequence.label("waiting"))
            .outerjoin(order_outbox, order_outbox.c.sequence == order_events.c.sequence)
            .order_by(order_events.c.sequence)
            .limit(limit)
        )
        if since:
            query = query.where(order_events.c.at >= since)
        query = query.where(
            order_events.c.sequence >= _first_since(since) if since and not after else order_events.c.sequence > after
        )
        if order_id:
            query = query.where(order_events.c.order_id == order_id)
        if change:
            query = query.where(order_events.c.change == change.value)
        rows = await self.database.read_soon(lambda connection: connection.execute(query).all())
        return [Logged(event=events.decode(row.body), published=row.waiting is None) for row in rows]

    async def outbox(self) -> tuple[int, int]:
        """How many events the broker has not confirmed, and when the oldest was made (microseconds; 0 with none)."""
        oldest = (
            sa.select(order_events.c.at)
            .join(order_outbox, order_outbox.c.sequence == order_events.c.sequence)
            .order_by(order_outbox.c.sequence)
            .limit(1)
            .scalar_subquery()
        )
        query = sa.select(sa.func.count(), oldest).select_from(order_outbox)
        count, at = await self.database.read_soon(lambda connection: connection.execute(query).one())
        return count, at or 0

    async def prune(self, before: int, limit: int) -> int:
        """Forget at most `limit` events that are published and older than this; how many.

        What became of a command is kept as long as its order: product-service may still ask, and void gives back stock.
        """

        def work(connection: sa.Connection) -> int:
            old = (
                sa.select(order_events.c.sequence)
                .where(order_events.c.at < before)
                .where(~sa.exists().where(order_outbox.c.sequence == order_events.c.sequence))
                .order_by(order_events.c.at)
                .limit(limit)
            )
            return connection.execute(order_events.delete().where(order_events.c.sequence.in_(old))).rowcount

        return await self.database.write_soon(work)

    def turn(self) -> Turn:
        """The turn to send what is in the outbox, of all processes that could."""
        return Turn(self.database, order_outbox)

    def unsent(self, limit: int) -> list[Unsent]:
        """The oldest events that the broker has not confirmed, in sequence."""
        rows = self.database.read(lambda connection: _unsent.one(connection, {"most": limit}).all())
        return [
            Unsent(
                sequence=row.sequence,
                event_id=row.event_id,
                order_id=row.order_id,
                change=Change(row.change),
                body=row.body,
            )
            for row in rows
        ]

    def mark_sent(self, sequences: Sequence[int]) -> None:
        """They are confirmed everywhere they had to go: out of the outbox, kept in the event log."""
        rows = [{"sent": sequence} for sequence in sequences]
        self.database.write(lambda connection: _forget_sent.many(connection, rows))

    def seed(self, seed: Seed) -> bool:
        """Load the seed orders into an empty database; False, changing nothing, when there are orders already.

        They were there before the first event, so they are not announced.
        """

        def work(connection: sa.Connection) -> bool:
            self.database.exclusive(connection)
            if not seed.orders or connection.execute(sa.select(orders.c.id).limit(1)).first() is not None:
                return False
            connection.execute(orders.insert(), [order_row(order) for order in seed.orders])
            return True

        return self.database.write(work)


class _Batch:
    """One transaction: what it read, and what it has to write."""

    def __init__(self, connection: sa.Connection, now: int) -> None:
        self._connection = connection
        self._now = now
        self._orders: dict[str, Order] = {}
        self._new: set[str] = set()
        self._changed: set[str] = set()
        self._outcomes: dict[str, tuple[str, model.Outcome]] = {}  # by command id: its fingerprint, what became of it
        self._recorded: list[dict[str, Any]] = []
        self._changes: list[tuple[model.Command, Order]] = []

    def run(self, items: Sequence[model.Command | model.Settle], new_id: Callable[[], str]) -> list[model.Outcome]:
        self._load(items)
        outcomes = [self._settle(item) if isinstance(item, model.Settle) else self._apply(item) for item in items]
        self._save(new_id)
        return outcomes

    def _load(self, items: Sequence[model.Command | model.Settle]) -> None:
        # Orders first: who has waited for their locks sees what became of the same command in another process.
        existing = {each.order_id for each in items if isinstance(each, model.Command)}
        for row in self._rows(_orders_by_id, existing):
            self._orders[row.id] = order_of(row)
        for row in self._rows(_known_commands, {each.command_id for each in items} - {""}):
            self._outcomes[row.command_id] = (row.fingerprint, self._outcome(row))

    def _outcome(self, row: Any) -> model.Outcome:
        if row.refusal is not None:
            return model.Refused(errors.refusal(**json.loads(row.refusal)))
        if row.sequence is None:
            return model.Void()
        query = sa.select(order_events.c.body).where(order_events.c.sequence == row.sequence)
        body = self._connection.execute(query).scalar_one_or_none()
        if body is not None:
            return model.Accepted(events.decode(body).order)
        # Forgotten since; a command that nobody has settled yet was the last to change the lines of its order.
        present = self._connection.execute(orders.select().where(orders.c.id == row.order_id)).one()
        return model.Accepted(order_of(present))

    def _apply(self, command: model.Command) -> model.Outcome:
        if command.command_id in self._outcomes:
            fingerprint, outcome = self._outcomes[command.command_id]
            if fingerprint != command.fingerprint:
                return model.Refused(model.reused(command))
            return replace(outcome, replayed=True) if isinstance(outcome, model.Accepted) else outcome
        before = self._orders.get(command.order_id)
        try:
            order = model.apply(before, command, self._now)
        except errors.OrdersysError as error:
            refusal = json.dumps({"code": error.code, "message": error.message, "metadata": error.metadata})
            return self._record(command.command_id, model.Refused(error), command.fingerprint, refusal)
        self._orders[order.id] = order
        if before is None:
            self._new.add(order.id)
        elif order.id not in self._new:
            self._changed.add(order.id)
        self._changes.append((command, order))
        if command.command_id:
            self._outcomes[command.command_id] = (command.fingerprint, model.Accepted(order))
        return model.Accepted(order)

    def _settle(self, item: model.Settle) -> model.Outcome:
        if item.command_id in self._outcomes:
            return self._outcomes[item.command_id][1]
        return self._record(item.command_id, model.Void())

    def _record(
        self, command_id: str, outcome: model.Outcome, fingerprint: str = "", refusal: str | None = None
    ) -> model.Outcome:
        if command_id:
            self._outcomes[command_id] = (fingerprint, outcome)
            self._recorded.append(command_row(command_id, fingerprint, refusal=refusal))
        return outcome

    def _save(self, new_id: Callable[[], str]) -> None:
        connection = self._connection
        _insert_order.many(connection, (order_row(self._orders[each]) for each in sorted(self._new)))
        changed = (order_row(self._orders[each]) for each in sorted(self._changed))
        _change_order.many(connection, ({"order": row.pop("id"), **row} for row in changed))
        if self._changes:
            first = self._reserve_sequences(len(self._changes))
            log = []
            for sequence, (command, order) in enumerate(self._changes, first):
                event = Event(
                    id=new_id(),
                    sequence=sequence,
                    change=command.change,
                    time=self._now,
                    order=order,
                    traceparent=command.traceparent,
                )
                log.append(event_row(event))
                if command.command_id:
                    row = command_row(command.command_id, command.fingerprint, order_id=order.id, sequence=sequence)
                    self._recorded.append(row)
            _insert_event.many(connection, log)
            _insert_unsent.many(connection, ({"sequence": row["sequence"]} for row in log))
        _insert_command.many(connection, self._recorded)

    def _reserve_sequences(self, count: int) -> int:
        """The first of `count` sequences; the row stays locked until the commit, so they become visible in order."""
        last: int = _grow_sequence.one(self._connection, {"count": count}).scalar_one()
        return last - count + 1

    def _rows(self, query: Statement, names: set[str]) -> Sequence[Any]:
        if not names:
            return ()
        return query.one(self._connection, {"names": listed(self._connection, sorted(names))}).all()


_orders_by_id = Statement(
    lambda engine: orders.select().where(among(orders.c.id, "names", engine)).order_by(orders.c.id).with_for_update()
)
_known_commands = Statement(
    lambda engine: order_commands.select().where(among(order_commands.c.command_id, "names", engine))
)
_unsent = Statement(
    lambda _: (
        sa.select(
            order_events.c.sequence,
            order_events.c.event_id,
            order_events.c.order_id,
            order_events.c.change,
            order_events.c.body,
        )
        .where(
            order_events.c.sequence.in_(  # the few first, or a planner may join the whole log with the outbox
                sa.select(order_outbox.c.sequence)
                .order_by(order_outbox.c.sequence)
                .limit(sa.bindparam("most", type_=sa.Integer))
            )
        )
        .order_by(order_events.c.sequence)
    )
)
_forget_sent = Statement(lambda _: order_outbox.delete().where(order_outbox.c.sequence == sa.bindparam("sent")))
_insert_order = Statement(lambda _: orders.insert())
_insert_event = Statement(lambda _: order_events.insert())
_insert_unsent = Statement(lambda _: order_outbox.insert())
_insert_command = Statement(lambda _: order_commands.insert())
_change_order = Statement(
    lambda _: orders.update().where(orders.c.id == sa.bindparam("order")),
    [column.name for column in orders.columns if not column.primary_key],
)
_grow_sequence = Statement(
    lambda _: (
        order_sequence.update()
        .where(order_sequence.c.id == 1)
        .values(last=order_sequence.c.last + sa.bindparam("count"))
        .returning(order_sequence.c.last)
    )
)


def _first_since(since: int) -> sa.ScalarSelect[int]:
    """The sequence where the events since a moment begin, so that the log before it is not read.

    Replicas' clocks differ, so it is the lowest of the first _SKEWED_EVENTS of that time.
    """
    first = (
        sa.select(order_events.c.sequence)
        .where(order_events.c.at >= since)
        .order_by(order_events.c.at)
        .limit(_SKEWED_EVENTS)
        .subquery()
    )
    return sa.select(sa.func.min(first.c.sequence)).scalar_subquery()
