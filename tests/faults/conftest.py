"""Deployments to be hurt, once per engine, and what scales and repeats the hurting.

ORDERSYS_FAULT_ROUNDS=50 is the long run; ORDERSYS_FAULT_SEED repeats a failed one; ORDERSYS_FAULT_FIGURES names a file
for the figures.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e import processes
from e2e.processes import Backend
from faults.fleet import DEADLINE_SECONDS

SECONDS_PER_ROUND = 20
ROUNDS = "2"


@pytest.fixture
def rounds() -> int:
    """How often a test hurts."""
    return int(os.environ.get("ORDERSYS_FAULT_ROUNDS", ROUNDS))


@pytest.fixture
def seed() -> int:
    """What the randomness of a test begins with; printed, so that a failure can be repeated."""
    seed = int(os.environ.get("ORDERSYS_FAULT_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"ORDERSYS_FAULT_SEED={seed}")
    return seed


@pytest.fixture(params=processes.ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The test runs once on the embedded default and once on RabbitMQ and PostgreSQL."""
    return str(request.param)


@pytest.fixture
def backend(engine: str, tmp_path: Path) -> Iterator[Backend]:
    """A deployment of the test's own; nothing runs yet."""
    with processes.engine(engine) as settings:
        deadline = {"ORDERSYS_DEADLINE_SECONDS": str(DEADLINE_SECONDS)}
        with Backend(tmp_path, {**deadline, **settings}) as backend:
            yield backend


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """More rounds may take longer."""
    rounds = int(os.environ.get("ORDERSYS_FAULT_ROUNDS", ROUNDS))
    for item in items:
        if item.path.parent == Path(__file__).parent and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(120 + SECONDS_PER_ROUND * rounds))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures of every test that passed, whatever pytest shows of its output."""
    for report in terminalreporter.getreports("passed"):
        for line in report.capstdout.splitlines() if report.when == "call" else ():
            if line.startswith("row "):
                terminalreporter.write_line(line)
