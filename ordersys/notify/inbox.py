"""The inbox: the event ids that a queue's notifiers have handled, so that an event delivered again has no effect."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from ordersys.core.storage.database import TEXT, Database, upsert
from ordersys.core.storage.migrations import Chain
from ordersys.core.storage.roles import Right
from ordersys.core.storage.statement import Statement, among, listed

RIGHTS = (
    Right("notify_inbox", "SELECT, INSERT, DELETE"),
    Right("notify_failures", "SELECT, INSERT, DELETE", sequence="notify_failures_id_seq"),
)
CHAIN = Chain("ordersys.notify", RIGHTS)

metadata = sa.MetaData()
notify_inbox = sa.Table(
    "notify_inbox",
    metadata,
    sa.Column("queue", TEXT, primary_key=True),
    sa.Column("event_id", TEXT, primary_key=True),
    sa.Column("order_id", TEXT, nullable=False),
    sa.Column("handled_at", sa.BigInteger, nullable=False),  # microseconds since the epoch
    sa.Index("notify_inbox_age", "handled_at"),
    sa.Index("notify_inbox_order", "order_id"),
)

notify_failures = sa.Table(  # for people: what was tried in vain, and why
    "notify_failures",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("queue", TEXT, nullable=False),
    sa.Column("event_id", TEXT, nullable=False),
    sa.Column("order_id", TEXT, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("reason", TEXT, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),  # microseconds since the epoch
    sa.Index("notify_failures_age", "at"),
    sa.Index("notify_failures_order", "order_id"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One event at one queue: handled, or failed for a reason on its n-th try. `at` in microseconds since the epoch."""

    queue: str
    event_id: str
    at: int
    tries: int = 0  # 0 = handled
    reason: str = ""


class Inbox:
    """What was handled, per queue: each queue has its own effects. Both methods raise `Unavailable` with the database
    away, and `record` has recorded nothing then."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def known(self, queue: str, event_ids: Iterable[str]) -> set[str]:
        """Those of `event_ids` that were handled before; asks the database even for none."""
        ids = list(event_ids)

        def work(connection: sa.Connection) -> set[str]:
            return set(_known.one(connection, {"of": queue, "names": listed(connection, ids)}).scalars())

        return self._database.read(work)

    def note_failure(self, failed: Attempt, order_id: str) -> None:
        """Remember one failed try, for people to read."""
        row = {
            "queue": failed.queue,
            "event_id": failed.event_id,
            "order_id": order_id,
            "tries": failed.tries,
            "reason": failed.reason[:1000],
            "at": failed.at,
        }
        self._database.write(lambda connection: connection.execute(notify_failures.insert(), row))

    def history(self, order_id: str) -> list[Attempt]:
        """What was handled and what failed of one order's events, oldest first."""
        handled = notify_inbox.select().where(notify_inbox.c.order_id == order_id)
        failed = notify_failures.select().where(notify_failures.c.order_id == order_id)

        def work(connection: sa.Connection) -> list[Attempt]:
            done = [
                Attempt(queue=row.queue, event_id=row.event_id, at=row.handled_at)
                for row in connection.execute(handled)
            ]
            in_vain = [
                Attempt(queue=row.queue, event_id=row.event_id, at=row.at, tries=row.tries, reason=row.reason)
                for row in connection.execute(failed)
            ]
            return sorted(done + in_vain, key=lambda attempt: attempt.at)

        return self._database.read(work)

    def prune(self, before: int, limit: int) -> int:
        """Forget at most `limit` events that were handled before this moment, and as many failures; how many."""
        old = (
            sa.select(notify_inbox.c.queue, notify_inbox.c.event_id)
            .where(notify_inbox.c.handled_at < before)
            .order_by(notify_inbox.c.handled_at)
            .limit(limit)
        )
        gone = notify_inbox.delete().where(sa.tuple_(notify_inbox.c.queue, notify_inbox.c.event_id).in_(old))
        stale = sa.select(notify_failures.c.id).where(notify_failures.c.at < before).limit(limit)
        past = notify_failures.delete().where(notify_failures.c.id.in_(stale))

        def work(connection: sa.Connection) -> int:
            return connection.execute(gone).rowcount + connection.execute(past).rowcount

        return self._database.write(work)

    def record(self, queue: str, handled: Sequence[tuple[str, str]], now_us: int) -> None:
        """Remember each (event id, order id), in one transaction, durable on return; known ones stay as they are."""
        rows = [
            {"queue": queue, "event_id": event_id, "order_id": order_id, "handled_at": now_us}
            for event_id, order_id in sorted(handled)  # one order for all copies: two of them cannot deadlock
        ]
        if rows:
            self._database.write(lambda connection: _remember.many(connection, rows))


_known = Statement(
    lambda engine: sa.select(notify_inbox.c.event_id).where(
        notify_inbox.c.queue == sa.bindparam("of"), among(notify_inbox.c.event_id, "names", engine)
    )
)
_remember = Statement(lambda engine: upsert(engine, notify_inbox).on_conflict_do_nothing())
