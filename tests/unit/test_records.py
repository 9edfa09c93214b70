"""Orders and products keep everything on their way through protobuf, and have the JSON that the contract says."""

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from ordersys.core import errors, records
from ordersys.core.records import Line, Order, Product, Status
from ordersys.core.v1 import order_pb2, product_pb2

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COUNTS = st.integers(0, 2**31 - 1)
MOMENTS = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)

LINES = st.lists(st.builds(Line, TEXT, COUNTS, st.integers(0, 10**9)), min_size=1, max_size=3).map(tuple)
ORDERS = st.builds(
    Order,
    id=TEXT,
    customer_id=TEXT,
    status=st.sampled_from(Status),
    lines=LINES,
    currency=TEXT,
    version=st.integers(1, 2**63 - 1),
    created_at=MOMENTS,
    updated_at=MOMENTS,
)
PRODUCTS = st.builds(
    Product,
    id=TEXT,
    name=TEXT,
    description=TEXT,
    attributes=st.dictionaries(TEXT, TEXT, max_size=3),
    currency=TEXT,
    price=st.integers(0, 10**9),
    available=st.integers(0, 10**12),
)

ORDER = Order(
    id="01936cb0-17a0-7000-8000-000000000001",
    customer_id="c-1",
    status=Status.SHIPPED,
    lines=(Line("1", 2, 1999), Line("2", 1, 5)),
    currency="EUR",
    version=2,
    created_at=1_732_695_300_000_000,
    updated_at=1_732_695_300_000_001,
)


@given(ORDERS)
def test_an_order_survives_protobuf(order: Order) -> None:
    wire = records.order_to_proto(order).SerializeToString()
    assert records.order_from_proto(order_pb2.Order.FromString(wire)) == order


@given(PRODUCTS)
def test_a_product_survives_protobuf(product: Product) -> None:
    wire = records.product_to_proto(product).SerializeToString()
    assert records.product_from_proto(product_pb2.Product.FromString(wire)) == product


def test_an_order_is_worth_its_lines() -> None:
    assert ORDER.total == 4003
    message = records.order_to_proto(ORDER)
    assert (message.total.currency, message.total.amount) == ("EUR", 4003)
    assert [line.unit_price.currency for line in message.lines] == ["EUR", "EUR"]


def test_an_order_in_json_is_what_the_contract_says() -> None:
    assert records.order_json(ORDER) == {
        "id": "01936cb0-17a0-7000-8000-000000000001",
        "customer_id": "c-1",
        "status": "shipped",
        "lines": [
            {"product_id": "1", "quantity": 2, "unit_price": {"currency": "EUR", "amount": 1999}},
            {"product_id": "2", "quantity": 1, "unit_price": {"currency": "EUR", "amount": 5}},
        ],
        "total": {"currency": "EUR", "amount": 4003},
        "version": 2,
        "created_at": "2024-11-27T08:15:00.000000Z",
        "updated_at": "2024-11-27T08:15:00.000001Z",
    }


def test_a_product_in_json_is_what_the_contract_says() -> None:
    product = Product(
        id="1", name="Beans", description="", attributes={"roast": "dark"}, currency="EUR", price=2490, available=7
    )
    assert records.product_json(product) == {
        "id": "1",
        "name": "Beans",
        "description": "",
        "attributes": {"roast": "dark"},
        "price": {"currency": "EUR", "amount": 2490},
        "available": 7,
    }


def test_every_status_has_its_number_and_every_number_its_status() -> None:
    numbers = set(order_pb2.OrderStatus.values()) - {order_pb2.ORDER_STATUS_UNSPECIFIED}
    assert set(records.STATUS_TO_PROTO) == set(Status)
    assert set(records.STATUS_FROM_PROTO) == numbers
    for status, number in records.STATUS_TO_PROTO.items():
        assert order_pb2.OrderStatus.Name(number) == f"ORDER_STATUS_{status.name}"


@given(MOMENTS)
def test_a_moment_is_a_timestamp_of_protobuf(us: int) -> None:
    stamp = records.timestamp(us)
    assert stamp.ToMicroseconds() == us
    assert 0 <= stamp.nanos < 10**9
    assert records.microseconds(stamp) == us


def test_what_is_finer_than_a_microsecond_is_cut_off() -> None:
    assert records.microseconds(Timestamp(seconds=-1, nanos=999_999_999)) == -1


REFUSALS: list[Any] = [
    errors.ProductNotFound.of("p"),
    errors.OrderNotFound.of("o"),
    errors.InsufficientStock.of("p", 3, 1),
    errors.OrderRefused.of("no-rum", "no_licence", "not for you"),
    errors.InvalidTransition.of("o", "shipped", "cancelled"),
    errors.VersionConflict.of("o", 1, 2),
    errors.IdempotencyKeyReused.of("k"),
    errors.Unauthenticated("who?"),
    errors.PermissionDenied("no"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda each: each.code)
def test_a_refusal_between_the_services_is_the_same_refusal(refusal: errors.OrdersysError) -> None:
    wire = records.refusal_to_proto(refusal).SerializeToString()
    again = records.refusal_from_proto(order_pb2.Refusal.FromString(wire))
    assert type(again) is type(refusal)
    assert (again.code, again.message, again.metadata) == (refusal.code, refusal.message, refusal.metadata)


def test_every_refusal_there_is_has_been_tried() -> None:
    assert {each.code for each in REFUSALS} == set(errors.REFUSALS)


def test_a_refusal_of_a_newer_version_is_an_internal_error_with_its_message() -> None:
    again = records.refusal_from_proto(order_pb2.Refusal(code="too_lovely", message="it is"))
    assert type(again) is errors.Internal
    assert again.message == "it is"
