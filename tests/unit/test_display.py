import json

import pytest

from ordersys.core import display


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (1999, "EUR", "19.99 EUR"),
        (5, "USD", "0.05 USD"),
        (0, "EUR", "0.00 EUR"),
        (-1, "EUR", "-0.01 EUR"),
        (-123456, "EUR", "-1234.56 EUR"),
        (1999, "JPY", "1999 JPY"),
        (0, "JPY", "0 JPY"),
        (-7, "JPY", "-7 JPY"),
        (1999, "KWD", "1.999 KWD"),
        (1, "BHD", "0.001 BHD"),
        (12345, "CLF", "1.2345 CLF"),
        (10**20, "EUR", "1000000000000000000.00 EUR"),
        (1, "E\x1bR", r"0.01 E\x1bR"),
    ],
)
def test_money_is_shown_in_major_units(amount: int, currency: str, text: str) -> None:
    assert display.money(amount, currency) == text


def test_printable_text_stays_and_the_rest_is_shown_as_escapes() -> None:
    assert display.printable("Zoë 東京 \\n") == "Zoë 東京 \\n"
    assert display.printable("a\tb\n\x1b[2J\u2028\ud800") == r"a\tb\n\x1b[2J\u2028\ud800"


def test_one_is_not_many() -> None:
    assert [display.counted(number, "unit") for number in (0, 1, 2)] == ["0 units", "1 unit", "2 units"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", None])
def test_json_stays_json_whatever_a_stream_can_write(encoding: str | None) -> None:
    document = {"name": "Zoë 東京 🚚", "half": "\ud800"}
    written = display.writable(json.dumps(document, ensure_ascii=False), encoding)
    assert json.loads(written.encode(encoding or "utf-8")) == document


def test_what_a_stream_can_write_is_left_alone() -> None:
    assert display.writable("Zoë", "latin-1") == "Zoë"
