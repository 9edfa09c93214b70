"""What the verbs print: JSON, tables with colour on a terminal, the same as plain columns in a pipe."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ordersys.core import display
from ordersys.core.display import moment, money, printable
from ordersys.core.events import Event
from ordersys.core.records import Order, Product, Status

_STATUS_STYLES = {
    Status.PLACED: "green",
    Status.SHIPPED: "blue",
    Status.DELIVERED: "cyan",
    Status.CANCELLED: "red",
}
_REPLAYED = Text("yes: an earlier call with this idempotency key had done it", "yellow")
_PIPE_WIDTH = 10_000  # a pipe has no edge to wrap at


def line(text: str) -> None:
    """Write a line to stdout at once; when its reader has gone (`| head`) the command ends, quietly."""
    stream = sys.stdout
    try:
        stream.write(display.writable(text, stream.encoding) + "\n")
        stream.flush()
    except BrokenPipeError:
        # What is left in the stream's buffer would be written, and fail again, when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(0) from None


def document(content: Mapping[str, Any]) -> None:
    line(json.dumps(content, ensure_ascii=False))


def text(content: str) -> None:
    line(printable(content))


def products(found: Sequence[Product]) -> None:
    table = _table(id="left", name="left", price="right", available="right")
    for product in found:
        table.add_row(
            Text(printable(product.id)),
            Text(printable(product.name)),
            money(product.price, product.currency),
            _available(product),
        )
    _print(table if found else Text("no products"))


def product(found: Product, *, replayed: bool = False) -> None:
    facts = {
        "id": Text(printable(found.id)),
        "name": Text(printable(found.name)),
        "description": Text(printable(found.description)),
        "price": Text(money(found.price, found.currency)),
        "available": _available(found),
    }
    for name, value in sorted(found.attributes.items()):
        facts[printable(name)] = Text(printable(value))
    if replayed:
        facts["replayed"] = _REPLAYED
    _print(_facts(facts))


def order(found: Order, *, replayed: bool = False) -> None:
    facts = {
        "order": Text(printable(found.id), "bold"),
        "customer": Text(printable(found.customer_id)),
        "status": _status(found),
        "version": Text(str(found.version)),
        "created": Text(moment(found.created_at)),
        "updated": Text(moment(found.updated_at)),
    }
    if replayed:
        facts["replayed"] = _REPLAYED
    table = _table(product="left", quantity="right", unit_price="right", amount="right")
    for each in found.lines:
        table.add_row(
            Text(printable(each.product_id)),
            str(each.quantity),
            money(each.unit_price, found.currency),
            money(each.unit_price * each.quantity, found.currency),
        )
    table.add_row(Text("total", "bold"), "", "", Text(money(found.total, found.currency), "bold"))
    _print(Group(_facts(facts), Text(), table))


def orders(found: Sequence[Order], next_page_token: str) -> None:
    table = _table(
        order="left", status="left", customer="left", units="right", total="right", version="right", created="left"
    )
    for each in found:
        table.add_row(
            Text(printable(each.id)),
            _status(each),
            Text(printable(each.customer_id)),
            str(sum(line.quantity for line in each.lines)),
            money(each.total, each.currency),
            str(each.version),
            moment(each.created_at),
        )
    _print(table if found else Text("no orders"))
    if next_page_token:
        line(f"more: --page-token {next_page_token}")


def event(found: Event) -> None:
    _print(Text.assemble(*display.event_line(found)))


def _table(**columns: Literal["left", "right"]) -> Table:
    """Columns by heading, each with its alignment; no box where nobody looks at it."""
    table = Table(box=SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for heading, alignment in columns.items():
        table.add_column(heading.replace("_", " "), justify=alignment, overflow="fold")
    return table


def _facts(facts: Mapping[str, Text]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(name), value)
    return table


def _status(order: Order) -> Text:
    return Text(order.status.value, _STATUS_STYLES[order.status])


def _available(product: Product) -> Text:
    return Text(str(product.available), "" if product.available else "red")


def _print(content: RenderableType) -> None:
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    with console.capture() as capture:
        console.print(content, soft_wrap=isinstance(content, Text))
    for each in capture.get().splitlines():
        line(each.rstrip())
