"""The very commands of deploy/docker/compose.yaml, with its environment and in its order, as processes on real servers.

There is no container: the servers are those of this machine, and every address is one of its own.
"""

import http.client
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import deployed
import pytest
from e2e import processes
from e2e.processes import SECONDS, Backend, Role, free_port, until

DOCKER = deployed.HERE / "docker"
SERVICES: dict[str, dict[str, Any]] = deployed.read(DOCKER / "compose.yaml")["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("ordersys:")}


class Composed:
    """What `docker compose up` does, for the services that are ours; the others are taken to be healthy."""

    def __init__(self, backend: Backend, secrets: Path) -> None:
        self._backend = backend
        self._secrets = secrets
        self._addresses: dict[tuple[str, str], str] = {}
        self._healthy: set[str] = set()
        self.roles: dict[str, Role] = {}
        self.done: list[str] = []

    def up(self) -> None:
        for name in OURS:
            self._start(name)
        for name in self.roles:
            self._wait(name, "service_healthy")

    def address(self, name: str, port: str) -> str:
        """What stands for NAME:PORT on the network of the containers."""
        return self._addresses.setdefault((name, port), f"127.0.0.1:{free_port()}")

    def environment(self, name: str) -> dict[str, str]:
        """The one of the file, with addresses and folders of this machine."""

        def moved(value: str) -> str:
            if found := re.fullmatch(r"([\w.-]+):(\d+)", value):
                host = name if found[1] == "0.0.0.0" else found[1]  # noqa: S104 - compared, not bound
                return self.address(host, found[2])
            return self._moved(value)

        return {key: moved(str(value)) for key, value in OURS[name]["environment"].items()}

    def _moved(self, word: str) -> str:
        return word.replace("/run/secrets", str(self._secrets))

    def _start(self, name: str) -> None:
        if name in self.roles or name in self.done:
            return
        for needed, how in OURS[name]["depends_on"].items():
            if needed in OURS:
                self._start(needed)
                self._wait(needed, how["condition"])
        words = [self._moved(word) for word in OURS[name]["command"]]
        if OURS[name]["restart"] == "on-failure":
            ended = self._backend.run(*words, **self.environment(name))
            assert ended.code == 0, ended
            self.done.append(name)
        else:
            self.roles[name] = self._backend.start(*words, **self.environment(name))

    def _wait(self, name: str, condition: str) -> None:
        if condition == "service_completed_successfully":
            assert name in self.done
            return
        assert condition == "service_healthy"
        if name in self._healthy:
            return
        _, program, *probe = OURS[name]["healthcheck"]["test"]
        assert program == "ordersys"
        until(lambda: self._backend.run(*probe, **self.environment(name)).code == 0, f"{name} is healthy", 2 * SECONDS)
        self._healthy.add(name)


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Composed]:
    script = Path(shutil.copy(DOCKER / "secrets.sh", tmp_path))
    subprocess.run(["sh", str(script)], check=True, timeout=60, stdin=subprocess.DEVNULL)
    secrets = tmp_path / "secrets"
    with processes.engine("servers") as urls:
        (secrets / "broker_url").write_text(urls["ORDERSYS_BROKER_URL"] + "\n")
        (secrets / "database_url").write_text(urls["ORDERSYS_ORDER_DATABASE_URL"] + "\n")
        with Backend(tmp_path, {}) as backend:
            # Only what the image sets beside: everything else has to come from the file.
            backend.environment = {
                name: value for name, value in backend.environment.items() if not name.startswith("ORDERSYS_")
            } | {"ORDERSYS_HOME": str(tmp_path / "home"), "ORDERSYS_LOG_FORMAT": "json"}
            yield Composed(backend, secrets)


@pytest.mark.timeout(240)
def test_an_order_reaches_both_notifiers(composed: Composed, tmp_path: Path) -> None:
    composed.up()
    assert composed.done == ["migrate", "first-key"]
    assert list(composed.roles) == ["order-service", "product-service", "notify-fanout", "notify-topic", "api"]

    key = (tmp_path / "secrets" / "api_key").read_text().strip()
    order = ask(composed.address("api", "8080"), key)
    for name in ("notify-fanout", "notify-topic"):
        until(lambda name=name: bool(composed.roles[name].events(order)), f"{name} prints the event of the order")
        assert [each["type"] for each in composed.roles[name].events(order)] == ["ordersys.order.created.v1"]
    assert not (tmp_path / "home").exists(), "nothing but /tmp can be written in the containers"
    # Every role ends as one that was asked to, and within its grace time, which Compose gives it and a little more.
    for role in composed.roles.values():
        role.send(signal.SIGTERM)
    assert {role.ends() for role in composed.roles.values()} == {0}


def ask(address: str, key: str) -> str:
    """The id of an order that was placed there with this key."""
    order = {"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 2}]}
    headers = {"Content-Type": "application/json", "X-API-Key": key}
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("POST", "/api/v1/orders", json.dumps(order), headers)
        answer = connection.getresponse()
        placed = json.loads(answer.read())
        assert answer.status == 201, placed
        return str(placed["id"])
