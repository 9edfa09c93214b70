"""What the callers were told, held against everything on record: orders, event log, notifications, inbox, stock."""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing

from e2e.processes import Backend, Role, until
from faults.books import Books, Write

from ordersys.client.calls import MAX_PAGE, Orders
from ordersys.core.events import Change, Event
from ordersys.core.records import Order
from ordersys.core.storage.database import Database
from ordersys.notify.inbox import notify_inbox

SETTLE_SECONDS = 60.0
"""How long after the last hurt everything may take to be as it should be, without anybody's help."""
REPEATED = 40
"""How many of the answered calls are made once more."""


def judge(
    backend: Backend, name: str, books: Books, fanout: Sequence[Role], topic: Sequence[Role], *, in_order: bool
) -> dict[str, int]:
    """The figures of a load, every one that must be 0 checked; all roles have to run.

    `fanout` and `topic` are all processes that notified from either queue (--json), the killed ones too. A line that a
    process printed and could not record before it was killed may be printed again by its successor: such lines are
    counted as `printed_again`, within one process there must be none. An effect counts as applied when it is in the
    inbox, which is the same transaction for every other effect. With `in_order` no queue may have heard a later event
    of an order first.
    """
    with Orders(backend.product_address, backend.order_address, SETTLE_SECONDS / 2) as orders:
        placed = _placed(books)
        on_record = {order.id: order for order in _on_record(orders) if order.customer_id.startswith(f"{name}-")}
        lost = [order_id for order_id in books.told if order_id not in on_record]
        doubled = [order_id for order_id in on_record if order_id not in books.told]
        differing = [each for each in books.told.values() if on_record.get(each.id, each) != each]
        changed_answers = list(_changed_answers(orders, books))
        _all_come_again(backend, orders, name)
        log = _published_log(orders)
        until(lambda: orders.audit_stock()[1] == 0, "every reservation is settled", SETTLE_SECONDS)
    gaps = _gaps(log, on_record)
    heard = {
        "notify.fanout": _Heard(fanout, [event for event in log if event.change is Change.CREATED]),
        "notify.topic": _Heard(topic, log),
    }
    for queue, each in heard.items():
        each.wait(queue)
    effects = _effects(backend, heard)
    backend.balances()
    dead = backend.run("dlq", "list", "--json").document["dead_letters"]
    overtaken = sum(each.overtaken() for each in heard.values())

    assert len(set(placed)) == len(placed), "two keys got the same order"
    assert not lost, f"{len(lost)} answered orders are lost: {lost[:5]}"
    assert not doubled, f"{len(doubled)} orders nobody was told of: {doubled[:5]}"
    assert not differing, f"{len(differing)} orders are not as their callers were told, for example {differing[0]}"
    assert not changed_answers, f"a repeated call got another answer: {changed_answers[0]}"
    assert not gaps, f"{len(gaps)} orders without every version from 1 to their own: {gaps[:5]}"
    for queue, each in heard.items():
        assert not each.missing(), f"{queue}: {len(each.missing())} events are missing: {each.missing()[:5]}"
        assert not each.invented(), f"{queue}: told of events that are not in the log: {each.invented()[:5]}"
        assert not each.doubled(), f"{queue}: one process told twice of {each.doubled()[:5]}"
    assert not effects, f"inbox and event log differ: {effects[:5]}"
    assert not dead, f"{len(dead)} dead letters, for example {dead[0]}"
    assert not (in_order and overtaken), f"{overtaken} events were heard after a later one of their order"
    return {
        "answered": len(books.moments),
        "orders": len(books.told),
        "refused": len(books.answers) - len([1 for _, answer in books.answers if isinstance(answer, Order)]),
        "repeats": books.repeats,
        "lost": len(lost),
        "doubled": len(doubled),
        "events": len(log),
        "missing": sum(len(each.missing()) for each in heard.values()),
        "doubled_effects": len(effects) + sum(len(each.doubled()) for each in heard.values()),
        "printed_again": sum(each.printed_again() for each in heard.values()),
        "overtaken": overtaken,
        "stock_difference": 0,  # `balances` has seen to it
    }


def _placed(books: Books) -> list[str]:
    return [answer.id for write, answer in books.answers if write.kind == "place" and isinstance(answer, Order)]


def _on_record(orders: Orders) -> Iterator[Order]:
    token = ""
    while True:
        page = orders.list_orders(page_size=MAX_PAGE, page_token=token)
        yield from page.orders
        token = page.next_page_token
        if not token:
            return


def _changed_answers(orders: Orders, books: Books) -> Iterator[tuple[Write, object, object]]:
    """Calls made once more with their key that are not answered as they were at first."""
    for write, answer in books.answers[:: max(1, len(books.answers) // REPEATED)]:
        again = write.ask(orders)
        if again != answer:
            yield write, answer, again


def _published_log(orders: Orders) -> list[Event]:
    """The event log, once the broker has confirmed all of it."""
    log = list(orders.log())
    if not all(each.published for each in log):
        until(lambda: all(each.published for each in orders.log()), "the outbox is empty", SETTLE_SECONDS)
        log = list(orders.log())
    return [each.event for each in log]


def _all_come_again(backend: Backend, orders: Orders, name: str) -> None:
    """See to it that copies, and what dead notifiers held, come before the last event that is waited for.

    RabbitMQ delivers them before anything new. The embedded broker waits for the leases of the dead.
    """
    orders.place_order(f"after-{name}", [("1", 1)], f"after-{name}")
    if "ORDERSYS_BROKER_URL" in backend.environment:
        return
    left = "SELECT EXISTS (SELECT 1 FROM messages WHERE queue LIKE 'notify.%' AND queue NOT LIKE '%.dlq')"
    with closing(sqlite3.connect(backend.home / "broker.db")) as broker:
        until(lambda: broker.execute(left).fetchone() == (0,), "no message is left", SETTLE_SECONDS)


def _gaps(log: Sequence[Event], on_record: dict[str, Order]) -> list[str]:
    """Orders whose events are not, in sequence, their versions from 1 to the one on record."""
    versions: dict[str, list[int]] = defaultdict(list)
    for event in log:
        versions[event.order.id].append(event.order.version)
    return [each.id for each in on_record.values() if versions[each.id] != list(range(1, each.version + 1))]


class _Heard:
    """What the processes of one queue have printed, against what they had to."""

    def __init__(self, roles: Sequence[Role], expected: Sequence[Event]) -> None:
        self._roles = roles
        self.expected = {event.id: event for event in expected}
        self._printed: list[list[str]] = []

    def wait(self, queue: str) -> None:
        """Until nothing is missing, or nothing comes any more for a long while."""

        def complete() -> bool:
            self._printed = [[event["id"] for event in role.events()] for role in self._roles]
            return not self.missing()

        until(complete, f"{queue}: each of {len(self.expected)} events is heard of", SETTLE_SECONDS)

    def missing(self) -> list[str]:
        return sorted(self.expected.keys() - {each for printed in self._printed for each in printed})

    def invented(self) -> list[str]:
        return sorted({each for printed in self._printed for each in printed} - self.expected.keys())

    def doubled(self) -> list[str]:
        return [each for printed in self._printed for each, count in Counter(printed).items() if count > 1]

    def printed_again(self) -> int:
        lines = [each for printed in self._printed for each in printed]
        return len(lines) - len(set(lines))

    def overtaken(self) -> int:
        """Events that were heard of for the first time after a later one of their order."""
        newest: dict[str, int] = {}
        seen: set[str] = set()
        late = 0
        for event_id in (each for printed in self._printed for each in printed):
            if event_id in seen or event_id not in self.expected:
                continue
            seen.add(event_id)
            order = self.expected[event_id].order
            late += order.version < newest.get(order.id, 0)
            newest[order.id] = max(order.version, newest.get(order.id, 0))
        return late


def _effects(backend: Backend, heard: dict[str, _Heard]) -> list[tuple[str, str]]:
    """(queue, event id) that are in the inbox and should not be, or should be and are not."""
    expected = {(queue, event_id) for queue, each in heard.items() for event_id in each.expected}
    until(lambda: inbox(backend) >= expected, "every effect is recorded", SETTLE_SECONDS)
    return sorted(inbox(backend) ^ expected)


def inbox(backend: Backend) -> set[tuple[str, str]]:
    """(queue, event id) of every effect that is recorded."""
    url = backend.environment.get("ORDERSYS_NOTIFY_DATABASE_URL", f"sqlite:///{backend.home / 'notify.db'}")
    query = notify_inbox.select().with_only_columns(notify_inbox.c.queue, notify_inbox.c.event_id)
    database = Database(url)
    try:
        return set(database.read(lambda connection: [(row.queue, row.event_id) for row in connection.execute(query)]))
    finally:
        database.close()
