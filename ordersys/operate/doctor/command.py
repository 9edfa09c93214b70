"""The command: every check side by side, one line each, and an exit code."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ordersys.operate import printing
from ordersys.operate.printing import Json

if TYPE_CHECKING:
    from ordersys.operate.doctor.findings import Finding

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="How long any one check may take; all run side by side.")
    ] = 5.0,
    as_json: Json = False,
) -> None:
    """Look at settings, ports, clock, disk, databases, broker, certificates and what is stuck; change nothing.

    One line each, with the command that mends it; exit code 1 when anything is a problem.
    """
    from ordersys.operate.doctor.findings import Level

    found = _examined(seconds)
    if as_json:
        printing.document(
            {
                "ok": all(each.level is not Level.PROBLEM for each in found),
                "findings": [
                    {"check": each.check, "level": each.level.value, "found": each.found, "fix": each.fix}
                    for each in found
                ],
            }
        )
    else:
        _print(found)
    if any(each.level is Level.PROBLEM for each in found):
        raise typer.Exit(1)


def _examined(seconds: float) -> "list[Finding]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    from ordersys import settings
    from ordersys.core import errors
    from ordersys.operate.doctor import certificates, configuration, databases, machine, ports, queues
    from ordersys.operate.doctor.findings import examine, problem

    try:
        chosen = settings.load()
    except errors.UsageError as error:
        return [problem("settings", f"{error.message}; nothing else was looked at", "ordersys config")]
    checks = [
        check
        for area in (configuration, machine, ports, databases, queues, certificates)
        for check in area.checks(chosen)
    ]
    console = Console(stderr=True)
    columns = (SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(checks))

        def waiting(names: list[str]) -> None:
            progress.update(task, completed=len(checks) - len(names), description=", ".join(names[:3]))

        return examine(checks, seconds, waiting)


def _print(found: "Sequence[Finding]") -> None:
    from ordersys.core.display import counted, printable

    if not sys.stdout.isatty():
        for each in found:
            print("\t".join(printable(cell) for cell in (each.level, each.check, each.found, each.fix)).rstrip("\t"))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in found:
        said = Text(printable(each.found))
        if each.fix:
            said.append(f"\n{printable(each.fix)}", "cyan")
        table.add_row(Text(each.level, _STYLES[each.level]), Text(each.check, "bold"), said)
    levels = [each.level.value for each in found]
    counts = (f"{levels.count('ok')} ok", *(counted(levels.count(each), each) for each in ("warning", "problem")))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        Text(", ".join(counts), _STYLES[next((each for each in ("problem", "warning") if each in levels), "ok")])
    )
