"""How people read what programs exchange: money in major units, and one line per event. Needs no terminal.

Text that came from elsewhere is made printable first: a customer id must not be able to steer somebody's terminal.
"""

import json
from datetime import UTC, datetime

from ordersys.core.events import Change, Event
from ordersys.core.redaction import SECRET_PARAMETER

_DECIMALS = {
    code: places
    for places, codes in (
        (0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"),
        (3, "BHD IQD JOD KWD LYD OMR TND"),
        (4, "CLF UYW"),
    )
    for code in codes.split()
}
"""ISO 4217 currencies whose minor unit is not a hundredth."""

Span = tuple[str, str]
"""A piece of a line and its style, "" or one that rich understands, as rich's `Text.assemble` takes it."""

_CHANGE_STYLES = {
    Change.CREATED: "bold green",
    Change.LINES: "bold yellow",
    Change.CANCELLED: "bold red",
    Change.SHIPPED: "bold blue",
    Change.DELIVERED: "bold cyan",
}


def decimals(currency: str) -> int:
    """How many decimals the currency's major unit has."""
    return _DECIMALS.get(currency, 2)


def money(amount: int, currency: str) -> str:
    """Minor units as text in major units: 1999 EUR is "19.99 EUR", 1999 JPY is "1999 JPY"."""
    places = decimals(currency)
    digits = f"{abs(amount):0{places + 1}d}"
    whole, fraction = digits[: len(digits) - places], digits[len(digits) - places :]
    return f"{'-' if amount < 0 else ''}{whole}{'.' if places else ''}{fraction} {printable(currency)}"


def printable(text: str) -> str:
    """The text with control characters, line breaks and lone surrogates shown as escapes, on one line."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def writable(text: str, encoding: str | None) -> str:
    """The text for a stream of this encoding; where that cannot write it, with escapes that leave JSON valid."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return "".join(each if each.isascii() else json.dumps(each)[1:-1] for each in text)
    return text


def masked(url: str) -> str:
    """A URL without its passwords, whatever they are made of; a file's URL as it is."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.startswith("sqlite"):
        return url
    user, at, place = rest.rpartition("@")  # a password may hold an @ of its own, a host cannot
    if at and ":" in user:
        user = f"{user.partition(':')[0]}:***"
    return SECRET_PARAMETER.sub(r"\1***", f"{scheme}://{user}{at}{place}")


def moment(us: int) -> str:
    """Microseconds since the epoch as "2026-11-03 12:03:44Z"."""
    return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def event_line(event: Event) -> tuple[Span, ...]:
    """One event on one line: time, change, order, version, customer, units, total."""
    order = event.order
    return (
        (moment(event.time), "dim"),
        ("  ", ""),
        (f"{event.change.value:<9}", _CHANGE_STYLES[event.change]),
        ("  ", ""),
        (printable(order.id), "bold"),
        (f" v{order.version}", "dim"),
        (f"  {printable(order.customer_id)}", ""),
        (f"  {counted(sum(line.quantity for line in order.lines), 'unit')}", ""),
        (f"  {money(order.total, order.currency)}", "bold"),
    )
