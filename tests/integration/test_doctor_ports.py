"""The doctor at the doors of the roles: who listens, who answers, and what a network that swallows everything costs."""

import dataclasses
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fake_services import FakeServices
from integration.grpc_site import taken_port
from role_site import site

from ordersys import __version__, settings
from ordersys.operate.doctor import ports
from ordersys.operate.doctor.findings import Check, Finding, Level, examine
from ordersys.settings import Settings

READY = {"status": "ready", "checks": {"database": {"status": "ready"}}}
OFF = dict.fromkeys(("product_admin_bind", "order_admin_bind", "notify_admin_bind"), "off")


@pytest.fixture
def services() -> Iterator[FakeServices]:
    running = FakeServices().start()
    yield running
    running.stop()


def free() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


def chosen(**given: str) -> Settings:
    """Settings of addresses where nobody listens, but for those given."""
    names = ("product_bind", "order_bind", "api_bind", "product_address", "order_address")
    return settings.load({**OFF, **{name: free() for name in names}, **given})


def looked(of: Settings, *names: str) -> dict[str, Finding]:
    checks: list[Check] = [check for check in ports.checks(of) if not names or check.name in names]
    return {each.check: each for each in examine(checks, 60)}


def levels(found: dict[str, Finding]) -> dict[str, str]:
    return {name: each.level.value for name, each in found.items()}


# --- ports --------------------------------------------------------------------------------------------------------


def test_where_nothing_runs_nothing_is_a_problem() -> None:
    found = looked(chosen())
    assert levels(found) == {
        "port product-service": "ok",
        "port order-service": "ok",
        "port api": "ok",
        "call product-service": "warning",
        "call order-service": "warning",
        "versions": "ok",
    }
    assert found["call product-service"].fix == "ordersys serve-product"


def test_ports_that_our_own_roles_hold(services: FakeServices) -> None:
    with site(readyz=READY) as rest:
        found = looked(chosen(product_bind=services.address, api_bind=rest, notify_admin_bind=rest))
    assert levels(found)["port product-service"] == "ok"
    assert "is ready" in found["port product-service"].found
    assert (found["port api"].level, "api listens on" in found["port api"].found) == (Level.OK, True)
    assert found["port notify admin port"].level is Level.OK


def test_a_port_that_somebody_else_holds() -> None:
    with site(readyz="<html>not ours</html>") as stranger, taken_port() as silent:
        found = looked(chosen(product_bind=stranger, order_bind=silent, api_bind=stranger))
    for role in ("product-service", "order-service", "api"):
        assert found[f"port {role}"].level is Level.PROBLEM
        assert f"nobody answers there as {role}" in found[f"port {role}"].found
        assert found[f"port {role}"].fix.startswith("ss -ltnp")


def test_an_admin_port_that_nobody_asked_for_may_be_taken() -> None:
    with taken_port() as silent:
        [door] = [each for each in ports.doors(settings.load()) if each.setting == "order_admin_bind"]
        [found] = ports._port(dataclasses.replace(door, bind=silent))
        assert (door.another, found.level) == (True, Level.WARNING)  # the role takes another
        [found] = looked(chosen(order_admin_bind=silent), "port order admin port").values()
        assert found.level is Level.PROBLEM


def test_one_service_on_the_port_of_the_other() -> None:
    with alone() as services:
        [found] = looked(chosen(order_bind=services.address), "port order-service").values()
    assert (found.level, "nobody answers there as order-service" in found.found) == (Level.PROBLEM, True)


@contextmanager
def alone() -> Iterator[FakeServices]:
    """A server that is the Product Service, and not the Order Service."""
    from fake_services import SERVICES

    running = FakeServices()
    running.services = SERVICES[:1]
    running.start()
    try:
        yield running
    finally:
        running.stop()


def test_a_role_that_is_not_ready_says_what_it_misses() -> None:
    state = {"status": "not_ready", "checks": {"database": {"status": "unavailable"}, "schema": {"status": "ready"}}}
    with site(readyz=state, status=503) as rest:
        [found] = looked(chosen(api_bind=rest), "port api").values()
    assert (found.level, found.found) == (Level.PROBLEM, f"api listens on {rest} and is not ready: database")


@pytest.mark.parametrize(
    ("bind", "level", "said"),
    [
        ("127.0.0.1:0", "ok", "any that is free"),
        ("192.0.2.7:50051", "problem", "cannot be listened on"),
        ("no-such-host.invalid:50051", "problem", "cannot be listened on"),
    ],
)
def test_addresses_that_are_any_or_not_ours(bind: str, level: str, said: str) -> None:
    [found] = looked(chosen(product_bind=bind, insecure="true"), "port product-service").values()
    assert (found.level, said in found.found) == (level, True)


def test_a_port_that_was_looked_at_is_free_again() -> None:
    of = chosen()
    assert levels(looked(of, "port api")) == {"port api": "ok"}
    host, _, port = of.api_bind.rpartition(":")
    socket.create_server((host, int(port))).close()


# --- whom clients call --------------------------------------------------------------------------------------------


def test_services_that_answer(services: FakeServices) -> None:
    found = looked(chosen(product_address=services.address, order_address=services.address), "services")
    assert levels(found) == {"call product-service": "ok", "call order-service": "ok"}


def test_one_service_without_the_other_is_a_problem(services: FakeServices) -> None:
    found = looked(chosen(product_address=services.address), "services")
    assert levels(found) == {"call product-service": "ok", "call order-service": "problem"}
    assert found["call order-service"].fix == "ordersys serve-order"


def test_addresses_that_answer_and_are_not_ordersys() -> None:
    with site(readyz=READY) as stranger, taken_port() as silent:
        found = looked(chosen(product_address=stranger, order_address=silent), "services")
    assert levels(found) == {"call product-service": "problem", "call order-service": "problem"}


def test_whoever_swallows_everything_is_given_up_in_time() -> None:
    """Every door, every database and the broker: somebody is there, and never says a word."""
    from ordersys.operate.doctor import databases, queues

    with taken_port() as silent:
        database = f"postgresql+psycopg://someone@{silent}/nothing"
        of = chosen(
            product_bind=silent,
            order_bind=silent,
            api_bind=silent,
            product_address=silent,
            order_address=silent,
            product_admin_bind=silent,
            broker_url=f"amqp://me:pw@{silent}/",
            **{f"{name}_database_url": database for name in ("product", "order", "notify", "api")},
        )
        checks = [check for area in (ports, databases, queues) for check in area.checks(of)]
        began = time.monotonic()
        found = examine(checks, 3)
        took = time.monotonic() - began
    assert took < 10  # a little more than 3 seconds, on a machine that has other things to do
    assert {each.check for each in found if each.level is not Level.PROBLEM} == {"versions"}


# --- versions -----------------------------------------------------------------------------------------------------


def build(service: str, version: str) -> str:
    return f'# TYPE ordersys_build_info gauge\nordersys_build_info{{service="{service}",version="{version}"}} 1.0\n'


def test_what_runs_has_our_version() -> None:
    with site(metrics=build("api", __version__) + "\n# EOF") as rest:
        [found] = looked(chosen(api_bind=rest), "versions").values()
    assert (found.level, found.found) == (Level.OK, f"{__version__}: api and this command")


def test_what_runs_has_another_version() -> None:
    with site(metrics=build("product-service", "0.0.1")) as admin, site(metrics=build("api", __version__)) as rest:
        [found] = looked(chosen(api_bind=rest, product_admin_bind=admin), "versions").values()
    assert (found.level, "there runs product-service 0.0.1" in found.found) == (Level.WARNING, True)


@pytest.mark.parametrize("text", ["<html>", "ordersys_build_info{", "\x00", ""])
def test_what_are_no_metrics_has_no_version(text: str) -> None:
    with site(metrics=text) as rest:
        [found] = looked(chosen(api_bind=rest), "versions").values()
    assert found.level is Level.OK


@pytest.mark.parametrize(("date", "told"), [(0, False), (3600, True), (-3600, True)])
def test_the_clock_of_the_api(date: int, told: bool) -> None:
    with site(metrics="", date=date) as rest:
        found = looked(chosen(api_bind=rest), "versions")
    assert ("clock of the API" in found) == told
    if told:
        assert ("ahead of" if date > 0 else "behind") in found["clock of the API"].found
