"""What is published of the events: the files are those of the code, events are right by them, and breaks are found."""

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import event_compatibility
import event_schemas
import published_events
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ordersys.broker import broker, rabbitmq_topology
from ordersys.core import errors, events, ids, topology
from ordersys.core.events import CREATED, UPDATED, Change, Event
from ordersys.core.records import Line
from ordersys.order import model

Json = dict[str, Any]

RENEW = f"renew it: {published_events.RENEW}"


@cache
def published(kind: str) -> str:
    return published_events.path(kind).read_text(encoding="utf-8")


@cache
def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(published(kind)), format_checker=Draft202012Validator.FORMAT_CHECKER)


@cache
def read() -> str:
    return json.dumps(yaml.safe_load(published_events.DOCUMENT.read_text(encoding="utf-8")))


def described() -> Json:
    """The published document, one of its own for whoever asks."""
    found = json.loads(read())
    assert isinstance(found, dict)
    return found


def nodes(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value with its place."""
    yield path, node
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, each in inside:
        yield from nodes(each, (*path, key))


def at(document: Any, *path: str | int) -> Any:
    for part in path:
        document = document[part]
    return document


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_published_files_are_those_of_the_code() -> None:
    assert {each.stem for each in published_events.SCHEMAS.iterdir()} == set(event_schemas.TYPES)
    for kind in event_schemas.TYPES:
        assert published(kind) == published_events.printed_schema(kind), RENEW
    assert published_events.DOCUMENT.read_text(encoding="utf-8") == published_events.printed(), RENEW


def test_consumers_are_not_broken() -> None:
    assert published_events.breaks() == []


@pytest.mark.parametrize("kind", event_schemas.TYPES)
def test_a_schema_is_valid_and_closes_nothing(kind: str) -> None:
    Draft202012Validator.check_schema(json.loads(published(kind)))
    assert "additionalProperties" not in published(kind)


def test_every_reference_of_the_document_leads_somewhere() -> None:
    document = described()
    found = [node for path, node in nodes(document) if path and path[-1] == "$ref"]
    assert len(found) > 30
    for reference in found:
        if reference.startswith("#/"):
            at(document, *reference.removeprefix("#/").split("/"))
        else:
            assert (published_events.DOCUMENT.parent / reference).is_file()


def test_the_document_has_every_way_and_every_queue() -> None:
    channels = described()["channels"]
    ways = {(exchange, key) for change in Change for exchange, key in topology.routes(change)}
    amqp = {name: channel["bindings"]["amqp"] for name, channel in channels.items()}
    assert ways == {
        (amqp[name]["exchange"]["name"], channel["address"])
        for name, channel in channels.items()
        if amqp[name]["is"] == "routingKey"
    }
    declared = {
        name: arguments
        for queue in topology.standard().queues
        for name, arguments in rabbitmq_topology.queue_arguments(queue).items()
    }
    queues = {name: channel for name, channel in channels.items() if amqp[name]["is"] == "queue"}
    assert {name: channel["x-arguments"] for name, channel in queues.items()} == declared
    assert queues["notify.topic"]["x-bindings"] == [
        {"exchange": "orders.topic", "routingKey": "order.created"},
        {"exchange": "orders.topic", "routingKey": "order.updated.#"},
    ]
    assert list(queues["notify.fanout"]["messages"]) == ["orderCreated"]
    assert list(queues["notify.topic"]["messages"]) == ["orderCreated", "orderUpdated"]


def test_a_failed_message_carries_the_headers_of_the_document() -> None:
    queue = topology.NOTIFY_TOPIC
    lent = broker.Delivery(
        tag=1,
        queue=queue.name,
        exchange=topology.TOPIC,
        routing_key="order.created",
        body=b"{}",
        message_id="m",
        content_type=events.CONTENT_TYPE,
        headers={"traceparent": ids.new_traceparent()},
        redelivered=False,
    )
    headers = broker.failed(queue, lent, "the sink said no").message.headers
    schema = described()["components"]["schemas"]["headers"]
    assert set(headers) == set(schema["properties"])
    Draft202012Validator(schema).validate(dict(headers))


# --- events -----------------------------------------------------------------------------------------------------------

IDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=128)
LINES = st.lists(st.builds(Line, IDS, st.integers(1, 10**6), st.integers(0, 10**9)), min_size=1, max_size=3).map(tuple)
MOMENTS = st.integers(0, 253_402_300_799_999_999)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """The events of one order, as far as the rules let it go through the changes that are asked for."""
    order, found = None, []
    now = draw(MOMENTS)
    for change in [Change.CREATED, *draw(st.lists(st.sampled_from(list(model.TRANSITIONS)), max_size=6))]:
        command = model.Command(
            command_id=ids.uuid7(),
            order_id=draw(IDS) if order is None else order.id,
            change=change,
            customer_id=draw(IDS),
            lines=draw(LINES),
            currency=draw(st.sampled_from(["EUR", "JPY"])),
            traceparent=draw(st.one_of(st.just(""), st.builds(ids.new_traceparent))),
        )
        try:
            order = model.apply(order, command, now)
        except errors.InvalidTransition:
            continue
        sequence = draw(st.integers(1, 10**18 - 1))
        found.append(
            Event(
                id=ids.uuid7(),
                sequence=sequence,
                change=change,
                time=now,
                order=order,
                traceparent=command.traceparent,
            )
        )
    return found


@settings(max_examples=40)
@given(histories())
def test_every_event_that_the_rules_lead_to_is_right_by_its_schema_and_by_no_other(history: list[Event]) -> None:
    for event in history:
        document = json.loads(events.encode(event))
        validator(event.type).validate(document)
        assert not validator(UPDATED if event.type == CREATED else CREATED).is_valid(document)


@pytest.mark.parametrize("change", Change)
def test_the_examples_of_the_document_are_right(change: Change) -> None:
    examples = {
        example["name"]: example["payload"]
        for message in described()["components"]["messages"].values()
        for example in message.get("examples", [])
    }
    event = events.decode(json.dumps(examples[change]))
    assert (event.change, events.to_json(event)) == (change, examples[change])
    validator(event.type).validate(examples[change])


PLACES = [path for path, _ in nodes(published_events.example(Change.LINES)) if path]


def changed(change: Change, path: tuple[str | int, ...], *value: Any) -> Json:
    """The example with that value at the path, or with nothing there."""
    document = copy.deepcopy(published_events.example(change))
    place = at(document, *path[:-1])
    if value:
        (place[path[-1]],) = value
    else:
        del place[path[-1]]
    return document


@pytest.mark.parametrize("path", PLACES, ids=str)
@pytest.mark.parametrize("change", [Change.CREATED, Change.LINES])
def test_an_event_without_a_field_or_with_null_or_a_list_of_nothing_is_wrong(
    change: Change, path: tuple[str | int, ...]
) -> None:
    right = validator(CREATED if change is Change.CREATED else UPDATED)
    if isinstance(path[-1], str):
        assert right.is_valid(changed(change, path)) is (path == ("traceparent",))
    assert not right.is_valid(changed(change, path, None))
    assert not right.is_valid(changed(change, path, []))


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        (Change.CREATED, ("specversion",), "0.3"),
        (Change.CREATED, ("id",), "1"),
        (Change.CREATED, ("source",), "/another"),
        (Change.CREATED, ("type",), UPDATED),
        (Change.CREATED, ("subject",), ""),
        (Change.CREATED, ("time",), "2024-11-27 yesterday"),
        (Change.CREATED, ("sequence",), "-1"),
        (Change.CREATED, ("sequence",), 7),
        (Change.CREATED, ("data", "status"), "shipped"),
        (Change.CREATED, ("data", "version"), 2),
        (Change.CREATED, ("data", "change"), "lines"),
        (Change.LINES, ("type",), "ordersys.order.updated.v2"),
        (Change.LINES, ("data", "order_id"), "x" * 129),
        (Change.LINES, ("data", "change"), "created"),
        (Change.LINES, ("data", "change"), "refunded"),
        (Change.LINES, ("data", "change"), "cancelled"),
        (Change.LINES, ("data", "status"), "shipped"),
        (Change.LINES, ("data", "version"), 1),
        (Change.LINES, ("data", "version"), "2"),
        (Change.LINES, ("data", "lines", 0, "quantity"), 0),
        (Change.LINES, ("data", "lines", 0, "quantity"), 1.5),
        (Change.LINES, ("data", "lines", 0, "unit_price", "amount"), -1),
        (Change.LINES, ("data", "total", "currency"), ""),
        (Change.LINES, ("data", "total"), "45.48"),
        (Change.LINES, ("data", "created_at"), "2024-11-27"),
    ],
    ids=str,
)
def test_a_value_that_no_event_has_is_wrong(change: Change, path: tuple[str | int, ...], value: object) -> None:
    right = validator(CREATED if change is Change.CREATED else UPDATED)
    assert right.is_valid(published_events.example(change))
    assert not right.is_valid(changed(change, path, value))


def test_what_a_newer_version_adds_is_right() -> None:
    for path in (("partitionkey",), ("data", "gift"), ("data", "lines", 0, "tax"), ("data", "total", "net")):
        validator(UPDATED).validate(changed(Change.LINES, path, {"anything": [1]}))


# --- the rules of compatibility, tried on what breaks them ------------------------------------------------------------

Mutation = Callable[[Json], object]
DATA = ("properties", "data")
FIELDS = (*DATA, "properties")
QUEUE = ("channels", "notify.topic")


def put(*path: Any) -> Mutation:
    """Set what stands at the path but its last part to that."""
    return lambda found: at(found, *path[:-2]).__setitem__(path[-2], path[-1])


def drop(*path: str | int) -> Mutation:
    return lambda found: at(found, *path[:-1]).__delitem__(path[-1])


def remove(value: Any, *path: str | int) -> Mutation:
    return lambda found: at(found, *path).remove(value)


EVENT_BREAKS: dict[str, tuple[Mutation, str]] = {
    "another type": (put("properties", "type", "const", "ordersys.order.changed.v1"), "event.type: const was"),
    "an attribute": (drop("properties", "sequence"), "event.sequence: is gone"),
    "a field": (drop(*FIELDS, "customer_id"), "event.data.customer_id: is gone"),
    "a field of a line": (drop("$defs", "line", "properties", "quantity"), "event.data.lines[].quantity: is gone"),
    "a certain field": (remove("total", *DATA, "required"), "event.data.total: may be absent"),
    "a certain attribute": (remove("subject", "required"), "event.subject: may be absent"),
    "a type": (put(*FIELDS, "version", "type", "string"), "event.data.version: type was 'integer', is 'string'"),
    "null": (put("properties", "subject", "type", ["string", "null"]), "event.subject: type was"),
    "a value more": (lambda found: at(found, *FIELDS, "status", "enum").append("lost"), "event.data.status: enum was"),
    "a value less": (remove("lines", *FIELDS, "change", "enum"), "event.data.change: enum was"),
    "any value": (drop(*FIELDS, "change", "enum"), "event.data.change: enum was"),
    "no lines": (put(*FIELDS, "lines", "minItems", 0), "event.data.lines: minItems was 1, is 0"),
    "longer ids": (put(*FIELDS, "order_id", "maxLength", 256), "event.data.order_id: maxLength was 128, is 256"),
    "endless ids": (drop(*FIELDS, "order_id", "maxLength"), "event.data.order_id: maxLength was 128, is None"),
    "negative amounts": (put("$defs", "money", "properties", "amount", "minimum", -1), "total.amount: minimum was 0"),
    "another pattern": (put("properties", "sequence", "pattern", "^[0-9a-f]+$"), "event.sequence: pattern was"),
    "another format": (drop("properties", "time", "format"), "event.time: format was 'date-time', is None"),
    "other pairs": (drop("properties", "data", "oneOf"), "event.data: oneOf was"),
}

EVENT_KEEPS: dict[str, Mutation] = {
    "a field more": put(*FIELDS, "gift", {"type": "boolean"}),
    "a certain field more": lambda found: at(found, *DATA, "required").append("gift"),
    "a tighter limit": put(*FIELDS, "order_id", "maxLength", 36),
    "a higher floor": put("$defs", "money", "properties", "amount", "minimum", 1),
    "another limit": put("properties", "traceparent", "maxLength", 55),
    "other words": put(*FIELDS, "version", "description", "something else"),
}

TOPOLOGY_BREAKS: dict[str, tuple[Mutation, str]] = {
    "a queue": (drop("channels", "notify.topic.dlq"), "notify.topic.dlq is gone"),
    "a way": (drop("channels", "orders.topic.order.created"), "orders.topic.order.created is gone"),
    "a routing key": (put("channels", "orders.topic.order.created", "address", "order.new"), "address changed"),
    "the kind of an exchange": (
        put("channels", "orders.fanout.order.created", "bindings", "amqp", "exchange", "type", "direct"),
        "orders.fanout.order.created: bindings changed",
    ),
    "an argument": (put(*QUEUE, "x-arguments", "x-delivery-limit", 5), "notify.topic: x-arguments changed"),
    "a binding": (drop(*QUEUE, "x-bindings", 1), "notify.topic: x-bindings changed"),
    "a message more in a queue": (put(*QUEUE, "messages", "refund", {}), "notify.topic: messages changed"),
    "the direction": (put("operations", "handle.notify.topic", "action", "send"), "handle.notify.topic is gone or"),
    "the content type": (
        put("components", "messages", "orderCreated", "contentType", "application/json"),
        "the message orderCreated: its content changed",
    ),
    "another schema": (
        put("components", "messages", "orderUpdated", "payload", {"$ref": "./schemas/another.json"}),
        "the message orderUpdated: its content changed",
    ),
    "a message": (drop("components", "messages", "failed"), "the message failed is gone"),
    "a header": (
        drop("components", "schemas", "headers", "properties", "x-ordersys-reason"),
        "the message failed: headers.x-ordersys-reason: is gone",
    ),
}

TOPOLOGY_KEEPS: dict[str, Mutation] = {
    "a queue more": lambda found: found["channels"].update(audit=found["channels"]["notify.topic"]),
    "a header more": put("components", "schemas", "headers", "properties", "x-more", {"type": "string"}),
    "another broker's address": put("servers", "rabbitmq", "host", "broker:5672"),
    "other words": put(*QUEUE, "description", "something else"),
}


@pytest.mark.parametrize("what", EVENT_BREAKS)
def test_a_break_of_an_event_is_found(what: str) -> None:
    mutate, words = EVENT_BREAKS[what]
    old, new = json.loads(published(UPDATED)), json.loads(published(UPDATED))
    mutate(new)
    found = event_compatibility.schema_breaks(old, new)
    assert any(words in each for each in found), found


@pytest.mark.parametrize("what", EVENT_KEEPS)
def test_a_promise_more_is_no_break_of_an_event(what: str) -> None:
    old, new = json.loads(published(UPDATED)), json.loads(published(UPDATED))
    EVENT_KEEPS[what](new)
    assert new != old
    assert event_compatibility.schema_breaks(old, new) == []


@pytest.mark.parametrize("what", TOPOLOGY_BREAKS)
def test_a_break_of_the_topology_is_found_unless_the_version_says_so(what: str) -> None:
    mutate, words = TOPOLOGY_BREAKS[what]
    old, new = described(), described()
    mutate(new)
    found = event_compatibility.topology_breaks(old, new)
    assert any(words in each for each in found), found
    old["info"]["version"], new["info"]["version"] = "1.2.0", "2.0.0"
    assert event_compatibility.topology_breaks(old, new) == []


@pytest.mark.parametrize("what", TOPOLOGY_KEEPS)
def test_an_addition_is_no_break_of_the_topology(what: str) -> None:
    old, new = described(), described()
    TOPOLOGY_KEEPS[what](new)
    assert new != old
    assert event_compatibility.topology_breaks(old, new) == []


def test_a_break_of_what_is_published_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script itself, on files of its own: it writes, and refuses once the code does not keep what it wrote."""
    monkeypatch.setattr(published_events, "SCHEMAS", tmp_path / "schemas")
    monkeypatch.setattr(published_events, "DOCUMENT", tmp_path / "asyncapi.yaml")
    assert published_events.main() == 0
    written = (tmp_path / "schemas" / f"{CREATED}.json").read_text(encoding="utf-8")
    monkeypatch.setattr(event_schemas, "schema", lambda kind: {"title": kind})
    assert published_events.main() == 1
    assert (tmp_path / "schemas" / f"{CREATED}.json").read_text(encoding="utf-8") == written
