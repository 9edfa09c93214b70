"""What systemd hears: the lines of sd_notify(3) on the socket that it names, in their order, and nothing elsewhere."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ordersys import settings
from ordersys.supervisor import ALIVE, READY, Supervisor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a socket of Unix")

PROGRAM = """
import asyncio, sys
from ordersys import lifecycle
from ordersys.supervisor import Supervisor

class Part:
    name = "part"
    rounds = 0
    async def start(self): pass
    async def stop(self, grace): pass
    def ended(self):
        self.rounds += 1
        return self.rounds > 4

sys.exit(lifecycle.run([Part()], 1, supervisor=Supervisor(sys.argv[1], float(sys.argv[2]))))
"""


@pytest.fixture
def manager(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager; its name is short, as the system wants it."""
    monkeypatch.chdir(tmp_path_factory.mktemp("run"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("notify")
        listening.settimeout(30)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    """Everything that has been said."""
    manager.setblocking(False)
    found = []
    while True:
        try:
            found.append(manager.recv(100).decode())
        except BlockingIOError:
            return found


def run(within: float) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "notify", str(within)], check=False, timeout=60)
    assert done.returncode == 0


def test_it_hears_that_a_process_is_ready_lives_and_stops(manager: socket.socket) -> None:
    run(0.3)
    first, *between, last = heard(manager)
    assert (first, last) == ("READY=1", "STOPPING=1")
    assert len(between) >= 2
    assert set(between) == {"WATCHDOG=1"}


def test_without_a_watchdog_nobody_is_told_of_every_breath(manager: socket.socket) -> None:
    run(0)
    assert heard(manager) == ["READY=1", "STOPPING=1"]


def test_signs_of_life_come_a_few_times_within_the_interval(manager: socket.socket) -> None:
    told = Supervisor("notify", 3600)
    for _ in range(100):
        told.alive()
    assert heard(manager) == [ALIVE]


def test_a_name_in_the_abstract_namespace_is_understood() -> None:
    if sys.platform != "linux":
        pytest.skip("Linux alone has it")
    name = f"ordersys-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(30)
        Supervisor(f"@{name}").tell(READY)
        assert listening.recv(100) == b"READY=1"


def test_one_that_does_not_listen_is_no_reason_not_to_serve(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Supervisor(str(tmp_path / "gone")).tell(READY)
    assert "was not told READY=1" in caplog.text


def test_without_one_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    told = Supervisor()
    told.tell(READY)
    told.alive()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, ("", 0.0)),
        ({"NOTIFY_SOCKET": "/run/systemd/notify"}, ("/run/systemd/notify", 0.0)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "60000000"}, ("@x", 60.0)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, ("@x", 0.0)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, ("@x", 0.5)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"}, ("@x", 0.0)),
    ],
)
def test_the_environment_says_whom_to_tell(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], found: tuple[str, float]
) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings.service_manager() == found
