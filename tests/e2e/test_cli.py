"""What the command line says by itself: help, and the operators' verbs."""

import json
import subprocess
import sys
from typing import Any

import pytest
from e2e.processes import Backend, Done

SECRET = "s3cret-word"  # noqa: S105 - the point is that nobody ever sees it


def test_debug_shows_where_and_keeps_the_exit_code(embedded: Backend) -> None:
    for arguments, code in (("client get-data", 3), ("client place-order --line x", 2)):
        told = embedded.run("--debug", *arguments.split())
        assert told.code == code
        assert told.err.startswith("Traceback (most recent call last):")
        assert told.err.splitlines()[-1].startswith("error: ")


# --- help -------------------------------------------------------------------------------------------------------

VERBS = """
get-data list-products get-product adjust-stock place-order update-order cancel-order ship-order deliver-order get-order
list-orders watch
"""
COMMANDS = [
    "ordersys",
    *(
        f"ordersys {name}"
        for name in ("up", "demo", "serve-product", "serve-order", "api", "notify", "config", "doctor", "top")
    ),
    "ordersys client",
    *(f"ordersys client {verb}" for verb in VERBS.split()),
    "ordersys db",
    *(f"ordersys db {verb}" for verb in ("upgrade", "current", "seed")),
    "ordersys keys",
    *(f"ordersys keys {verb}" for verb in ("create", "list", "revoke")),
    "ordersys topology",
    *(f"ordersys topology {verb}" for verb in ("show", "declare")),
]


@pytest.fixture(scope="module")
def helps(alone: Backend) -> dict[str, Done]:
    return alone.run_all((f"{command.removeprefix('ordersys')} --help" for command in COMMANDS), COLUMNS="100")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(helps: dict[str, Done], command: str) -> None:
    shown = helps[f"{command.removeprefix('ordersys')} --help"]
    assert (shown.code, shown.err) == (0, "")
    assert f"Usage: {command} " in shown.out
    assert "--help" in shown.out


LIGHT = """
import sys
from ordersys.cli import main
sys.argv = ["ordersys", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"grpc", "sqlalchemy", "alembic", "flask", "pika", "pydantic_settings", "google.protobuf", "uvloop"}
    print(*sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "client --help",
        "client place-order --help",
        "db --help",
        "topology --help",
        "demo --help",
        "doctor --help",
        "top --help",
    ],
)
def test_help_is_light(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *command.split()], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "\n"  # pydantic is not looked for: typer itself needs it


def test_without_a_command_the_help_is_shown(alone: Backend) -> None:
    for shown in alone.run_all(["", "client", "db", "topology"]).values():
        assert (shown.code, shown.err) == (2, "")
        assert "Usage: ordersys" in shown.out


# --- the operators' verbs ---------------------------------------------------------------------------------------


def test_databases(backend: Backend) -> None:
    services = ["product", "order", "notify", "api"]

    def current() -> dict[str, Any]:
        done = backend.run("db", "current", "--json")
        assert done.err == ""
        found: dict[str, Any] = json.loads(done.out)
        behind = [each for each in found.values() if each["current"] != each["newest"]]
        assert done.code == (1 if behind else 0)
        return found

    assert [(name, each["current"]) for name, each in current().items()] == [(each, "") for each in services]
    upgraded = backend.run("db", "upgrade", "--json").document
    newest = {name: each["newest"] for name, each in current().items()}
    assert all(newest.values())
    assert upgraded == {name: {"from": "", "to": newest[name]} for name in services}
    assert current() == {name: {"current": newest[name], "newest": newest[name]} for name in services}
    assert backend.run("db", "upgrade", "--json").document == {
        name: {"from": newest[name], "to": newest[name]} for name in services
    }
    assert backend.run("db", "seed", "--json").document == {"seeded": {"product": True, "order": True}}
    assert backend.run("db", "seed", "--json").document == {"seeded": {"product": False, "order": False}}
    plain = backend.run("db", "current")
    assert (plain.code, plain.out.split()[:3]) == (0, ["product", newest["product"], newest["product"]])


def test_topology(backend: Backend) -> None:
    shown = backend.run("topology", "show", "--json").document
    assert {each["name"]: each["kind"] for each in shown["exchanges"]} == {
        "orders.fanout": "fanout",
        "orders.topic": "topic",
    }
    bound = {
        each["name"]: [(binding["exchange"], binding["pattern"]) for binding in each["bindings"]]
        for each in shown["queues"]
    }
    assert bound == {
        "notify.fanout": [("orders.fanout", "")],
        "notify.topic": [("orders.topic", "order.created"), ("orders.topic", "order.updated.#")],
    }
    names = ["orders.fanout", "orders.topic", "notify.fanout", "notify.topic"]
    for _ in range(2):
        assert backend.run("topology", "declare", "--json").document == {"declared": names}
    assert backend.run("topology", "declare").out == f"declared: {', '.join(names)}\n"
    assert "notify.topic.dlq" in backend.run("topology", "show").out


def test_config_masks_secrets(embedded: Backend) -> None:
    broker = f"amqp://guest:{SECRET}@rabbit.example:5672/%2F"
    database = f"postgresql+psycopg://shop:{SECRET}@db.example/shop"
    chosen = {"ORDERSYS_BROKER_URL": broker, "ORDERSYS_ORDER_DATABASE_URL": database}
    shown = embedded.run("config", "--json", **chosen).document
    assert shown["ORDERSYS_BROKER_URL"] == "amqp://guest:***@rabbit.example:5672/%2F"
    assert shown["ORDERSYS_ORDER_DATABASE_URL"] == "postgresql+psycopg://shop:***@db.example/shop"
    assert shown["ORDERSYS_PRODUCT_DATABASE_URL"] == f"sqlite:///{embedded.home}/product.db"
    assert shown["ORDERSYS_HOME"] == str(embedded.home)
    plain = embedded.run("config", **chosen)
    assert (plain.code, plain.err) == (0, "")
    assert SECRET not in plain.out
    assert [line.split("\t")[0] for line in plain.out.splitlines()] == list(shown)
    assert not embedded.home.exists()  # looking makes nothing
