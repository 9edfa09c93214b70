"""`ordersys doctor` as a person runs it: before anything runs, while everything does, and when something is gone."""

import json
from pathlib import Path
from typing import Any

import pytest
from e2e.processes import Backend, Done, free_port, until
from e2e.terminal import Terminal

PATIENT = ("doctor", "--seconds", "60")
"""On a busy machine nothing is to be late: what is too late is another test's concern."""


def apart(backend: Backend) -> Backend:
    """The same with admin ports that no other deployment of this machine has."""
    for role in ("PRODUCT", "ORDER", "NOTIFY"):
        backend.environment[f"ORDERSYS_{role}_ADMIN_BIND"] = f"127.0.0.1:{free_port()}"
    return backend


def levels(done: Done) -> dict[str, str]:
    document = json.loads(done.out)
    assert document["ok"] == (done.code == 0)
    return {each["check"]: each["level"] for each in document["findings"]}


def not_ok(done: Done) -> dict[str, str]:
    return {check: level for check, level in levels(done).items() if level != "ok"}


def files(folder: Path) -> dict[str, Any]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def test_where_nothing_was_ever_started_nothing_is_wrong_and_nothing_is_made(embedded: Backend) -> None:
    done = apart(embedded).run(*PATIENT, "--json")
    assert (done.code, done.err) == (0, "")
    assert not_ok(done) == {"call product-service": "warning", "call order-service": "warning", "API keys": "warning"}
    assert not embedded.home.exists()


def test_every_role_running_then_one_gone(backend: Backend) -> None:
    order, *others = apart(backend).start_all("serve-order", "serve-product", "notify --mode fanout", "api")
    others += [backend.start("notify", "--mode", "topic", ORDERSYS_NOTIFY_ADMIN_BIND="off").ready()]
    backend.place("1:1")
    until(lambda: not_ok(backend.run(*PATIENT, "--json")) == {"API keys": "warning"}, "everything but the keys is fine")
    assert order.stop() == 0
    done = backend.run(*PATIENT, "--json")
    assert done.code == 1
    assert not_ok(done)["call order-service"] == "problem"
    assert [role.stop() for role in others] == [0] * len(others)

    before = files(backend.folder)
    done = backend.run(*PATIENT, "--json")
    assert (done.code, files(backend.folder)) == (0, before)  # not even a file of a write-ahead log
    assert not_ok(done) == {"call product-service": "warning", "call order-service": "warning", "API keys": "warning"}


def test_settings_that_cannot_be_used_are_the_one_problem(alone: Backend) -> None:
    done = alone.run("doctor", "--json", ORDERSYS_ORDER_BINDD="127.0.0.1:1")
    assert (done.code, levels(done)) == (1, {"settings": "problem"})
    assert "did you mean ORDERSYS_ORDER_BIND?" in done.out


def test_in_a_pipe_each_finding_is_a_line_of_tab_separated_cells(alone: Backend) -> None:
    done = apart(alone).run(*PATIENT, ORDERSYS_ORDER_BIND="192.0.2.1:50052")
    assert (done.code, done.err) == (1, "")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert {len(row) for row in rows} == {3, 4}  # a fix only where something is to be mended
    assert {(row[0], len(row)) for row in rows} == {("ok", 3), ("warning", 4), ("problem", 4)}


@pytest.mark.parametrize("columns", ["80", "120"])
def test_on_a_terminal_there_is_a_table_that_fits(alone: Backend, columns: str) -> None:
    with Terminal(apart(alone), *PATIENT, COLUMNS=columns) as terminal:
        assert terminal.ends() == 0
    lines = terminal.text.splitlines()
    assert lines[-1].endswith("3 warnings, 0 problems")
    table = [line for line in lines if line.startswith(("ok ", "warning ", "problem "))]
    assert len(table) > 15
    assert max(map(len, table)) <= int(columns)
    assert "ordersys serve-product" in terminal.text
