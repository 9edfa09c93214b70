"""Log lines: readable on a terminal, one JSON object per line with ECS field names everywhere else."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

import ordersys
from ordersys import logs

logger = logging.getLogger("ordersys.test")


class Screen(io.StringIO):
    """A stderr that says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


@pytest.fixture(autouse=True)
def other_logging() -> Iterator[None]:
    """What the test sets up, the next one does not see."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    levels = {name: logging.getLogger(name).level for name in ("pika", "alembic", "grpc", "asyncio")}
    root.handlers.clear()
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def stderr(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False) -> Screen:
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_a_line_is_one_json_object_with_the_names_of_ecs(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "json", "order-service")
    logger.warning("%d orders\nof %s", 2, "Zoë 🚚")
    (line,) = screen.documents()
    moment = datetime.fromisoformat(line.pop("@timestamp"))
    assert abs(datetime.now(UTC) - moment) < timedelta(seconds=10)
    assert line == {
        "log.level": "warning",
        "message": "2 orders\nof Zoë 🚚",
        "log.logger": "ordersys.test",
        "service.name": "order-service",
        "service.version": ordersys.__version__,
    }


def test_the_time_always_has_milliseconds_and_the_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "json", "s")
    record = logging.makeLogRecord({"created": 1_732_695_300.0, "levelname": "INFO"})
    logging.getLogger().handlers[0].handle(record)
    assert screen.documents()[0]["@timestamp"] == "2024-11-27T08:15:00.000+00:00"


def test_a_traceback_stays_in_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "json", "s")
    try:
        json.loads("{")
    except ValueError:
        logger.exception("failed")
    (line,) = screen.documents()
    assert line["message"] == "failed"
    assert line["error.stack_trace"].splitlines()[0] == "Traceback (most recent call last):"
    assert line["error.stack_trace"].splitlines()[-1].startswith("json.decoder.JSONDecodeError: ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_line_is_json_whatever_the_stream_can_encode(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    # As the interpreter makes its stderr: what cannot be encoded is written as an escape of Python's.
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", write_through=True)
    monkeypatch.setattr(sys, "stderr", stream)
    logs.set_up("info", "json", "s")
    logger.info("Zoë 東京 🚚 \ud800")
    assert json.loads(raw.getvalue().decode(encoding))["message"] == "Zoë 東京 🚚 \ud800"


@pytest.mark.parametrize(
    ("log_format", "terminal", "is_json"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("console", False, False),
        ("console", True, False),
        ("json", True, True),
    ],
)
def test_the_form_is_the_one_asked_for_or_the_one_that_fits_the_reader(
    monkeypatch: pytest.MonkeyPatch, log_format: Literal["auto", "console", "json"], terminal: bool, is_json: bool
) -> None:
    screen = stderr(monkeypatch, terminal=terminal)
    logs.set_up("info", log_format, "s")
    logger.info("hello")
    (line,) = screen.lines()
    assert line.startswith("{") is is_json
    assert "hello" in line


def test_the_console_has_time_level_and_message(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "console", "s")
    logger.warning("hello")
    (line,) = screen.lines()
    assert datetime.strptime(line[:8], "%H:%M:%S")  # noqa: DTZ007 - a time of day
    assert line[8:] == " WARNING hello"


def test_what_is_below_the_level_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("warning", "json", "s")
    logger.info("no")
    logger.warning("yes")
    assert [line["message"] for line in screen.documents()] == ["yes"]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_libraries_never_chatter(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    screen = stderr(monkeypatch)
    logs.set_up(level, "json", "s")
    for name in ("pika", "alembic", "grpc", "asyncio"):
        logging.getLogger(f"{name}.inside").info("chatter")
    assert screen.lines() == []


def test_setting_up_again_does_not_write_lines_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "json", "first")
    logs.set_up("info", "json", "second")
    logger.info("once")
    assert [line["service.name"] for line in screen.documents()] == ["second"]
