"""`ordersys ...` in a process of its own that need not load Python and our libraries first: a fork of one that has.

Starting takes a real one most of a second of CPU, and the suite starts more than a thousand. Here a nursery imports
everything, starts nothing, and forks: what runs is the same `main` in a process like any other, with its own
environment, folder and streams. It is handed over to the process of the tests, which can wait for it as for its own
child (PR_SET_CHILD_SUBREAPER of prctl(2)). Only its command line, as others see it, is the nursery's.
"""

import atexit
import ctypes
import gc
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
_lock = threading.Lock()
_nurseries: dict[int, socket.socket] = {}  # by the process that started it: a fork of ours needs its own


class Forked:
    """As much of subprocess.Popen as the tests need."""

    def __init__(
        self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path, stdin: Any, stdout: Any, stderr: Any
    ) -> None:
        """The streams are files or their numbers."""
        order = json.dumps({"arguments": list(arguments), "environment": dict(env), "folder": str(cwd)}).encode()
        streams = [each if isinstance(each, int) else each.fileno() for each in (stdin, stdout, stderr)]
        self.returncode: int | None = None
        self._waiting = threading.Lock()
        with _lock:
            nursery = _nursery()
            socket.send_fds(nursery, [len(order).to_bytes(4, "big")], streams)
            nursery.sendall(order)
            self.pid = int.from_bytes(_exactly(nursery, 4), "big")

    def poll(self) -> int | None:
        """Its exit code as subprocess has it, negative for a signal; None while it runs."""
        with self._waiting:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        """Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        pause = 0.001
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout)
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _nursery() -> socket.socket:
    if os.getpid() not in _nurseries:
        if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
        ours, theirs = socket.socketpair()
        clean = {name: os.environ[name] for name in ("PATH", "HOME")}
        with theirs:
            process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=clean,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(lambda: (ours.close(), process.wait()))
        _nurseries[os.getpid()] = ours
    return _nurseries[os.getpid()]


def _exactly(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        more = connection.recv(size - len(received))
        if not more:
            raise EOFError("the nursery has ended")
        received += more
    return received


def _serve(connection: socket.socket) -> dict[str, Any]:
    """In the nursery this goes on until its owner ends; it returns in each child, with what it was told."""
    while True:
        head, streams, _, _ = socket.recv_fds(connection, 4, 3)
        if not head:
            os._exit(0)
        order = json.loads(_exactly(connection, int.from_bytes(head, "big")))
        reading, writing = os.pipe()
        if (between := os.fork()) == 0:
            if pid := os.fork():
                os.write(writing, pid.to_bytes(4, "big"))
                os._exit(0)  # whoever has lost his parent goes to the process of the tests
            for target, stream in enumerate(streams):
                os.dup2(stream, target)
            for each in (*streams, reading, writing, connection.fileno()):
                os.close(each)
            connection.detach()
            return order
        for each in (*streams, writing):
            os.close(each)
        os.waitpid(between, 0)
        connection.sendall(os.read(reading, 4))
        os.close(reading)


def _import_everything() -> None:
    import importlib

    import ordersys

    for module in pkgutil.walk_packages(ordersys.__path__, "ordersys."):
        if ".migrations." not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("alembic.command", "psycopg", "psycopg_pool", "uvloop", "sqlalchemy.dialects.postgresql.psycopg"):
        importlib.import_module(name)


def _run_and_end() -> NoReturn:
    """As Python does it, but for the taking apart of all modules, which takes longer than most commands."""
    from ordersys.cli import main

    code: object = 1
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as Python itself reports it
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, which the real command does not see
    _import_everything()
    gc.collect()
    gc.freeze()  # or the first collection in each child would copy all of it
    told = _serve(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    sys.argv = ["ordersys", *told["arguments"]]
    _run_and_end()
