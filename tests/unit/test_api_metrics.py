import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from api_fakes import FakeChannel, FakeOrders, FakeProducts
from flask import Flask, Response
from flask.testing import FlaskClient
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

import ordersys
from ordersys.api import metrics as api_metrics
from ordersys.api.access import Caller, Scope
from ordersys.api.app import Options, create_app
from ordersys.api.metrics import Metrics
from ordersys.core import errors

ROUTE = "/api/v1/products/<id>"


@pytest.fixture
def products() -> FakeProducts:
    return FakeProducts()


@pytest.fixture
def http(products: FakeProducts) -> FlaskClient:
    return create_app(FakeChannel(products), FakeChannel(FakeOrders())).test_client()


def samples(http: FlaskClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def value(http: FlaskClient, name: str, **labels: str) -> float | None:
    return samples(http).get((name, frozenset(labels.items())))


# --- requests -------------------------------------------------------------------------------------------------------


def test_requests_are_counted_and_timed_by_route_and_not_by_path(http: FlaskClient) -> None:
    for number in (1, 1, 2, 3):
        http.get(f"/api/v1/products/{number}")
    counted = {"method": "GET", "route": ROUTE}
    assert value(http, "ordersys_http_requests_total", **counted, status="200") == 2
    assert value(http, "ordersys_http_requests_total", **counted, status="404") == 2
    assert value(http, "ordersys_http_request_duration_seconds_count", **counted) == 4


def test_what_callers_invent_makes_no_series(http: FlaskClient) -> None:
    for number in range(50):
        http.open(f"/nothing/{number}", method=f"METHOD{number}")
        http.delete("/api/data")
    found = {labels for name, labels in samples(http) if name == "ordersys_http_requests_total"}
    assert {tuple(sorted(each)) for each in found} == {
        (("method", "_OTHER"), ("route", "none"), ("status", "404")),
        (("method", "DELETE"), ("route", "none"), ("status", "405")),
    }


def test_a_failure_of_ours_is_counted_and_leaves_nothing_in_flight(http: FlaskClient, products: FakeProducts) -> None:
    products.failure = ZeroDivisionError("bug")
    http.get("/api/data")
    assert value(http, "ordersys_http_requests_total", method="GET", route="/api/data", status="500") == 1
    assert value(http, "ordersys_http_requests_in_flight") == 1  # the one that asks


def test_a_preflight_is_counted(http: FlaskClient) -> None:
    http.options("/api/data", headers={"Origin": "https://shop.example", "Access-Control-Request-Method": "GET"})
    assert value(http, "ordersys_http_requests_total", method="OPTIONS", route="/api/data", status="204") == 1
    assert value(http, "ordersys_http_requests_in_flight") == 1


def test_requests_in_flight_are_shown_while_they_are() -> None:
    app, measured, inside, release = Flask("slow"), Metrics(), threading.Event(), threading.Event()
    api_metrics.register(app, measured)

    @app.get("/slow")
    def slow() -> str:
        inside.set()
        release.wait(10)
        return "done"

    def in_flight() -> Any:
        return measured.registry.get_sample_value("ordersys_http_requests_in_flight")

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(app.test_client().get, "/slow")
        assert inside.wait(10)
        assert in_flight() == 1
        release.set()
        assert answer.result(10).status_code == 200
    assert in_flight() == 0


def test_a_hook_that_fails_leaves_nothing_in_flight() -> None:
    app, measured = Flask("broken"), Metrics()
    api_metrics.register(app, measured)

    @app.after_request
    def broken(response: Response) -> Response:  # registered later, so it runs before ours
        raise ZeroDivisionError

    assert app.test_client().get("/").status_code == 500
    assert measured.registry.get_sample_value("ordersys_http_requests_in_flight") == 0


def test_a_stream_is_counted_but_its_length_is_no_duration() -> None:
    app, measured = Flask("stream"), Metrics()
    api_metrics.register(app, measured)

    @app.get("/stream")
    def stream() -> Response:
        def events() -> Iterator[bytes]:
            measured.streams.inc()
            yield b"data: 1\n\n"
            yield b"data: 2\n\n"
            measured.streams.dec()

        return Response(events(), mimetype="text/event-stream")

    def value(name: str, **labels: str) -> float | None:
        return measured.registry.get_sample_value(name, labels)

    response = app.test_client().get("/stream")
    body = iter(response.response)
    next(body)
    assert value("ordersys_http_streams") == 1
    assert value("ordersys_http_requests_in_flight") == 0
    list(body)
    assert value("ordersys_http_streams") == 0
    labels = {"method": "GET", "route": "/stream"}
    assert value("ordersys_http_requests_total", **labels, status="200") == 1
    assert value("ordersys_http_request_duration_seconds_count", **labels) is None


# --- the rest -------------------------------------------------------------------------------------------------------


def test_calls_to_the_services_are_shown(http: FlaskClient, products: FakeProducts) -> None:
    http.get("/api/v1/products/1")
    http.get("/api/v1/products/9")
    called = {"service": "product-service", "method": "GetProduct"}
    assert value(http, "ordersys_upstream_calls_total", **called, code="ok") == 1
    assert value(http, "ordersys_upstream_calls_total", **called, code="product_not_found") == 1
    assert value(http, "ordersys_upstream_call_duration_seconds_count", **called) == 2
    for service in ("product-service", "order-service"):
        assert value(http, "ordersys_upstream_breaker_state", service=service) == 0
    products.failure = errors.NoAnswer("gone")
    for _ in range(5):
        http.get("/api/v1/products/9")
    assert value(http, "ordersys_upstream_breaker_state", service="product-service") == 2
    assert value(http, "ordersys_upstream_breaker_state", service="order-service") == 0


def test_the_build_is_named(http: FlaskClient) -> None:
    [labels] = [dict(labels) for name, labels in samples(http) if name == "ordersys_build_info"]
    assert labels["version"] == ordersys.__version__
    assert labels["python"].startswith("3.")


def test_both_formats_are_spoken(http: FlaskClient) -> None:
    http.get("/api/data")
    plain = http.get("/metrics")
    assert plain.content_type.startswith("text/plain; version=0.0.4")
    asked = http.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    assert asked.content_type.startswith("application/openmetrics-text; version=1.0.0")
    names = {each.name for each in openmetrics.text_string_to_metric_families(asked.text)}
    assert {
        "ordersys_http_requests",
        "ordersys_http_request_duration_seconds",
        "ordersys_http_requests_in_flight",
        "ordersys_http_streams",
        "ordersys_http_streams_dropped",
        "ordersys_stale_answers",
        "ordersys_rate_limited",
        "ordersys_upstream_calls",
        "ordersys_upstream_call_duration_seconds",
        "ordersys_upstream_breaker_state",
        "ordersys_build",
        "process_cpu_seconds",
    } <= names
    assert all(name.startswith(("ordersys_", "process_")) for name in names)


def test_two_gateways_in_one_process_count_apart(http: FlaskClient, products: FakeProducts) -> None:
    http.get("/api/data")
    other = create_app(FakeChannel(products), FakeChannel(FakeOrders())).test_client()
    assert value(other, "ordersys_http_requests_total", method="GET", route="/api/data", status="200") is None


@pytest.mark.parametrize(
    ("scopes", "status"),
    [({Scope.ADMIN}, 200), ({Scope.ORDERS_READ, Scope.STOCK_WRITE}, 403), (None, 401)],
    ids=["admin", "others", "nobody"],
)
def test_metrics_are_for_the_admin(scopes: set[Scope] | None, status: int) -> None:
    class Gate:
        def identify(self, headers: Any, address: str) -> Caller:
            if scopes is None:
                raise errors.Unauthenticated("who are you?")
            return Caller("key 1", frozenset(scopes))

    app = create_app(FakeChannel(FakeProducts()), FakeChannel(FakeOrders()), options=Options(access=Gate()))
    response = app.test_client().get("/metrics")
    assert response.status_code == status
    assert ("ordersys_build_info" in response.text) == (status == 200)
