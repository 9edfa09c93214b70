"""Everything at once on real servers: mTLS between the services, amqps, PostgreSQL over TLS, least-privilege users."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from contract.test_broker_rights import commands
from e2e.processes import Backend, until
from e2e.secured import Secured, all_roles, https
from faults import nodes

PASSWORD = "typed-once"  # noqa: S105 - of users that are gone with their servers
SERVICES = ("product", "order", "notify", "api")
ROLES = ("product-service", "order-service", "notification-service", "api")


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    with Backend(tmp_path, {}) as backend:
        yield Secured(backend)


def test_every_role_works_with_the_least_rights_over_tls_alone(secured: Secured) -> None:
    backend = secured.backend
    certificate = {name: secured.certificate(name) for name in secured.environments}
    with (
        nodes.rabbitmq_node(certificate["rabbitmq"]) as rabbitmq,
        nodes.postgres_cluster(certificate["postgresql"]) as postgres,
    ):
        vhost = rabbitmq.vhost().rpartition("/")[2]
        printed = backend.run("topology", "permissions", "--vhost", vhost, "--prefix", "shop")
        for command in commands(printed.out):
            rabbitmq.control(*command, typed=PASSWORD)
        rabbitmq.control("clear_permissions", "-p", vhost, "guest")  # nobody is left who may do everything

        def broker(user: str) -> dict[str, str]:
            url = f"amqps://shop-{user}:{PASSWORD}@localhost:{rabbitmq.tls_port}/{vhost}"
            return {"ORDERSYS_BROKER_URL": url}

        name = postgres.database().rpartition("/")[2]

        def database(role: str, certificate_of: str) -> str:
            own = certificate[certificate_of]
            files = {"sslmode": "verify-full", "sslrootcert": own.ca, "sslcert": own.cert, "sslkey": own.key}
            address = f"shop_{role}:{PASSWORD}@localhost:{postgres.port}/{name}"
            return f"postgresql+psycopg://{address}?{urlencode(files)}"

        def databases(role: str, certificate_of: str, *services: str) -> dict[str, str]:
            return {f"ORDERSYS_{each.upper()}_DATABASE_URL": database(role, certificate_of) for each in services}

        operator = secured.environments["operator"]
        administrator = {
            f"ORDERSYS_{each.upper()}_DATABASE_URL": postgres_url(postgres.port, name) for each in SERVICES
        }
        assert backend.run("db", "upgrade", **administrator).code == 0
        postgres.psql(backend.run("db", "permissions", "--prefix", "shop", **administrator).out)
        for role in SERVICES:
            postgres.ask(f"ALTER ROLE shop_{role} PASSWORD '{PASSWORD}'")
        assert backend.run("topology", "declare", **operator, **broker("admin")).code == 0

        roles = all_roles(
            secured,
            {
                "order": broker("order") | databases("order", "order-service", "order"),
                "product": databases("product", "product-service", "product"),
                "fanout": broker("notifier-notify.fanout") | databases("notify", "notification-service", "notify"),
                "topic": broker("notifier-notify.topic") | databases("notify", "notification-service", "notify"),
                "api": databases("api", "api", "api"),
            },
        )
        order = secured.client("place-order", "--product", "1", "--quantity", "2")["order"]
        line = {"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 1}]}
        heard = {order["id"], https(secured, "/api/v1/orders", line)["id"]}
        for each in ("fanout", "topic"):
            until(lambda each=each: {event["subject"] for event in roles[each].events(heard)} == heard, each)
        secured.client("cancel-order", order["id"])
        until(lambda: "order.updated" in roles["topic"].out, "the cancellation at the topic notifier")
        assert backend.run("inventory", "audit", "--json", **operator).document["ok"]
        assert backend.run("dlq", "list", "--json", **operator, **broker("operator")).code == 0

        # Who looks after it all sees it all, with rights of that kind: nothing is wrong, and no figure is missing.
        looking = operator | broker("operator")
        for each, certificate_of in zip(SERVICES, ROLES, strict=True):
            looking |= databases(each, certificate_of, each)
        told = backend.run("doctor", "--seconds", "60", "--json", **looking)
        findings = {each["check"]: each for each in json.loads(told.out)["findings"] if each["level"] != "ok"}
        assert (told.code, set(findings)) == (0, {"API keys"}), findings
        seen = backend.run("top", "--once", "--json", **operator).document
        assert {each["method"] for each in seen["calls"]} >= {"PlaceOrder", "ProcessOrders"}

        # What no role may: another's tables, another's queue.
        trespass = backend.run("dlq", "list", **operator, **broker("order"))
        assert trespass.code != 0
        stolen = backend.start("serve-product", **databases("notify", "notification-service", "product"))
        until(lambda: not stolen.running, "a service with another's database role ends")
        for role in roles.values():
            assert PASSWORD not in role.err
            assert all(json.loads(said)["log.level"] in ("info", "warning") for said in role.err.splitlines() if said)


def postgres_url(port: int, name: str) -> str:
    return f"postgresql+psycopg://postgres@127.0.0.1:{port}/{name}"
