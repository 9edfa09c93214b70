"""`ordersys dlq` and `ordersys events`: messages that failed, and messages that a consumer needs once more."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ordersys.operate import printing
from ordersys.operate.printing import Json

if TYPE_CHECKING:
    from ordersys.broker.dead_letters import DeadLetter, DeadLetters
    from ordersys.core.events import Change, Logged

dead = typer.Typer(help="The dead letters: look at them, send them again, throw them away.", no_args_is_help=True)
log = typer.Typer(help="The event log: read it, send events to one queue again.", no_args_is_help=True)

BrokerUrl = Annotated[str | None, typer.Option("--broker-url", help="sqlite:///FILE or amqp://...")]
OrderAddress = Annotated[str | None, typer.Option("--order-address", metavar="HOST:PORT")]
Queues = Annotated[
    list[str] | None,
    typer.Option(
        "--queue", metavar="NAME", help="Only dead letters of this queue; repeatable. Default: the standard ones."
    ),
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Only those whose reason contains this.")]
OfOrder = Annotated[str, typer.Option("--order", metavar="ID", help="Only those of this order.")]
Since = Annotated[
    str,
    typer.Option(
        "--since", metavar="TIME", help="Only from this time on: RFC 3339, or how long ago: 90s, 15m, 2h, 7d."
    ),
]
Type = Annotated[
    str, typer.Option("--type", metavar="CHANGE", help="Only created, lines, cancelled, shipped or delivered.")
]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Which ones, by id.")]
All = Annotated[bool, typer.Option("--all", help="All that the filters leave.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


@dead.command("list")
def dlq_list(
    queue: Queues = None,
    reason: Reason = "",
    order: OfOrder = "",
    since: Since = "",
    as_json: Json = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Print the dead letters, oldest first."""
    with desk(broker_url, queue) as letters:
        found = letters.look(_filter(reason, order, since))
    _print_letters(found, "dead_letters", as_json=as_json)


@dead.command("show")
def dlq_show(
    letter_id: Annotated[str, typer.Argument(metavar="ID")],
    queue: Queues = None,
    as_json: Json = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Print one dead letter with its body."""
    with desk(broker_url, queue) as letters:
        found = letters.look(lambda letter: letter.id == letter_id)
    _need(found, [letter_id])
    if as_json:
        printing.document({"dead_letters": [_document(each, body=True) for each in found]})
        return
    for each in found:
        printing.table(("field", "value"), [(name, str(value)) for name, value in _document(each, body=True).items()])


@dead.command("replay")
def dlq_replay(
    letter_ids: Ids = None,
    everything: All = False,
    queue: Queues = None,
    reason: Reason = "",
    order: OfOrder = "",
    since: Since = "",
    dry_run: DryRun = False,
    as_json: Json = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Send dead letters to their queue again, as if for the first time. Killed half-way it loses none."""
    with desk(broker_url, queue) as letters:
        chosen = _chosen(letter_ids, everything, _filter(reason, order, since))
        done = letters.look(chosen) if dry_run else letters.replay(chosen)
    _need(done, letter_ids or [])
    _print_letters(done, "would_replay" if dry_run else "replayed", as_json=as_json)


@dead.command("discard")
def dlq_discard(
    letter_ids: Ids = None,
    everything: All = False,
    queue: Queues = None,
    reason: Reason = "",
    order: OfOrder = "",
    since: Since = "",
    dry_run: DryRun = False,
    as_json: Json = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Throw dead letters away for good."""
    with desk(broker_url, queue) as letters:
        chosen = _chosen(letter_ids, everything, _filter(reason, order, since))
        done = letters.look(chosen) if dry_run else letters.discard(chosen)
    _need(done, letter_ids or [])
    _print_letters(done, "would_discard" if dry_run else "discarded", as_json=as_json)


@log.command("list")
def events_list(
    order: OfOrder = "",
    event_type: Type = "",
    since: Since = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100,
    as_json: Json = False,
    order_address: OrderAddress = None,
) -> None:
    """Print the event log, oldest first, and whether the broker has confirmed each."""
    import itertools

    from ordersys.core import display, events

    with _logged(order, event_type, since, order_address) as found:
        shown = list(itertools.islice(found, limit))
    if as_json:
        rows = [{"published": each.published, "event": events.to_json(each.event)} for each in shown]
        printing.document({"events": rows})
        return
    printing.table(
        ("sequence", "time", "change", "order", "version", "customer", "published"),
        [
            (
                str(each.event.sequence),
                display.moment(each.event.time),
                each.event.change.value,
                each.event.order.id,
                str(each.event.order.version),
                each.event.order.customer_id,
                "yes" if each.published else "waiting",
            )
            for each in shown
        ],
    )


@log.command("replay")
def events_replay(
    queue: Annotated[str, typer.Option("--queue", metavar="NAME", help="The one queue that gets them.")],
    order: OfOrder = "",
    event_type: Type = "",
    since: Since = "",
    everything: All = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    order_address: OrderAddress = None,
    broker_url: BrokerUrl = None,
) -> None:
    """Send events of the log to ONE queue again, so that a new or rebuilt consumer catches up.

    They keep their ids: what the queue's notifiers have handled before is dropped by their inbox.
    """
    if not (order or event_type or since or everything):
        raise typer.BadParameter("say which events: --since, --order, --type, or --all")
    with _logged(order, event_type, since, order_address) as found:
        count = sum(1 for _ in found) if dry_run else _replay(found, queue, broker_url)
    if as_json:
        printing.document({"queue": queue, "would_replay" if dry_run else "replayed": count})
    else:
        print(f"{count} events {'would be sent' if dry_run else 'sent'} to {queue}")


def _replay(found: "Iterator[Logged]", queue: str, broker_url: str | None) -> int:
    import itertools

    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ordersys import settings, wiring
    from ordersys.broker.broker import Message, Outcome
    from ordersys.core import errors, events

    opened = wiring.broker(settings.load({"broker_url": broker_url}))
    columns = (SpinnerColumn(), TextColumn("{task.completed} events sent"), TimeElapsedColumn())
    console = Console(stderr=True)
    try:
        opened.ping()
        publisher = opened.publisher()
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("replay", total=None)
            sent = 0
            while step := list(itertools.islice(found, 500)):
                messages = [
                    Message(
                        exchange="",
                        routing_key=queue,
                        body=events.encode(each.event).encode(),
                        message_id=each.event.id,
                        content_type=events.CONTENT_TYPE,
                        headers=_origin(each.event.change),
                    )
                    for each in step
                ]
                outcomes = publisher.publish(messages)
                if Outcome.UNROUTABLE in outcomes:
                    raise errors.UsageError(f"there is no queue {queue!r}: start its notifier once, which makes it")
                if Outcome.FAILED in outcomes:
                    raise errors.Unavailable(f"the broker did not confirm every event: {sent} were sent, repeat it")
                sent += len(step)
                progress.update(task, completed=sent)
        return sent
    finally:
        opened.close()


def _origin(change: "Change") -> dict[str, str | int]:
    """Where the event was published first: a message sent straight to a queue does not tell by itself."""
    from ordersys.broker import broker
    from ordersys.core import topology

    exchange, routing_key = topology.routes(change)[-1]
    return {broker.EXCHANGE: exchange, broker.ROUTING_KEY: routing_key}


@contextmanager
def _logged(order: str, event_type: str, since: str, order_address: str | None) -> "Iterator[Iterator[Logged]]":
    from ordersys import settings
    from ordersys.client.calls import Orders

    chosen = settings.load({"order_address": order_address})
    with Orders(chosen.product_address, chosen.order_address, chosen.deadline_seconds, tls=chosen.tls()) as orders:
        yield orders.log(order_id=order, change=_change(event_type), since=_moment(since))


def _change(text: str) -> "Change | None":
    from ordersys.core.events import Change

    if text and text not in list(Change):
        raise typer.BadParameter(f"--type {text!r}: expected one of {', '.join(Change)}")
    return Change(text) if text else None


def _moment(text: str) -> int:
    """Microseconds since the epoch; 0 for ""."""
    from ordersys.core import ids

    if not text:
        return 0
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    if text[:-1].isdigit() and text[-1] in units:
        return ids.now_us() - int(text[:-1]) * units[text[-1]] * 1_000_000
    try:
        return ids.parse_rfc3339(text)
    except ValueError:
        raise typer.BadParameter(
            f"--since {text!r}: expected RFC 3339 like 2026-11-21T08:00:00Z, or how long ago: 90s, 15m, 2h, 7d"
        ) from None


@contextmanager
def desk(broker_url: str | None, names: Sequence[str] | None) -> "Iterator[DeadLetters]":
    from ordersys import settings, wiring
    from ordersys.broker.dead_letters import DeadLetters
    from ordersys.core import topology
    from ordersys.core.topology import Queue

    chosen = settings.load({"broker_url": broker_url})
    standard = topology.standard(chosen.retry_waits)
    queues = [Queue(name, ()) for name in names] if names else list(standard.queues)
    opened = wiring.broker(chosen)
    try:
        opened.declare(standard)  # there is something to look into, also before the first event
        yield DeadLetters(opened, queues)
    finally:
        opened.close()


def _filter(reason: str, order: str, since: str) -> "Callable[[DeadLetter], bool]":
    from ordersys.core import ids

    least = ids.rfc3339(_moment(since)) if since else ""

    def chosen(letter: "DeadLetter") -> bool:
        return reason in letter.reason and letter.last_failed_at >= least and (not order or _order_of(letter) == order)

    return chosen


def _chosen(
    letter_ids: Sequence[str] | None, everything: bool, rest: "Callable[[DeadLetter], bool]"
) -> "Callable[[DeadLetter], bool]":
    if bool(letter_ids) == everything:
        raise typer.BadParameter("say which dead letters: one or more IDs, or --all")
    return lambda letter: rest(letter) and (everything or letter.id in (letter_ids or ()))


def of_order(order_id: str) -> "Callable[[DeadLetter], bool]":
    """Chooses the dead letters of one order."""
    return lambda letter: _order_of(letter) == order_id


def _order_of(letter: "DeadLetter") -> str:
    """The order id in the body, as far as there is one: dead letters may be anything."""
    import json

    try:
        return str(json.loads(letter.body)["data"]["order_id"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return ""


def _need(found: "Sequence[DeadLetter]", letter_ids: Sequence[str]) -> None:
    from ordersys.core import errors

    missing = [each for each in letter_ids if each not in {letter.id for letter in found}]
    if missing:
        raise errors.DeadLetterNotFound.of(missing)


def _document(letter: "DeadLetter", *, body: bool) -> dict[str, Any]:
    made = asdict(letter)
    raw = made.pop("body")
    made["order_id"] = _order_of(letter)
    made["bytes"] = len(raw)
    if body:
        made["body"] = raw.decode("utf-8", "backslashreplace")
    return made


_DONE = {
    "dead_letters": "",
    "replayed": " sent again",
    "would_replay": " would be sent again",
    "discarded": " thrown away",
    "would_discard": " would be thrown away",
}


def _print_letters(letters: "Sequence[DeadLetter]", name: str, *, as_json: bool) -> None:
    from ordersys.core.display import counted

    if as_json:
        printing.document({name: [_document(each, body=False) for each in letters]})
        return
    printing.table(
        ("id", "queue", "tries", "last failed", "order", "reason"),
        [(each.id, each.queue, str(each.tries), each.last_failed_at, _order_of(each), each.reason) for each in letters],
    )
    print(f"{counted(len(letters), 'dead letter')}{_DONE[name]}")
