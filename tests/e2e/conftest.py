"""Deployments for the tests that start the real command."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e import processes
from e2e.processes import Backend


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Backend]:
    """A deployment without any server, of the test's own; nothing runs yet."""
    with Backend(tmp_path, {}) as backend:
        yield backend


@pytest.fixture(params=processes.ENGINES)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """The same once per engine."""
    with processes.engine(request.param) as settings, Backend(tmp_path, settings) as backend:
        yield backend


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Nothing runs here."""
    with Backend(tmp_path_factory.mktemp("alone"), {}) as backend:
        yield backend
