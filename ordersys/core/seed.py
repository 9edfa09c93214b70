"""The JSON seed files: what a shop has on its first day. Loaded into an empty database, never over existing data.

`inventory.json` counts what can still be sold: the units of the orders in `orders.json` are already out of it.
A broken file is an InvalidArgument that names file, entry and field.
"""

import json
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from ordersys.core import errors, fields, ids
from ordersys.core.display import decimals, money
from ordersys.core.records import Line, Order, Product, Status

Value = TypeVar("Value")

_VERSIONS = {Status.PLACED: 1, Status.SHIPPED: 2, Status.DELIVERED: 3, Status.CANCELLED: 2}

_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")  # so short that Decimal never rounds it
_MOST_MINOR = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Seed:
    products: tuple[Product, ...]
    orders: tuple[Order, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a file, which knows where it stands."""

    file: Path
    index: int
    fields: Mapping[str, Any]

    def broken(self, field: str, problem: str) -> errors.InvalidArgument:
        return errors.InvalidArgument.of(f"{self.file}: entry {self.index}: {field}", problem)

    def refuse_unknown(self, *known: str) -> None:
        """What nobody reads was mistyped."""
        for field in self.fields:
            if field not in known:
                raise self.broken(str(field)[:100], f"is not known here: there are {', '.join(known)}")

    def get(self, field: str, read: Callable[[Any], Value], default: Value | None = None) -> Value:
        if field not in self.fields:
            if default is None:
                raise self.broken(field, "is missing")
            return default
        try:
            return read(self.fields[field])
        except (ValueError, TypeError) as error:
            raise self.broken(field, str(error)) from error


def load(folder: Path) -> Seed:
    """Everything in the folder, checked as a whole; raises InvalidArgument naming file, entry and field."""
    priced = {}
    for entry in _entries(folder / "products.json"):
        product = _product(entry)
        if product.id in priced:
            raise entry.broken("id", f"product {product.id!r} stands twice")
        priced[product.id] = product
    counted: dict[str, int] = {}
    for entry in _entries(folder / "inventory.json", required=False):
        entry.refuse_unknown("product_id", "quantity")
        product_id = _known(entry, "product_id", priced)
        if product_id in counted:
            raise entry.broken("product_id", f"product {product_id!r} is counted twice")
        counted[product_id] = entry.get("quantity", _whole(0, 1_000_000_000))
    orders: dict[str, Order] = {}
    for entry in _entries(folder / "orders.json", required=False):
        order = _order(entry, priced)
        if order.id in orders:
            raise entry.broken("id", f"order {order.id!r} stands twice")
        orders[order.id] = order
    return Seed(
        products=tuple(
            Product(
                id=each.id,
                name=each.name,
                description=each.description,
                attributes=each.attributes,
                currency=each.currency,
                price=each.price,
                available=counted.get(each.id, 0),
            )
            for each in priced.values()
        ),
        orders=tuple(orders.values()),
    )


def _entries(file: Path, *, required: bool = True) -> list[_Entry]:
    if not required and not file.exists():
        return []
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise errors.InvalidArgument.of(str(file), "does not exist; ORDERSYS_DATA names the folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise errors.InvalidArgument.of(str(file), f"cannot be read as JSON: {error}") from error
    if not isinstance(document, list):
        raise errors.InvalidArgument.of(str(file), "must be a JSON list of objects")
    for index, each in enumerate(document):
        if not isinstance(each, dict):
            raise errors.InvalidArgument.of(f"{file}: entry {index}", f"must be a JSON object, is {reprlib.repr(each)}")
    return [_Entry(file, index, each) for index, each in enumerate(document)]


def _product(entry: _Entry) -> Product:
    entry.refuse_unknown("id", "name", "description", "attributes", "price", "currency")
    currency = entry.get("currency", _currency)
    return Product(
        id=entry.get("id", _id),
        name=entry.get("name", _text(200)),
        description=entry.get("description", _text(2000, required=False), ""),
        attributes=entry.get("attributes", _attributes, {}),
        currency=currency,
        price=entry.get("price", _minor_units(currency)),
        available=0,
    )


def _order(entry: _Entry, priced: Mapping[str, Product]) -> Order:
    entry.refuse_unknown("id", "customer_id", "status", "created_at", "updated_at", "lines")
    given = entry.get("lines", _list)
    lines = []
    for number, line in enumerate(given):
        if not isinstance(line, dict):
            raise entry.broken(f"lines[{number}]", f"must be a JSON object, is {reprlib.repr(line)}")
        at = _Entry(entry.file, entry.index, {f"lines[{number}].{name}": value for name, value in line.items()})
        at.refuse_unknown(*(f"lines[{number}].{name}" for name in ("product_id", "quantity", "unit_price")))
        product = priced[_known(at, f"lines[{number}].product_id", priced)]
        quantity = at.get(f"lines[{number}].quantity", _whole(1, fields.MAX_QUANTITY))
        price = at.get(f"lines[{number}].unit_price", _minor_units(product.currency), product.price)
        lines.append((Line(product.id, quantity, price), product.currency))
    if len({currency for _, currency in lines}) > 1:
        raise entry.broken("lines", "name products in more than one currency")
    status = entry.get("status", _status, Status.PLACED)
    created_at = entry.get("created_at", _moment, ids.now_us())
    return Order(
        id=entry.get("id", _id),
        customer_id=entry.get("customer_id", _id),
        status=status,
        lines=tuple(line for line, _ in lines),
        currency=lines[0][1],
        version=_VERSIONS[status],
        created_at=created_at,
        updated_at=entry.get("updated_at", _moment, created_at),
    )


def _known(entry: _Entry, field: str, products: Mapping[str, Product]) -> str:
    product_id = entry.get(field, _id)
    if product_id not in products:
        raise entry.broken(field, f"names product {product_id!r}, which products.json does not have")
    return product_id


def _id(value: Any) -> str:
    """What a request may name: whoever is stored under another id could never be asked for."""
    for problem in fields.text("id", _string(value)):
        raise ValueError(f"{problem.description}, is {reprlib.repr(value)}")
    return str(value)


def _text(most: int, *, required: bool = True) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if (required and not _string(value).strip()) or len(_string(value)) > most:
            raise ValueError(f"must have {int(required)} to {most} characters, is {reprlib.repr(value)}")
        return str(value)

    return read


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be text, is {reprlib.repr(value)}")
    if not fields.storable(value):
        raise ValueError(f"must not contain NUL or half of a surrogate pair, is {reprlib.repr(value)}")
    return value


def _status(value: Any) -> Status:
    name = _string(value).lower()
    if name not in _VERSIONS:
        raise ValueError(f"must be {', '.join(Status)}, is {reprlib.repr(value)}")
    return Status(name)


def _moment(value: Any) -> int:
    return ids.parse_rfc3339(_string(value))


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"must be a whole number, is {reprlib.repr(value)}")
        if not least <= value <= most:
            raise ValueError(f"must be {least} to {most}, is {value}")
        return value

    return read


def _currency(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 3 or not (value.isascii() and value.isalpha() and value.isupper()):
        raise ValueError(f"must be an ISO 4217 code like 'EUR', is {reprlib.repr(value)}")
    return value


def _minor_units(currency: str) -> Callable[[Any], int]:
    """Decimal text like "19.99" as minor units of the currency."""
    places = decimals(currency)

    def read(value: Any) -> int:
        minor = Decimal(_string(value)).scaleb(places) if _DECIMAL.fullmatch(_string(value)) else Decimal(-1)
        if minor != minor.to_integral_value() or not 0 <= minor <= _MOST_MINOR:
            raise ValueError(
                f"must be decimal text, 0 to {money(_MOST_MINOR, currency)} with at most {places} decimals,"
                f" is {reprlib.repr(value)}"
            )
        return int(minor)

    return read


def _attributes(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise TypeError(f"must be an object with text values, is {reprlib.repr(value)}")
    return {_string(name): _string(each) for name, each in value.items()}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise TypeError(f"must be a list with at least one line, is {reprlib.repr(value)}")
    return value
