"""`ordersys demo`: every role on a throw-away home, real orders through the real client, a summary that checks itself.

What the notifiers heard is held against what was placed, and the stock against its ledger: nothing is assumed.
"""

import io
import itertools
import json
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ordersys import databases, lifecycle, settings, wiring
from ordersys.client.calls import Answer, Orders
from ordersys.core import display, errors, events, ids, seed, topology
from ordersys.core.events import Change, Event
from ordersys.core.records import Order

CALLERS = 8
_SHOWN = 8  # events per notifier on the screen at a time
_PRINTED = 50  # events per notifier that are printed in a pipe


class Ear(io.StringIO):
    """What one notifier printed: the stream it writes its events to."""

    def __init__(self, queue: str) -> None:
        super().__init__()
        self.queue = queue
        self.heard: list[Event] = []

    def write(self, text: str) -> int:
        self.heard += [events.decode(line) for line in text.splitlines() if line]
        return len(text)


@dataclass(frozen=True, slots=True)
class Check:
    what: str
    expected: object
    seen: object

    @property
    def right(self) -> bool:
        return self.expected == self.seen


@dataclass(slots=True)
class Done:
    """What the demo did, from which it knows what must come of it."""

    placed: list[Order] = field(default_factory=list)
    stock: dict[str, int] = field(default_factory=dict)  # what must be available, by product id
    changes: list[tuple[str, Change]] = field(default_factory=list)  # every event that must be heard

    def place(self, order: Order) -> None:
        self.placed.append(order)
        self.changes.append((order.id, Change.CREATED))
        self.move(order, -1)

    def move(self, order: Order, sign: int) -> None:
        for line in order.lines:
            self.stock[line.product_id] += sign * line.quantity


def run(count: int, *, as_json: bool) -> int:
    """Place `count` orders and change some; 0 when every check is right, 1 when one is not."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    # That its API is open, on this machine and for these seconds, is no news to anybody.
    logging.getLogger("ordersys.api.access").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: the home is removed
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ordersys-demo-") as home:
        chosen = _throw_away(Path(home))
        ears = {queue.name: Ear(queue.name) for queue in topology.standard().queues}
        everything = wiring.Everything(chosen, lambda queue: ears[queue.name], json=True)
        screen = _Screen(ears, count, quiet=as_json)
        with lifecycle.background(everything.parts, chosen.grace_seconds), screen:
            product, order = (settings.dialled(part.address) for part in (everything.product, everything.order))
            with Orders(product, order, chosen.deadline_seconds) as orders:
                done, checks = _story(orders, count, seed.load(chosen.data), screen)
                _wait_until(lambda: _heard_all(done, ears), seconds=15 + count / 50)
                checks += _checks(orders, done, ears, databases.stock_ledger(chosen))
        _print_summary(checks, done, time.monotonic() - began, as_json=as_json)
    return 0 if all(check.right for check in checks) else 1


def _throw_away(home: Path) -> settings.Settings:
    """Settings that touch nothing but this folder and free ports, whatever the environment says."""
    fields = settings.Settings.model_fields.items()
    chosen = {name: each.get_default(call_default_factory=True) for name, each in fields}
    chosen["home"] = home
    for name in ("product", "order", "notify"):
        chosen[f"{name}_database_url"] = f"sqlite:///{home / name}.db"
    chosen["broker_url"] = f"sqlite:///{home / 'broker'}.db"
    for name in ("product", "order", "api"):
        chosen[f"{name}_bind"] = "127.0.0.1:0"
    return settings.Settings(**chosen)


def _story(orders: Orders, count: int, content: seed.Seed, screen: "_Screen") -> tuple[Done, list[Check]]:
    done = Done(stock={product.id: product.available for product in orders.list_products()})
    wanted = list(itertools.islice(itertools.cycle(content.orders), count))
    _restock(orders, done, wanted)
    first_key = ids.uuid7()
    keys = itertools.chain([first_key], iter(ids.uuid7, ""))

    def place(each: Order, key: str) -> Answer:
        answer = orders.place_order(each.customer_id, [(line.product_id, line.quantity) for line in each.lines], key)
        screen.advance()
        return answer

    callers = ThreadPoolExecutor(CALLERS)
    try:
        for answer in callers.map(place, wanted, keys):
            done.place(answer.order)
    finally:
        callers.shutdown(cancel_futures=True)  # after Ctrl-C nobody wants the rest
    return done, [*_changes(orders, done), *_refusals(orders, done, wanted[0], first_key)]


def _restock(orders: Orders, done: Done, wanted: Sequence[Order]) -> None:
    """Enough for everybody, so that the one refusal is the one we ask for."""
    for product_id, available in done.stock.items():
        needed = sum(line.quantity for order in wanted for line in order.lines if line.product_id == product_id) + 10
        if needed > available:
            orders.adjust_stock(product_id, needed - available, "restocked for the demo")
            done.stock[product_id] = needed


def _changes(orders: Orders, done: Done) -> list[Check]:
    """One order gets other lines, one is cancelled, one is shipped and delivered: as far as there are orders."""
    placed = iter(done.placed)
    checks = []
    if order := next(placed, None):
        lines = [(line.product_id, line.quantity + 1) for line in order.lines]
        updated = orders.update_order(order.id, lines, expected_version=order.version).order
        done.move(order, +1)
        done.move(updated, -1)
        done.changes.append((order.id, Change.LINES))
        checks.append(Check("version of the updated order", 2, updated.version))
    if order := next(placed, None):
        cancelled = orders.cancel_order(order.id, "changed my mind").order
        done.move(order, +1)
        done.changes.append((order.id, Change.CANCELLED))
        checks.append(Check("status of the cancelled order", "cancelled", cancelled.status.value))
    if order := next(placed, None):
        orders.ship_order(order.id)
        delivered = orders.deliver_order(order.id).order
        done.changes += [(order.id, Change.SHIPPED), (order.id, Change.DELIVERED)]
        checks.append(Check("status of the shipped order", "delivered", delivered.status.value))
    return checks


def _refusals(orders: Orders, done: Done, first: Order, first_key: str) -> list[Check]:
    """One order is too large for the stock, and one is a repetition of the first."""
    scarce = min(done.stock, key=lambda product_id: done.stock[product_id])
    try:
        orders.place_order("c-greedy", [(scarce, done.stock[scarce] + 1)])
        told = "accepted"
    except errors.OrdersysError as error:
        told = error.code
    again = orders.place_order(first.customer_id, [(line.product_id, line.quantity) for line in first.lines], first_key)
    return [
        Check("an order larger than the stock", "insufficient_stock", told),
        Check("the first order repeated with its key", "the same order", _told(again, done.placed[0])),
    ]


def _told(answer: Answer, first: Order) -> str:
    return "the same order" if answer.replayed and answer.order == first else f"order {answer.order.id}"


def _heard_all(done: Done, ears: dict[str, Ear]) -> bool:
    return len(ears[topology.NOTIFY_FANOUT.name].heard) >= len(done.placed) and len(
        ears[topology.NOTIFY_TOPIC.name].heard
    ) >= len(done.changes)


def _checks(orders: Orders, done: Done, ears: dict[str, Ear], stock_ledger: dict[str, int]) -> list[Check]:
    fanout, every = (
        sorted((event.order.id, event.change) for event in ears[queue.name].heard)
        for queue in (topology.NOTIFY_FANOUT, topology.NOTIFY_TOPIC)
    )
    created = sorted((order.id, Change.CREATED) for order in done.placed)
    available = {product.id: product.available for product in orders.list_products()}
    return [
        Check("orders on record", len(done.placed), sum(_exists(orders, order) for order in done.placed)),
        Check("events at notify.fanout, each order created once", len(created), _matching(created, fanout)),
        Check("events at notify.topic, each change once", len(done.changes), _matching(sorted(done.changes), every)),
        Check("units available", done.stock, available),
        Check("units in the ledger", done.stock, stock_ledger),
    ]


def _exists(orders: Orders, order: Order) -> bool:
    return orders.get_order(order.id).created_at == order.created_at


def _matching(expected: list[tuple[str, Change]], heard: list[tuple[str, Change]]) -> object:
    """How many were heard, when they are exactly those expected; otherwise what differs."""
    if expected == heard:
        return len(heard)
    missing, extra = set(expected) - set(heard), len(heard) - len(set(heard) & set(expected))
    return f"{len(heard)} heard, {len(missing)} missing, {extra} too many"


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


class _Screen:
    """The live view on a terminal; a few plain lines in a pipe; nothing when only JSON is wanted."""

    def __init__(self, ears: dict[str, Ear], count: int, *, quiet: bool) -> None:
        self._ears = ears
        self._console = Console(quiet=quiet, highlight=False)
        self._progress = Progress(
            TextColumn("[bold]placing orders"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._task = self._progress.add_task("orders", total=count)
        self._lock = threading.Lock()
        self._live = Live(get_renderable=self._view, console=self._console, refresh_per_second=10)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        else:
            for ear in self._ears.values():
                for event in ear.heard[-_PRINTED:]:
                    line = "".join(text for text, _ in display.event_line(event))
                    self._console.print(f"{ear.queue}  {line}", soft_wrap=True)
                self._console.print(f"{ear.queue} received {len(ear.heard)} events", soft_wrap=True)

    def advance(self) -> None:
        with self._lock:
            self._progress.advance(self._task)

    def _view(self) -> RenderableType:
        return Group(self._progress, *(self._heard(ear) for ear in self._ears.values()))

    def _heard(self, ear: Ear) -> RenderableType:
        lines = [Text(f"{ear.queue} received {len(ear.heard)} events", "bold magenta")]
        lines += [
            Text.assemble("  ", *display.event_line(event), no_wrap=True, overflow="ellipsis")
            for event in ear.heard[-_SHOWN:]
        ]
        return Group(*lines)


def _print_summary(checks: Sequence[Check], done: Done, seconds: float, *, as_json: bool) -> None:
    right = all(check.right for check in checks)
    if as_json:
        rows = [{"check": each.what, "expected": each.expected, "seen": each.seen, "ok": each.right} for each in checks]
        print(json.dumps({"ok": right, "orders": len(done.placed), "seconds": round(seconds, 3), "checks": rows}))
        return
    console = Console(highlight=False)
    table = Table("", "check", "expected", "seen", header_style="bold", title="what came of it", title_justify="left")
    for each in checks:
        mark = Text("ok", "green") if each.right else Text("WRONG", "bold red")
        table.add_row(mark, each.what, *_both(each))
    if console.is_terminal:
        console.print(table)
    else:
        for each in checks:
            state = "ok" if each.right else "WRONG"
            console.print(
                f"{state}: {each.what}: expected {_short(each.expected)}, saw {_short(each.seen)}", soft_wrap=True
            )
    verdict = "all is right" if right else "something is WRONG, see above"
    style = "bold green" if right else "bold red"
    console.print(Text(f"{len(done.placed)} orders, {len(done.changes)} events, {seconds:.1f} s: {verdict}", style))


def _both(check: Check) -> tuple[str, str]:
    """Expected and seen on one line each; of two tables that differ, only where they do."""
    expected, seen = check.expected, check.seen
    if isinstance(expected, dict) and isinstance(seen, dict) and expected != seen:
        names = sorted(name for name in {*expected, *seen} if expected.get(name) != seen.get(name))
        return tuple(", ".join(f"{name}: {each.get(name)}" for name in names) for each in (expected, seen))  # type: ignore[return-value]
    return _short(expected), _short(seen)


def _short(value: object) -> str:
    return f"{sum(value.values())} units of {len(value)} products" if isinstance(value, dict) else str(value)
