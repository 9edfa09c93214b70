"""Log lines on stderr: readable on a terminal, one JSON object per line with ECS field names everywhere else.

Modules log with `logging.getLogger(__name__)`. What a program should find without reading the message goes into
`extra={"ecs": {...}}`, under the names of the Elastic Common Schema (https://www.elastic.co/docs/reference/ecs), of
OpenTelemetry's semantic conventions where that has none (http.route, rpc.*), or our own (ordersys.*).
"""

import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, TextIO

from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import JSONRenderer

from ordersys import __version__
from ordersys.core.display import printable
from ordersys.core.redaction import may_hold_secret, redacted

ECS_VERSION = "9.3.0"
_SHOWN = ("ordersys.order.id", "ordersys.event.id", "trace.id")  # on a terminal; the message has said the rest

Fields = dict[str, Any]
Processor = Callable[[Any, str, Fields], Any]

logger = logging.getLogger(__name__)


def set_up(level: str, log_format: Literal["auto", "console", "json"], service: str) -> None:
    """Configure the process's logging; `service` becomes `service.name`."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "console" or (log_format == "auto" and sys.stderr.isatty()):
        handler.setFormatter(_Formatter(_for_people, _console()))
    else:
        handler.setFormatter(JsonFormatter(service))
        threading.excepthook = _thread_failed
        sys.unraisablehook = _unraisable
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # What no line tells is not looked for: it would be 3 of 17 us
    # (https://docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile = None  # noqa: SLF001
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # What pika logs our adapter says in one line; pika says it in seven, one of them a traceback.
    logging.getLogger("pika").setLevel(logging.WARNING if level == "debug" else logging.CRITICAL)
    for chatty in ("alembic", "grpc", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def speak_json() -> bool:
    """True once this process logs for programs: then nothing else may be written to stderr."""
    return any(isinstance(each.formatter, JsonFormatter) for each in logging.getLogger().handlers)


def write_to(stream: TextIO) -> None:
    """Write the log here from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(stream)


def stray(line: str) -> None:
    """Log what was written to stderr past the log."""
    logging.getLogger("stderr").warning("%s", line)


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None and not issubclass(failed.exc_type, SystemExit):
        name = failed.thread.name if failed.thread else "?"
        logger.critical("the thread %s ended with an error", name, exc_info=failed.exc_value)


def _unraisable(failed: "sys.UnraisableHookArgs") -> None:
    where = failed.err_msg or "an error was ignored in"
    logger.error("%s %r", where, failed.object, exc_info=failed.exc_value)


class _Formatter(logging.Formatter):
    """structlog's processors on a record of the standard library's.

    structlog.stdlib.ProcessorFormatter does the same on a copy of the record, for 7 us more a line
    (docs/decisions/0019-log-lines.md).
    """

    def __init__(self, *processors: Processor) -> None:
        super().__init__()
        self._processors = processors
        self._second = -1
        self._up_to_the_second = ""

    def format(self, record: logging.LogRecord) -> str:
        said: Any = {
            "@timestamp": self._moment(record.created),
            "log.level": record.levelname.lower(),
            "message": record.getMessage(),
            "log.logger": record.name,
            **getattr(record, "ecs", {}),
        }
        if record.exc_info:
            said["exc_info"] = record.exc_info
        for processor in self._processors:
            said = processor(None, record.levelname, said)
        return str(said)

    def _moment(self, seconds: float) -> str:
        second = int(seconds)
        if second != self._second:  # the handler lets one thread at a time format
            self._up_to_the_second = datetime.fromtimestamp(second, UTC).isoformat()[:19]
            self._second = second
        return f"{self._up_to_the_second}.{int((seconds - second) * 1000):03d}+00:00"


class JsonFormatter(_Formatter):
    """One JSON object; `service` becomes `service.name`."""

    def __init__(self, service: str) -> None:
        about = {
            "ecs.version": ECS_VERSION,
            "service.name": service,
            "service.version": __version__,
            "service.node.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
        encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
        tail = "," + encode(about)[1:]  # the same in every line: encoded once

        def serialize(said: Fields, **_: object) -> str:
            text = encode(said)  # ASCII: what a stream cannot encode it would escape in a way of its own
            if may_hold_secret(text):
                text = encode({name: _redacted(value) for name, value in said.items()})
            return text[:-1] + tail

        super().__init__(_described, JSONRenderer(serializer=serialize))


def _redacted(value: object) -> object:
    if isinstance(value, list):
        return [_redacted(each) for each in value]
    return redacted(value) if isinstance(value, str) else value


def _described(_logger: Any, _level: str, said: Fields) -> Fields:
    """The exception in the fields of ECS."""
    if "exc_info" in said:
        kind, error, trace = said.pop("exc_info")
        if error is not None:
            said["error.type"] = _name_of(kind)
            said["error.message"] = str(error)
            said["error.stack_trace"] = _stack_trace(kind, error, trace)
    return said


def _name_of(kind: type[BaseException]) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _stack_trace(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> str:
    return logging.Formatter().formatException((kind, error, trace))


def _for_people(_logger: Any, _level: str, said: Fields) -> Fields:
    moment = datetime.fromisoformat(said["@timestamp"]).astimezone()
    shown = {
        "timestamp": f"{moment:%H:%M:%S}",
        "level": said["log.level"],
        "event": printable(redacted(said["message"])),
        **{name: printable(redacted(str(said[name]))) for name in _SHOWN if name in said},
    }
    if "exc_info" in said:
        shown["exception"] = redacted(_stack_trace(*said["exc_info"]))
    return shown


def _console() -> Processor:
    from rich.console import Console

    screen = Console(file=sys.stderr)  # knows NO_COLOR, TERM=dumb and FORCE_COLOR, as in our tables
    colours = screen.is_terminal and screen.color_system is not None and not screen.no_color
    return ConsoleRenderer(colors=colours, exception_formatter=plain_traceback, sort_keys=False)
