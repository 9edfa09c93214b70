"""What a notification does. The log comes first; whatever else there is has the same small shape."""

import json
from typing import Protocol, TextIO

from rich.console import Console
from rich.text import Text

from ordersys.core import display
from ordersys.core.events import Event


class SinkClosed(Exception):
    """Nobody takes notifications any more: the notifier stops and keeps the messages in their queue."""


class Undeliverable(Exception):
    """No repetition can help: the event goes to the dead letters at once, with this message as the reason."""


class Sink(Protocol):
    def handle(self, event: Event, body: bytes) -> None:
        """Tell somebody about one event; `body` is the CloudEvent as it came.

        Returning means that it is done. Raising `Undeliverable` means that it never will be, raising anything else
        that it is to be tried again later, with growing waits; the message becomes the reason that people read.
        Bound the time: no other event is handled meanwhile. After a crash an event can come twice: `event.id` is the
        same then. Events of one order may come late or out of order after a retry: compare `order.version`.
        """


class LogSink:
    """Writes one line per event: readable on a terminal, the CloudEvent as it came everywhere else.

    `json` asks for the CloudEvent on a terminal too; `label` names the notifier on readable lines, where several
    share a terminal. Colour follows NO_COLOR (https://no-color.org).
    """

    def __init__(self, stream: TextIO, *, json: bool = False, label: str = "") -> None:
        self._stream = stream
        self._label = label
        readable = stream.isatty() and not json
        self._console = Console(file=stream, highlight=False, soft_wrap=True) if readable else None

    def handle(self, event: Event, body: bytes) -> None:
        """Raises SinkClosed when the reader of the stream has gone (`| head`)."""
        line = _as_it_came(body) if self._console is None else self._readable(event, self._console)
        try:
            self._stream.write(display.writable(line, self._stream.encoding) + "\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError) as error:  # ValueError: the stream was closed here
            raise SinkClosed(f"{getattr(self._stream, 'name', 'the stream')} is closed") from error

    def _readable(self, event: Event, console: Console) -> str:
        label: tuple[display.Span, ...] = ((f"{self._label}  ", "magenta"),) if self._label else ()
        with console.capture() as capture:
            console.print(Text.assemble(*label, *display.event_line(event)), end="")
        return capture.get()


def _as_it_came(body: bytes) -> str:
    # Line breaks in JSON text stand between its tokens only: as spaces they mean the same.
    return body.decode(json.detect_encoding(body)).replace("\r", " ").replace("\n", " ")
