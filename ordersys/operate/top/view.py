"""The screen of `ordersys top`, and the same as plain text for a pipe."""

from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from ordersys.core import display
from ordersys.core.display import printable
from ordersys.operate.top.sample import Batches, Calls, Queue, Sample

_NOTHING = "-"
_WIDE = 110
_MOST_CALLS, _FEW_CALLS = 8, 3
_LOW = 32  # lines: less is a low screen
_MOST_PRODUCTS = 5
_MOST_EVENTS = 20  # in a pipe
_OLD_SECONDS = 30.0


class Screen:
    """A sample in as many lines and columns as there are: what does not fit is the older events."""

    def __init__(self, made: Sample, hint: str) -> None:
        self._made = made
        self._hint = hint

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or options.max_height
        above = Group(*_above(self._made, self._hint, options.max_width, _FEW_CALLS if height < _LOW else _MOST_CALLS))
        lines = console.render_lines(above, options.update(height=None), pad=False)
        yield above
        room = height - len(lines) - 2
        if room > 0:
            yield from _events(self._made, room)


def plain(made: Sample) -> Iterator[str]:
    """Name and value on a line, separated by a tab, for whoever reads it through a pipe."""
    rows: list[tuple[str, ...]] = [
        ("orders/s", rate(made.orders_per_second)),
        ("outbox", count(made.outbox_depth), age(made.outbox_oldest_age_seconds)),
        ("dead letters", count(made.dead_letters)),
        ("unsettled", count(made.unsettled_commands), age(made.unsettled_oldest_age_seconds)),
    ]
    rows += [("call", *cells) for cells in map(_call, made.calls)]
    rows += [("batch", *_batch(each)) for each in made.batches]
    rows += [("queue", *_queue(each)) for each in made.queues]
    rows += [("low stock", each.id, each.name, str(each.available)) for each in made.low_stock or ()]
    rows += [("dependency", each.service, each.dependency, "up" if each.up else "down") for each in made.dependencies]
    rows += [("away", name, why) for name, why in made.away.items()]
    events = list(made.newest_events)[-_MOST_EVENTS:]
    rows += [("event", "".join(text for text, _ in display.event_line(each))) for each in events]
    for row in rows:
        yield "\t".join(printable(cell) for cell in row)


def rate(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def span(seconds: float | None) -> str:
    """How long something took: "850 us", "12 ms", "1.5 s"."""
    if seconds is None:
        return _NOTHING
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def age(seconds: float | None) -> str:
    """How long something has waited: "0 s", "42 s", "7 min"."""
    if seconds is None:
        return _NOTHING
    for size, word in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"


def count(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.0f}"


def _above(made: Sample, hint: str, width: int, calls: int) -> Iterator[RenderableType]:
    about = f"  over {made.seconds:.0f} s" if made.seconds else "  a first look"
    yield Text.assemble(("ordersys top", "bold"), (f"  {display.moment(made.at)}{about}  {hint}", "dim"))
    yield _headline(made)
    if made.dependencies:
        yield _dependencies(made)
    yield from _complaints(made)
    left = [_calls(made, calls), _batches(made)]
    right = [_queues(made), _stock(made)]
    if width >= _WIDE:
        grid = Table.grid(padding=(0, 3))
        grid.add_row(Group(*_shown(left)), Group(*_shown(right)))
        yield grid
    else:
        yield from _shown([*left, *right])


def _shown(parts: Iterable[Table | None]) -> list[RenderableType]:
    return [part for part in parts if part is not None]


def _headline(made: Sample) -> Text:
    placing = next((each for each in made.calls if each.method == "PlaceOrder"), None)
    old = (made.outbox_oldest_age_seconds or 0.0) >= _OLD_SECONDS
    facts = [
        ("orders/s", rate(made.orders_per_second), "bold green"),
        ("p50", span(placing.p50_seconds if placing else None), "bold"),
        ("p99", span(placing.p99_seconds if placing else None), "bold"),
        ("outbox", _outbox(made), "bold red" if old else "bold"),
        ("dead", count(made.dead_letters), "bold red" if made.dead_letters else "bold"),
        ("unsettled", count(made.unsettled_commands), "bold yellow" if made.unsettled_commands else "bold"),
    ]
    return Text("   ").join(Text.assemble((f"{name} ", "dim"), (value, style)) for name, value, style in facts)


def _outbox(made: Sample) -> str:
    return (
        f"{count(made.outbox_depth)}, {age(made.outbox_oldest_age_seconds)}"
        if made.outbox_depth
        else count(made.outbox_depth)
    )


def _dependencies(made: Sample) -> Text:
    """Each role with what it misses."""
    missing: dict[str, list[str]] = {}
    for each in made.dependencies:
        missing.setdefault(each.service, []).extend([] if each.up else [each.dependency])
    line = Text()
    for service, lost in missing.items():
        if lost:
            line.append(f"{printable(service)} without {printable(', '.join(lost))}   ", "bold red")
    if ready := [printable(service) for service, lost in missing.items() if not lost]:
        line.append("ready ", "green").append(" ".join(ready), "dim")
    return line


def _complaints(made: Sample) -> Iterator[Text]:
    """Who is away; of several that are away for one reason one line tells."""
    if made.broker_problem:
        yield Text(f"broker: {made.broker_problem}", "bold red")
    silent = []
    for name, why in made.away.items():
        if name.startswith("http") and "key" not in why:
            silent.append(urlsplit(name).netloc)
        else:
            yield Text(f"{printable(name)}: {printable(why)}", "yellow" if name.startswith("http") else "bold red")
    if silent:
        less = "" if made.measured else ": rates are those of the event log, and the rest is not known"
        yield Text(f"no metrics at {', '.join(silent)}{less}", "dim" if made.measured else "yellow")


def _calls(made: Sample, most: int) -> Table | None:
    called = [each for each in made.calls if each.per_second > 0][:most]
    if not made.calls:
        return None
    table = _table("call", "/s", "refused", "failed", "p50", "p99")
    for each in called:
        style = "red" if each.failed_per_second else ""
        table.add_row(*(Text(printable(cell), style) for cell in _call(each)))
    if not called:
        table.add_row(Text("none now", "dim"))
    return table


def _call(each: Calls) -> tuple[str, ...]:
    return (
        each.method,
        rate(each.per_second),
        rate(each.refused_per_second),
        rate(each.failed_per_second),
        span(each.p50_seconds),
        span(each.p99_seconds),
    )


def _batches(made: Sample) -> Table | None:
    if not made.batches:
        return None
    table = _table("batcher", "/s", "size", "wait", "waiting")
    for each in made.batches:
        table.add_row(*_batch(each))
    return table


def _batch(each: Batches) -> tuple[str, ...]:
    size = _NOTHING if each.size is None else f"{each.size:.1f}"
    return (printable(each.batcher), rate(each.per_second), size, span(each.wait_p50_seconds), count(each.waiting))


def _queues(made: Sample) -> Table | None:
    if not made.queues:
        return None
    table = _table("queue", "ready", "retry", "dead", "done/s", "lag p99")
    for each in made.queues:
        cells = _queue(each)
        table.add_row(*cells[:3], Text(cells[3], "bold red" if each.dead else ""), *cells[4:])
    return table


def _queue(each: Queue) -> tuple[str, ...]:
    return (
        printable(each.name),
        count(each.ready),
        count(each.retrying),
        count(each.dead),
        rate(each.handled_per_second),
        span(each.lag_p99_seconds),
    )


def _stock(made: Sample) -> Table | None:
    if not made.low_stock:
        return None
    table = _table("low stock", "left")
    for each in made.low_stock[:_MOST_PRODUCTS]:
        style = "" if each.available else "red"
        table.add_row(Text(printable(f"{each.id} {each.name}"), style), Text(str(each.available), style))
    if len(made.low_stock) > _MOST_PRODUCTS:
        table.add_row(Text(f"and {len(made.low_stock) - _MOST_PRODUCTS} more", "dim"))
    return table


def _events(made: Sample, room: int) -> Iterator[Text]:
    newest = list(made.newest_events)[-room:]
    if newest:
        yield Text("newest events", "bold")
    for each in reversed(newest):
        (moment, style), *rest = display.event_line(each)
        time_of_day = moment.partition(" ")[2]
        yield Text.assemble((time_of_day, style), *rest, no_wrap=True, overflow="ellipsis")


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold underline")
    table.add_column(first, no_wrap=True)
    for each in others:
        table.add_column(each, justify="right", no_wrap=True)
    return table
