import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the developer's own reaches a test, and no test writes into the developer's home."""
    for name in list(os.environ):
        if name.upper().startswith("ORDERSYS_") and not name.upper().startswith("ORDERSYS_FAULT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ORDERSYS_HOME", str(tmp_path / "home"))


@pytest.fixture
def rabbitmq_url() -> Iterator[str]:
    """A vhost of the test's own."""
    with servers.vhost() as url:
        yield url


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A database of the test's own."""
    with servers.postgres_database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The test runs once per engine, each time on an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
    else:
        with servers.postgres_database() as url:
            yield url
