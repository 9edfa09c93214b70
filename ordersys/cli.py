"""The command line: parse, call, print. One place turns an error into a message and an exit code.

Exit codes: 0 done; 1 refused by a rule; 2 wrong usage; 3 a service or the broker cannot be reached; 130 interrupted.
Heavy things are imported where they are used, so that `ordersys --help` answers at once.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ordersys import __version__
from ordersys.bench import command as load
from ordersys.client import verbs
from ordersys.core import errors
from ordersys.core.redaction import redacted
from ordersys.core.rpc import grpc_log
from ordersys.operate import access, books, certs, health, messages, rights, setup, webhook
from ordersys.operate.doctor.command import doctor
from ordersys.operate.top.command import top

if TYPE_CHECKING:
    from ordersys.lifecycle import Part
    from ordersys.settings import Settings

logger = logging.getLogger(__name__)

REFUSED, USAGE, UNREACHABLE = 1, 2, 3

app = typer.Typer(
    help="A whole order backend in one command: gRPC services, RabbitMQ events, a REST API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,  # the frames take a quarter of a second to load
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(verbs.app, name="client", help="Talk to the running services.")
_OPERATION = "Operation"
app.command("config", rich_help_panel=_OPERATION)(setup.config)
setup.database.command("permissions")(rights.db_permissions)
app.command("health", rich_help_panel=_OPERATION)(health.health)
app.command("doctor", rich_help_panel=_OPERATION)(doctor)
app.command("top", rich_help_panel=_OPERATION)(top)
app.add_typer(setup.database, name="db", rich_help_panel=_OPERATION)
setup.exchanges.command("permissions")(rights.topology_permissions)
app.add_typer(setup.exchanges, name="topology", rich_help_panel=_OPERATION)
app.add_typer(certs.certificates, name="certs", rich_help_panel=_OPERATION, no_args_is_help=True)
app.add_typer(access.keys, name="keys", rich_help_panel=_OPERATION)
app.add_typer(messages.dead, name="dlq", rich_help_panel=_OPERATION)
app.add_typer(messages.log, name="events", rich_help_panel=_OPERATION)
app.add_typer(webhook.signing, name="webhook", rich_help_panel=_OPERATION)
app.add_typer(books.inventory, name="inventory", rich_help_panel=_OPERATION)
app.add_typer(books.order, name="order", rich_help_panel=_OPERATION)
app.command("bench", rich_help_panel="Everything at once")(load.bench)

Bind = Annotated[str | None, typer.Option("--bind", metavar="HOST:PORT", help="Where to listen; port 0 = any.")]
DatabaseUrl = Annotated[str | None, typer.Option("--database-url", help="sqlite:///FILE or postgresql+psycopg://...")]
BrokerUrl = Annotated[str | None, typer.Option("--broker-url", help="sqlite:///FILE or amqp://...")]
ProductAddress = Annotated[str | None, typer.Option("--product-address", metavar="HOST:PORT")]
OrderAddress = Annotated[str | None, typer.Option("--order-address", metavar="HOST:PORT")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of the JSON seed files.")]
Insecure = Annotated[
    bool | None, typer.Option("--insecure", help="Serve without TLS also to other machines: everybody can listen in.")
]
Workers = Annotated[
    int,
    typer.Option("--workers", min=1, max=64, metavar="N", help="So many processes on the address; needs PostgreSQL."),
]
Worker = Annotated[int | None, typer.Option("--worker", hidden=True)]
"""Which of them this process is; its parent says so."""
Json = Annotated[bool, typer.Option("--json", help="One JSON document, or one object per line.")]


def main() -> NoReturn:
    """The `ordersys` command."""
    grpc_log.quiet()
    try:
        code = app(standalone_mode=False)
    except Exception as error:  # noqa: BLE001 - the one place where an error becomes a message and an exit code
        code = _report(error)
    _let_go_of_stdout()
    sys.exit(code)


def _let_go_of_stdout() -> None:
    """Whoever read us may have gone: what they left unread must not become an error of ours at the exit.

    https://docs.python.org/3/library/signal.html#note-on-sigpipe
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: Exception) -> int:
    """Say on stderr what went wrong, in one line; the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        if help_text := str(error):  # in frames it has been printed
            print(help_text)
        return USAGE
    if "--debug" in sys.argv and not _logs_json():
        print(redacted("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    # What the parser raises has this method; its class is click's or typer's own, by version.
    if format_message := getattr(error, "format_message", None):
        command = getattr(getattr(error, "ctx", None), "command_path", "ordersys")
        _complain(errors.UsageError.code, f"{format_message()} (see {command} --help)", error)
        return USAGE
    if not isinstance(error, errors.OrdersysError):
        hint = "" if "--debug" in sys.argv else " (ordersys --debug ... shows where)"
        _complain(errors.Internal.code, f"{type(error).__name__}: {error}{hint}", error)
        return REFUSED
    _complain(error.code, error.message, error)
    if isinstance(error, errors.UsageError):
        return USAGE
    return UNREACHABLE if isinstance(error, errors.Unavailable) else REFUSED


def _logs_json() -> bool:
    """True for a role whose stderr is read by programs."""
    if not logging.getLogger().handlers:
        return False
    from ordersys import logs

    return logs.speak_json()


def _complain(code: str, message: str, error: Exception) -> None:
    line = redacted(" ".join(message.split()))
    if _logs_json():
        trace = error if "--debug" in sys.argv else None
        logger.critical("%s", line, exc_info=trace, extra={"ecs": {"error.code": code}})
        return
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(("error", "bold red"), ": ", (code, "bold"), ": ", line)
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ordersys {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that stand before the command."""


# --- roles ------------------------------------------------------------------------------------------------------


@app.command("serve-product", rich_help_panel="Roles")
def serve_product(
    bind: Bind = None,
    database_url: DatabaseUrl = None,
    order_address: OrderAddress = None,
    data: Data = None,
    insecure: Insecure = None,
    workers: Workers = 1,
    worker: Worker = None,
) -> None:
    """Run the Product Service: stock, and the door for every order."""
    parent = workers > 1 and worker is None
    settings = _load(
        "product-service",
        serves=not parent,
        product_bind=bind,
        product_database_url=database_url,
        order_address=order_address,
        data=data,
        insecure=insecure,
    )
    if parent:
        _supervise(settings, "product", workers)
    from ordersys import wiring
    from ordersys.core.watch.traces import Traces

    traces = Traces(settings.traces)
    part = wiring.ProductPart(settings, lambda: settings.order_address, traces, worker=worker)
    _run(settings, [traces, part], _as_worker(worker))


@app.command("serve-order", rich_help_panel="Roles")
def serve_order(
    bind: Bind = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
    data: Data = None,
    insecure: Insecure = None,
    workers: Workers = 1,
    worker: Worker = None,
) -> None:
    """Run the Order Service: the record of every order, and the relay of its events."""
    parent = workers > 1 and worker is None
    settings = _load(
        "order-service",
        serves=not parent,
        order_bind=bind,
        order_database_url=database_url,
        broker_url=broker_url,
        data=data,
        insecure=insecure,
    )
    if parent:
        _supervise(settings, "order", workers)
    from ordersys import wiring
    from ordersys.core.watch.traces import Traces

    traces = Traces(settings.traces)
    _run(settings, [traces, wiring.OrderPart(settings, traces, worker=worker)], _as_worker(worker))


@app.command("notify", rich_help_panel="Roles")
def notify(
    mode: Annotated[str, typer.Option("--mode", metavar="fanout|topic", help="Created orders only, or every event.")],
    bind: Annotated[
        list[str] | None, typer.Option("--bind", metavar="PATTERN", help="Routing keys to hear of (topic); repeatable.")
    ] = None,
    queue: Annotated[str, typer.Option("--queue", help="A queue of your own, beside the standard one.")] = "",
    sink: Annotated[
        str | None, typer.Option("--sink", metavar="NAME", help="log, webhook, smtp, command, or one of your own.")
    ] = None,
    as_json: Json = False,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Run a notification service: one line per event, or what --sink does; several copies share a queue."""
    settings = _load("notification-service", broker_url=broker_url, notify_database_url=database_url, notify_sink=sink)
    from ordersys import wiring
    from ordersys.core.watch.traces import Traces
    from ordersys.notify.queues import queue_for

    consumed = queue_for(mode, bind or [], queue, settings.retry_waits)
    traces = Traces(settings.traces)
    part = wiring.NotifierPart(settings, consumed, sys.stdout, traces, json=as_json, sink=settings.notify_sink)
    _run(settings, [traces, part])


@app.command("api", rich_help_panel="Roles")
def api(
    bind: Bind = None,
    product_address: ProductAddress = None,
    order_address: OrderAddress = None,
    print_openapi: Annotated[
        bool, typer.Option("--print-openapi", help="Print the OpenAPI document and exit.")
    ] = False,
    insecure: Insecure = None,
) -> None:
    """Run the REST API in front of both services."""
    if print_openapi:
        from ordersys import wiring

        typer.echo(wiring.openapi(), nl=False)
        return
    settings = _load(
        "api", api_bind=bind, product_address=product_address, order_address=order_address, insecure=insecure
    )
    from ordersys import wiring
    from ordersys.core.watch.traces import Traces

    traces = Traces(settings.traces)
    part = wiring.ApiPart(settings, lambda: settings.product_address, lambda: settings.order_address, traces)
    _run(settings, [traces, part])


@app.command("up", rich_help_panel="Everything at once")
def up(
    as_json: Json = False,
    home: Annotated[Path | None, typer.Option("--home", help="Folder of the embedded databases and broker.")] = None,
    broker_url: BrokerUrl = None,
    data: Data = None,
    insecure: Insecure = None,
) -> None:
    """Run all roles in one process, until Ctrl-C."""
    settings = _load("ordersys", home=home, broker_url=broker_url, data=data, insecure=insecure)
    from ordersys import wiring

    everything = wiring.Everything(settings, lambda _: sys.stdout, json=as_json)
    _run(settings, everything.parts, lambda: _welcome(settings, everything, as_json=as_json))


@app.command("demo", rich_help_panel="Everything at once")
def demo(
    orders: Annotated[int, typer.Option("--orders", min=1, max=100_000, help="How many orders to place.")] = 12,
    as_json: Json = False,
) -> None:
    """Run all roles on a throw-away home, place, change and cancel real orders, and check what came of it."""
    from ordersys import demo as story

    raise typer.Exit(story.run(orders, as_json=as_json))


def _load(service: str, *, serves: bool = True, **flags: object) -> "Settings":
    """A role's settings, and its log, which from here on all that is wrong goes to.

    Whoever does not serve itself leaves stderr as it is: its workers write there.
    """
    from ordersys import logs, settings
    from ordersys.core import display

    logs.set_up("info", "auto", service)
    chosen = settings.load(flags)
    logs.set_up(chosen.log_level, chosen.log_format, service)
    if serves and (chosen.tls_files or logs.speak_json()):
        stray = logs.stray if logs.speak_json() else None
        logs.write_to(grpc_log.listen(handshakes=bool(chosen.tls_files), stray=stray))
    for name, value in flags.items():
        if isinstance(value, str) and display.masked(value) != value:
            logger.warning(
                "whoever may list the processes of this machine sees the password in --%s:"
                " give it in ORDERSYS_%s, or in the file that ORDERSYS_%s_FILE names",
                *("broker-url" if name == "broker_url" else "database-url", name.upper(), name.upper()),
            )
    return chosen


def _supervise(settings: "Settings", role: str, count: int) -> NoReturn:
    """Be the parent of the workers of a service, and nothing else."""
    from ordersys import workers

    bind, database = getattr(settings, f"{role}_bind"), getattr(settings, f"{role}_database_url")
    _run(settings, [workers.of(role, bind, database, count)])


def _as_worker(worker: int | None) -> Callable[[], None]:
    """What to do when ready: a worker tells its parent, and ends with it."""
    if worker is None:
        return lambda: None
    from ordersys import workers

    workers.end_with_parent()
    return workers.serves


def _run(settings: "Settings", parts: "list[Part] | Any", ready: Callable[[], None] = lambda: None) -> NoReturn:
    from ordersys import lifecycle
    from ordersys.settings import service_manager
    from ordersys.supervisor import Supervisor

    raise typer.Exit(lifecycle.run(parts, settings.grace_seconds, ready, Supervisor(*service_manager())))


def _welcome(settings: "Settings", everything: Any, *, as_json: bool) -> None:
    """Where each part listens, and what to try next."""
    from ordersys import settings as all_settings
    from ordersys.settings import dialled

    product, order, rest = (dialled(part.address) for part in (everything.product, everything.order, everything.api))
    web = f"https://{rest}" if settings.api_tls_cert_file else f"http://{rest}"
    places = {"product_service": product, "order_service": order, "api": web}
    if as_json:
        print(json.dumps(places), flush=True)
        return
    flags = "" if product == settings.product_address else f" --product-address {product}"
    flags += "" if order == settings.order_address else f" --order-address {order}"
    tries = [
        f"ordersys client{flags} list-products",
        f"ordersys client{flags} place-order --product 1 --quantity 2",
        f"curl {web}/api/data",
    ]
    shown = {name: value for name, value, _ in all_settings.table(settings)}
    lines = {
        "Product Service": product,
        "Order Service": order,
        "REST API": places["api"],
        "Broker": shown["ORDERSYS_BROKER_URL"],
        "Notifications": "notify.fanout and notify.topic, below as they come",
    }
    if not sys.stdout.isatty():
        print("\n".join([*(f"{name}: {where}" for name, where in lines.items()), *tries]), flush=True)
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, where in lines.items():
        table.add_row(Text(name, "bold"), Text(where, "cyan"))
    table.add_row()
    for number, each in enumerate(tries):
        table.add_row(Text("" if number else "Try next", "bold"), Text(each, "green"))
    table.add_row()
    table.add_row(Text("Stop", "bold"), "Ctrl-C")
    Console(highlight=False).print(Panel(table, title="ordersys is up", border_style="green", expand=False))
