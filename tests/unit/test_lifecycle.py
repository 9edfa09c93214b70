"""Parts start in order and stop in reverse, and the process ends within its bound whatever they do."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ordersys import lifecycle
from ordersys.core import errors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

PROGRAM = """
import asyncio, sys, threading, time
from ordersys import lifecycle
from ordersys.core import errors

def say(*words):
    print(*words, flush=True)

class Part:
    def __init__(self, name, on_start, on_stop):
        self.name, self.on_start, self.on_stop = name, on_start, on_stop

    async def start(self):
        say("start", self.name)
        if self.on_start == "fails":
            raise errors.UsageError("the port is taken")
        if self.on_start == "hangs":
            await asyncio.sleep(1000)
        if self.on_start == "hangs in a thread":
            await asyncio.to_thread(time.sleep, 1000)

    async def stop(self, grace):
        say("stop", self.name)
        if self.on_stop == "hangs":
            await asyncio.sleep(1000)
        if self.on_stop == "hangs in a thread":
            await asyncio.to_thread(time.sleep, 1000)
        if self.on_stop == "leaves a thread":
            threading.Thread(target=time.sleep, args=(1000,)).start()
        if self.on_stop == "blocks the loop":
            time.sleep(1000)
        if self.on_stop == "fails":
            raise RuntimeError("oh")
        while self.on_stop == "refuses":
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                say("refused", self.name)
        say("stopped", self.name)

    def ended(self):
        return self.on_start == "ends"

def ready():
    say("ready")
    if "ready fails" in sys.argv:
        raise BrokenPipeError("nobody reads")

lifecycle._MARGIN_SECONDS = 0.3
parts = [Part(*argument.split(":")) for argument in sys.argv[2:] if ":" in argument]
try:
    code = lifecycle.run(parts, float(sys.argv[1]), ready)
except (errors.UsageError, BrokenPipeError) as error:
    say("error", error)
    code = 2
say("code", code)
sys.exit(code)
"""


class Process:
    """The program in a process of its own, read line by line."""

    def __init__(self, grace: float, *arguments: str) -> None:
        command = [sys.executable, "-P", "-c", PROGRAM, str(grace), *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []

    def until(self, line: str) -> None:
        assert self._process.stdout is not None
        while line not in self.lines:
            read = self._process.stdout.readline()
            assert read, f"ended before {line!r}: {self.lines} {self._process.stderr.read()}"  # type: ignore[union-attr]
            self.lines.append(read.rstrip("\n"))

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, within: float = 10.0) -> int:
        """The exit code; fails when it does not end in time."""
        began = time.monotonic()
        out, self.complaints = self._process.communicate(timeout=30)
        self.lines += out.splitlines()
        assert time.monotonic() - began < within, self.lines
        return self._process.returncode

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def process(grace: float, *arguments: str) -> Iterator[Process]:
    started = Process(grace, *arguments)
    try:
        yield started
    finally:
        started.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_stops_everything_in_reverse_and_says_how_it_ended(number: int, code: int) -> None:
    with process(5, "a::", "b::", "c::") as running:
        running.until("ready")
        running.send(number)
        assert running.end() == code
    assert running.lines == [
        *("start a", "start b", "start c", "ready"),
        *("stop c", "stopped c", "stop b", "stopped b", "stop a", "stopped a"),
        f"code {code}",
    ]
    assert running.complaints == ""


@pytest.mark.parametrize(
    ("on_stop", "second", "code"),
    [
        ("hangs", signal.SIGTERM, 143),
        ("hangs", signal.SIGINT, 130),
        ("hangs in a thread", signal.SIGINT, 130),
        ("blocks the loop", signal.SIGINT, 130),
        ("refuses", signal.SIGTERM, 143),
    ],
)
def test_a_second_signal_ends_it_at_once(on_stop: str, second: int, code: int) -> None:
    with process(60, f"a::{on_stop}") as running:
        running.until("ready")
        running.send(signal.SIGTERM)
        running.until("stop a")
        running.send(second)
        assert running.end() == code
    assert "Traceback" not in running.complaints


@pytest.mark.parametrize(
    ("on_stop", "number", "code"),
    [
        ("hangs", signal.SIGTERM, 0),
        ("hangs in a thread", signal.SIGTERM, 0),
        ("blocks the loop", signal.SIGINT, 130),
        ("refuses", signal.SIGINT, 130),
        ("leaves a thread", signal.SIGTERM, 0),
        ("leaves a thread", signal.SIGINT, 130),
    ],
)
def test_a_part_that_hangs_does_not_keep_the_process_beyond_the_grace_time(
    on_stop: str, number: int, code: int
) -> None:
    with process(0.2, "a::", f"b::{on_stop}") as running:
        running.until("ready")
        running.send(number)
        assert running.end() == code
    if on_stop != "blocks the loop":
        assert "stopped a" in running.lines
    if on_stop in ("hangs", "hangs in a thread", "refuses"):
        assert "b did not stop within its grace time" in running.complaints


def test_the_grace_time_is_given_once_and_not_to_each_part() -> None:
    with process(1.0, "a::", "b::hangs", "c::hangs") as running:
        running.until("ready")
        began = time.monotonic()
        running.send(signal.SIGTERM)
        assert running.end() == 0
        assert 1.0 <= time.monotonic() - began < 6
    assert running.lines[-3:] == ["stop a", "stopped a", "code 0"]


def test_a_part_that_cannot_start_takes_back_those_before_it_and_its_error_is_raised() -> None:
    with process(5, "a::", "b::", "c:fails:", "d::") as running:
        assert running.end() == 2
    assert running.lines == [
        *("start a", "start b", "start c"),
        *("stop c", "stopped c", "stop b", "stopped b", "stop a", "stopped a"),
        *("error the port is taken", "code 2"),
    ]


@pytest.mark.parametrize("on_start", ["hangs", "hangs in a thread"])
def test_a_signal_while_a_part_starts_stops_what_was_started(on_start: str) -> None:
    with process(0.5, "a::", f"b:{on_start}:", "c::") as running:
        running.until("start b")
        running.send(signal.SIGTERM)
        assert running.end() == 0
    assert "stopped a" in running.lines
    assert "ready" not in running.lines
    assert "start c" not in running.lines
    assert "never retrieved" not in running.complaints


def test_a_part_that_fails_while_it_stops_is_reported_and_the_others_stop_all_the_same() -> None:
    with process(5, "a::", "b::fails", "c::") as running:
        running.until("ready")
        running.send(signal.SIGTERM)
        assert running.end() == 0
    assert running.lines[-3:] == ["stop a", "stopped a", "code 0"]
    assert "b failed while it stopped" in running.complaints
    assert "RuntimeError: oh" in running.complaints


def test_when_a_part_ends_by_itself_the_others_are_stopped() -> None:
    with process(5, "a::", "b:ends:") as running:
        assert running.end() == 0
    assert running.lines == ["start a", "start b", "ready", "stop b", "stopped b", "stop a", "stopped a", "code 0"]


def test_when_nobody_can_be_told_that_it_is_ready_everything_is_stopped() -> None:
    with process(5, "a::", "ready fails") as running:
        assert running.end() == 2
    assert running.lines == ["start a", "ready", "stop a", "stopped a", "error nobody reads", "code 2"]


# --- beside other work, in a thread of its own ------------------------------------------------------------------


class Recorder:
    """A part that writes down what happened to it."""

    def __init__(self, journal: list[str], name: str, error: BaseException | None = None) -> None:
        self.name = name
        self._journal = journal
        self._error = error

    async def start(self) -> None:
        await asyncio.sleep(0)
        self._journal.append(f"start {self.name}")
        if self._error:
            raise self._error

    async def stop(self, grace: float) -> None:
        self._journal.append(f"stop {self.name}")

    def ended(self) -> bool:
        return False


def parts_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "parts"]


def test_parts_run_in_the_background_while_the_block_runs() -> None:
    journal: list[str] = []
    with lifecycle.background([Recorder(journal, "a"), Recorder(journal, "b")], 5):
        assert journal == ["start a", "start b"]
        assert len(parts_threads()) == 1
    assert journal == ["start a", "start b", "stop b", "stop a"]
    assert parts_threads() == []


@pytest.mark.parametrize("error", [errors.UsageError("the port is taken"), RuntimeError("a fault of ours")], ids=repr)
def test_what_keeps_a_part_from_starting_is_raised_where_it_was_asked_for(error: Exception) -> None:
    journal: list[str] = []
    parts = [Recorder(journal, "a"), Recorder(journal, "b", error), Recorder(journal, "c")]
    with pytest.raises(type(error)) as raised, lifecycle.background(parts, 5):
        journal.append("the block")
    assert raised.value is error
    assert journal == ["start a", "start b", "stop b", "stop a"]
    assert parts_threads() == []


def test_an_error_in_the_block_stops_the_parts_and_goes_on() -> None:
    journal: list[str] = []
    with pytest.raises(ZeroDivisionError), lifecycle.background([Recorder(journal, "a")], 5):
        raise ZeroDivisionError
    assert journal == ["start a", "stop a"]
    assert parts_threads() == []


OPEN_FILES = """
import resource
from ordersys import lifecycle

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))

class Part:
    name = "part"
    async def start(self): print(resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, lifecycle.OPEN_FILES), hard))
    async def stop(self, grace): pass
    def ended(self): return True

lifecycle.run([Part()], 1)
"""


def test_a_process_takes_the_open_files_that_the_system_grants() -> None:
    done = subprocess.run([sys.executable, "-c", OPEN_FILES], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
