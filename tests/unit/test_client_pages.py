"""The pages for clients in other languages name only what the protos, the events and the topology have.

The tests of `interop/` run the programs of the page for Node. Nobody compiles the others here: of their code every name
that is generated from the protos, every field of an event, every exchange and every binding is looked up.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import event_schemas
import published_api
import published_events
import pytest

from ordersys.core import topology
from ordersys.core.events import Change
from ordersys.core.v1 import order_pb2, product_pb2

PAGES = published_api.PROJECT / "docs" / "clients"
FILES = (order_pb2.DESCRIPTOR, product_pb2.DESCRIPTOR)
MESSAGES = {name for file in FILES for name in file.message_types_by_name}
ENUMS = {name for file in FILES for name in file.enum_types_by_name}
SERVICES = {name for file in FILES for name in file.services_by_name}
METHODS = {method.name for file in FILES for each in file.services_by_name.values() for method in each.methods}
ASKED = {*product_pb2.PlaceOrderRequest.DESCRIPTOR.fields_by_name, *order_pb2.OrderLine.DESCRIPTOR.fields_by_name}
ANSWER = set(product_pb2.PlaceOrderResponse.DESCRIPTOR.fields_by_name)
ORDER = set(order_pb2.Order.DESCRIPTOR.fields_by_name)
MONEY = set(order_pb2.Money.DESCRIPTOR.fields_by_name)
CLASSES = MESSAGES | ENUMS | {f"{name}{suffix}" for name in SERVICES for suffix in ("Grpc", "GrpcKt")}

# What the code of a page says -> how it is called in the protos. Each pattern has to find something on its page.
GENERATED: dict[str, dict[str, set[str]]] = {
    "node": {
        r"\{ (\w+) \} = grpc\.load": SERVICES,
        r"new (\w+)\(address": SERVICES,
        r"products\.([A-Z]\w+)\(": METHODS,
        r"^  (\w+): (?:random|\"c|\[\{)": ASKED,
        r"\{ (\w+): \"1\"": ASKED,
        r", (\w+): 2 \}": ASKED,
        r"answer\.(\w+)": ANSWER,
        r"answer\.order\.(\w+)": ORDER,
        r"\.total\.(\w+)": MONEY,
    },
    "java": {
        r"import io\.ordersys\.core\.v1\.(\w+)": CLASSES,
        r"(\w+)\.newBuilder\(\)": MESSAGES,
        r"\.(?:set|add)([A-Z]\w+)\((?:UUID|\"|2|OrderLine)": ASKED,
        r"^          \.(placeOrder)\(": METHODS,
        r"^          \.get(\w+)\(\);": ANSWER,
        r"order\.get(\w+)\(\)": ORDER,
        r"\.getTotal\(\)\.get(\w+)\(\)": MONEY,
    },
    "kotlin": {
        r"import io\.ordersys\.core\.v1\.([A-Z]\w+)\.": CLASSES,
        r"import io\.ordersys\.core\.v1\.([a-z]\w+)$": MESSAGES,
        r"\.(\w+)CoroutineStub": SERVICES,
        r"products\.(\w+)\(request": METHODS,
        r"^        +(\w+) \+?= (?:UUID|\"|2|orderLine)": ASKED,
        r"\{answer\.(\w+)": ANSWER,
        r"\{answer\.order\.(\w+)": ORDER,
        r"\.total\.(\w+)": MONEY,
    },
    "go": {
        r"ordersysv1\.New(\w+)Client": SERVICES,
        r"ordersysv1\.([A-Z]\w+)\{": MESSAGES,
        r"products\.(\w+)\(ctx": METHODS,
        r"\b(\w+): +(?:\"|2|\[\]\*order)": ASKED,
        r"answer\.(\w+)": ANSWER,
        r"answer\.Order\.(\w+)": ORDER,
        r"\.Total\.(\w+)": MONEY,
    },
}
# What the code of a page reads of an event.
READ = {
    "node": r"event\.(?:data\.)?(\w+)",
    "java": r"path\(\"(\w+)\"\)",
    "kotlin": r"path\(\"(\w+)\"\)",
    "go": r"`json:\"(\w+)\"`",
}


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def code(text: str) -> str:
    return "\n".join(re.findall(r"^```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def known(found: str, names: set[str]) -> bool:
    """Whether one of the names is this one, whatever the language does with capitals and underscores."""
    return found.replace("_", "").lower() in {name.replace("_", "").lower() for name in names}


def complaints(name: str, text: str) -> Iterator[str]:
    """What the page says that is not so."""
    program = code(text)
    for pattern, names in GENERATED[name].items():
        said = re.findall(pattern, program, re.MULTILINE)
        if not said:
            yield f"{pattern} finds nothing"
        yield from (f"{each} is not in the protos" for each in said if not known(each, names))
    read = re.findall(READ[name], program)
    if {"id", "type", "change", "order_id", "version"} - set(read):
        yield "the event is not read"
    yield from (f"{each} is not in an event" for each in read if each not in ATTRIBUTES)
    exchanges = re.findall(r'"(orders\.\w+)", "(\w+)"', program)
    if [(each.name, each.kind.value) for each in topology.EXCHANGES if each.name == topology.TOPIC] != exchanges:
        yield f"the exchanges are {exchanges}"
    keys = re.findall(r'"(order\.[^"]*)"', program)
    sent = {key for change in Change for exchange, key in topology.routes(change) if exchange == topology.TOPIC}
    if not keys or not all(topology.matches(key, each) for key in keys for each in sent):
        yield f"not every event comes to a queue that is bound by {keys}"


def attributes(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for each in schema.values():
            yield from attributes(each)


ATTRIBUTES = {
    name
    for kind in event_schemas.TYPES
    for name in attributes(json.loads(published_events.path(kind).read_text(encoding="utf-8")))
}


def test_every_language_has_a_page_and_the_index_leads_to_it() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == {"README", *GENERATED}
    for name in GENERATED:
        assert f"({name}.md)" in page("README")


@pytest.mark.parametrize("name", GENERATED)
def test_a_page_names_only_what_there_is(name: str) -> None:
    assert list(complaints(name, page(name))) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong", "words"),
    [
        ("node", "idempotency_key:", "idempotence_key:", "idempotence_key is not in the protos"),
        ("node", "products.PlaceOrder(", "products.PlaceOrders(", "PlaceOrders is not in the protos"),
        ("node", "event.data.order_id", "event.data.orderId", "orderId is not in an event"),
        ("java", ".setCustomerId(", ".setCustomer(", "Customer is not in the protos"),
        ("java", "core.v1.ProductServiceGrpc", "core.v1.ProductsGrpc", "ProductsGrpc is not in the protos"),
        ("java", '"orders.topic", "topic"', '"orders.topic", "fanout"', "the exchanges are"),
        ("kotlin", 'productId = "1"', 'product = "1"', "product is not in the protos"),
        ("kotlin", "{answer.order.total", "{answer.order.sum", "sum is not in the protos"),
        ("kotlin", 'path("change")', 'path("kind")', "kind is not in an event"),
        ("go", "ordersysv1.PlaceOrderRequest{", "ordersysv1.PlaceRequest{", "PlaceRequest is not in the protos"),
        ("go", "Quantity: 2", "Units: 2", "Units is not in the protos"),
        ("go", '"order.#"', '"order.*"', "not every event comes"),
    ],
)
def test_a_wrong_name_is_found(name: str, right: str, wrong: str, words: str) -> None:
    text = page(name)
    assert right in text
    found = list(complaints(name, text.replace(right, wrong)))
    assert any(words in each for each in found), found


def test_the_packages_of_the_pages_are_those_of_the_protos() -> None:
    for file in FILES:
        options = file.GetOptions()
        assert options.java_multiple_files
        for name in ("java", "kotlin"):
            assert f"import {options.java_package}." in page(name)
            assert f"`{options.java_package}`" in page(name)
        assert options.go_package.endswith(";ordersysv1")
        assert f"M{file.name}=" in page("go")
    names = {file.GetOptions().java_outer_classname for file in FILES}
    assert len(names) == len(FILES)
    assert not names & (MESSAGES | ENUMS | SERVICES)


def test_every_link_leads_somewhere() -> None:
    for path in PAGES.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (Path(path.parent) / link).exists(), f"{path.name}: {link}"
