"""`ordersys inventory audit` and `ordersys order explain`: do the books balance, and what happened to an order."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ordersys.operate import printing
from ordersys.operate.printing import Json

if TYPE_CHECKING:
    from ordersys.client.calls import Orders
    from ordersys.core.records import StockAudit
    from ordersys.settings import Settings

inventory = typer.Typer(help="The stock: does it balance?", no_args_is_help=True)
order = typer.Typer(help="One order: what happened to it?", no_args_is_help=True)

ProductAddress = Annotated[str | None, typer.Option("--product-address", metavar="HOST:PORT")]
OrderAddress = Annotated[str | None, typer.Option("--order-address", metavar="HOST:PORT")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two figures of one product that must be equal and are not."""

    product_id: str
    what: str
    expected: int
    found: int


@inventory.command("audit")
def audit(
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to wait for a quiet moment to hold stock against orders.")
    ] = 10.0,
    as_json: Json = False,
    product_address: ProductAddress = None,
    order_address: OrderAddress = None,
) -> None:
    """Hold shelf, ledger, reservations and live orders against each other; exit code 1 when they differ."""
    from dataclasses import asdict

    from ordersys import settings
    from ordersys.client.calls import Orders

    chosen = settings.load({"product_address": product_address, "order_address": order_address})
    with Orders(chosen.product_address, chosen.order_address, chosen.deadline_seconds, tls=chosen.tls()) as orders:
        audits, pending, in_orders = _quiet_moment(orders, wait)
    differences = [each for audited in audits for each in _differences(audited, in_orders)]
    compared = in_orders is not None
    if as_json:
        printing.document(
            {
                "ok": not differences,
                "products": [asdict(each) for each in audits],
                "pending": pending,
                "orders_compared": compared,
                "differences": [asdict(each) for each in differences],
            }
        )
    else:
        _print_audit(audits, differences, pending, compared)
    if differences:
        raise typer.Exit(1)


def _quiet_moment(orders: "Orders", wait: float) -> "tuple[list[StockAudit], int, dict[str, int] | None]":
    """The audit, the pending commands, and the units in live orders (None: it never was quiet long enough to tell)."""
    deadline = time.monotonic() + wait
    while True:
        before, pending = orders.audit_stock()
        if not pending:
            in_orders = _in_live_orders(orders)
            after, pending = orders.audit_stock()
            if after == before and not pending:
                return after, 0, in_orders
        if time.monotonic() >= deadline:
            return before, pending, None
        time.sleep(0.1)


def _in_live_orders(orders: "Orders") -> dict[str, int]:
    from ordersys.core.records import Status

    units: dict[str, int] = {}
    token = ""
    while True:
        page = orders.list_orders(page_size=1000, page_token=token)
        for each in page.orders:
            if each.status is not Status.CANCELLED:
                for line in each.lines:
                    units[line.product_id] = units.get(line.product_id, 0) + line.quantity
        token = page.next_page_token
        if not token:
            return units


def _differences(audited: "StockAudit", in_orders: dict[str, int] | None) -> list[Difference]:
    must_equal = [
        ("the ledger's sum is available", audited.ledger, audited.available),
        (
            "seeded + restocked - reserved is available",
            audited.seeded + audited.adjusted - audited.reserved,
            audited.available,
        ),
        ("the ledger's reserved is what reservations hold", audited.reserved, audited.held),
    ]
    if in_orders is not None:
        must_equal.append(("live orders are what is reserved", in_orders.get(audited.product_id, 0), audited.held))
    return [
        Difference(product_id=audited.product_id, what=what, expected=expected, found=found)
        for what, expected, found in must_equal
        if expected != found
    ]


def _print_audit(
    audits: "Sequence[StockAudit]", differences: Sequence[Difference], pending: int, compared: bool
) -> None:
    printing.table(
        ("product", "available", "seeded", "restocked", "reserved", "held", "ledger"),
        [
            tuple(
                str(each)
                for each in (
                    audited.product_id,
                    audited.available,
                    audited.seeded,
                    audited.adjusted,
                    audited.reserved,
                    audited.held,
                    audited.ledger,
                )
            )
            for audited in audits
        ],
    )
    if differences:
        printing.table(
            ("product", "must be true", "expected", "found"),
            [(each.product_id, each.what, str(each.expected), str(each.found)) for each in differences],
            title="differences",
        )
    notes = [f"{len(differences)} differences" if differences else "the books balance"]
    if pending:
        notes.append(f"{pending} commands pending")
    if not compared:
        notes.append("not held against the orders: it was never quiet; repeat it, or give --wait more seconds")
    print("; ".join(notes))


@order.command("explain")
def explain(
    order_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: Json = False,
    product_address: ProductAddress = None,
    order_address: OrderAddress = None,
) -> None:
    """Print one timeline of an order: stock moves, state changes, events, deliveries, retries, dead letters."""
    from dataclasses import asdict

    from ordersys import settings
    from ordersys.client.calls import Orders
    from ordersys.core import display, ids, records

    chosen = settings.load({"product_address": product_address, "order_address": order_address})
    with Orders(chosen.product_address, chosen.order_address, chosen.deadline_seconds, tls=chosen.tls()) as orders:
        found = orders.get_order(order_id)
        timeline = [*_stock_moves(orders, order_id), *_changes(orders, order_id)]
    timeline += [*_deliveries(chosen, order_id), *_dead_letters(chosen, order_id)]
    timeline.sort(key=lambda happening: happening.at)
    if as_json:
        rows = [{**asdict(each), "at": ids.rfc3339(each.at)} for each in timeline]
        printing.document({"order": records.order_json(found), "timeline": rows})
        return
    customer = display.printable(found.customer_id)
    total = display.money(found.total, found.currency)
    print(f"order {order_id}: {found.status}, version {found.version}, {total}, customer {customer}")
    printing.table(("time", "where", "what"), [(ids.rfc3339(each.at), each.where, each.what) for each in timeline])


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of the timeline; `at` is in microseconds since the epoch."""

    at: int
    where: str
    what: str


def _stock_moves(orders: "Orders", order_id: str) -> list[Happening]:
    return [
        Happening(each.at, "stock", f"{each.kind} {abs(each.delta)} of product {each.product_id}")
        for each in orders.stock_moves(order_id)
    ]


def _changes(orders: "Orders", order_id: str) -> list[Happening]:
    happenings = []
    for logged in orders.log(order_id=order_id):
        event = logged.event
        state = "confirmed by the broker" if logged.published else "waiting in the outbox"
        happenings += [
            Happening(event.time, "order", f"{event.change}: version {event.order.version}, {event.order.status}"),
            Happening(event.time, "event", f"{event.sequence} {event.type} {event.id}: {state}"),
        ]
    return happenings


def _deliveries(chosen: "Settings", order_id: str) -> list[Happening]:
    from ordersys import databases

    return [
        Happening(
            each.at,
            each.queue,
            f"event {each.event_id} " + (f"failed on try {each.tries}: {each.reason}" if each.tries else "handled"),
        )
        for each in databases.notified(chosen, order_id)
    ]


def _dead_letters(chosen: "Settings", order_id: str) -> list[Happening]:
    from ordersys.core import ids
    from ordersys.operate import messages

    with messages.desk(chosen.broker_url, None) as desk:
        found = desk.look(messages.of_order(order_id))
    return [
        Happening(
            ids.parse_rfc3339(each.last_failed_at) if each.last_failed_at else ids.now_us(),
            each.queue,
            f"event {each.id} is a dead letter after {each.tries} tries: {each.reason}",
        )
        for each in found
    ]
