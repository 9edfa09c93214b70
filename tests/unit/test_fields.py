"""What the fields of a request may say."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ordersys.core import errors, fields
from ordersys.core.errors import FieldViolation
from ordersys.core.v1 import order_pb2


@pytest.mark.parametrize("value", ["a", "Zoë 東京", "x" * 128, " a ", "🚚", "👩\u200d🚀", "10\u00a0kg", "a'b\"c%_\\"])
def test_printable_text_of_a_sane_length_is_fine(value: str) -> None:
    assert fields.text("name", value) == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "must not be empty"),
        (" \t", "must not be empty"),
        ("x" * 129, "has 129 characters, at most 128 are allowed"),
        ("a\x00b", "must not contain control characters"),
        ("a\nb", "must not contain control characters"),
        ("\x1b[2J", "must not contain control characters"),
        ("a\u2028b", "must not contain control characters"),
        ("\ud800", "must not contain control characters"),
    ],
)
def test_other_text_is_complained_about_once_and_by_name(value: str, problem: str) -> None:
    assert fields.text("customer_id", value) == [FieldViolation("customer_id", problem)]


def test_text_that_is_not_required_may_be_empty_and_not_more() -> None:
    assert fields.text("reason", "", required=False) == []
    assert fields.text("reason", "x" * 501, most=fields.MAX_REASON, required=False) == [
        FieldViolation("reason", "has 501 characters, at most 500 are allowed")
    ]


def test_an_idempotency_key_may_be_empty_but_not_blank() -> None:
    assert fields.key("") == []
    assert fields.key("k" * 255) == []
    assert fields.key(" ") == [FieldViolation("idempotency_key", "must not be empty")]
    assert fields.key("k" * 256) == [FieldViolation("idempotency_key", "has 256 characters, at most 255 are allowed")]


@pytest.mark.parametrize(("value", "complaints"), [(0, 0), (1, 0), (2**63 - 1, 0), (-1, 1)])
def test_a_version_is_zero_or_more(value: int, complaints: int) -> None:
    assert len(fields.version("expected_version", value)) == complaints


def test_all_complaints_are_raised_together_and_none_is_no_error() -> None:
    fields.refuse([])
    with pytest.raises(errors.InvalidArgument, match=r"^a: must not be empty; b: is -1, must be 0 \(any\)") as refusal:
        fields.refuse([*fields.text("a", ""), *fields.version("b", -1)])
    assert [each.field for each in refusal.value.violations] == ["a", "b"]


@given(st.text())
def test_what_is_called_storable_can_be_stored_and_sent(value: str) -> None:
    if not fields.storable(value):
        assert "\x00" in value or any("\ud800" <= each <= "\udfff" for each in value)
        return
    assert order_pb2.Order.FromString(order_pb2.Order(id=value).SerializeToString()).id == value
    with_sqlite = sqlite3.connect(":memory:")
    try:
        assert with_sqlite.execute("SELECT ?", (value,)).fetchone() == (value,)
    finally:
        with_sqlite.close()


@pytest.mark.parametrize("value", ["\x00", "a\x00", "\ud800", "a\udfff"])
def test_what_no_database_holds_is_not_storable(value: str) -> None:
    assert not fields.storable(value)
