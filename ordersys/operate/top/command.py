"""The command: look, show, wait, look again; until q or Ctrl-C."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from ordersys.operate import printing

if TYPE_CHECKING:
    from ordersys.operate.top.sample import Sample
    from ordersys.operate.top.sources import Sources

_WINDOW_SECONDS = 5.0
_LOOK_SECONDS = 2.0
_EVENTS = 20


def top(
    interval: Annotated[float, typer.Option("--interval", min=0.2, max=3600, help="Seconds between two looks.")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print what one interval brought, and end; so it is in a pipe anyway.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document; without --once one per interval.")
    ] = False,
    low: Annotated[int, typer.Option("--low", min=0, help="So many units of a product are few.")] = 10,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics", metavar="URL", help="Read these /metrics, not those of the settings; repeatable."),
    ] = None,
    product_address: Annotated[str | None, typer.Option("--product-address", metavar="HOST:PORT")] = None,
    order_address: Annotated[str | None, typer.Option("--order-address", metavar="HOST:PORT")] = None,
) -> None:
    """Show live how the system does: orders, latency, batches, outbox, queues, stock, newest events; q ends it.

    The figures are those of /metrics of every role, and of both services. Where nobody shows metrics it says so, and
    shows what the services know. The API shows its own to an admin's key: ORDERSYS_API_KEY.
    """
    from ordersys import settings
    from ordersys.client.calls import Orders
    from ordersys.operate import places, web
    from ordersys.operate.top.sources import Sources

    chosen = settings.load({"product_address": product_address, "order_address": order_address})
    deadline = min(chosen.deadline_seconds, _LOOK_SECONDS)
    with Orders(chosen.product_address, chosen.order_address, deadline, tls=chosen.tls()) as orders:
        urls, context = (metrics, web.anyone(chosen)) if metrics else (places.metrics(chosen), web.own_api(chosen))
        sources = Sources(urls, orders, api_key=chosen.api_key, tls=context)
        if once or not (as_json or sys.stdout.isatty()):
            _look(sources, interval, low)
            time.sleep(interval)
            _print(_look(sources, interval, low), as_json=as_json)
        elif as_json:
            _look(sources, interval, low)
            while True:
                time.sleep(interval)
                _print(_look(sources, interval, low), as_json=True)
        else:
            _live(sources, interval, low)


def _look(sources: "Sources", window: float, low: int) -> "Sample":
    from ordersys.core import ids
    from ordersys.operate.top.sample import sample

    return sample(sources.look(_LOOK_SECONDS, window, ids.now_us()), low=low)


def _live(sources: "Sources", interval: float, low: int) -> None:
    from rich.console import Console
    from rich.live import Live

    from ordersys.operate.top.keys import listening
    from ordersys.operate.top.view import Screen

    window = max(interval, _WINDOW_SECONDS)
    console = Console(highlight=False)
    with listening() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            live.update(Screen(_look(sources, window, low), f"every {interval:g} s, q ends"), refresh=True)
            if keys.pressed("q", max(0.05, began + interval - time.monotonic())):
                return


def _print(made: "Sample", *, as_json: bool) -> None:
    from ordersys.core.display import writable
    from ordersys.operate.top import view
    from ordersys.operate.top.sample import document

    if as_json:
        printing.document(document(made, _EVENTS))
    else:
        for line in view.plain(made):
            print(writable(line, sys.stdout.encoding))
    sys.stdout.flush()
