"""Who may know whom. The rules are data; the checker below is itself checked with snippets that break them.

Every import counts, at the top of a file or inside a function, at run time or for types only.
"""

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ordersys"

# File -> what it may import of ordersys; the first pattern that fits decides. A package includes what is in it.
KNOWS: dict[str, tuple[str, ...]] = {
    "__init__.py": (),
    "__main__.py": ("cli",),
    "core/*": ("core",),
    "broker/*": ("broker", "core"),
    # The model is pure: it knows the language, its own room's pure files, and nothing that does anything.
    "*/model.py": ("core.errors", "core.events", "core.fields", "core.records", "core.topology", ".book"),
    "*/book.py": ("core.errors", "core.events", "core.fields", "core.records", "core.topology"),
    "product/*": ("product", "core"),
    "order/relay.py": ("order", "core", "broker.broker"),
    "order/*": ("order", "core"),
    "notify/*": ("notify", "core", "broker.broker"),
    "api/*": ("api", "core"),
    # A user's load generator: it comes through the front doors, as processes of its own.
    "bench/command.py": ("bench", "core", "client", "operate.printing", "settings"),
    "bench/system.py": ("bench", "core", "settings"),
    "bench/*": ("bench", "core", "client"),
    "client/verbs.py": ("client", "core", "settings"),  # commands, like cli.py: they look up whom to call
    "client/*": ("client", "core"),
    "forms.py": ("core",),
    "settings.py": ("core", "forms"),
    "supervisor.py": (),
    "lifecycle.py": ("core", "supervisor"),
    "logs.py": ("core",),
    "workers.py": ("core",),
    "role.py": ("core", "settings"),
    "extensions.py": ("core", "notify", "product.rules", "settings"),
    "databases.py": ("core", "product", "order", "notify", "api", "settings"),
    "wiring.py": ("core", "broker", "product", "order", "notify", "api", "settings", "lifecycle", "role", "extensions"),
    "operate/doctor/*": ("operate", "core", "broker.broker", "databases", "settings", "wiring"),
    "demo.py": ("core", "client", "settings", "lifecycle", "logs", "wiring", "databases"),
    "operate/access.py": ("operate", "core", "api.keys", "settings", "databases"),
    # The verbs of who runs the system: they look into every service through its client, and open the broker.
    "operate/rights.py": ("operate", "core", "notify.queues", "settings", "databases"),
    "operate/setup.py": ("operate", "core", "notify.queues", "settings", "wiring", "databases"),
    "operate/health.py": ("core", "operate.web", "settings"),
    "operate/*": (
        "operate",
        "core",
        "client",
        "broker.broker",
        "broker.dead_letters",
        "settings",
        "wiring",
        "databases",
    ),
    "cli.py": (
        "core",
        "bench",
        "client",
        "operate",
        "notify.queues",
        "settings",
        "lifecycle",
        "supervisor",
        "logs",
        "wiring",
        "workers",
        "demo",
    ),
}

_GRPC = ("core/rpc/*", "core/watch/spans.py", "*/servicer.py")

# Module -> the only files that may import it.
ONLY_IN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("grpc", "grpc_health", "grpc_reflection", "grpc_status"), _GRPC),
    "sqlalchemy": (
        "core/storage/database.py",
        "core/storage/looked_into.py",
        "core/storage/migrations.py",
        "core/storage/statement.py",
        "core/storage/turn.py",
        "*/store.py",
        "*/tables.py",
        "*/migrations/*",
        "notify/inbox.py",
        "broker/sqlite.py",
    ),
    "alembic": ("core/storage/migrations.py", "*/migrations/*"),
    "sqlite3": ("core/storage/database.py", "core/storage/looked_into.py", "broker/sqlite*.py"),
    "psycopg": (),
    "pika": ("broker/rabbitmq*.py",),
    **dict.fromkeys(("flask", "flask_openapi3", "werkzeug", "cheroot"), ("api/*",)),
    "pydantic_settings": ("settings.py",),
    "opentelemetry": ("core/watch/tracing.py", "core/watch/spans.py", "core/watch/otlp.py"),
    **dict.fromkeys(("opentelemetry.sdk", "opentelemetry.exporter"), ("core/watch/otlp.py",)),  # the extra
    "os.environ": ("settings.py", "core/rpc/grpc_log.py"),  # the one reads our settings, the other writes gRPC's
    "os.getenv": ("settings.py",),
    # Modules are imported by their names, or these rules would be blind.
    "importlib.import_module": (),
    "__import__": (),
}

PURE = ("*/model.py", "*/book.py")
IMPURE = (
    *("asyncio", "datetime.datetime.now", "io", "logging", "open", "os", "pathlib", "random", "secrets", "socket"),
    *("subprocess", "threading", "time", "urllib", "uuid", "ordersys.core.ids"),
)

BAGS = ("base", "common", "helper", "helpers", "manager", "misc", "util", "utils")
MAX_LINES = 400
GENERATED = "core/v1/*"


def complaints(file: str, source: str) -> list[str]:
    """What this file of the package does that it may not; `file` is its path below the package."""
    if fnmatch(file, GENERATED):
        return []
    found = []
    if bags := {Path(part).stem for part in Path(file).parts} & set(BAGS):
        found.append(f"{file}: {', '.join(bags)} is a bag, not a name")
    if (lines := source.count("\n")) > MAX_LINES:
        found.append(f"{file}: {lines} lines, more than {MAX_LINES}")
    own = next((names for pattern, names in KNOWS.items() if fnmatch(file, pattern)), None)
    if own is None:
        return [*found, f"{file}: no rule says what it may know"]
    allowed = [f"ordersys.{_absolute(file, name)}" for name in own]
    for line, name in sorted(set(_used(file, ast.parse(source)))):
        if name.startswith("ordersys.") and name != "ordersys.__version__" and not _within(name, allowed):
            found.append(f"{file}:{line}: may not know {name}")
        for module, places in ONLY_IN.items():
            if _within(name, [module]) and not any(fnmatch(file, place) for place in places):
                found.append(f"{file}:{line}: {name} belongs to {', '.join(places) or 'nobody'}")
        if any(fnmatch(file, pattern) for pattern in PURE) and _within(name, IMPURE):
            found.append(f"{file}:{line}: {name} has no place in a pure file")
    return found


def _absolute(file: str, name: str) -> str:
    return Path(file).parts[0] + name if name.startswith(".") else name


def _within(name: str, modules: list[str] | tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _used(file: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that is imported, and of what is reached through an imported name or a builtin."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                head = each.name.partition(".")[0]
                names[each.asname or head] = each.name if each.asname else head
                yield node.lineno, each.name
        elif isinstance(node, ast.ImportFrom):
            module = _imported_from(file, node)
            for each in node.names:
                names[each.asname or each.name] = f"{module}.{each.name}"
                yield node.lineno, f"{module}.{each.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := _dotted(node, names)):
            yield node.lineno, name
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "__import__"):
            yield node.lineno, node.func.id


def _imported_from(file: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = ("ordersys", *Path(file).parent.parts)
    return ".".join((*package[: len(package) - node.level + 1], *filter(None, [node.module])))


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`os.environ` for an attribute of an imported name, "" for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        head = _dotted(node.value, names)
        return f"{head}.{node.attr}" if head else ""
    return ""


def files() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", files())
def test_every_file_keeps_to_its_rules(file: str) -> None:
    assert complaints(file, (PACKAGE / file).read_text(encoding="utf-8")) == []


def test_every_rule_is_about_something() -> None:
    rooms = {pattern.partition("/")[0] for pattern in KNOWS} - {"*"}
    assert rooms <= {Path(file).parts[0] for file in files()}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/topology.py", "from ordersys.broker import broker"),
        ("core/topology.py", "import ordersys.settings"),
        ("core/topology.py", "from ordersys import settings"),
        ("core/topology.py", "def f():\n    from ordersys.order.model import Order"),
        ("core/topology.py", "if TYPE_CHECKING:\n    from ordersys.order import model"),
        ("core/topology.py", "from ..order import model"),
        ("core/topology.py", "from .. import wiring"),
        ("broker/broker.py", "from ordersys.order import model"),
        ("product/service.py", "from ordersys.order import model"),
        ("product/service.py", "from ordersys.broker.broker import Broker"),
        ("order/service.py", "from ordersys.product import model"),
        ("order/service.py", "from ordersys.broker.broker import Broker"),
        ("order/relay.py", "from ordersys.broker.sqlite import SqliteBroker"),
        ("order/relay.py", "from ordersys.broker import rabbitmq"),
        ("notify/consumer.py", "import ordersys.broker.rabbitmq"),
        ("notify/consumer.py", "from ordersys.order import model"),
        ("notify/consumer.py", "from ordersys import wiring"),
        ("api/orders.py", "from ordersys.client import calls"),
        ("api/orders.py", "from ordersys.settings import Settings"),
        ("client/calls.py", "from ordersys import wiring as w"),
        ("lifecycle.py", "from ordersys import wiring"),
        ("cli.py", "from ordersys.broker.sqlite import SqliteBroker"),
        ("demo.py", "from ordersys.product import store"),
        ("wiring.py", "from ordersys import cli"),
        ("product/service.py", "import grpc"),
        ("product/service.py", "from grpc import aio"),
        ("wiring.py", "def f():\n    import grpc.aio"),
        ("api/app.py", "from grpc_status import rpc_status"),
        ("order/service.py", "import sqlalchemy as sa"),
        ("order/relay.py", "from sqlalchemy.exc import DBAPIError"),
        ("order/store.py", "from alembic import op"),
        ("order/store.py", "import sqlite3"),
        ("core/storage/database.py", "import psycopg"),
        ("broker/broker.py", "import pika"),
        ("notify/consumer.py", "from pika.exceptions import AMQPError"),
        ("core/rpc/server.py", "import flask"),
        ("client/calls.py", "from werkzeug.exceptions import NotFound"),
        ("wiring.py", "from cheroot import wsgi"),
        ("wiring.py", "from pydantic_settings import BaseSettings"),
        ("order/relay.py", "from opentelemetry.trace import SpanKind"),
        ("core/watch/tracing.py", "from opentelemetry.sdk.trace import TracerProvider"),
        ("wiring.py", "import os\nos.environ['X']"),
        ("wiring.py", "import os as o\no.environ.get('X')"),
        ("wiring.py", "import os\nos.getenv('X')"),
        ("wiring.py", "from os import environ"),
        ("core/ids.py", "from os import getenv as g"),
        ("wiring.py", "import importlib\nimportlib.import_module('pika')"),
        ("wiring.py", "from importlib import import_module"),
        ("wiring.py", "__import__('pika')"),
        ("product/model.py", "import time"),
        ("product/model.py", "from random import choice"),
        ("product/model.py", "import uuid"),
        ("product/model.py", "import os.path"),
        ("product/model.py", "import io"),
        ("product/model.py", "open('x')"),
        ("product/model.py", "from datetime import datetime\ndatetime.now()"),
        ("product/model.py", "import datetime as d\nd.datetime.now(d.UTC)"),
        ("product/model.py", "from ordersys.core.ids import now_us"),
        ("product/model.py", "from ordersys.core import ids\nids.uuid7()"),
        ("product/model.py", "from ordersys.core.storage import database"),
        ("product/model.py", "from ordersys.product.store import ProductStore"),
        ("product/model.py", "from ordersys.order.book import Book"),
        ("order/model.py", "from ordersys.core.v1 import order_pb2"),
        ("product/book.py", "from ordersys.core import ids"),
        ("core/utils.py", ""),
        ("common/status.py", ""),
        ("order/manager.py", ""),
        ("order/service.py", "\n" * 401),
        ("warehouse/service.py", ""),
        ("tools.py", ""),
    ],
)
def test_the_checker_objects(file: str, source: str) -> None:
    assert complaints(file, source)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/v1/order_pb2_grpc.py", "import grpc\n" + "\n" * 1000),
        ("core/rpc/channel.py", "import grpc\nfrom ordersys.core.rpc import status"),
        ("core/ids.py", "import os\nos.urandom(8)"),
        ("product/servicer.py", "from grpc import aio\nfrom ordersys.product.service import ProductService"),
        ("product/model.py", "from ordersys.core.errors import FieldViolation\nfrom ordersys.product.book import Book"),
        ("product/model.py", "import json, hashlib\nfrom datetime import datetime\nbook.open('x')"),
        ("order/store.py", "import sqlalchemy as sa"),
        ("order/relay.py", "from ordersys.broker.broker import Broker"),
        ("notify/migrations/0001_initial.py", "import sqlalchemy as sa\nfrom alembic import op"),
        ("settings.py", "import os\nos.environ"),
        ("logs.py", "from ordersys import __version__"),
        ("cli.py", "from ordersys import wiring, demo"),
        ("wiring.py", "from ordersys.broker.sqlite import SqliteBroker"),
    ],
)
def test_the_checker_lets_pass(file: str, source: str) -> None:
    assert complaints(file, source) == []
