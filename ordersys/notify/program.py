"""Runs a program for each event: the CloudEvent on its stdin, the ids in its environment, its exit code the answer."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO

from ordersys.core import display, errors, ids
from ordersys.core.events import Event
from ordersys.notify.sinks import Undeliverable

TRY_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h."""
_MOST_SAID = 200  # characters of what the program wrote to stderr


class ProgramSink:
    """No shell is involved: the arguments arrive as they stand. What the program prints to stdout goes nowhere."""

    def __init__(self, arguments: Sequence[str], seconds: float, environment: Mapping[str, str]) -> None:
        self._arguments = list(arguments)
        self._seconds = seconds
        self._environment = dict(environment)

    def handle(self, event: Event, body: bytes) -> None:
        """Raises Unavailable after exit code 75 or too long a time, Undeliverable after any other but 0."""
        # Files, not pipes: a program that reads nothing or says much, and what it leaves behind, cannot hold us up.
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
            given.write(body)
            given.seek(0)
            code = self._run(event, given, said)
            if code == 0:
                return
            name = self._arguments[0]
            answer = f"{name} ended with {f'exit code {code}' if code > 0 else f'signal {-code}'}{_last_line(said)}"
        if code == TRY_AGAIN:
            raise errors.Unavailable(answer)
        raise Undeliverable(answer)

    def _run(self, event: Event, given: IO[bytes], said: IO[bytes]) -> int:
        # Named as the attributes of CloudEvents.
        about = {
            "CE_ID": event.id,
            "CE_TYPE": event.type,
            "CE_SUBJECT": event.order.id,
            "CE_TIME": ids.rfc3339(event.time),
        }
        try:
            running = subprocess.Popen(  # noqa: S603 - the operator names the program; nothing of an event is in it
                self._arguments,
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env={**self._environment, **about},
                start_new_session=True,
            )
        except OSError as error:
            raise errors.Unavailable(f"{self._arguments[0]} cannot be run: {error.strerror}") from error
        try:
            return running.wait(self._seconds)
        except subprocess.TimeoutExpired:
            raise errors.Unavailable(f"{self._arguments[0]} was not done within {self._seconds:g} s") from None
        finally:
            if running.returncode is None:
                _kill(running)


def _kill(running: "subprocess.Popen[bytes]") -> None:
    """The program and what it has started."""
    if sys.platform == "win32":
        running.kill()
    else:
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def _last_line(said: IO[bytes]) -> str:
    """What a program says last is why it failed."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - 4096))
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f": {display.printable(lines[-1].strip())[:_MOST_SAID]}" if lines else ""
