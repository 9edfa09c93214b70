"""`ordersys config`, `ordersys db` and `ordersys topology`: what has to stand before anything runs."""

from pathlib import Path
from typing import Annotated

import typer

from ordersys.operate import printing
from ordersys.operate.printing import Json

database = typer.Typer(help="The databases: schema and seed data.", no_args_is_help=True)
exchanges = typer.Typer(help="The exchanges and queues on the broker.", no_args_is_help=True)

BrokerUrl = Annotated[str | None, typer.Option("--broker-url", help="sqlite:///FILE or amqp://...")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of the JSON seed files.")]


def config(as_json: Json = False) -> None:
    """Print every setting with its value, secrets masked.

    Those that may hold a secret can stand in a file: ORDERSYS_BROKER_URL_FILE names that of ORDERSYS_BROKER_URL.
    """
    from ordersys import settings

    rows = settings.table(settings.load())
    if as_json:
        printing.document({name: value for name, value, _ in rows})
    else:
        printing.table(("setting", "value", "what it is for"), rows)


@database.command("upgrade")
def db_upgrade(as_json: Json = False) -> None:
    """Bring every schema to the newest revision."""
    from ordersys import databases, settings
    from ordersys.core.storage import migrations
    from ordersys.core.storage.database import Database

    done = {}
    for service, url, chain in databases.chains(settings.load()):
        opened = Database(url)
        try:
            done[service] = migrations.upgrade(opened, chain)
        finally:
            opened.close()
    _print_revisions(done, ("from", "to"), as_json=as_json)


@database.command("current")
def db_current(as_json: Json = False) -> None:
    """Print the revision of every schema and the newest there is; exit code 1 when they differ."""
    from ordersys import databases, settings
    from ordersys.core.storage import migrations
    from ordersys.core.storage.database import Database

    found = {}
    for service, url, chain in databases.chains(settings.load()):
        opened = Database(url)
        try:
            found[service] = migrations.current(opened, chain)
        finally:
            opened.close()
    _print_revisions(found, ("current", "newest"), as_json=as_json)
    if any(current != newest for current, newest in found.values()):
        raise typer.Exit(1)


@database.command("seed")
def db_seed(data: Data = None, as_json: Json = False) -> None:
    """Load the seed files into databases that are empty; others stay as they are."""
    from ordersys import databases, settings

    loaded = databases.seed_all(settings.load({"data": data}))
    if as_json:
        printing.document({"seeded": loaded})
    else:
        for service, seeded in loaded.items():
            print(f"{service}: {'seeded' if seeded else 'not empty, left as it is'}")


@exchanges.command("show")
def topology_show(as_json: Json = False) -> None:
    """Print exchanges, queues and bindings as the code declares them."""
    from dataclasses import asdict

    from ordersys import settings
    from ordersys.core import topology

    standard = topology.standard(settings.load().retry_waits)
    if as_json:
        queues = [
            {**asdict(queue), "retries": queue.retries, "dead_letters": queue.dead_letters} for queue in standard.queues
        ]
        printing.document({"exchanges": [asdict(each) for each in standard.exchanges], "queues": queues})
        return
    printing.table(("exchange", "kind"), [(each.name, each.kind.value) for each in standard.exchanges])
    printing.table(
        ("queue", "bound to", "retry queues and waits", "dead letters"),
        [
            (
                queue.name,
                ", ".join(f"{each.exchange} {each.pattern}".strip() for each in queue.bindings),
                ", ".join(f"{name} {wait:g} s" for name, wait in zip(queue.retries, queue.waits, strict=False)),
                queue.dead_letters,
            )
            for queue in standard.queues
        ],
    )


@exchanges.command("declare")
def topology_declare(
    queue: Annotated[
        str, typer.Option("--queue", metavar="NAME", help="A subscriber's queue too, as `ordersys notify` has it.")
    ] = "",
    mode: Annotated[str, typer.Option("--mode", metavar="fanout|topic", help="That queue's.")] = "topic",
    bind: Annotated[
        list[str] | None, typer.Option("--bind", metavar="PATTERN", help="That queue's; repeatable.")
    ] = None,
    broker_url: BrokerUrl = None,
    as_json: Json = False,
) -> None:
    """Make them on the broker; repeating it changes nothing."""
    from ordersys import settings, wiring
    from ordersys.core import errors, topology
    from ordersys.core.topology import Topology
    from ordersys.notify.queues import queue_for

    chosen = settings.load({"broker_url": broker_url})
    wanted = topology.standard(chosen.retry_waits)
    if queue or bind:
        own = queue_for(mode, bind or [], queue, chosen.retry_waits)
        wanted = Topology(wanted.exchanges, tuple(dict.fromkeys((*wanted.queues, own))))
    opened = wiring.broker(chosen)
    try:
        if not opened.declare(wanted):
            raise errors.PermissionDenied(
                "this user may not declare: exchanges and queues are there, their bindings were not looked at;"
                " `ordersys topology permissions` makes a user who may"
            )
    finally:
        opened.close()
    names = [each.name for each in wanted.exchanges] + [each.name for each in wanted.queues]
    if as_json:
        printing.document({"declared": names})
    else:
        print(f"declared: {', '.join(names)}")


def _print_revisions(rows: dict[str, tuple[str, str]], names: tuple[str, str], *, as_json: bool) -> None:
    if as_json:
        printing.document({service: dict(zip(names, pair, strict=True)) for service, pair in rows.items()})
    else:
        shown = [(service, *(each or "(empty)" for each in pair)) for service, pair in rows.items()]
        printing.table(("service", *names), shown)
