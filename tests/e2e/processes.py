"""The real command in processes of its own, each with an environment made from scratch."""

import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import servers
from e2e.forked import Forked

ORDERSYS = str(Path(sys.executable).with_name("ordersys"))
SECONDS = 30.0
"""How long anything may take before a test fails; far more than it takes."""

ENGINES = ("embedded", "servers")
_READY = {
    "serve-product": "Product Service listens on",
    "serve-order": "Order Service listens on",
    "notify": "consumes",
    "api": "REST API listens on",
    "up": "REST API listens on",
}
# Below the range from which systems take the ports of outgoing connections, so that a port stays free until it is used,
# and every so-many-th only: the workers that run the tests side by side take the others.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_ports = itertools.count(15_000 + _workers * (os.getpid() % (10_000 // _workers)) + _worker, _workers)


def until(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Poll until the condition holds; fails naming `what` did not come about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    """A port on which nobody listens, and no other test of this run will."""
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable")


@contextmanager
def engine(name: str) -> Iterator[dict[str, str]]:
    """The settings that choose an engine: none for the embedded one, else a vhost and a database of their own."""
    if name == "embedded":
        yield {}
        return
    with servers.vhost() as broker, servers.postgres_database() as database:
        yield {
            "ORDERSYS_BROKER_URL": broker,
            "ORDERSYS_PRODUCT_DATABASE_URL": database,
            "ORDERSYS_ORDER_DATABASE_URL": database,
            "ORDERSYS_NOTIFY_DATABASE_URL": database,
            "ORDERSYS_API_DATABASE_URL": database,
        }


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document it printed, and nothing else."""
        assert (self.code, self.err) == (0, ""), self
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def log(self) -> list[dict[str, Any]]:
        """What a role has logged: there is nothing else on its stderr."""
        return [json.loads(line) for line in self.err.splitlines()]

    @property
    def complaint(self) -> str:
        """The one complaint on stderr, as a person would read it, of a command that printed nothing else."""
        assert self.out == "", self
        if self.err.startswith("{"):
            [said] = [each for each in self.log if each["log.level"] == "critical"]
            return f"error: {said['error.code']}: {said['message']}"
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n"), self.err
        return self.err.strip()


def started(
    arguments: Sequence[str], env: Mapping[str, str], cwd: Path, out: IO[bytes], err: IO[bytes], *, fresh: bool = False
) -> "Forked | subprocess.Popen[bytes]":
    """`ordersys ARGUMENTS`, a `fresh` one by its own command line."""
    fresh = fresh or any(name.startswith("PYTHON") for name in env)  # it is to load something of its own
    with Path(os.devnull).open("rb") as nothing:
        if fresh or sys.platform != "linux":
            return subprocess.Popen([ORDERSYS, *arguments], env=env, cwd=cwd, stdin=nothing, stdout=out, stderr=err)
        return Forked(arguments, env, cwd, nothing, out, err)


class Role:
    """One `ordersys ...` that keeps running; what it writes goes to files."""

    def __init__(
        self, arguments: tuple[str, ...], environment: Mapping[str, str], folder: Path, name: str, *, fresh: bool
    ) -> None:
        self.name = f"{name} {' '.join(arguments)}"
        self._ready = _READY.get(arguments[0], "")
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = started(arguments, environment, folder, out, err, fresh=fresh)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8")

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of its log so far."""
        return [json.loads(line) for line in self.err.rpartition("\n")[0].splitlines()]

    def events(self, subject: str | set[str] = "") -> list[dict[str, Any]]:
        """The events printed so far, of one order, of some, or all."""
        complete = self.out.rpartition("\n")[0]
        events = [json.loads(line) for line in complete.splitlines()]
        wanted = {subject} if isinstance(subject, str) else subject
        return [event for event in events if not subject or event["subject"] in wanted]

    def ready(self) -> Self:
        """Wait until it serves."""
        self.says(self._ready)
        return self

    def says(self, text: str) -> None:
        """Wait until this stands in its log."""
        until(lambda: text in self.err or not self.running, f"{text!r} in the log of {self.name}")
        assert text in self.err, f"{self.name} ended with {self._process.returncode}:\n{self.err}"

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def ends(self, seconds: float = SECONDS) -> int:
        """Its exit code; fails when it has not ended in time."""
        until(lambda: not self.running, f"{self.name} ends", seconds)
        return self._process.wait()

    def stop(self, number: int = signal.SIGTERM, seconds: float = SECONDS) -> int:
        self.send(number)
        return self.ends(seconds)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Backend:
    """One deployment: a home, ports of its own, settings, and the roles that were started on it.

    Where it matters what others see of them, roles are `fresh`; all else is forked, which is much quicker.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str], *, fresh: bool = False) -> None:
        self.fresh = fresh
        self.folder = folder
        self.home = folder / "home"
        self.product_address, self.order_address, self.api_address = (f"127.0.0.1:{free_port()}" for _ in range(3))
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "ORDERSYS_HOME": str(self.home),
            "ORDERSYS_PRODUCT_BIND": self.product_address,
            "ORDERSYS_PRODUCT_ADDRESS": self.product_address,
            "ORDERSYS_ORDER_BIND": self.order_address,
            "ORDERSYS_ORDER_ADDRESS": self.order_address,
            "ORDERSYS_API_BIND": self.api_address,
            **settings,
        }
        self._roles: list[Role] = []
        self._shown: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for role in self._roles:
            role.kill()
        self.show()

    def start(self, *arguments: str, **settings: str) -> Role:
        """A role in the background, with further ORDERSYS_* settings; not waited for."""
        name = f"{len(self._roles)}-{arguments[0]}"
        role = Role(arguments, {**self.environment, **settings}, self.folder, name, fresh=self.fresh)
        self._roles.append(role)
        return role

    def start_all(self, *commands: str) -> list[Role]:
        """Several roles, each by its command line, all ready."""
        roles = [self.start(*command.split()) for command in commands]
        return [role.ready() for role in roles]

    def run(self, *arguments: str, **settings: str) -> Done:
        """A command that ends by itself."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            environment = {**self.environment, **settings}
            process = started(arguments, environment, self.folder, out, err)
            try:
                code = process.wait(2 * SECONDS)
            finally:
                process.kill()
                process.wait()
            out.seek(0), err.seek(0)
            return Done(code, out.read().decode(), err.read().decode())

    def run_all(self, commands: Iterable[str], **settings: str) -> dict[str, Done]:
        """What came of each command line; they have no effect on each other, so several run at a time."""
        wanted = list(commands)
        with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as runners:
            done = runners.map(lambda command: self.run(*shlex.split(command), **settings), wanted)
            return dict(zip(wanted, done, strict=True))

    def client(self, *arguments: str) -> Any:
        """The JSON document that a verb of the client answers."""
        return self.run("client", *arguments, "--json").document

    def place(self, *lines: str, customer: str = "customer-1") -> Any:
        """The order placed with these lines (ID:N)."""
        return self.client("place-order", *(f"--line={line}" for line in lines), "--customer", customer)["order"]

    def available(self, product_id: str) -> int:
        return int(self.client("get-product", product_id)["product"]["available"])

    def pending(self) -> int:
        """Reservations that wait for a settlement."""
        found = re.search(r"(\d+) reservations? pending", self.client("get-data")["message"])
        assert found
        return int(found[1])

    def settled(self) -> None:
        """Wait until nothing is pending."""
        until(lambda: self.pending() == 0, "every reservation is settled")

    def balances(self) -> None:
        """Shelf, ledger, reservations and live orders say the same."""
        audit = self.run("inventory", "audit", "--json").document
        assert (audit["ok"], audit["pending"], audit["orders_compared"], audit["differences"]) == (True, 0, True, [])

    def show(self) -> None:
        """Print what the roles have written since it was shown last: pytest shows it when a test has failed."""
        for role in self._roles:
            log = role.err
            print(f"--- {role.name}\n{log[self._shown.get(role.name, 0) :][-8_000:]}")
            self._shown[role.name] = len(log)
