"""A deployment whose every role has a certificate of `ordersys certs init`."""

import json
import ssl
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2e.processes import Backend, Role

from ordersys.core.tls import Files


class Secured:
    """A deployment and the environment of each role."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        made = backend.run("certs", "init", "--dir", str(backend.folder / "certs"), "--json").document
        self.environments = {
            role: dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
            for role, lines in made["environments"].items()
        }
        self.ca = Path(self.environments["client"]["ORDERSYS_TLS_CA_FILE"])

    def start(self, role: str, *arguments: str, **settings: str) -> Role:
        return self.backend.start(*arguments, **self.environments[role], **settings)

    def client(self, *arguments: str, role: str = "client") -> Any:
        return self.backend.run("client", *arguments, "--json", **self.environments[role]).document

    def certificate(self, role: str) -> Files:
        return Files(*(str(self.ca.with_name(name)) for name in (self.ca.name, f"{role}.crt", f"{role}.key")))


def all_roles(secured: Secured, settings: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Role]:
    """Every role, ready; `settings` are what some of them have beside their certificates."""
    wanted = {
        "order": ("order-service", "serve-order"),
        "product": ("product-service", "serve-product"),
        "fanout": ("notification-service", "notify", "--mode", "fanout", "--json"),
        "topic": ("notification-service", "notify", "--mode", "topic", "--json"),
        "api": ("api", "api"),
    }
    own = settings or {}
    roles = {name: secured.start(*command, **own.get(name, {})) for name, command in wanted.items()}
    for role in roles.values():
        role.ready()
    return roles


def https(secured: Secured, path: str, body: object = None) -> Any:
    context = ssl.create_default_context(cafile=str(secured.ca))
    request = urllib.request.Request(
        f"https://{secured.backend.api_address}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310 - https
        return json.loads(answer.read())
