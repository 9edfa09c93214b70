"""What deployments ask the command line: the health of whichever role runs there, and to take a key that was drawn."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from role_site import site
from typer.testing import CliRunner, Result

from ordersys import cli
from ordersys.core import errors

KEY = f"osk_0123456789ab_{'s' * 43}"


def ran(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No role answers on this machine."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        for name in ("PRODUCT_BIND", "ORDER_BIND", "NOTIFY_ADMIN_BIND", "API_BIND"):
            monkeypatch.setenv(f"ORDERSYS_{name}", f"127.0.0.1:{held.getsockname()[1]}")
        yield


def readyz(status: str, **checks: str) -> dict[str, object]:
    return {"status": status, "checks": {name: {"status": said} for name, said in checks.items()}}


def test_without_a_name_the_role_that_runs_here_is_asked(nobody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with site(readyz=readyz("ready", broker="ready")) as address:
        monkeypatch.setenv("ORDERSYS_NOTIFY_ADMIN_BIND", address)
        done = ran("health")
        assert (done.exit_code, done.stdout) == (0, "notification-service: ready\n")
        done = ran("health", "--json")
        assert json.loads(done.stdout) == {"service": "notification-service", "status": "ready", "missing": []}


def test_of_several_roles_none_may_be_unready(nobody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with site(readyz=readyz("ready")) as api, site(readyz=readyz("not_ready", broker="down")) as notifier:
        monkeypatch.setenv("ORDERSYS_API_BIND", api)
        monkeypatch.setenv("ORDERSYS_NOTIFY_ADMIN_BIND", notifier)
        done = ran("health")
    assert (done.exit_code, done.stdout) == (1, "api: ready\nnotification-service: not ready: broker\n")


def test_where_no_role_answers_it_says_so_of_each(nobody: None) -> None:
    done = ran("health")
    assert isinstance(done.exception, errors.Unavailable)
    for name in ("product-service", "order-service", "notification-service", "api"):
        assert f"{name}: " in str(done.exception)


def test_an_address_is_that_of_one_role(nobody: None) -> None:
    done = ran("health", "--address", "127.0.0.1:1")
    assert isinstance(done.exception, errors.UsageError)
    assert "--service" in str(done.exception)


def test_a_key_in_a_file_is_taken_as_often_as_one_likes_and_never_printed(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    create = ("keys", "create", "--name", "first", "--scope", "admin", "--key-file", str(file))
    for done in (ran(*create), ran(*create)):
        assert (done.exit_code, done.stdout) == (0, "taken: 0123456789ab\n")
    assert "api_key" not in json.loads(ran(*create, "--json").stdout)
    assert [each["id"] for each in json.loads(ran("keys", "list", "--json").stdout)["keys"]] == ["0123456789ab"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "cannot be read: No such file"), (b"", "is empty"), (b"\xff", "not text in UTF-8"), (b"x" * 60, "no key")],
)
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    done = ran("keys", "create", "--name", "first", "--scope", "admin", "--key-file", str(file))
    assert done.exit_code != 0
    assert complaint in " ".join(f"{done.output} {done.exception}".replace("│", " ").split())
