"""The verbs of `ordersys client`: parse, call, print. Errors rise to the command line, which knows the exit codes."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ordersys.client.calls import Answer, Orders
    from ordersys.core.records import Order, Status

app = typer.Typer(help="Call the services: products, stock, orders, events.", no_args_is_help=True)

_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
OrderId = Annotated[str, typer.Argument(metavar="ID", help="The order's id.")]
ProductId = Annotated[str, typer.Argument(metavar="ID", help="The product's id.")]
Lines = Annotated[
    list[str] | None, typer.Option("--line", metavar="ID:N", help="N units of product ID; may be given many times.")
]
Version = Annotated[int, typer.Option("--expected-version", help="Refuse if the order has another version; 0 = any.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the record.")]
Key = Annotated[
    str,
    typer.Option("--idempotency-key", metavar="KEY", help="Repeating a call with its key has no further effect."),
]


@app.callback()
def client(
    context: typer.Context,
    product_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The Product Service; else ORDERSYS_PRODUCT_ADDRESS.")
    ] = None,
    order_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The Order Service; else ORDERSYS_ORDER_ADDRESS.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long a call may take; else ORDERSYS_DEADLINE_SECONDS.")
    ] = None,
) -> None:
    context.obj = {"product_address": product_address, "order_address": order_address, "deadline_seconds": deadline}


@app.command()
def get_data(context: typer.Context, as_json: AsJson = False) -> None:
    """Print a one-line summary of what the Product Service holds."""
    from ordersys.client import show

    with _orders(context) as orders:
        message = orders.get_data()
    if as_json:
        show.document({"message": message})
    else:
        show.text(message)


@app.command()
def list_products(context: typer.Context, as_json: AsJson = False) -> None:
    """Print every product with its price and what is available."""
    from ordersys.client import show
    from ordersys.core.records import product_json

    with _orders(context) as orders:
        products = orders.list_products()
    if as_json:
        show.document({"products": [product_json(product) for product in products]})
    else:
        show.products(products)


@app.command()
def get_product(context: typer.Context, product_id: ProductId, as_json: AsJson = False) -> None:
    """Print one product."""
    from ordersys.client import show
    from ordersys.core.records import product_json

    with _orders(context) as orders:
        product = orders.get_product(product_id)
    if as_json:
        show.document({"product": product_json(product)})
    else:
        show.product(product)


# Without this a negative DELTA would be taken for an option.
@app.command(context_settings={"ignore_unknown_options": True})
def adjust_stock(
    context: typer.Context,
    product_id: ProductId,
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="Units to add; negative to take away.")],
    reason: Reason = "",
    idempotency_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Add units to a product's stock, or take some away: adjust-stock 1 -5."""
    from ordersys.client import show
    from ordersys.core.records import product_json

    # As text, because a mistyped option arrives here too and deserves to be named.
    if not _WHOLE.fullmatch(delta):
        raise typer.BadParameter(f"DELTA {delta!r}: expected a whole number, for example 5 or -5")
    with _orders(context) as orders:
        adjusted = orders.adjust_stock(product_id, int(delta), reason, idempotency_key)
    if as_json:
        show.document({"product": product_json(adjusted.product)})
    else:
        show.product(adjusted.product, replayed=adjusted.replayed)


@app.command()
def place_order(
    context: typer.Context,
    product: Annotated[str | None, typer.Option(metavar="ID", help="The product to order, with --quantity.")] = None,
    quantity: Annotated[int | None, typer.Option(metavar="N", help="How many units of --product.")] = None,
    line: Lines = None,
    customer: Annotated[str, typer.Option(metavar="ID", help="Who orders.")] = "customer-1",
    idempotency_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Place an order: --product ID --quantity N, or --line ID:N for each product."""
    if line and (product is not None or quantity is not None):
        raise typer.BadParameter("give --product and --quantity, or --line ID:N, not both")
    if product is not None and quantity is not None:
        lines = [(product, quantity)]
    elif product is not None or quantity is not None:
        missing = "--quantity N" if quantity is None else "--product ID"
        raise typer.BadParameter(f"--product and --quantity belong together: {missing} is missing")
    else:
        lines = _lines(line)
    with _orders(context) as orders:
        answer = orders.place_order(customer, lines, idempotency_key)
    _show_answer(answer, as_json)


@app.command()
def update_order(
    context: typer.Context,
    order_id: OrderId,
    line: Lines = None,
    expected_version: Version = 0,
    idempotency_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Replace the lines of a placed order."""
    lines = _lines(line)
    with _orders(context) as orders:
        answer = orders.update_order(
            order_id, lines, expected_version=expected_version, idempotency_key=idempotency_key
        )
    _show_answer(answer, as_json)


@app.command()
def cancel_order(
    context: typer.Context,
    order_id: OrderId,
    reason: Reason = "",
    expected_version: Version = 0,
    idempotency_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Cancel a placed order; its stock returns."""
    with _orders(context) as orders:
        answer = orders.cancel_order(
            order_id, reason, expected_version=expected_version, idempotency_key=idempotency_key
        )
    _show_answer(answer, as_json)


@app.command()
def ship_order(
    context: typer.Context,
    order_id: OrderId,
    expected_version: Version = 0,
    idempotency_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Mark a placed order as shipped."""
    with _orders(context) as orders:
        answer = orders.ship_order(order_id, expected_version=expected_version, idempotency_key=idempotency_key)
    _show_answer(answer, as_json)


@app.command()
def deliver_order(
    context: typer.Context,
    order_id: OrderId,
    expected_version: Version = 0,
    idempotency_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Mark a shipped order as delivered."""
    with _orders(context) as orders:
        answer = orders.deliver_order(order_id, expected_version=expected_version, idempotency_key=idempotency_key)
    _show_answer(answer, as_json)


@app.command()
def get_order(context: typer.Context, order_id: OrderId, as_json: AsJson = False) -> None:
    """Print one order."""
    with _orders(context) as orders:
        order = orders.get_order(order_id)
    _show_order(order, as_json)


@app.command()
def list_orders(
    context: typer.Context,
    customer: Annotated[str, typer.Option(metavar="ID", help="Only this customer's.")] = "",
    status: Annotated[
        str, typer.Option(metavar="STATUS", help="Only those placed, shipped, delivered or cancelled.")
    ] = "",
    page_size: Annotated[int, typer.Option(help="1 to 1000; 0 = 50.")] = 0,
    page_token: Annotated[str, typer.Option(metavar="TOKEN", help="Go on where the page before ended.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Go on to the last page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print orders, newest first."""
    from ordersys.client import show
    from ordersys.core.records import order_json

    wanted = _status(status)
    found = []
    token = page_token
    with _orders(context) as orders:
        while True:
            page = orders.list_orders(customer_id=customer, status=wanted, page_size=page_size, page_token=token)
            found += page.orders
            token = page.next_page_token
            if not token or not everything:
                break
    if as_json:
        show.document({"orders": [order_json(order) for order in found], "next_page_token": token})
    else:
        show.orders(found, token)


@app.command()
def watch(
    context: typer.Context,
    order: Annotated[str, typer.Option(metavar="ID", help="Only this order's events.")] = "",
    customer: Annotated[str, typer.Option(metavar="ID", help="Only events of this customer's orders.")] = "",
    after: Annotated[int, typer.Option(metavar="SEQUENCE", help="Start after this one; 0 = with the first.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after N events.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each CloudEvent as JSON on a line.")] = False,
) -> None:
    """Print every event, then follow live until Ctrl-C; goes on by itself when the service was away."""
    from contextlib import closing
    from itertools import islice

    from ordersys.client import show
    from ordersys.core import events

    with (
        _orders(context) as orders,
        closing(orders.watch(order_id=order, customer_id=customer, after_sequence=after)) as stream,
    ):
        for event in islice(stream, limit):
            if as_json:
                show.line(events.encode(event))
            else:
                show.event(event)


@contextmanager
def _orders(context: typer.Context) -> "Iterator[Orders]":
    """Both services, and the trace that all of a command's calls belong to."""
    from ordersys import settings
    from ordersys.client.calls import Orders
    from ordersys.core.watch.traces import Traces

    chosen = settings.load(context.obj)
    traces = Traces(chosen.traces)
    traces.open()
    context.call_on_close(traces.close)  # when everything is printed
    tracing = traces.of("ordersys-cli")
    with (
        tracing.begin(context.command_path) as command,
        Orders(
            chosen.product_address,
            chosen.order_address,
            chosen.deadline_seconds,
            tls=chosen.tls(),
            tracing=tracing.under(command),
        ) as orders,
    ):
        yield orders


def _lines(values: Sequence[str] | None) -> list[tuple[str, int]]:
    """ID:N, where an id may contain colons; which values make sense is for the service to say."""
    if not values:
        raise typer.BadParameter("say what to order: --line ID:N, for example --line 1:2")
    lines = []
    for value in values:
        product_id, _, quantity = value.rpartition(":")
        if not product_id or not _WHOLE.fullmatch(quantity):
            raise typer.BadParameter(f"--line {value!r}: expected ID:N with a whole number N, for example --line 1:2")
        lines.append((product_id, int(quantity)))
    return lines


def _status(value: str) -> "Status | None":
    from ordersys.core.records import Status

    if not value:
        return None
    try:
        return Status(value.lower())
    except ValueError:
        raise typer.BadParameter(f"--status {value!r}: expected {', '.join(Status)}") from None


def _show_answer(answer: "Answer", as_json: bool) -> None:
    _show_order(answer.order, as_json, replayed=answer.replayed)


def _show_order(order: "Order", as_json: bool, *, replayed: bool = False) -> None:
    from ordersys.client import show
    from ordersys.core.records import order_json

    if as_json:
        show.document({"order": order_json(order), "replayed": replayed})
    else:
        show.order(order, replayed=replayed)
