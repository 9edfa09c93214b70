"""What gRPC's core says: past Python's logging, straight to file descriptor 2, in a form of its own.

A client wants none of it. A server with TLS wants what is nowhere else: why a handshake failed, and whose it was. So
there descriptor 2 becomes a pipe that a thread reads, gRPC's records become log lines, and all else is passed on; or it
becomes log lines, too, where programs read them.
https://github.com/grpc/grpc/blob/master/doc/environment_variables.md
"""

import atexit
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

logger = logging.getLogger(__name__)

_VERBOSITY, _TRACE = "GRPC_VERBOSITY", "GRPC_TRACE"
_QUIET = "ERROR"

_RECORD = re.compile(r"([IWEF])\d{4} \d\d:\d\d:[\d.]+ +\d+ ([\w./]+:\d+)\] ?(.*)")
_LEVELS = {"W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_FAILED = re.compile(r"\berror=(?!OK)(.*)")
_PEER = re.compile(r"endpoint_peer_address=([^,}]+)")
_MORE = re.compile(r"=== Source Location Trace|\s*src/core/|\s*$| shutdown=")
"""How the lines begin that continue a record of a handshake."""

_REPEATED_SECONDS = 60.0
_MOST_REMEMBERED = 1_000


def quiet() -> None:
    """Nothing but errors, unless the environment says otherwise. To be called before grpc is imported."""
    if not os.environ.get(_TRACE):
        os.environ.setdefault(_VERBOSITY, _QUIET)


def listen(*, handshakes: bool, stray: Callable[[str], None] | None = None) -> TextIO:
    """From now on gRPC's records are log lines, and failed `handshakes` warnings. Also before grpc is imported.

    `stray` takes each line that anything else writes to stderr, what Python prints there too; without it they are
    passed on as they are. The log is to be written to the stream that is returned: it leads where stderr led.
    Whoever has asked gRPC for more gets it as it is. What the process writes to descriptor 2 in the moment in which it
    is aborted may be lost.
    """
    if sys.platform == "win32" or os.environ.get(_TRACE) or os.environ.get(_VERBOSITY, _QUIET) != _QUIET:
        return sys.stderr
    if handshakes:
        os.environ.pop(_VERBOSITY, None)
        os.environ[_TRACE] = "handshaker"
    sys.stderr.flush()
    there = os.dup(2)
    stream = open(there, "w", 1, sys.stderr.encoding, sys.stderr.errors, closefd=False)  # noqa: SIM115
    if stray is None:
        sys.stderr = stream
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # a flood is cut short: gRPC's threads must never wait for ours
    os.dup2(writing, 2)
    os.close(writing)
    hearing = Hearing(stray or (lambda text: _pass_on(there, text)))
    thread = threading.Thread(target=_read, args=(reading, hearing), name="stderr", daemon=True)
    thread.start()

    def give_back() -> None:
        sys.stderr.flush()
        os.dup2(there, 2)  # the pipe has no writer any more: the thread comes to its end
        thread.join(1.0)

    atexit.register(give_back)
    return stream


def _read(reading: int, hearing: "Hearing") -> None:
    with open(reading, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            hearing.line(line.rstrip("\n"))


def _pass_on(there: int, text: str) -> None:
    os.write(there, f"{text}\n".encode())


class Hearing:
    """Makes log lines of gRPC's records, and passes on what is none of them.

    One line a minute for each address and reason: who is refused tries again and again.
    """

    def __init__(self, pass_on: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._pass_on = pass_on
        self._clock = clock
        self._error = ""  # of a handshake whose record is not at its end
        self._told: dict[tuple[str, str], float] = {}

    def line(self, text: str) -> None:
        if found := _RECORD.fullmatch(text):
            level, place, rest = found.groups()
            self._error = ""
            if level in _LEVELS:
                logger.log(_LEVELS[level], "gRPC: %s (%s)", rest, place)
            elif failed := _FAILED.search(rest):
                self._error = failed[1]
                self._whose(rest)
        elif _MORE.match(text):
            self._whose(text)
        else:
            self._pass_on(text)

    def _whose(self, text: str) -> None:
        if self._error and (peer := _PEER.search(text)):
            self._tell(peer[1].replace("%5B", "[").replace("%5D", "]"), self._error)
            self._error = ""

    def _tell(self, peer: str, error: str) -> None:
        from ordersys.core.rpc import handshakes  # with ssl behind it: not for every command

        if not handshakes.failed(error):  # nobody there, or somebody who only looked whether the port is open
            logger.debug("no connection with %s: %s", peer, error)
            return
        reason = handshakes.reason(error)
        who, now = (peer.rpartition(":")[0], reason), self._clock()
        if now < self._told.get(who, 0.0):
            return
        if len(self._told) >= _MOST_REMEMBERED:
            self._told.clear()
        self._told[who] = now + _REPEATED_SECONDS
        logger.warning("TLS handshake with %s failed: %s", peer, reason)
