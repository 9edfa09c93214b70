"""How the operation verbs print: tables on a terminal, tab-separated lines in a pipe, JSON when asked."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def document(content: Any) -> None:
    """One JSON document on one line."""
    from ordersys.core.display import writable

    print(writable(json.dumps(content, ensure_ascii=False), sys.stdout.encoding))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    from ordersys.core.display import printable

    safe = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in safe:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    made = Table(*head, header_style="bold", title=title or None, title_justify="left")
    for column in made.columns:
        column.overflow = "fold"  # what does not fit goes on below: half a path or id is none
    for row in safe:
        made.add_row(*row)
    Console(highlight=False).print(made)
