"""The log sink: readable on a terminal, the CloudEvent as it came everywhere else."""

import io
import json
import os
import pty
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from ordersys.core import events
from ordersys.core.events import Change, Event
from ordersys.core.records import Line, Order, Status
from ordersys.notify.sinks import LogSink, SinkClosed

EVENT = Event(
    id="0192f0c1-0000-7000-8000-000000000001",
    sequence=7,
    change=Change.CANCELLED,
    time=1_793_707_424_123_456,
    order=Order(
        id="0192f0c1-0000-7000-8000-00000000000a",
        customer_id="Zoë",
        status=Status.CANCELLED,
        lines=(Line("1", 2, 1999), Line("2", 1, 1)),
        currency="EUR",
        version=2,
        created_at=1_793_707_000_000_000,
        updated_at=1_793_707_424_123_456,
    ),
)
BODY = events.encode(EVENT).encode()
READABLE = "2026-11-03 12:03:44Z  cancelled  0192f0c1-0000-7000-8000-00000000000a v2  Zoë  3 units  39.99 EUR"


class Terminal(io.StringIO):
    """A text stream that says it is a terminal, and notes when it was flushed."""

    flushed = 0

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        self.flushed = len(self.getvalue())
        super().flush()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_pipe_gets_each_event_as_it_came_on_one_line() -> None:
    stream = io.StringIO()
    sink = LogSink(stream)
    sink.handle(EVENT, BODY)
    sink.handle(EVENT, BODY)
    assert stream.getvalue() == f"{BODY.decode()}\n{BODY.decode()}\n"


def test_json_asks_for_the_same_on_a_terminal() -> None:
    stream = Terminal()
    LogSink(stream, json=True).handle(EVENT, BODY)
    assert stream.getvalue() == BODY.decode() + "\n"


def test_each_line_is_flushed() -> None:
    for stream, as_json in ((Terminal(), False), (Terminal(), True)):
        sink = LogSink(stream, json=as_json)
        for _ in range(2):
            sink.handle(EVENT, BODY)
            assert stream.flushed == len(stream.getvalue()) > 0


def test_attributes_that_we_do_not_know_are_kept() -> None:
    body = json.dumps({**events.to_json(EVENT), "extension": "kept", "data": {**events.to_json(EVENT)["data"], "x": 1}})
    stream = io.StringIO()
    LogSink(stream).handle(EVENT, body.encode())
    assert stream.getvalue() == body + "\n"


def test_a_body_of_many_lines_becomes_one_line_with_the_same_meaning() -> None:
    body = json.dumps(events.to_json(EVENT), indent=2).replace("\n", "\r\n").encode()
    stream = io.StringIO()
    LogSink(stream).handle(EVENT, body)
    [line] = stream.getvalue().splitlines()
    assert json.loads(line) == json.loads(body)


def test_a_stream_that_cannot_write_a_character_still_gets_valid_json() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    LogSink(stream).handle(EVENT, BODY)
    assert json.loads(raw.getvalue()) == json.loads(BODY)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_in_another_unicode_encoding_is_printed(encoding: str) -> None:
    stream = io.StringIO()
    LogSink(stream).handle(EVENT, BODY.decode().encode(encoding))
    assert stream.getvalue() == BODY.decode() + "\n"


def test_a_terminal_gets_a_readable_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    LogSink(stream).handle(EVENT, BODY)
    LogSink(stream, label="fanout").handle(EVENT, BODY)
    lines = _without_styles(stream.getvalue()).splitlines()
    assert lines == [READABLE, f"fanout  {READABLE}"]


def _without_styles(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _colours(text: str) -> set[str]:
    return {code for codes in re.findall(r"\x1b\[([0-9;]*)m", text) for code in codes.split(";") if code[:1] in "349"}


def test_each_change_has_a_colour_of_its_own_and_no_color_takes_it_away(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = []
    for change in Change:
        stream = Terminal()
        event = Event(id="e", sequence=1, change=change, time=1, order=EVENT.order)
        LogSink(stream).handle(event, BODY)
        assert change.value in _without_styles(stream.getvalue())
        colours.append(frozenset(_colours(stream.getvalue())))
    assert len(set(colours)) == len(Change)

    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    LogSink(stream).handle(EVENT, BODY)
    assert not _colours(stream.getvalue())


def test_a_narrow_terminal_breaks_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    LogSink(stream).handle(EVENT, BODY)
    assert _without_styles(stream.getvalue()) == READABLE + "\n"


def test_nobody_steers_the_terminal_with_a_customer_id() -> None:
    evil = "\x1b]0;owned\x07[red]x[/red]\r\n\u202e\udc80"
    order = Order(**{name: getattr(EVENT.order, name) for name in EVENT.order.__slots__} | {"customer_id": evil})
    stream = Terminal()
    LogSink(stream).handle(Event(id="e", sequence=1, change=Change.LINES, time=1, order=order), BODY)

    [line] = _without_styles(stream.getvalue()).splitlines()
    assert r"\x1b]0;owned\x07[red]x[/red]\r\n\u202e\udc80" in line
    assert "\x1b" not in line


@contextmanager
def pseudo_terminal() -> Iterator[tuple[int, TextIO]]:
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        yield reader, stream
    os.close(reader)


def test_a_real_terminal_is_recognised() -> None:
    with pseudo_terminal() as (reader, stream):
        LogSink(stream).handle(EVENT, BODY)
        assert _without_styles(os.read(reader, 10_000).decode()) == READABLE + "\r\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_reader_that_has_gone_closes_the_sink(as_json: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", encoding="utf-8")
    sink = LogSink(stream, json=as_json)
    with pytest.raises(SinkClosed, match="closed"):
        sink.handle(EVENT, BODY)
    with pytest.raises(BrokenPipeError):
        stream.close()  # what was buffered has nowhere to go


def test_a_stream_that_was_closed_closes_the_sink() -> None:
    stream = io.StringIO()
    sink = LogSink(stream)
    stream.close()
    with pytest.raises(SinkClosed):
        sink.handle(EVENT, BODY)
