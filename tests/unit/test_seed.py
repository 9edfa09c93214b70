"""The seed files: what is right is loaded to the cent, what is wrong is named by file, entry and field."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from ordersys import settings
from ordersys.core import errors, seed
from ordersys.core.records import Line, Order, Product, Status

Document = Any

PRODUCTS: Document = [
    {
        "id": "1",
        "name": "Beans",
        "description": "1 kg",
        "attributes": {"roast": "dark"},
        "price": "24.90",
        "currency": "EUR",
    },
    {"id": "2", "name": "Filter", "price": "5", "currency": "EUR"},
    {"id": "3", "name": "Dripper", "price": "300", "currency": "JPY"},
]
INVENTORY: Document = [{"product_id": "1", "quantity": 500}, {"product_id": "3", "quantity": 0}]
ORDERS: Document = [
    {
        "id": "o-1",
        "customer_id": "c-1",
        "status": "delivered",
        "created_at": "2024-11-27T08:15:00Z",
        "updated_at": "2024-11-28T08:15:00Z",
        "lines": [{"product_id": "1", "quantity": 2}, {"product_id": "2", "quantity": 1, "unit_price": "4.50"}],
    },
    {"id": "o-2", "customer_id": "c-2", "lines": [{"product_id": "3", "quantity": 1}]},
]


def folder(tmp_path: Path, **files: Document) -> Path:
    """The seed files as they should be, with these instead; None leaves one out, text is written as it is."""
    for name, content in {"products": PRODUCTS, "inventory": INVENTORY, "orders": ORDERS, **files}.items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    return tmp_path


def changed(document: Document, index: int, **values: object) -> Document:
    """A copy in which one entry has these values; ... removes one."""
    entry = {name: value for name, value in {**document[index], **values}.items() if value is not ...}
    return [*document[:index], entry, *document[index + 1 :]]


def refusal(where: Path) -> str:
    with pytest.raises(errors.InvalidArgument) as refused:
        seed.load(where)
    return refused.value.message


def test_what_is_in_the_files_is_loaded(tmp_path: Path) -> None:
    before = time.time_ns() // 1000
    loaded = seed.load(folder(tmp_path))
    assert loaded.products == (
        Product(
            id="1",
            name="Beans",
            description="1 kg",
            attributes={"roast": "dark"},
            currency="EUR",
            price=2490,
            available=500,
        ),
        Product(id="2", name="Filter", description="", attributes={}, currency="EUR", price=500, available=0),
        Product(id="3", name="Dripper", description="", attributes={}, currency="JPY", price=300, available=0),
    )
    delivered, placed = loaded.orders
    assert delivered == Order(
        id="o-1",
        customer_id="c-1",
        status=Status.DELIVERED,
        lines=(Line("1", 2, 2490), Line("2", 1, 450)),
        currency="EUR",
        version=3,
        created_at=1_732_695_300_000_000,
        updated_at=1_732_781_700_000_000,
    )
    assert (placed.status, placed.version, placed.currency, placed.lines) == (
        Status.PLACED,
        1,
        "JPY",
        (Line("3", 1, 300),),
    )
    assert before <= placed.created_at == placed.updated_at <= time.time_ns() // 1000


def test_inventory_and_orders_may_be_left_out(tmp_path: Path) -> None:
    loaded = seed.load(folder(tmp_path, inventory=None, orders=None))
    assert [product.available for product in loaded.products] == [0, 0, 0]
    assert loaded.orders == ()


def test_an_order_of_the_first_second_of_the_epoch_keeps_its_time(tmp_path: Path) -> None:
    orders = changed(ORDERS, 1, created_at="1970-01-01T00:00:00Z", updated_at="1970-01-01T00:00:00Z")
    order = seed.load(folder(tmp_path, orders=orders)).orders[1]
    assert (order.created_at, order.updated_at) == (0, 0)


@pytest.mark.parametrize(("status", "version"), [("placed", 1), ("SHIPPED", 2), ("delivered", 3), ("Cancelled", 2)])
def test_an_order_has_the_version_its_status_takes(tmp_path: Path, status: str, version: int) -> None:
    order = seed.load(folder(tmp_path, orders=changed(ORDERS, 1, status=status))).orders[1]
    assert (order.status.value, order.version) == (status.lower(), version)


@pytest.mark.parametrize(
    ("price", "currency", "minor"),
    [
        ("19.99", "EUR", 1999),
        ("19.9", "EUR", 1990),
        ("19", "EUR", 1900),
        ("19.990", "EUR", 1999),
        ("0", "EUR", 0),
        ("0.01", "EUR", 1),
        ("10000000.00", "EUR", 1_000_000_000),
        ("300", "JPY", 300),
        ("300.00", "JPY", 300),
        ("1.999", "KWD", 1999),
        ("1.2345", "CLF", 12345),
    ],
)
def test_a_price_is_exact_in_the_minor_units_of_its_currency(
    tmp_path: Path, price: str, currency: str, minor: int
) -> None:
    products = changed(PRODUCTS, 1, price=price, currency=currency)
    assert seed.load(folder(tmp_path, products=products, orders=None)).products[1].price == minor


@pytest.mark.parametrize(
    ("price", "currency"),
    [
        ("19.999", "EUR"),
        ("300.5", "JPY"),
        ("1.9999", "KWD"),
        ("19.990000000000000000000000000000000001", "EUR"),
        ("10000000.01", "EUR"),
        ("-1", "EUR"),
        ("+1", "EUR"),
        ("1e2", "EUR"),
        ("1e999999999", "EUR"),
        ("1_000", "EUR"),
        ("1,50", "EUR"),
        (" 1", "EUR"),
        (".5", "EUR"),
        ("NaN", "EUR"),
        ("sNaN", "EUR"),
        ("Infinity", "EUR"),
        ("\uff11", "EUR"),
        ("", "EUR"),
        ("9" * 100_000, "EUR"),
    ],
)
def test_a_price_that_is_not_exact_is_refused_and_never_rounded(tmp_path: Path, price: str, currency: str) -> None:
    message = refusal(folder(tmp_path, products=changed(PRODUCTS, 1, price=price, currency=currency), orders=None))
    most = {"EUR": "10000000.00 EUR with at most 2", "JPY": "1000000000 JPY with at most 0", "KWD": "1000000.000 KWD"}
    assert f"products.json: entry 1: price: must be decimal text, 0 to {most[currency]}" in message
    assert len(message) < 400


BROKEN_PRODUCTS: list[tuple[str, object, str]] = [
    ("id", ..., "is missing"),
    ("id", 2, "must be text, is 2"),
    ("id", " ", "must not be empty, is ' '"),
    ("id", "x" * 129, "has 129 characters, at most 128 are allowed"),
    ("id", "a\nb", "must not contain control characters, is 'a\\nb'"),
    ("id", "\ud800", "must not contain NUL or half of a surrogate pair"),
    ("id", "1", "product '1' stands twice"),
    ("name", ..., "is missing"),
    ("name", "", "must have 1 to 200 characters, is ''"),
    ("name", None, "must be text, is None"),
    ("name", "a\x00b", "must not contain NUL"),
    ("description", 5, "must be text, is 5"),
    ("description", "x" * 2001, "must have 0 to 2000 characters"),
    ("attributes", ["a"], "must be an object with text values, is ['a']"),
    ("attributes", {"a": 1}, "must be an object with text values, is {'a': 1}"),
    ("attributes", {"a": "\ud800"}, "must not contain NUL or half"),
    ("attributes", {"\x00": "a"}, "must not contain NUL or half"),
    ("price", ..., "is missing"),
    ("price", 19.99, "must be text, is 19.99"),
    ("currency", ..., "is missing"),
    ("currency", "eur", "must be an ISO 4217 code like 'EUR', is 'eur'"),
    ("currency", "EURO", "must be an ISO 4217 code like 'EUR', is 'EURO'"),
    ("currency", 978, "must be an ISO 4217 code like 'EUR', is 978"),
    ("descripton", "x", "is not known here: there are id, name, description, attributes, price, currency"),
]
BROKEN_COUNTS: list[tuple[str, object, str]] = [
    ("qty", 1, "is not known here: there are product_id, quantity"),
    ("product_id", ..., "is missing"),
    ("product_id", 3, "must be text, is 3"),
    ("product_id", "9", "names product '9', which products.json does not have"),
    ("product_id", "1", "product '1' is counted twice"),
    ("quantity", ..., "is missing"),
    ("quantity", "5", "must be a whole number, is '5'"),
    ("quantity", 1.5, "must be a whole number, is 1.5"),
    ("quantity", True, "must be a whole number, is True"),
    ("quantity", -1, "must be 0 to 1000000000, is -1"),
    ("quantity", 1_000_000_001, "must be 0 to 1000000000, is 1000000001"),
]
LINE = {"product_id": "1", "quantity": 1}
BROKEN_ORDERS: list[tuple[str, object, str]] = [
    ("customer", "c-1", "is not known here: there are id, customer_id, status, created_at, updated_at, lines"),
    ("id", ..., "is missing"),
    ("id", 7, "must be text, is 7"),
    ("id", "o-1", "order 'o-1' stands twice"),
    ("customer_id", ..., "is missing"),
    ("customer_id", "", "must not be empty, is ''"),
    ("status", "eaten", "must be placed, shipped, delivered, cancelled, is 'eaten'"),
    ("status", None, "must be text, is None"),
    ("created_at", "yesterday", "'yesterday' is not RFC 3339 text like"),
    ("created_at", "2024-11-27T08:15:00", "'2024-11-27T08:15:00' is not RFC 3339 text like"),
    ("created_at", 1_732_695_300, "must be text, is 1732695300"),
    ("updated_at", "", "'' is not RFC 3339 text like"),
    ("lines", ..., "is missing"),
    ("lines", [], "must be a list with at least one line, is []"),
    ("lines", {}, "must be a list with at least one line, is {}"),
    ("lines", [LINE, {"product_id": "3", "quantity": 1}], "name products in more than one currency"),
]
BROKEN_LINES: list[tuple[str, object, str]] = [
    ("lines[1]", "1:2", "must be a JSON object, is '1:2'"),
    ("lines[1].product_id", {"quantity": 1}, "is missing"),
    ("lines[1].product_id", {**LINE, "product_id": "9"}, "names product '9', which products.json does not have"),
    ("lines[1].quantity", {"product_id": "1"}, "is missing"),
    ("lines[1].price", {**LINE, "price": "1"}, "is not known here: there are lines[1].product_id, lines[1].quantity"),
    ("lines[1].quantity", {**LINE, "quantity": 0}, "must be 1 to 1000000, is 0"),
    ("lines[1].quantity", {**LINE, "quantity": 1_000_001}, "must be 1 to 1000000, is 1000001"),
    ("lines[1].unit_price", {**LINE, "unit_price": "1.999"}, "must be decimal text, 0 to 10000000.00 EUR"),
]


@pytest.mark.parametrize(("field", "value", "problem"), BROKEN_PRODUCTS)
def test_every_fault_of_a_product_is_named(tmp_path: Path, field: str, value: object, problem: str) -> None:
    where = folder(tmp_path, products=changed(PRODUCTS, 1, **{field: value}))
    assert f"{where / 'products.json'}: entry 1: {field}: {problem}" in refusal(where)


@pytest.mark.parametrize(("field", "value", "problem"), BROKEN_COUNTS)
def test_every_fault_of_the_inventory_is_named(tmp_path: Path, field: str, value: object, problem: str) -> None:
    where = folder(tmp_path, inventory=changed(INVENTORY, 1, **{field: value}))
    assert f"{where / 'inventory.json'}: entry 1: {field}: {problem}" in refusal(where)


@pytest.mark.parametrize(("field", "value", "problem"), BROKEN_ORDERS)
def test_every_fault_of_an_order_is_named(tmp_path: Path, field: str, value: object, problem: str) -> None:
    where = folder(tmp_path, orders=changed(ORDERS, 1, **{field: value}))
    assert f"{where / 'orders.json'}: entry 1: {field}: {problem}" in refusal(where)


@pytest.mark.parametrize(("field", "line", "problem"), BROKEN_LINES)
def test_every_fault_of_a_line_is_named(tmp_path: Path, field: str, line: object, problem: str) -> None:
    where = folder(tmp_path, orders=changed(ORDERS, 1, lines=[LINE, line]))
    assert f"{where / 'orders.json'}: entry 1: {field}: {problem}" in refusal(where)


@pytest.mark.parametrize("name", ["products", "inventory", "orders"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", ": cannot be read as JSON"),
        ("[{]", ": cannot be read as JSON"),
        ("[" * 100_000, ": cannot be read as JSON"),
        ("{}", ": must be a JSON list of objects"),
        ("null", ": must be a JSON list of objects"),
        ("[1]", ": entry 0: must be a JSON object, is 1"),
    ],
)
def test_a_file_that_is_no_list_of_objects_is_named(tmp_path: Path, name: str, content: str, problem: str) -> None:
    where = folder(tmp_path, **{name: content})
    assert f"{where / name}.json{problem}" in refusal(where)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    where = folder(tmp_path)
    (where / "products.json").write_bytes("[]".encode("utf-16"))
    assert re.search(r"products\.json: cannot be read as JSON: .*utf-8", refusal(where))


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    where = folder(tmp_path, orders=None)
    (where / "orders.json").mkdir()
    assert "orders.json: cannot be read as JSON: " in refusal(where)


def test_without_products_the_setting_that_names_the_folder_is_told(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path / 'products.json'}: does not exist; ORDERSYS_DATA names the folder"


def test_the_data_we_ship_is_right() -> None:
    loaded = seed.load(settings.default_data())
    assert len(loaded.products) >= 5
    assert len(loaded.orders) >= 3
    assert all(product.available > 0 for product in loaded.products)
