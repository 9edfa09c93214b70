"""Page tokens: opaque, and never the cause of anything but a clear refusal."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ordersys.core import errors, pages

STORABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
NUMBERS = st.integers(-(2**63) + 1, 2**63 - 1)


def forged(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


@given(st.lists(st.one_of(NUMBERS, STORABLE), min_size=1, max_size=4))
def test_a_token_says_where_the_page_before_ended(position: list[str | int]) -> None:
    token = pages.token(*position)
    assert all(each.isascii() and (each.isalnum() or each in "-_") for each in token)  # fits any URL as it is
    assert pages.position(token, tuple(type(part) for part in position)) == position


def test_no_token_is_the_first_page() -> None:
    assert pages.position("", (int, str)) is None


@given(st.one_of(st.text(), st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode())))
def test_whatever_else_comes_as_a_token_is_refused_or_a_position(token: str) -> None:
    try:
        found = pages.position(token, (int, str))
    except errors.InvalidArgument:
        return
    assert found is None or [type(part) for part in found] == [int, str]


@pytest.mark.parametrize(
    "token",
    [
        "nonsense!",
        "ä",
        "A",
        pages.token(1, "a") + "!!!!",
        pages.token("other", 1),
        pages.token(1),
        pages.token(1, "a", "b"),
        forged([True, "a"]),
        forged([1.0, "a"]),
        forged([1, None]),
        forged({"0": 1, "1": "a"}),
        forged(1),
        forged([2**63, "a"]),
        forged([10**4000, "a"]),
        forged([1, "a\x00b"]),
        forged([1, "\ud800"]),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        base64.urlsafe_b64encode(b"[" + b"9" * 5000 + b', "a"]').decode(),
        base64.urlsafe_b64encode(b"\xff\xfe\x00").decode(),
    ],
)
def test_a_token_that_is_not_ours_is_refused(token: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="page_token: must be the next_page_token of the page before"):
        pages.position(token, (int, str))


@pytest.mark.parametrize(("asked", "given"), [(0, 50), (1, 1), (50, 50), (1000, 1000)])
def test_a_page_has_the_size_asked_for_and_fifty_by_default(asked: int, given: int) -> None:
    assert pages.size(asked) == given


@pytest.mark.parametrize("asked", [-1, 1001, 2**31 - 1, -(2**31)])
def test_an_impossible_page_size_is_refused(asked: int) -> None:
    with pytest.raises(errors.InvalidArgument, match=rf"page_size: is {asked}, must be 0 \(default 50\) to 1000"):
        pages.size(asked)
