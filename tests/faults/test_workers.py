"""`--workers 2`: workers are killed under load, their parents are stopped and killed, and nobody is left behind."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e import processes
from e2e.processes import Backend, Role, until
from faults import figures
from faults.fleet import DEADLINE_SECONDS
from faults.load import Load

from ordersys.operate import web


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    with processes.engine("servers") as settings:
        deadline = {"ORDERSYS_DEADLINE_SECONDS": str(DEADLINE_SECONDS)}
        with Backend(tmp_path, {**deadline, **settings}) as backend:
            yield backend


def test_workers_share_an_address_and_are_replaced(backend: Backend, seed: int) -> None:
    order, product = (backend.start(f"serve-{name}", "--workers", "2") for name in ("order", "product"))
    for parent in (order, product):
        parent.says("2 workers listen on")
    fanout, topic = backend.start_all("notify --mode fanout --json", "notify --mode topic --json")
    first = [workers(order), workers(product)]
    with Load(backend, seed=seed, pause=0.2) as load:
        for parent, (victim, _) in zip((order, product), first, strict=True):
            load.goes_on(25)
            os.kill(victim, signal.SIGKILL)
            parent.says("is process")
        load.goes_on(25)
    found = load.verdict([fanout], [topic], in_order=True)
    for parent in (order, product):
        assert f"ended (signal {signal.SIGKILL.name})" in parent.err
        assert all(web.get(f"{address}/readyz", 10.0).status == 200 for address in admin_ports(parent)[-2:])
    assert backend.run("health", "--service", "product", "--json").document["status"] == "ready"
    taken = backend.run("serve-product", "--workers", "2")
    assert (taken.code, "Address already in use" in taken.err) == (2, True), taken

    assert product.stop() == 0
    assert not listens(backend.product_address)
    order.kill()
    until(lambda: not listens(backend.order_address), "workers end with their parent, whatever became of it")
    figures.record("workers", "servers", kills=2, **found)


def test_a_parent_whose_workers_cannot_start_says_so_and_ends(backend: Backend) -> None:
    nobody = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    ended = backend.run("serve-order", "--workers", "2", "--database-url", nobody)
    assert (ended.code, ended.out) == (3, "")
    said = [(each["log.level"], each["message"]) for each in ended.log if each["log.level"] == "critical"]
    assert [level for level, _ in said] == ["critical", "critical"]
    assert "127.0.0.1:1" in said[0][1]
    assert "worker 0 could not start: exit code 3" in said[1][1]


def workers(parent: Role) -> list[int]:
    """The processes that have served, the newest last."""
    return [each["process.pid"] for each in served(parent)]


def admin_ports(parent: Role) -> list[str]:
    return [each["message"].partition("metrics at ")[2].partition("/metrics")[0] for each in served(parent)]


def served(parent: Role) -> list[dict[str, object]]:
    return [each for each in parent.log if "Service listens on" in each["message"]]


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
