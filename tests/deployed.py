"""What the code says about its roles, for the tests that hold deploy/ against it."""

import functools
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from ordersys import cli, settings, wiring
from ordersys.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "deploy"
_PREFIX = "ORDERSYS_"


@dataclass(frozen=True)
class Role:
    """A role of the command line; `needs` are the settings through which it calls others, `binds` where it listens."""

    name: str
    command: str
    admin: str  # the setting of the port that answers /metrics, /healthz and /readyz
    needs: frozenset[str]
    binds: frozenset[str]

    @property
    def ports(self) -> set[int]:
        return {port(each) for each in self.binds}


def _role(name: str, command: str, admin: str, *sources: object) -> Role:
    text = "".join(inspect.getsource(each) for each in sources)  # type: ignore[arg-type]
    needs = set(re.findall(r"settings\.(\w+_(?:address|database_url))\b", text))
    if re.search(r"\bbroker\(settings\)", text):
        needs.add("broker_url")
    return Role(name, command, admin, frozenset(needs), frozenset(re.findall(r"\b[a-z]+(?:_admin)?_bind\b", text)))


@functools.cache
def roles() -> dict[str, Role]:
    """By the name under which `ordersys health` knows it."""
    found = (
        _role("product-service", "serve-product", "product_admin_bind", cli.serve_product, wiring.ProductPart),
        _role("order-service", "serve-order", "order_admin_bind", cli.serve_order, wiring.OrderPart),
        _role("notification-service", "notify", "notify_admin_bind", cli.notify, wiring.NotifierPart),
        _role("api", "api", "api_bind", cli.api, wiring.ApiPart),
    )
    return {each.name: each for each in found}


def role_of(arguments: Iterable[str]) -> Role:
    """The role that this command line runs."""
    first = next(iter(arguments))
    [found] = [role for role in roles().values() if role.command == first]
    return found


def port(bind: str) -> int:
    """The port of a setting that says where something listens, by default."""
    return int(getattr(Settings(), bind).rpartition(":")[2])


def owner_of(number: int) -> str:
    """The setting whose default port this is."""
    found = [name for name in Settings.model_fields if name.endswith("_bind") and port(name) == number]
    return found[0] if found else ""


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_all(path: Path) -> list[Any]:
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def accepts(arguments: Iterable[str]) -> None:
    """Fails when the command line does not take this command with these options."""
    words = list(arguments)
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        word = words.pop(0)
        assert word in command.commands, f"there is no command {word}"
        command = command.commands[word]
    command.make_context(command.name, words)


def loads(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """The settings of a process with this environment; the files that it names hold a URL.

    Fails for a name that no setting has and a value that its setting does not take.
    """
    with monkeypatch.context() as patched:
        for name, value in environment.items():
            if name.startswith(_PREFIX) and name.endswith("_URL_FILE"):
                file = tmp_path / name
                file.write_text("amqp://u:p@h:5672/v\n" if "BROKER" in name else "postgresql://u:p@h/d\n")
                value = str(file)
            if name.startswith(_PREFIX):
                patched.setenv(name, value)
        return settings.load()


def named(environment: Mapping[str, str]) -> set[str]:
    """The settings that are given here, in the environment or in a file."""
    given = {name.removeprefix(_PREFIX).lower() for name in environment if name.startswith(_PREFIX)}
    return {name if name in Settings.model_fields else name.removesuffix("_file") for name in given}
