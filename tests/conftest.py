import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import servers
from restricted import Restricted

# How long an example takes is the machine's business.
hypothesis.settings.register_profile("ordersys", deadline=None)
hypothesis.settings.load_profile("ordersys")


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What asks for `database_url` runs once per engine, and once more as the role of the service that it is about.

    Which service that is, its module says: `ROLE = "product"`.
    """
    if "database_url" in metafunc.fixturenames:
        engines = ["sqlite", "postgres", *(["restricted"] if hasattr(metafunc.module, "ROLE") else [])]
        metafunc.parametrize("database_url", engines, indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database; for a service's own role one with the schemas in it, which that role could not make."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
    elif request.param == "postgres":
        with servers.postgres_database() as url:
            yield url
    else:
        restricted: Restricted = request.getfixturevalue("restricted")
        with restricted.database(request.module.ROLE) as url:
            yield url


@pytest.fixture(scope="session")
def restricted() -> Iterator[Restricted]:
    """The roles of all services, with the least each needs."""
    with Restricted.made() as made:
        yield made
