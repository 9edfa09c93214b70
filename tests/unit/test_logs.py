"""Log lines: readable on a terminal, one JSON object per line with ECS field names everywhere else."""

import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import ecs
import log_fields
import pytest
from api_fakes import FakeChannel, FakeOrders, FakeProducts

import ordersys
from ordersys import logs
from ordersys.api.app import create_app
from ordersys.core import errors, ids
from ordersys.core.rpc.call_log import CallLog
from ordersys.core.rpc.server import Call
from ordersys.core.v1 import order_pb2

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
    hooks, source = (threading.excepthook, sys.unraisablehook), logging._srcfile
    looked_for = logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    root.handlers.clear()
    yield
    logging.captureWarnings(False)
    (threading.excepthook, sys.unraisablehook), logging._srcfile = hooks, source
    logging.logThreads, logging.logProcesses, logging.logMultiprocessing = looked_for
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
        "ecs.version": "9.3.0",
        "service.name": "order-service",
        "service.version": ordersys.__version__,
        "service.node.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }


def test_what_is_told_under_names_of_ecs_becomes_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "json", "s")
    facts = {"ordersys.order.id": "o-1", "event.duration": 5, "url.path": object}
    logger.info("hello", extra={"ecs": facts, "other": "stays inside"})
    (line,) = screen.documents()
    assert {name: line[name] for name in facts} == {**facts, "url.path": "<class 'object'>"}
    assert "stays inside" not in screen.getvalue()


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
    assert line["error.type"] == "json.decoder.JSONDecodeError"
    assert line["error.message"].startswith("Expecting property name")
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


def test_the_console_has_time_level_message_and_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "console", "s")
    logger.warning("hello", extra={"ecs": {"ordersys.order.id": "o-1", "trace.id": "t-1", "event.duration": 5}})
    (line,) = screen.lines()
    assert datetime.strptime(line[:8], "%H:%M:%S")  # noqa: DTZ007 - a time of day
    assert line[8:].split() == ["[warning", "]", "hello", "ordersys.order.id=o-1", "trace.id=t-1"]


def test_the_console_shows_a_traceback_without_the_values_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "console", "s")
    try:
        secret = "hunter" + "2"
        int(f"x{secret[:0]}")
    except ValueError:
        logger.exception("failed")
    assert "Traceback (most recent call last):" in screen.lines()
    assert screen.lines()[-1] == "ValueError: invalid literal for int() with base 10: 'x'"
    assert "hunter2" not in screen.getvalue()


def test_nobody_steers_the_terminal_with_a_log_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "console", "s")
    logger.info("no \x1b[2J order\nforged", extra={"ecs": {"ordersys.order.id": "\x1b[2J\nforged"}})
    (line,) = screen.lines()
    assert line.isprintable()


@pytest.mark.parametrize(
    ("terminal", "environment", "coloured"),
    [(True, {}, True), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False), (False, {}, False)],
)
def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], coloured: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    screen = stderr(monkeypatch, terminal=terminal)
    logs.set_up("info", "console", "s")
    logger.warning("hello")
    assert ("\x1b[" in screen.getvalue()) is coloured


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


# --- what Elasticsearch reads -------------------------------------------------------------------------------------


CALLS: list[dict[str, Any]] = [
    {"request": order_pb2.GetOrderRequest(order_id="o-1")},
    {"request": order_pb2.ProcessOrdersRequest(commands=[order_pb2.OrderCommand(order_id="o-1")])},
    {"code": "CANCELLED", "streams": True},
    {"code": "NOT_FOUND", "error": errors.OrderNotFound.of("o-1")},
    {"code": "UNAVAILABLE", "error": errors.Unavailable("gone")},
    {"code": "INTERNAL", "error": ZeroDivisionError("x"), "fault": True},
]


@pytest.mark.parametrize("call", CALLS)
def test_the_line_of_a_call_needs_no_parsing(monkeypatch: pytest.MonkeyPatch, call: dict[str, Any]) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("debug", "json", "s")
    given = {"streams": False, "peer": "ipv4:127.0.0.1:5", "traceparent": ids.new_traceparent(), **call}
    CallLog().ended(Call("/p.S/M", **given))
    (line,) = screen.documents()
    assert ecs.complaints(line) == []


@pytest.mark.parametrize("failure", [None, errors.Unavailable("gone"), ZeroDivisionError("x"), errors.Internal()])
def test_the_line_of_a_request_needs_no_parsing(monkeypatch: pytest.MonkeyPatch, failure: Exception | None) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "json", "s")
    products = FakeProducts()
    products.failure = failure
    http = create_app(FakeChannel(products), FakeChannel(FakeOrders())).test_client()
    for path in ("/api/v1/products", "/api/v1/orders/o-1", "/nothing?x=%0a"):
        http.get(path)
    lines = [line for line in screen.documents() if line["log.logger"] == "ordersys.api.request_log"]
    assert len(lines) == 3
    assert [ecs.complaints(line) for line in screen.documents()] == [[]] * len(screen.lines())


@pytest.mark.parametrize(
    "fault",
    [
        {"process.pid": "1"},
        {"@timestamp": "yesterday"},
        {"log.level": "loud"},
        {"user.name": "Ann"},
        {"event.duration": 1.5},
        {"trace.id": None},
    ],
)
def test_the_check_of_the_fields_objects(fault: dict[str, Any]) -> None:
    screen = Screen(terminal=False)
    handler = logging.StreamHandler(screen)
    handler.setFormatter(logs.JsonFormatter("s"))
    handler.handle(logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "x"}))
    (line,) = screen.documents()
    assert ecs.complaints(line) == []
    assert ecs.complaints({**line, **fault})


def test_every_field_that_the_code_logs_is_checked_and_no_other() -> None:
    assert ecs.FIELDS.keys() == log_fields.logged()


def test_no_field_is_both_a_value_and_an_object() -> None:
    assert [(one, other) for one in ecs.FIELDS for other in ecs.FIELDS if other.startswith(f"{one}.")] == []


# --- nothing but JSON ---------------------------------------------------------------------------------------------


def test_warnings_become_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "json", "s")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old\nfashioned", UserWarning, stacklevel=1)
    (line,) = screen.documents()
    assert (line["log.level"], line["log.logger"]) == ("warning", "py.warnings")
    assert "UserWarning: old\nfashioned" in line["message"]


def test_what_ends_a_thread_becomes_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "json", "s")

    def work() -> None:
        raise ZeroDivisionError("of mine")

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()
    (line,) = screen.documents()
    assert (line["log.level"], line["message"]) == ("critical", "the thread worker ended with an error")
    assert (line["error.type"], line["error.message"]) == ("ZeroDivisionError", "of mine")
    assert "in work" in line["error.stack_trace"]


def test_a_thread_may_end_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "json", "s")
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()
    assert screen.lines() == []


def test_an_error_that_nobody_can_catch_becomes_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("info", "json", "s")

    class Fragile:
        def __del__(self) -> None:
            raise ZeroDivisionError("on my way out")

    Fragile()
    (line,) = screen.documents()
    assert (line["log.level"], line["error.message"]) == ("error", "on my way out")
    assert "Fragile.__del__" in line["message"]


def test_lines_of_several_threads_do_not_get_into_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, encoding="utf-8") as lines, os.fdopen(writer, "w", encoding="utf-8", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        logs.set_up("info", "json", "s")
        told: list[dict[str, Any]] = []
        listening = threading.Thread(target=lambda: told.extend(json.loads(line) for line in lines))
        listening.start()
        threads = [
            threading.Thread(
                target=lambda number=number: [logger.info("%d %d %s", number, turn, "x" * 5000) for turn in range(50)]
            )
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream.close()
        listening.join()
    assert len({line["message"] for line in told}) == len(told) == 8 * 50


STRAY = """
import atexit, logging, os, subprocess, sys
from ordersys import logs
from ordersys.core.rpc import grpc_log
atexit.register(lambda: print("last words", file=sys.stderr))  # when the log is over
logs.set_up("info", "json", "s")
logs.write_to(grpc_log.listen(handshakes=False, stray=logs.stray))
os.write(2, b"E1122 03:51:52.974585   13424 ssl.cc:1] Handshake failed\\n")
os.write(2, b"\\xff half a line, ")
os.write(2, b"and its end\\n\\n")
print("by hand", file=sys.stderr)
subprocess.run(["sh", "-c", "echo a child >&2"])
logging.getLogger("x").warning("our own")
"""


def test_what_libraries_write_to_stderr_become_lines_too() -> None:
    done = subprocess.run([sys.executable, "-c", STRAY], stderr=subprocess.PIPE, check=True, timeout=60)
    *lines, last = done.stderr.decode().splitlines()
    documents = [json.loads(line) for line in lines]
    assert [(each["log.level"], each["message"]) for each in documents if each["log.logger"] != "x"] == [
        ("error", "gRPC: Handshake failed (ssl.cc:1)"),
        ("warning", "\\xff half a line, and its end"),
        ("warning", "by hand"),
        ("warning", "a child"),
    ]
    assert [each["message"] for each in documents if each["log.logger"] == "x"] == ["our own"]
    assert last == "last words"


FLOOD = """
import ctypes, logging
from ordersys import logs
from ordersys.core.rpc import grpc_log
logs.set_up("info", "json", "s")
logs.write_to(grpc_log.listen(handshakes=False, stray=logs.stray))
write = ctypes.PyDLL(None).write  # without letting another thread run, as a library in C may
for _ in range(100):
    write(2, b"x" * 9999 + b"\\n", 10_000)
logging.getLogger("x").warning("our own")
"""


def test_whoever_floods_stderr_does_not_stop_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", FLOOD], stderr=subprocess.PIPE, check=True, timeout=60)
    assert b"our own" in done.stderr


# --- secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_secret_that_gets_into_an_error_stays_out_of_the_log(
    monkeypatch: pytest.MonkeyPatch, log_format: Literal["json", "console"]
) -> None:
    screen = stderr(monkeypatch)
    logs.set_up("debug", log_format, "s")

    def fail() -> None:
        raise ValueError('no answer from amqp://shop:hun"ter2@rabbit:5672/x')

    try:
        fail()
    except ValueError:
        logger.exception(
            "asked %s", "osk_0123456789ab_hunter2", extra={"ecs": {"ordersys.order.id": "Bearer hunter2hunter2"}}
        )
    assert "hunter2" not in screen.getvalue()
    assert "ter2" not in screen.getvalue()
    assert "amqp://shop:***@rabbit:5672/x" in screen.getvalue()
    assert "osk_0123456789ab_***" in screen.getvalue()
