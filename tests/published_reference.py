"""What the pages of docs/reference take from the code, and the index of decisions.

`python tests/published_reference.py` renews it. The endpoints are those of published_api.py, the metrics those of
published_metrics.py.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import published_api
import reference_grpc
import typer

from ordersys import cli, settings
from ordersys.api import problems
from ordersys.core import errors, events, records, topology
from ordersys.core.events import Change, Event
from ordersys.core.rpc import status

DOCS = published_api.PROJECT / "docs"
REFERENCE = DOCS / "reference"
DECISIONS = DOCS / "decisions"
RENEW = "python tests/published_reference.py"


# --- the command line --------------------------------------------------------------------------------------------


def commands(command: Any = None, path: str = "ordersys") -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words it is called by."""
    command = command or typer.main.get_command(cli.app)
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, each in command.commands.items():
        yield from commands(each, f"{path} {name}")


def command_line() -> str:
    found = sorted(commands(), key=lambda each: (each[0].count(" ") > 1, each[0]))
    parts = ["\n".join(["| command | |", "|---|---|", *(_contents(path, command) for path, command in found)])]
    for path, command in found:
        parts += [f"## {path}", _usage(path, command), _one_paragraph_each(command.help)]
        if rows := list(_parameters(command)):
            parts.append("\n".join(["| | |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _contents(path: str, command: Any) -> str:
    return f"| [`{path}`](#{path.replace(' ', '-')}) | {_cell(command.help.partition(chr(10))[0])} |"


def _usage(path: str, command: Any) -> str:
    arguments = [_argument(each) for each in command.params if not _is_option(each)]
    options = ["[OPTIONS]"] if any(_is_option(each) for each in command.params) else []
    return f"`{' '.join([path, *options, *arguments])}`"


def _parameters(command: Any) -> Iterator[str]:
    for each in command.params:
        said = [_cell(each.help or "")] if each.help else []
        if _is_option(each):
            name = " / ".join([*each.opts, *each.secondary_opts])
            name += "" if each.is_flag else f" {each.metavar or each.opts[0].rpartition('-')[2].upper()}"
            said += ["Required."] if each.required else []
            said += ["Repeatable."] if each.multiple and "repeatable" not in (each.help or "") else []
            if each.default not in (None, "", (), False, True) and not callable(each.default):
                said.append(f"Default: `{each.default}`.")
        else:
            name = _argument(each)
        yield f"| `{name.replace('|', chr(92) + '|')}` | {' '.join(said)} |"


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    return name if parameter.required or name.startswith("[") else f"[{name}]"


# --- settings ----------------------------------------------------------------------------------------------------


def settings_table() -> str:
    home = Path("/$ORDERSYS_HOME")
    fields = settings.Settings.model_fields.items()
    defaults = {name: each.get_default(call_default_factory=True) for name, each in fields}  # whatever is set here
    shown = {name: value for name, value, _ in settings.table(settings.Settings(**{**defaults, "home": home}))}
    said = {"ORDERSYS_HOME": "the platform's data folder", "ORDERSYS_DATA": "the seed files of the package"}
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in fields:
        variable = f"{settings.PREFIX}{name.upper()}"
        default = shown[variable].replace(str(home), "$ORDERSYS_HOME")
        default = said.get(variable) or (f"`{default.replace('False', 'false')}`" if default else "none")
        secret = "" if field.repr else " †"
        rows.append(f"| `{variable}` | {default} | {_cell(field.description or '')}{secret} |")
    return "\n".join(rows)


# --- errors ------------------------------------------------------------------------------------------------------

_MEANS = {
    "invalid_argument": "a field has an impossible value; each is named (`BadRequest` in gRPC, `errors` in REST)",
    "unauthenticated": "no credentials, or none that are known",
    "permission_denied": "the credentials do not allow it",
    "product_not_found": "there is no such product",
    "order_not_found": "there is no such order",
    "not_found": "there is no such path",
    "method_not_allowed": "the path does not take this method; `Allow` says which it takes",
    "request_timeout": "the request did not arrive in time",
    "insufficient_stock": "less is available than was asked for; metadata: `product_id`, `requested`, `available`",
    "invalid_transition": "the order's status does not allow the change",
    "version_conflict": "the order has changed since it was read; 409 when no `If-Match` was sent",
    "order_refused": "a rule of your own refuses the order",
    "payload_too_large": "the body is too large",
    "unsupported_media_type": "the body is not JSON",
    "idempotency_key_reused": "the key was used before with another request",
    "rate_limited": "too many requests; `Retry-After` says how long to wait",
    "internal": "a fault of ours; the log has it, the answer says nothing of the inside",
    "unavailable": "nobody can answer now, and what was asked may have happened: repeat it with its key",
    "usage": "a wrong flag, setting or file on this machine",
    "dead_letter_not_found": "there is no such dead letter",
    "key_not_found": "there is no such API key",
}


def errors_table() -> str:
    codes = [*problems.STATUS, "usage", *(cls.code for cls in (errors.DeadLetterNotFound, errors.KeyNotFound))]
    rows = ["| code | gRPC status | HTTP status | exit code | it means |", "|---|---|---|---|---|"]
    for code in codes:
        grpc = f"`{status.STATUS[code].name}`" if code in status.STATUS else ""
        http = str(problems.STATUS.get(code, ""))
        exits = {"usage": cli.USAGE, "unavailable": cli.UNREACHABLE}.get(code, cli.REFUSED)
        spoken = code in status.STATUS or code not in problems.STATUS
        rows.append(f"| `{code}` | {grpc} | {http} | {exits if spoken else ''} | {_MEANS[code]} |")
    return "\n".join(rows)


# --- events ------------------------------------------------------------------------------------------------------


def changes_table() -> str:
    rows = ["| `change` | `type` | exchange and routing key |", "|---|---|---|"]
    for change in Change:
        kind = events.CREATED if change is Change.CREATED else events.UPDATED
        places = ", ".join(f"`{exchange}` with `{key}`" for exchange, key in topology.routes(change))
        rows.append(f"| `{change}` | `{kind}` | {places} |")
    return "\n".join(rows)


def queues_table() -> str:
    rows = ["| queue | bound to | tries | waits in | ends in |", "|---|---|---|---|---|"]
    for queue in topology.standard().queues:
        bound = ", ".join(
            f"`{each.exchange}`" + (f" with `{each.pattern}`" if each.pattern else "") for each in queue.bindings
        )
        waits = ", ".join(f"`{name}` ({wait:g} s)" for name, wait in zip(queue.retries, queue.waits, strict=True))
        rows.append(f"| `{queue.name}` | {bound} | {queue.tries} | {waits} | `{queue.dead_letters}` |")
    return "\n".join(rows)


def example_event() -> str:
    at = 1_767_225_600_000_000
    order = records.Order(
        id="019b76da-a800-7000-8000-000000000001",
        customer_id="customer-1",
        status=records.Status.PLACED,
        lines=(records.Line("1", 2, 1999),),
        currency="EUR",
        version=1,
        created_at=at,
        updated_at=at,
    )
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    event = Event(
        id="019b76da-a800-7000-8000-000000000002",
        sequence=1,
        change=Change.CREATED,
        time=at,
        order=order,
        traceparent=trace,
    )
    return f"```json\n{json.dumps(events.to_json(event), indent=2)}\n```"


# --- decisions ---------------------------------------------------------------------------------------------------


def decisions() -> str:
    rows = []
    for page in sorted(DECISIONS.glob("[0-9]*.md")):
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").partition(". ")[2]
        rows.append(f"- {page.name[:4]} [{title}]({page.name})")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _one_paragraph_each(text: str) -> str:
    return "\n\n".join(" ".join(each.split()) for each in text.split("\n\n"))


PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    REFERENCE / "cli.md": {"commands": command_line},
    REFERENCE / "settings.md": {"settings": settings_table},
    REFERENCE / "errors.md": {"errors": errors_table},
    REFERENCE / "events.md": {"changes": changes_table, "queues": queues_table, "example": example_event},
    REFERENCE / "grpc.md": {"calls": reference_grpc.calls},
    DECISIONS / "README.md": {"decisions": decisions},
}
"""Page -> what is made between two comments of this name; the words around it are written by hand."""


def renewed(path: Path) -> str:
    page = path.read_text(encoding="utf-8")
    for name, made in PAGES[path].items():
        page = published_api.with_table(page, made(), name)
    return page


def main() -> int:
    for path in PAGES:
        path.write_text(renewed(path), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
