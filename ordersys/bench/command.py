"""`ordersys bench`: place orders as fast as they are taken, measure, and judge what came of them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ordersys.bench.plan import Via
from ordersys.operate.printing import Json

if TYPE_CHECKING:
    from ordersys.bench.system import Ear
    from ordersys.client.calls import Orders
    from ordersys.core.tls import Files

BrokerUrl = Annotated[str | None, typer.Option("--broker-url", help="A broker for the system of its own.")]
DatabaseUrl = Annotated[str | None, typer.Option("--database-url", help="A database for it: empty, or of another run.")]

_PATIENCE_SECONDS = 30.0
_NO_END = 1e9
_CALLERS_PER_CLIENT = 64


@dataclass(frozen=True, slots=True)
class Target:
    """Whom the orders are placed with, and who hears of them."""

    product: str
    order: str
    api: str
    deadline: float
    api_key: str
    tls: "Files"
    ears: "Sequence[Ear]"


def bench(
    orders: Annotated[int, typer.Option("--orders", min=0, help="How many; 0 = until the time is over.")] = 0,
    seconds: Annotated[float, typer.Option("--seconds", min=0.5, help="How long, when --orders is not given.")] = 10.0,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=10_000, help="Calls at a time.")] = 32,
    clients: Annotated[int, typer.Option("--clients", min=0, max=64, help="Processes that call; 0 = as needed.")] = 0,
    products: Annotated[int, typer.Option("--products", min=1, help="How many products are ordered.")] = 5,
    hot: Annotated[float, typer.Option("--hot", min=0, max=1, help="Share of the orders for one of them.")] = 0.0,
    rate: Annotated[
        float,
        typer.Option("--rate", min=0, help="Orders per second at fixed moments: waiting counts; 0 = closed loop."),
    ] = 0.0,
    via: Annotated[Via, typer.Option("--via", help="The door that orders come through.")] = Via.GRPC,
    warmup: Annotated[float, typer.Option("--warmup", min=0, help="Seconds that the figures leave out.")] = 1.0,
    running: Annotated[
        bool, typer.Option("--running", help="Measure the services at the configured addresses instead.")
    ] = False,
    restock: Annotated[bool, typer.Option("--restock", help="With --running: add the stock that is needed.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with plots to this file.")] = None,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Place orders under load, measure, and check that none is lost, doubled or oversold (exit code 1 when one is).

    Starts a system of its own, each role a process, on a throw-away home; --broker-url and --database-url put it on
    real servers. With --running it measures the services that the settings name.
    """
    from ordersys.bench import page, view
    from ordersys.bench.plan import Plan
    from ordersys.bench.run import Result, carry_out, heard_by
    from ordersys.bench.verdict import judge
    from ordersys.client.calls import Orders
    from ordersys.core import errors, ids
    from ordersys.core.tls import kept

    if running and (broker_url or database_url):
        raise errors.UsageError(
            "--broker-url and --database-url are for a system of the bench's own: not with --running"
        )
    if restock and not running:
        raise errors.UsageError("--restock is for --running: a system of the bench's own has stock enough")
    if html is not None and not html.absolute().parent.is_dir():
        raise errors.UsageError(f"--html: there is no folder {html.absolute().parent}")
    customer = f"bench-{ids.uuid7()}"
    number = clients or max(1, min((os.cpu_count() or 2) // 2, concurrency // _CALLERS_PER_CLIENT + 1))
    with view.View(orders=orders, seconds=seconds + warmup, quiet=as_json) as shown:
        shown.say("starting every role" if not running else "looking at the stock")
        with _target(running, broker_url, database_url) as target:
            with Orders(target.product, target.order, target.deadline, tls=kept(target.tls)) as client:
                names = _stocked(client, products, add=restock or not running)
                plan = Plan(
                    via=via,
                    address=target.product if via is Via.GRPC else target.api,
                    customer_id=customer,
                    products=names,
                    hot=hot,
                    callers=concurrency,
                    orders=orders,
                    seconds=_NO_END if orders else seconds + warmup,
                    rate=rate,
                    deadline=target.deadline,
                    patience=_PATIENCE_SECONDS,
                    seed=1,
                    api_key=target.api_key,
                    tls=target.tls,
                )
                shown.begin()
                seen = carry_out(plan, min(number, concurrency), shown.told)
                verdict = judge(client, customer, seen, target.ears, shown.say)
            result = Result(
                plan=plan,
                clients=min(number, concurrency),
                seen=seen,
                heard=heard_by(target.ears),
                verdict=verdict,
                warmup=0.0 if orders else warmup,
            )
    if html is not None:
        html.write_text(page.page(result), encoding="utf-8")
    view.show(result, as_json=as_json)
    if not verdict.right:
        raise typer.Exit(1)


@contextmanager
def _target(running: bool, broker_url: str | None, database_url: str | None) -> "Iterator[Target]":
    from ordersys import settings
    from ordersys.bench.system import System
    from ordersys.core.tls import Files

    chosen = settings.load()
    if running:
        where = (chosen.product_address, chosen.order_address, chosen.api_bind)
        yield Target(*where, chosen.deadline_seconds, chosen.api_key, chosen.tls_files, ())
        return
    given: dict[str, object] = {} if broker_url is None else {"broker_url": broker_url}
    if database_url is not None:
        given |= {f"{each}_database_url": database_url for each in ("product", "order", "notify")}
    with System({"api_rate_limit": "off", **given}) as own:
        yield Target(own.product, own.order, own.api, 5.0, "", Files(), own.ears)


def _stocked(client: "Orders", count: int, *, add: bool) -> tuple[str, ...]:
    """The products to order, with enough of each when we may add it."""
    from ordersys.core import errors

    found = client.list_products()
    if add:
        for product in found[:count]:
            if product.available < _PLENTY:
                client.adjust_stock(product.id, _PLENTY - product.available, "stock for a benchmark")
    else:
        found = [product for product in found if product.available]
    if len(found) < count:
        raise errors.UsageError(f"--products {count}: there are {len(found)} with stock")
    return tuple(product.id for product in found[:count])


_PLENTY = 1_000_000_000
