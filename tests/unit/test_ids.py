"""Ids that sort by time, trace contexts, and times as text."""

import re
import threading
import time
import uuid

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ordersys.core import ids

FIRST = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z
LAST = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z


def milliseconds(text: str) -> int:
    return uuid.UUID(text).int >> 80


def freeze(monkeypatch: pytest.MonkeyPatch, *moments: int) -> None:
    """The clock shows these nanoseconds, one after the other, and stays at the last."""
    left = list(moments)
    monkeypatch.setattr(time, "time_ns", lambda: left.pop(0) if len(left) > 1 else left[0])


def test_an_id_has_the_version_the_variant_and_the_time_of_rfc_9562() -> None:
    before = time.time_ns() // 1_000_000
    made = [ids.uuid7() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    for each in made:
        assert ids.is_uuid(each)
        parsed = uuid.UUID(each)
        assert (str(parsed), parsed.version, parsed.variant) == (each, 7, uuid.RFC_4122)
        assert before <= milliseconds(each) <= after + 1  # one millisecond holds 4096: the counter may run ahead


def test_the_random_part_differs_from_id_to_id() -> None:
    assert len({ids.uuid7()[19:] for _ in range(1000)}) == 1000


def test_ids_sort_in_the_order_they_were_made_also_across_threads() -> None:
    lock = threading.Lock()
    made: list[str] = []
    own: list[list[str]] = []

    def work() -> None:
        mine = []
        for _ in range(2000):
            mine.append(ids.uuid7())
            if len(mine) % 100 == 0:
                with lock:
                    made.append(ids.uuid7())
        own.append(mine)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == sorted(made)
    assert all(mine == sorted(mine) for mine in own)
    assert len({each for mine in own for each in mine} | set(made)) == 4 * 2000 + len(made)


def test_more_ids_than_a_millisecond_has_room_for_stay_unique_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns() + 10**12  # later than whatever this process made before
    freeze(monkeypatch, now)
    made = [ids.uuid7() for _ in range(3 * 4096)]
    assert [each[:18] for each in made] == sorted({each[:18] for each in made})
    assert milliseconds(made[0]) == now // 1_000_000
    assert milliseconds(made[-1]) == now // 1_000_000 + 2
    assert {uuid.UUID(each).version for each in made} == {7}


def test_ids_go_on_growing_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns() + 2 * 10**12
    freeze(monkeypatch, now, now - 10**12, now - 2 * 10**12)
    made = [ids.uuid7() for _ in range(3)]
    assert made == sorted(made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "01936CB0-17A0-7000-8000-000000000001",
        "01936cb017a0700080000000000000001",
        "{01936cb0-17a0-7000-8000-000000000001}",
        "01936cb0-17a0-7000-8000-000000000001\n",
        "01936cb0-17a0-7000-c000-000000000001",
        "01936cb0-17a0-9000-8000-000000000001",
    ],
)
def test_only_the_canonical_form_is_a_uuid(text: str) -> None:
    assert not ids.is_uuid(text)


def test_a_new_trace_has_a_valid_header_of_its_own() -> None:
    made = [ids.new_traceparent() for _ in range(100)]
    assert all(ids.is_traceparent(each) for each in made)
    assert len(set(made)) == 100
    assert {each[-3:] for each in made} == {"-00"}


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n", False),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", False),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", False),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", False),
        ("", False),
    ],
)
def test_a_traceparent_is_what_w3c_trace_context_says(text: str, valid: bool) -> None:
    assert ids.is_traceparent(text) is valid


@given(st.integers(FIRST, LAST))
def test_a_time_survives_its_text_to_the_microsecond(us: int) -> None:
    text = ids.rfc3339(us)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    assert ids.parse_rfc3339(text) == us


@given(st.integers(FIRST, LAST), st.integers(-23 * 60 - 59, 23 * 60 + 59))
def test_a_time_with_any_offset_is_read_as_the_same_moment(us: int, minutes: int) -> None:
    local = us + minutes * 60_000_000
    assume(FIRST <= local <= LAST)
    offset = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
    assert ids.parse_rfc3339(ids.rfc3339(local).replace("Z", offset)) == us


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2024-11-27T08:15:00.5Z", 1_732_695_300_500_000),
        ("2024-11-27t08:15:00z", 1_732_695_300_000_000),
        ("2024-11-27 09:15:00+01:00", 1_732_695_300_000_000),
        ("2024-11-27T08:15:00.123456789-00:00", 1_732_695_300_123_456),
    ],
)
def test_every_spelling_of_rfc_3339_is_read(text: str, same: int) -> None:
    assert ids.parse_rfc3339(text) == same


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2024-11-27",
        "2024-11-27T08:15:00",
        "2024-11-27T08:15Z",
        "20241127T081500Z",
        "2024-W48-3T08:15:00Z",
        "2024-11-27T08:15:00+01",
        "2024-11-27T08:15:00+01:00:30",
        "2024-02-30T00:00:00Z",
        "2024-11-27T24:30:00Z",
        "2024-11-27T08:15:00+24:00",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "\uff12\uff10\uff12\uff14-11-27T08:15:00Z",
        "2024-11-27T08:15:00Z\n",
        "9" * 5000,
    ],
)
def test_what_is_not_rfc_3339_is_refused_with_an_example_of_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not RFC 3339 text like 2026-11-03T12:03:44Z") as refusal:
        ids.parse_rfc3339(text)
    assert repr(text[:50]) in str(refusal.value)
    assert len(str(refusal.value)) < 150


def test_now_is_now() -> None:
    before = time.time_ns() // 1000
    assert before <= ids.now_us() <= time.time_ns() // 1000
