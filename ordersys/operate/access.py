"""`ordersys keys`: who may use the REST API."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ordersys.operate import printing
from ordersys.operate.printing import Json

if TYPE_CHECKING:
    from ordersys.api.keys import Key

keys = typer.Typer(help="The REST API's keys: make, list and revoke them.", no_args_is_help=True)

DatabaseUrl = Annotated[
    str | None, typer.Option("--database-url", help="The API's: sqlite:///FILE or postgresql+psycopg://...")
]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MOST_DAYS = 36_500
_MOST_BYTES = 1024  # of a file that holds one key


@keys.command("create")
def create(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Whose it is, for people.")],
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope", metavar="SCOPE", help="orders:read, orders:write, stock:write or admin (all); repeatable."
        ),
    ],
    customer: Annotated[
        str, typer.Option("--customer", metavar="C", help="Good for the orders of this customer only.")
    ] = "",
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="Good until then: RFC 3339, or from now 90d, 12h, 30m.")
    ] = "",
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file", metavar="FILE", help="Take the key in this file instead of a new one; repeatable at will."
        ),
    ] = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a key and print it, this once: only its hash is kept.

    With --key-file the key is one that was drawn before, and is not printed: osk_, 12 hexadecimal digits, _ and 43 of
    A-Z a-z 0-9 _ -. Taking it again changes nothing, so that a deployment can do so at every start.
    """
    from ordersys import databases, settings

    until, drawn = _moment(expires), _drawn(key_file)
    with databases.api_keys(settings.load({"api_database_url": database_url})) as store:
        key, text = store.create(name, scope, customer_id=customer, expires_at=until, text=drawn)
    if as_json:
        printing.document({"key": _json(key)} | ({} if key_file else {"api_key": text}))
        return
    if key_file:
        print(f"taken: {key.id}")
        return
    print(text, flush=True)
    print("Keep it: it is not shown again. Send it as X-API-Key, or as Authorization: Bearer.", file=sys.stderr)


@keys.command("list")
def show(as_json: Json = False, database_url: DatabaseUrl = None) -> None:
    """Print every key there has ever been, oldest first, and nothing that opens a door."""
    from ordersys import databases, settings

    with databases.api_keys(settings.load({"api_database_url": database_url})) as store:
        found = store.all()
    if as_json:
        printing.document({"keys": [_json(key) for key in found]})
        return
    printing.table(
        ("id", "name", "scopes", "customer", "created", "expires", "last used", "revoked"),
        [tuple(_cell(value) for value in _json(key).values()) for key in found],
    )


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False, database_url: DatabaseUrl = None
) -> None:
    """Make a key good for nothing within seconds; repeating it changes nothing."""
    from ordersys import databases, settings

    # Who has found a key in the open has its whole text; it must not stand in our answer, too.
    if found := re.match(r"osk_([0-9a-f]+)_", key_id):
        key_id = found[1]
    with databases.api_keys(settings.load({"api_database_url": database_url})) as store:
        key = store.revoke(key_id)
    if as_json:
        printing.document({"key": _json(key)})
    else:
        print(f"revoked: {key.id}")


def _drawn(file: Path | None) -> str:
    """What stands in the file of a key, "" without one; the errors quote nothing of it."""
    if file is None:
        return ""
    try:
        text = file.read_bytes()[:_MOST_BYTES].decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise typer.BadParameter(f"--key-file {str(file)!r} cannot be read: {reason}") from None
    if not text:
        raise typer.BadParameter(f"--key-file {str(file)!r} is empty")
    return text


def _moment(text: str) -> int | None:
    """Microseconds since the epoch; None for ""."""
    from ordersys.core import ids

    if not text:
        return None
    if found := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        seconds = int(found[1]) * _UNITS[found[2]]
        if seconds > _MOST_DAYS * _UNITS["d"]:
            raise typer.BadParameter(f"--expires {text!r}: at most {_MOST_DAYS}d; without --expires it never does")
        return ids.now_us() + seconds * 1_000_000
    try:
        return ids.parse_rfc3339(text)
    except ValueError:
        raise typer.BadParameter(
            f"--expires {text!r}: expected RFC 3339 like 2027-11-21T08:00:00Z, or from now 90d, 12h, 30m"
        ) from None


def _json(key: "Key") -> dict[str, Any]:
    from ordersys.core import ids

    times = (key.created_at, key.expires_at, key.last_used_at, key.revoked_at)
    created, expires, used, revoked = (None if at is None else ids.rfc3339(at) for at in times)
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "customer_id": key.customer_id,
        "created_at": created,
        "expires_at": expires,
        "last_used_at": used,
        "revoked_at": revoked,
    }


def _cell(value: str | list[str] | None) -> str:
    return " ".join(value) if isinstance(value, list) else value or "-"
