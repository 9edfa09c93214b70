"""`ordersys topology permissions` and `ordersys db permissions`: the least each role needs, to be made by hand."""

import re
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from ordersys.operate import printing
from ordersys.operate.printing import Json
from ordersys.operate.setup import BrokerUrl

if TYPE_CHECKING:
    from ordersys.core.storage.roles import Place
    from ordersys.core.topology import Queue
    from ordersys.settings import Settings


def _prefix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,40}", value):
        raise typer.BadParameter(f"{value!r}: expected a letter, then letters, digits, - or _")
    return value


Prefix = Annotated[
    str, typer.Option("--prefix", metavar="NAME", callback=_prefix, help="What the names of the users begin with.")
]
Vhost = Annotated[str, typer.Option("--vhost", metavar="V", help="The vhost; default: that of the broker URL, or /.")]
Queues = Annotated[
    list[str] | None,
    typer.Option("--queue", metavar="NAME", help="A subscriber's queue, beside the standard ones; repeatable."),
]


def topology_permissions(
    vhost: Vhost = "",
    queue: Queues = None,
    prefix: Prefix = "ordersys",
    as_json: Json = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Print the rabbitmqctl commands that make one user per role, with the least it needs.

    Each `add_user` asks for the password on the terminal: it stands in no file and no list of processes.
    """
    from ordersys import settings
    from ordersys.core import topology, users
    from ordersys.core.topology import Topology

    chosen = settings.load({"broker_url": broker_url})
    standard = topology.standard(chosen.retry_waits)
    more = [_subscriber(name) for name in queue or [] if name not in {each.name for each in standard.queues}]
    found = users.users(Topology(standard.exchanges, (*standard.queues, *more)), prefix)
    vhost = vhost or _vhost(chosen.broker_url)
    if as_json:
        printing.document(
            {
                "vhost": vhost,
                "users": [
                    {"user": each.name, "purpose": each.purpose, "commands": each.commands(vhost)} for each in found
                ],
            }
        )
        return
    for each in found:
        print(f"# {each.purpose}")
        for command in each.commands(vhost):
            # In a script that a shell reads from a pipe, the next line would become the password.
            print(shlex.join(command) + (" </dev/tty" if command[1] == "add_user" else ""))


_HEADER = """\
-- Carry this out with psql as a superuser after each `ordersys db upgrade`; repeating it changes nothing.
-- No role has a password yet: \\password ROLE asks for one, and the server never sees it.
-- {owner} owns every table: `ordersys db upgrade` and `ordersys keys` are its work."""


def db_permissions(
    service: Annotated[
        list[str] | None,
        typer.Option("--service", metavar="NAME", help="Only product, order, notify or api; repeatable."),
    ] = None,
    prefix: Prefix = "ordersys",
    as_json: Json = False,
) -> None:
    """Print the SQL that makes one PostgreSQL role per service, with the least it needs, and one that owns all."""
    from ordersys import settings
    from ordersys.core.storage import roles

    places = _places(settings.load(), service or [])
    services = [each.name for place in places for each in place.services]
    creation = list(roles.creation(prefix, services))
    grants = {place.name: list(roles.grants(prefix, place)) for place in places}
    if as_json:
        printing.document(
            {
                "owner": roles.owner(prefix),
                "roles": {each: roles.role(prefix, each) for each in services},
                "creation": creation,
                "databases": [{"database": name, "statements": statements} for name, statements in grants.items()],
            }
        )
        return
    print(_HEADER.format(owner=roles.owner(prefix)))
    print("\n".join(creation))
    for name, statements in grants.items():
        print("\n".join((f"\\connect {roles.quoted(name)}", "BEGIN;", *statements, "COMMIT;")))


def _places(chosen: "Settings", only: list[str]) -> "list[Place]":
    """The PostgreSQL databases of the settings with their services; raises UsageError where there are none."""
    from ordersys import databases
    from ordersys.core import errors
    from ordersys.core.storage.database import postgres_place
    from ordersys.core.storage.roles import Place, Service

    chains = databases.chains(chosen)
    if unknown := set(only) - {name for name, *_ in chains}:
        raise typer.BadParameter(f"--service {min(unknown)!r}: expected {', '.join(name for name, *_ in chains)}")
    found: dict[str, list[Service]] = {}
    servers = set()
    for name, url, chain in chains:
        place = postgres_place(url)
        if place is None or (only and name not in only):
            continue
        servers.add(place[:2])
        found.setdefault(place[2], []).append(Service(name, chain.least))
    if not found:
        raise errors.UsageError(
            "SQLite has no roles, and no ORDERSYS_*_DATABASE_URL that was asked for names a PostgreSQL database"
        )
    if len(servers) > 1:
        raise errors.UsageError("the databases are on several servers: say --service, one server at a time")
    return [Place(name, tuple(services)) for name, services in found.items()]


def _subscriber(name: str) -> "Queue":
    from ordersys.notify.queues import queue_for

    return queue_for("topic", [], name, ())


def _vhost(broker_url: str) -> str:
    """RabbitMQ's default vhost is called / (https://www.rabbitmq.com/docs/uri-spec#the-vhost)."""
    from urllib.parse import unquote, urlsplit

    return unquote(urlsplit(broker_url).path[1:]) or "/" if broker_url.startswith("amqp") else "/"
