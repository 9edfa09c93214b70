"""Events: the CloudEvents envelope as the contract has it, and a decoder that nothing surprises."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ordersys.core import events, ids
from ordersys.core.events import Change, Event, MalformedEvent
from ordersys.core.records import Line, Order, Status
from ordersys.core.v1 import order_pb2

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20)
MOMENTS = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
EVENTS = st.builds(
    Event,
    id=NAMES,
    sequence=st.integers(0, 10**18 - 1),
    change=st.sampled_from(Change),
    time=MOMENTS,
    traceparent=st.one_of(st.just(""), st.builds(ids.new_traceparent)),
    order=st.builds(
        Order,
        id=NAMES,
        customer_id=NAMES,
        status=st.sampled_from(Status),
        lines=st.lists(st.builds(Line, TEXT, st.integers(1, 10**6), st.integers(0, 10**9)), max_size=3).map(tuple),
        currency=TEXT,
        version=st.integers(1, 2**63 - 1),
        created_at=MOMENTS,
        updated_at=MOMENTS,
    ),
)

EVENT = Event(
    id="01936cb0-17a0-7000-8000-0000000000e1",
    sequence=42,
    change=Change.LINES,
    time=1_732_695_300_000_001,
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    order=Order(
        id="01936cb0-17a0-7000-8000-000000000001",
        customer_id="Zoë",
        status=Status.PLACED,
        lines=(Line("1", 2, 1999),),
        currency="EUR",
        version=3,
        created_at=1_732_695_300_000_000,
        updated_at=1_732_695_300_000_001,
    ),
)


def test_the_body_is_what_the_contract_says() -> None:
    assert json.loads(events.encode(EVENT)) == {
        "specversion": "1.0",
        "id": "01936cb0-17a0-7000-8000-0000000000e1",
        "source": "/ordersys/order-service",
        "type": "ordersys.order.updated.v1",
        "subject": "01936cb0-17a0-7000-8000-000000000001",
        "time": "2024-11-27T08:15:00.000001Z",
        "datacontenttype": "application/json",
        "sequence": "42",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "data": {
            "order_id": "01936cb0-17a0-7000-8000-000000000001",
            "customer_id": "Zoë",
            "status": "placed",
            "version": 3,
            "change": "lines",
            "lines": [{"product_id": "1", "quantity": 2, "unit_price": {"currency": "EUR", "amount": 1999}}],
            "total": {"currency": "EUR", "amount": 3998},
            "created_at": "2024-11-27T08:15:00.000000Z",
            "updated_at": "2024-11-27T08:15:00.000001Z",
        },
    }


@given(EVENTS)
def test_every_event_is_a_valid_cloudevent(event: Event) -> None:
    """CloudEvents 1.0: the required attributes, lower-case names, every attribute a non-empty string."""
    document = json.loads(events.encode(event))
    assert {"specversion", "id", "source", "type"} <= set(document)
    for name, value in document.items():
        assert re.fullmatch(r"[a-z0-9]{1,20}", name)
        assert name == "data" or (isinstance(value, str) and value)


@given(EVENTS)
def test_an_event_survives_its_body_as_text_and_as_bytes(event: Event) -> None:
    body = events.encode(event)
    assert events.decode(body) == event
    assert events.decode(body.encode()) == event


@given(EVENTS)
def test_an_event_survives_protobuf(event: Event) -> None:
    wire = events.to_proto(event).SerializeToString()
    assert events.from_proto(order_pb2.OrderEvent.FromString(wire)) == event


@pytest.mark.parametrize("change", Change)
def test_only_a_created_order_has_the_type_created(change: Change) -> None:
    expected = "ordersys.order.created.v1" if change is Change.CREATED else "ordersys.order.updated.v1"
    assert Event(id="e", sequence=1, change=change, time=0, order=EVENT.order).type == expected


# --- bodies of others -------------------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(
        ["\ud800", "\x00", "NaN", "9" * 4000, 10**4000, -1, "1.0", "placed", "0001-01-01T00:00:00+23:59", "", "x" * 999]
    ),
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def paths(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [path, *(found for key, value in inside for found in paths(value, (*path, key)))]


def changed(path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    document = copy.deepcopy(events.to_json(EVENT))
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    change(place, path[-1])
    return document


def read(body: str | bytes) -> Event | None:
    """The event, if it is one; then it can be written again, sent and shown."""
    try:
        event = events.decode(body)
    except MalformedEvent as error:
        message = str(error)
    else:
        assert events.decode(events.encode(event).encode()) == event
        return event
    assert 0 < len(message) < 300
    return None


PLACES = [path for path in paths(events.to_json(EVENT)) if path]


@settings(max_examples=200)
@given(st.sampled_from(PLACES), ANYTHING)
def test_an_event_with_anything_in_the_place_of_a_value_is_an_event_or_malformed(
    path: tuple[Any, ...], value: object
) -> None:
    read(json.dumps(changed(path, lambda place, key: place.__setitem__(key, value))))


@given(ANYTHING)
def test_any_json_is_an_event_or_malformed(value: object) -> None:
    assert read(json.dumps(value)) is None


@given(st.binary(max_size=50))
def test_any_bytes_are_an_event_or_malformed(body: bytes) -> None:
    assert read(body) is None


IGNORED = ("specversion", "source", "subject", "datacontenttype", "traceparent")  # and what the lines say anyway
REQUIRED = [
    path
    for path in PLACES
    if path[0] not in IGNORED and path[-2:] not in (("total", "amount"), ("unit_price", "currency"))
]


@pytest.mark.parametrize("path", [path for path in REQUIRED if isinstance(path[-1], str)], ids=str)
def test_a_field_that_is_missing_is_named(path: tuple[Any, ...]) -> None:
    with pytest.raises(MalformedEvent, match=f"^not an order event: '{path[-1]}' is missing$"):
        events.decode(json.dumps(changed(path, lambda place, key: place.__delitem__(key))))


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("id",), "", "id: expected an id, got ''"),
        (("id",), 7, "id: expected text, got 7"),
        (("id",), "a\x00b", "id: expected an id"),
        (("data", "order_id"), "", "order_id: expected an id"),
        (("sequence",), 42, "sequence: expected text, got 42"),
        (("sequence",), "-1", "sequence: expected a whole number as text, got '-1'"),
        (("sequence",), "1_0", "sequence: expected a whole number as text"),
        (("sequence",), "9" * 5000, "sequence: expected a whole number as text"),
        (("type",), "ordersys.order.created.v2", "type: expected ordersys.order.created.v1 or"),
        (("type",), "ordersys.order.created.v1", "ordersys.order.created.v1 and the change lines contradict"),
        (("time",), "yesterday", "'yesterday' is not RFC 3339 text"),
        (("time",), 5, "time: expected text, got 5"),
        (("data",), None, "expected an object with 'change', got None"),
        (("data", "change"), "eaten", "change: expected one of created, lines, cancelled, shipped, delivered, got 'ea"),
        (("data", "status"), ["placed"], "status: expected text, got"),
        (("data", "lines"), {}, "lines: expected a list, got {}"),
        (("data", "version"), True, "version: expected a whole number of 64 bits, got True"),
        (("data", "version"), 1.0, "version: expected a whole number"),
        (("data", "lines", 0, "quantity"), 10**400, "quantity: expected a whole number of 64 bits, got 1000"),
        (("data", "lines", 0, "unit_price", "amount"), float("nan"), "amount: expected a whole number"),
        (("data", "customer_id"), "\ud800", "surrogates not allowed"),
    ],
)
def test_a_value_that_cannot_be_is_named(path: tuple[Any, ...], value: object, problem: str) -> None:
    with pytest.raises(MalformedEvent, match=re.escape(problem)):
        events.decode(json.dumps(changed(path, lambda place, key: place.__setitem__(key, value))))


@pytest.mark.parametrize(
    "path", [("id",), ("data",), ("data", "change"), ("data", "lines"), ("data", "version")], ids=str
)
def test_no_depth_of_nesting_is_too_deep(path: tuple[Any, ...]) -> None:
    """The limits of the parser and of whatever shows the value in a message are not the same."""
    body = json.dumps(changed(path, lambda place, key: place.__setitem__(key, "HERE")))
    for depth in [*range(2, 1100), 10_000, 100_000]:
        assert read(body.replace('"HERE"', "[" * depth + "]" * depth)) is None


@pytest.mark.parametrize("body", [b"", b"\xff", b"{", b"null", b"[]", b'"x"', b"0", b"{}", "\ufeff{}", b"[1e999]"])
def test_other_bodies_are_malformed(body: str | bytes) -> None:
    assert read(body) is None


def test_a_message_about_a_huge_value_is_short() -> None:
    body = json.dumps(changed(("data", "version"), lambda place, key: place.__setitem__(key, "x" * 900_000)))
    with pytest.raises(MalformedEvent) as malformed:
        events.decode(body)
    assert len(str(malformed.value)) < 200


@given(st.dictionaries(st.text(max_size=8), ANYTHING, max_size=3))
def test_what_a_newer_version_adds_is_ignored(more: dict[str, object]) -> None:
    document = events.to_json(EVENT)
    document["data"] = {**more, **document["data"]}
    assert events.decode(json.dumps({**more, "traceparent": EVENT.traceparent, **document})) == EVENT
