import pytest
from api_fakes import FakeChannel, FakeOrders, FakeProducts
from flask.testing import FlaskClient
from flask_openapi3 import OpenAPI

from ordersys.api import health
from ordersys.api.access import Caller
from ordersys.api.app import Options, create_app
from ordersys.api.breaker import FAILURES
from ordersys.api.metrics import Metrics
from ordersys.api.upstream import Upstream
from ordersys.core import errors
from ordersys.core.watch.readiness import Check, Readiness

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
    checks = {"product-service": READY, "order-service": READY, "broker": READY}
    assert response.json == {"status": "ready", "checks": checks}
    assert products.requests == []


def test_one_that_is_away_is_named_and_healthz_does_not_mind(products: FakeProducts, orders: FakeOrders) -> None:
    orders.failure = errors.NoAnswer("192.0.2.9:50052: gone")
    http = gateway(products, orders)
    response = http.get("/readyz")
    assert response.status_code == 503
    checks = {"product-service": READY, "order-service": UNAVAILABLE, "broker": {"status": "unknown"}}
    assert response.json == {"status": "not_ready", "checks": checks}
    assert "192.0.2.9" not in response.text
    assert http.get("/healthz").status_code == 200


def test_without_the_broker_it_is_degraded_and_still_ready(products: FakeProducts, orders: FakeOrders) -> None:
    orders.missing = {"broker"}
    response = gateway(products, orders).get("/readyz")
    assert response.status_code == 200
    checks = {"product-service": READY, "order-service": READY, "broker": UNAVAILABLE}
    assert response.json == {"status": "degraded", "checks": checks}


def test_further_dependencies_can_be_named() -> None:
    app = OpenAPI("health", doc_ui=False)
    app.register_api(health.resource(Readiness([Check("database", lambda: False)]), []))
    assert app.test_client().get("/readyz").json == {"status": "not_ready", "checks": {"database": UNAVAILABLE}}


# --- with the breaker -----------------------------------------------------------------------------------------------


def test_an_open_breaker_is_shown_and_readyz_lets_the_next_call_try(products: FakeProducts) -> None:
    clock = Clock()
    upstream = Upstream("product-service", FakeChannel(products), deadline=1, metrics=Metrics(), clock=clock)

    def look() -> object:
        """As a gateway that has just started: nothing is remembered."""
        app = OpenAPI("health", doc_ui=False)
        readiness = Readiness([Check(upstream.name, lambda: health.ready(upstream))])
        app.register_api(health.resource(readiness, [upstream]))
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
