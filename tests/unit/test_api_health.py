import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from api_fakes import FakeChannel, FakeOrders, FakeProducts
from flask.testing import FlaskClient
from flask_openapi3 import OpenAPI

from ordersys.api import health
from ordersys.api.access import Caller
from ordersys.api.app import Options, create_app
from ordersys.api.breaker import FAILURES
from ordersys.api.health import Readiness
from ordersys.api.metrics import Metrics
from ordersys.api.upstream import Upstream
from ordersys.core import errors

READY = {"status": "ready"}
UNAVAILABLE = {"status": "unavailable"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def products() -> FakeProducts:
    return FakeProducts()


@pytest.fixture
def orders() -> FakeOrders:
    return FakeOrders()


class Closed:
    """Lets nobody in."""

    def identify(self, headers: object, address: str) -> Caller:
        raise errors.Unauthenticated("who are you?")


def gateway(products: FakeProducts, orders: FakeOrders) -> FlaskClient:
    app = create_app(FakeChannel(products), FakeChannel(orders), options=Options(access=Closed()))
    return app.test_client()


# --- the answers ----------------------------------------------------------------------------------------------------


def test_healthz_and_readyz_need_no_credentials(products: FakeProducts, orders: FakeOrders) -> None:
    http = gateway(products, orders)
    assert http.get("/api/data").status_code == 401
    assert http.get("/healthz").json == {"status": "ok"}
    assert http.get("/readyz").status_code == 200


def test_ready_is_every_dependency_by_name(products: FakeProducts, orders: FakeOrders) -> None:
    response = gateway(products, orders).get("/readyz")
    assert response.status_code == 200
    assert response.json == {"status": "ready", "checks": {"product-service": READY, "order-service": READY}}
    assert products.requests == []


def test_one_that_is_away_is_named_and_healthz_does_not_mind(products: FakeProducts, orders: FakeOrders) -> None:
    orders.failure = errors.NoAnswer("192.0.2.9:50052: gone")
    http = gateway(products, orders)
    response = http.get("/readyz")
    assert response.status_code == 503
    assert response.json == {"status": "not_ready", "checks": {"product-service": READY, "order-service": UNAVAILABLE}}
    assert "192.0.2.9" not in response.text
    assert http.get("/healthz").status_code == 200


# --- with the breaker -----------------------------------------------------------------------------------------------


def test_an_open_breaker_is_shown_and_readyz_lets_the_next_call_try(products: FakeProducts) -> None:
    clock = Clock()
    upstream = Upstream("product-service", FakeChannel(products), deadline=1, metrics=Metrics(), clock=clock)

    def look() -> object:
        """As a gateway that has just started: nothing is remembered."""
        app = OpenAPI("health", doc_ui=False)
        app.register_api(health.resource([upstream]))
        return app.test_client().get("/readyz").json["checks"]["product-service"]

    def ask() -> None:
        with upstream.breaker.guard():
            if products.failure is not None:
                raise products.failure

    products.failure = errors.NoAnswer("gone")
    for _ in range(FAILURES):
        with pytest.raises(errors.NoAnswer):
            ask()
    assert look() == {**UNAVAILABLE, "breaker": "open"}
    products.failure = None
    with pytest.raises(errors.Unavailable):
        ask()
    assert look() == {**READY, "breaker": "half-open"}
    ask()
    assert look() == READY


# --- the looking ----------------------------------------------------------------------------------------------------


class Probe:
    """A dependency that can be away, hang, or break, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.ready = True
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()

    def __call__(self) -> bool:
        self.asked += 1
        self.free.wait(20)
        if self.error is not None:
            raise self.error
        return self.ready


def test_what_was_found_is_good_for_a_second() -> None:
    probe, clock = Probe(), Clock()
    readiness = Readiness({"a": probe}, clock=clock)
    for _ in range(100):
        assert readiness.look() == {"a": True}
    assert probe.asked == 1
    probe.ready = False
    clock.now += 0.9
    assert readiness.look() == {"a": True}
    clock.now += 0.1
    assert readiness.look() == {"a": False}
    assert probe.asked == 2


def test_all_are_asked_at_once_and_none_is_waited_for_longer_than_the_bound() -> None:
    first, second, third = Probe(), Probe(), Probe()
    first.free.clear()
    second.free.clear()
    begun = time.monotonic()
    found = Readiness({"a": first, "b": second, "c": third}, seconds=0.3).look()
    assert found == {"a": False, "b": False, "c": True}
    assert 0.3 <= time.monotonic() - begun < 0.5 + 1  # not 0.6; the second is for a busy machine
    assert (first.asked, second.asked) == (1, 1)
    first.free.set()
    second.free.set()


def test_one_that_hangs_is_not_asked_again_until_it_has_answered() -> None:
    probe, clock = Probe(), Clock()
    probe.free.clear()
    readiness = Readiness({"a": probe}, seconds=0.05, clock=clock)
    for _ in range(5):
        assert readiness.look() == {"a": False}
        clock.now += 1
    assert probe.asked == 1
    probe.free.set()
    readiness._running["a"].result(10)
    assert readiness.look() == {"a": True}


def test_one_that_breaks_is_not_ready_and_the_reason_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    probe = Probe()
    probe.error = errors.Unavailable("database /secret/place: locked")
    assert Readiness({"keys": probe}).look() == {"keys": False}
    assert "the check of keys failed: database /secret/place: locked" in caplog.text


def test_who_comes_while_another_asks_is_answered_at_once_with_what_is_known() -> None:
    probe, clock = Probe(), Clock()
    readiness = Readiness({"a": probe}, seconds=10, clock=clock)
    readiness.look()
    probe.free.clear()
    probe.ready = False
    clock.now += 2
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(readiness.look)
        until(lambda: probe.asked == 2)
        assert readiness.look() == {"a": True}
        assert not asking.done()
        probe.free.set()
        assert asking.result(10) == {"a": False}
    assert readiness.look() == {"a": False}


def test_further_dependencies_can_be_named() -> None:
    app = OpenAPI("health", doc_ui=False)
    probe = Probe()
    probe.ready = False
    app.register_api(health.resource([], {"key-database": probe}))
    assert app.test_client().get("/readyz").json == {"status": "not_ready", "checks": {"key-database": UNAVAILABLE}}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)
