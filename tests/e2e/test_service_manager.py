"""A role tells the service manager that started it when it is ready, that it lives, and when it stops."""

import os
import socket
import sys
from pathlib import Path

import pytest
from e2e.processes import SECONDS, Backend


@pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
def test_a_role_is_ready_when_it_serves_and_says_that_it_stops(embedded: Backend, tmp_path: Path) -> None:
    name = f"ordersys-test-{os.getpid()}-{tmp_path.name}"[:100]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(SECONDS)
        role = embedded.start("serve-order", NOTIFY_SOCKET=f"@{name}", WATCHDOG_USEC="900000")
        assert manager.recv(100) == b"READY=1"
        assert "Order Service listens on" in role.err
        assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        assert role.stop() == 0
        said = [manager.recv(100)]
        while said[-1] == b"WATCHDOG=1":
            said.append(manager.recv(100))
        assert said[-1] == b"STOPPING=1"
