"""A system of the benchmark's own: every role as a process, on a throw-away home or on the servers that URLs name."""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import IO, Self

from ordersys import settings
from ordersys.core import errors, topology
from ordersys.core.rpc.channel import Channel

START_SECONDS = 60.0
_STOP_SECONDS = 20.0


class Ear:
    """When a notifier told of each new order: moments of the machine's monotonic clock, by order id."""

    def __init__(self, queue: str, stream: IO[bytes]) -> None:
        self.queue = queue
        self.heard: dict[str, float] = {}
        self.again = 0  # told more than once
        self._thread = threading.Thread(target=self._listen, args=(stream,), name=queue, daemon=True)
        self._thread.start()

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            moment = time.monotonic()
            data = json.loads(line)["data"]
            if data["change"] == "created":
                self.again += data["order_id"] in self.heard
                self.heard.setdefault(data["order_id"], moment)


class System:
    """Started with the block, stopped at its end; the addresses are known inside.

    `chosen` are the settings that differ from the defaults; nothing of the environment's settings is taken.
    """

    def __init__(
        self, chosen: Mapping[str, object], *, listens: bool = True, program: Sequence[str] = ("-m", "ordersys")
    ) -> None:
        self._listens = listens  # to the notifiers, which takes time of this process
        self._chosen = chosen
        self._program = program  # what Python runs
        self._stack = ExitStack()
        self._processes: list[tuple[subprocess.Popen[bytes], Path]] = []
        self.ears: list[Ear] = []
        self.product = self.order = self.api = ""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def pids(self) -> list[int]:
        """Of the Order Service, the Product Service, the API, and a notifier for each queue of the topology."""
        return [process.pid for process, _ in self._processes]

    def _start(self) -> None:
        self._home = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ordersys-bench-")))
        self.order, self.product, self.api = _free_addresses(3)
        where = ("--product-address", self.product, "--order-address", self.order)
        self._process("serve-order", "--bind", self.order)
        self._process("serve-product", "--bind", self.product, *where[2:])
        self._process("api", "--bind", self.api, *where)
        for queue in topology.standard().queues:
            mode = queue.name.removeprefix("notify.")
            out = subprocess.PIPE if self._listens else subprocess.DEVNULL
            process = self._process("notify", "--mode", mode, "--json", stdout=out)
            if process.stdout is not None:
                self.ears.append(Ear(queue.name, process.stdout))
        for address in (self.order, self.product):
            with closing(Channel(address)) as channel:
                self._wait_until(partial(channel.healthy, "", deadline=1.0))
        self._wait_until(lambda: _answers(self.api))

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        """Raises `Unavailable` with the last words of the process that has ended instead."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            for process, log in self._processes:
                if process.poll() is not None:
                    last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
                    raise errors.Unavailable(f"{log.stem} ended with {process.returncode}: {''.join(last)}")
            if time.monotonic() > deadline:
                raise errors.Unavailable(f"the system was not ready within {START_SECONDS:g} s")
            time.sleep(0.05)

    def _process(self, *arguments: str, stdout: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        environment = settings.environment_of(home=self._home, **self._chosen)
        log = self._home / f"{len(self._processes)}-{arguments[0]}.log"
        command = [sys.executable, *self._program, *arguments]
        # A group of its own: Ctrl-C is ours to pass on.
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=self._stack.enter_context(log.open("wb")),
            start_new_session=True,
        )
        self._processes.append((process, log))
        return process

    def _stop(self) -> None:
        for process, _ in reversed(self._processes):
            process.terminate()
        for process, _ in self._processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._stack.close()


def _free_addresses(count: int) -> list[str]:
    """Addresses that nobody listens on now; all are held until the last is found, so that no two are one."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except OSError:
        return False
