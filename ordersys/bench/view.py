"""What people see of a run: how it goes, and what it came to."""

import json
import sys
import time
from dataclasses import asdict
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from ordersys.bench.plan import Placed, Seen, spread
from ordersys.bench.run import Result, throughput

WINDOW_SECONDS = 2.0
"""How far back the live figures look."""


class View:
    """A live view on a terminal's stderr; in a pipe nothing is shown."""

    def __init__(self, *, orders: int, seconds: float, quiet: bool) -> None:
        console = Console(stderr=True)
        self._orders = orders
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
        )
        self._task = self._progress.add_task("", total=None)
        self._total = orders or seconds
        self._recent: list[Placed] = []
        self._seen = Seen()
        self._begun = 0.0
        self._live = Live(self._drawn(), console=console, refresh_per_second=8, transient=True)
        self._shown = console.is_terminal and not quiet

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._live.stop()

    def say(self, what: str) -> None:
        self._progress.update(self._task, description=what)
        self._live.update(self._drawn())

    def begin(self) -> None:
        self._begun = time.monotonic()
        self._progress.update(self._task, total=self._total)
        self.say("placing orders")

    def told(self, piece: Seen) -> None:
        now = time.monotonic()
        self._seen.add(piece)
        self._recent = [each for each in self._recent + piece.placed if now - each.ended <= WINDOW_SECONDS]
        self._progress.update(self._task, completed=self._seen.tried if self._orders else now - self._begun)
        self._live.update(self._drawn())

    def _drawn(self) -> RenderableType:
        table = Table.grid(padding=(0, 3))
        times = spread([each.ended - each.begun for each in self._recent])
        table.add_row(
            Text(f"{len(self._seen.placed)} orders", "bold"),
            Text(f"{throughput(self._recent):.0f}/s", "bold green"),
            f"p50 {times['p50']:.1f} ms",
            f"p99 {times['p99']:.1f} ms",
            *([Text(f"{self._seen.refused.total()} refused", "yellow")] if self._seen.refused else []),
            *([Text(f"{self._seen.repeated} repeated", "yellow")] if self._seen.repeated else []),
        )
        return Group(self._progress, table)


def show(result: Result, *, as_json: bool) -> None:
    """The whole result on stdout."""
    found = result.document()
    if as_json:
        print(json.dumps(found))
        return
    rows = {
        "PlaceOrder": found["latency_ms"],
        **{f"heard at {queue}": times for queue, times in found["notified_ms"].items()},
    }
    right = "right" if result.verdict.right else "WRONG"
    counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in asdict(result.verdict).items())
    if not sys.stdout.isatty():
        print(f"orders\t{found['orders']}\norders/s\t{found['orders_per_second']}")
        for name, times in rows.items():
            print("\t".join([name, *(f"{each} {value} ms" for each, value in times.items())]))
        print(f"verdict\t{right}: {counts}")
        return
    table = Table("", *(Column(each, justify="right") for each in found["latency_ms"]), header_style="bold")
    for name, times in rows.items():
        table.add_row(name, *(f"{value:.1f} ms" for value in times.values()))
    plan = found["plan"]
    how = f"at {plan['rate']:g} orders/s" if plan["rate"] else f"{plan['concurrency']} callers"
    console = Console(highlight=False)
    console.print(
        Text.assemble(
            (f"{found['orders_per_second']:.0f} orders/s", "bold green"),
            f"  {found['orders']} orders, {how}, {plan['via']}",
        )
    )
    console.print(table)
    for name in ("refused", "repeated", "unknown"):
        if found[name]:
            console.print(f"{name}: {found[name]}")
    console.print(Text.assemble((right, "bold green" if result.verdict.right else "bold red"), f": {counts}"))
