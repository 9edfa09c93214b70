"""What an order costs each process in CPU, while orders are placed as fast as they are taken.

On a machine whose cores are all busy this is the limit: cores / (the sum of it) is the most orders per second that any
build of these parts can do there, so it says where the next one is to be saved.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from ordersys.bench.system import System

_TICKS = os.sysconf("SC_CLK_TCK")
ROLES = ("order-service", "product-service", "api", "notify.fanout", "notify.topic")
"""In the order in which the system starts them."""


def per_order(own: System, load: Callable[[], int]) -> dict[str, float]:
    """Microseconds of CPU per order, by process; `load` says how many it placed. Time of the generator is left out."""
    pids = {name: [pid] for name, pid in zip(ROLES, own.pids, strict=True)}
    pids["rabbitmq"] = _named("beam.smp")
    pids["postgresql"] = _named("postgres")
    before = {name: _seconds(each) for name, each in pids.items()}
    orders = load()
    pids["postgresql"] += [pid for pid in _named("postgres") if pid not in pids["postgresql"]]
    return {name: (_seconds(each) - before[name]) / orders * 1e6 for name, each in pids.items()}


def _named(command: str) -> list[int]:
    found = subprocess.run(["pgrep", "-x", command], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _seconds(pids: list[int]) -> float:
    return sum(map(_of, pids))


def _of(pid: int) -> float:
    """User and system time so far (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html); 0 once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
