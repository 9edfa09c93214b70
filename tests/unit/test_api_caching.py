"""HTTP around every operation: caching, conditions, compression, methods, origins, ids, the log, and strict JSON."""

import gzip
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from api_fakes import FakeChannel, FakeOrders, FakeProducts, an_order
from flask import Flask, Response
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from ordersys.api import http as api_http
from ordersys.api import request_log
from ordersys.api.access import Caller, Scope
from ordersys.api.app import MAX_BODY_BYTES, Options, create_app
from ordersys.core import errors, ids

ORDERS = "/api/v1/orders"
SEVEN = f"{ORDERS}/{an_order(7).id}"
BODY: dict[str, Any] = {"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 2}]}
READS = ["/api/data", "/api/v1/products", "/api/v1/products/1", ORDERS, SEVEN]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SHOP = "https://shop.example"


@pytest.fixture
def products() -> FakeProducts:
    return FakeProducts()


@pytest.fixture
def orders() -> FakeOrders:
    return FakeOrders()


@pytest.fixture
def app(products: FakeProducts, orders: FakeOrders) -> Flask:
    return create_app(FakeChannel(products), FakeChannel(orders))


@pytest.fixture
def http(app: Flask) -> FlaskClient:
    return app.test_client()


class Nobody:
    """Lets nobody in."""

    def identify(self, headers: Any, address: str) -> Caller:
        raise errors.Unauthenticated("send a key")


def sharing(products: FakeProducts, orders: FakeOrders, *origins: str, who: Any = None) -> FlaskClient:
    options = Options(cors_origins=origins, **({"access": who} if who else {}))
    return create_app(FakeChannel(products), FakeChannel(orders), options=options).test_client()


def problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.content_type) == (status, "application/problem+json"), response.text
    document: dict[str, Any] = response.json
    assert (document["status"], document["code"]) == (status, code)
    return document


# --- caching and conditions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", READS)
def test_a_read_may_be_kept_but_is_asked_for_again(http: FlaskClient, path: str) -> None:
    response = http.get(path)
    assert response.headers["Cache-Control"] == "private, no-cache"
    etag = response.headers["ETag"]
    assert re.fullmatch('"1"' if path == SEVEN else 'W/"[0-9a-f]{24}"', etag)
    assert http.get(path).headers["ETag"] == etag


@pytest.mark.parametrize("path", READS)
def test_what_the_caller_has_already_is_not_sent_again(http: FlaskClient, path: str) -> None:
    etag = http.get(path).headers["ETag"]
    for given in (etag, etag.removeprefix("W/"), f'"other", {etag}', "*"):
        for method in ("GET", "HEAD"):
            response = http.open(path, method=method, headers={"If-None-Match": given})
            assert (response.status_code, response.data) == (304, b"")
            assert (response.headers["ETag"], response.headers["Cache-Control"]) == (etag, "private, no-cache")
            assert "Content-Type" not in response.headers
    for given in ('"other"', 'W/"2"', "x"):
        assert http.get(path, headers={"If-None-Match": given}).status_code == 200


def test_a_list_that_has_changed_is_sent(http: FlaskClient, orders: FakeOrders) -> None:
    etag = http.get(ORDERS).headers["ETag"]
    orders.listed = [an_order(7, quantity=3)]
    response = http.get(ORDERS, headers={"If-None-Match": etag})
    assert response.status_code == 200
    assert response.headers["ETag"] != etag


def test_a_condition_of_a_read_is_none_of_a_write(http: FlaskClient) -> None:
    assert http.post(ORDERS, json=BODY, headers={"If-None-Match": "*"}).status_code == 201
    assert http.patch(SEVEN, json={"lines": BODY["lines"]}, headers={"If-None-Match": '"2"'}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", ORDERS, BODY, 201),
        ("POST", f"{SEVEN}/cancel", {}, 200),
        ("POST", "/api/v1/products/1/adjust-stock", {"delta": 1}, 200),
        ("POST", ORDERS, {}, 400),
        ("GET", "/api/v1/products/9", None, 404),
        ("GET", "/nothing", None, 404),
        ("DELETE", ORDERS, None, 405),
    ],
)
def test_writes_and_failures_are_not_kept(
    http: FlaskClient, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    response = http.open(path, method=method, json=body)
    assert (response.status_code, response.headers["Cache-Control"]) == (status, "no-store")


def test_the_description_may_be_kept_for_minutes(http: FlaskClient) -> None:
    response = http.get("/openapi.json")
    assert response.headers["Cache-Control"] == "public, max-age=300"
    assert http.get("/openapi.json", headers={"If-None-Match": response.headers["ETag"]}).status_code == 304


def test_the_last_known_data_have_no_etag(http: FlaskClient, products: FakeProducts) -> None:
    etag = http.get("/api/v1/products/1").headers["ETag"]
    products.failure = errors.Unavailable("gone")
    response = http.get("/api/v1/products/1", headers={"If-None-Match": etag})
    assert (response.status_code, response.json["stale"]) == (200, True)
    assert "ETag" not in response.headers


# --- compression ----------------------------------------------------------------------------------------------------


@pytest.fixture
def long_list(orders: FakeOrders) -> FakeOrders:
    orders.listed = [an_order(number) for number in range(50)]
    return orders


@pytest.mark.usefixtures("long_list")
@pytest.mark.parametrize("accepted", ["gzip", "br, gzip;q=0.5", "*", "GZIP"])
def test_a_large_list_is_compressed_for_who_takes_it(http: FlaskClient, accepted: str) -> None:
    plain = http.get(ORDERS)
    packed = http.get(ORDERS, headers={"Accept-Encoding": accepted})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data
    assert int(packed.headers["Content-Length"]) == len(packed.data) < len(plain.data) / 5
    assert packed.headers["ETag"] == plain.headers["ETag"]
    assert packed.headers["ETag"].startswith("W/")  # one tag for both forms cannot be strong
    assert "Accept-Encoding" in plain.headers["Vary"]
    assert "Accept-Encoding" in packed.headers["Vary"]


@pytest.mark.usefixtures("long_list")
@pytest.mark.parametrize("accepted", [None, "identity", "br", "gzip;q=0", "gzip;q=0, *"])
def test_nobody_gets_what_they_do_not_take(http: FlaskClient, accepted: str | None) -> None:
    response = http.get(ORDERS, headers={"Accept-Encoding": accepted} if accepted else {})
    assert "Content-Encoding" not in response.headers
    assert len(response.json["orders"]) == 50


@pytest.mark.usefixtures("long_list")
def test_what_is_compressed_can_be_asked_for_again(http: FlaskClient) -> None:
    packing = {"Accept-Encoding": "gzip"}
    etag = http.get(ORDERS, headers=packing).headers["ETag"]
    response = http.get(ORDERS, headers={**packing, "If-None-Match": etag})
    assert (response.status_code, response.data) == (304, b"")
    assert "Content-Encoding" not in response.headers
    assert "Accept-Encoding" in response.headers["Vary"]


def test_what_is_small_is_left_as_it_is(http: FlaskClient) -> None:
    response = http.get("/api/data", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in response.headers
    assert response.json


def test_a_long_complaint_is_compressed_too(http: FlaskClient) -> None:
    body = {**BODY, "lines": [{"product_id": "1", "quantity": 0}] * 50}
    response = http.post(ORDERS, json=body, headers={"Accept-Encoding": "gzip"})
    assert (response.status_code, response.headers["Content-Encoding"]) == (400, "gzip")
    assert len(json.loads(gzip.decompress(response.data))["errors"]) == 50


def test_the_tag_of_an_order_serves_for_if_match_however_large_it_is(http: FlaskClient, orders: FakeOrders) -> None:
    orders.order = replace(an_order(7), lines=an_order(7).lines * 100)
    response = http.get(SEVEN, headers={"Accept-Encoding": "gzip"})
    assert len(response.data) > api_http.COMPRESSED_FROM
    assert "Content-Encoding" not in response.headers
    changed = http.patch(SEVEN, json={"lines": BODY["lines"]}, headers={"If-Match": response.headers["ETag"]})
    assert changed.status_code == 200


def test_a_stream_goes_out_as_it_comes(app: Flask) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x" * 5000

    app.add_url_rule("/stream", view_func=lambda: Response(pieces(), content_type="text/html"), endpoint="stream")
    response = app.test_client().get("/stream", headers={"Accept-Encoding": "gzip"})
    assert response.data == b"x" * 5000
    assert {"Content-Encoding", "ETag"}.isdisjoint(response.headers)


# --- methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*READS, "/api/v1/products/9", "/healthz", "/openapi.json", "/nothing"])
def test_head_is_get_without_the_body(http: FlaskClient, path: str) -> None:
    get, head = http.get(path), http.head(path)
    assert head.data == b""
    assert head.status_code == get.status_code
    own = ("X-Request-Id", "Age")
    assert {name: value for name, value in head.headers if name not in own} == {
        name: value for name, value in get.headers if name not in own
    }


OPERATIONS = [
    ("/api/data", {"GET"}),
    ("/api/v1/products", {"GET"}),
    ("/api/v1/products/1", {"GET"}),
    ("/api/v1/products/1/adjust-stock", {"POST"}),
    (ORDERS, {"GET", "POST"}),
    (SEVEN, {"GET", "PATCH"}),
    *((f"{SEVEN}/{verb}", {"POST"}) for verb in ("cancel", "ship", "deliver")),
    ("/api/v1/events", {"GET"}),
    ("/healthz", {"GET"}),
    ("/openapi.json", {"GET"}),
]


def allowed(response: TestResponse) -> set[str]:
    return set(response.headers["Allow"].split(", "))


@pytest.mark.parametrize(("path", "methods"), OPERATIONS)
def test_options_and_a_wrong_method_tell_the_right_ones(
    products: FakeProducts, orders: FakeOrders, path: str, methods: set[str]
) -> None:
    everything = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    http = sharing(products, orders, who=Nobody())  # which is no secret
    response = http.options(path)
    assert (response.status_code, response.data) == (204, b"")
    assert allowed(response) == everything
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - methods:
        wrong = http.open(path, method=method)
        problem(wrong, 405, "method_not_allowed")
        assert allowed(wrong) == everything
    assert products.requests == orders.requests == []


def test_options_of_nothing_is_404(http: FlaskClient) -> None:
    problem(http.options("/api/v1/nothing"), 404, "not_found")


@pytest.mark.parametrize("path", [f"{ORDERS}/", "/api/v1/products/", f"{SEVEN}/", f"/{ORDERS}", "/api/v1//orders"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_path_is_not_found_and_not_redirected(http: FlaskClient, method: str, path: str) -> None:
    response = http.open(f"http://localhost{path}", method=method, json=BODY if method == "POST" else None)
    problem(response, 404, "not_found")
    assert "Location" not in response.headers


# --- origins --------------------------------------------------------------------------------------------------------

PREFLIGHT = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "if-match,x-api-key"}


def cors(response: TestResponse) -> set[str]:
    return {name for name, _ in response.headers if name.startswith("Access-Control-")}


def test_no_origin_is_let_in_unless_configured(http: FlaskClient) -> None:
    for response in (
        http.get("/api/data", headers={"Origin": SHOP}),
        http.options(SEVEN, headers={"Origin": SHOP, **PREFLIGHT}),
    ):
        assert cors(response) == set()
        assert "Origin" not in response.headers.get("Vary", "")


def test_a_preflight_needs_no_credentials(products: FakeProducts, orders: FakeOrders) -> None:
    http = sharing(products, orders, "https://other.example", SHOP, who=Nobody())
    response = http.options(SEVEN, headers={"Origin": SHOP, **PREFLIGHT})
    assert (response.status_code, response.data) == (204, b"")
    assert response.headers["Access-Control-Allow-Origin"] == SHOP
    assert {"GET", "PATCH"} <= set(response.headers["Access-Control-Allow-Methods"].split(", "))
    assert {
        "If-Match",
        "Idempotency-Key",
        "X-API-Key",
        "Authorization",
        "Content-Type",
        "Last-Event-ID",
        "traceparent",
    } <= set(response.headers["Access-Control-Allow-Headers"].split(", "))
    assert response.headers["Access-Control-Max-Age"] == "600"
    assert "Access-Control-Allow-Credentials" not in response.headers
    # And it is the preflight alone.
    answer = http.get(SEVEN, headers={"Origin": SHOP})
    problem(answer, 401, "unauthenticated")
    assert answer.headers["Access-Control-Allow-Origin"] == SHOP  # or the page could not read why


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", SEVEN, None), ("POST", ORDERS, BODY), ("POST", ORDERS, {}), ("GET", "/nothing", None)],
)
def test_a_listed_origin_may_read_every_answer(
    products: FakeProducts, orders: FakeOrders, method: str, path: str, body: dict[str, Any] | None
) -> None:
    response = sharing(products, orders, SHOP).open(path, method=method, json=body, headers={"Origin": SHOP})
    assert response.headers["Access-Control-Allow-Origin"] == SHOP
    assert "Origin" in response.headers["Vary"]
    assert {"ETag", "Location", "Retry-After", "RateLimit", "X-Request-Id", "Idempotent-Replayed"} <= set(
        response.headers["Access-Control-Expose-Headers"].split(", ")
    )


@pytest.mark.parametrize(
    "origin", [None, "null", "https://evil.example", f"{SHOP}.evil.example", "http://shop.example"]
)
def test_another_origin_may_not(products: FakeProducts, orders: FakeOrders, origin: str | None) -> None:
    http = sharing(products, orders, SHOP)
    headers = {"Origin": origin} if origin else {}
    for response in (http.get(SEVEN, headers=headers), http.options(SEVEN, headers={**headers, **PREFLIGHT})):
        assert cors(response) == set()
        assert "Origin" in response.headers["Vary"]  # a cache must not give this one to the shop


def test_any_origin_may_when_all_are_listed(products: FakeProducts, orders: FakeOrders) -> None:
    response = sharing(products, orders, "*").get(SEVEN, headers={"Origin": "https://any.example"})
    assert response.headers["Access-Control-Allow-Origin"] == "*"


# --- ids, traces and the log ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["a", "req 1/2", "~" * 128])
def test_a_request_id_comes_back(http: FlaskClient, given: str) -> None:
    for path in ("/api/data", "/nothing"):
        assert http.get(path, headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", [None, "", "a" * 129, "a\x7fb", "ä", "a\tb"])
def test_what_is_no_request_id_is_replaced(http: FlaskClient, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    made = {http.get("/api/data", headers=headers).headers["X-Request-Id"] for _ in range(2)}
    assert len(made) == 2
    assert all(ids.is_uuid(each) and each[14] == "7" for each in made)


def test_the_trace_of_the_caller_goes_on_to_the_service_and_into_the_problem(
    products: FakeProducts, orders: FakeOrders
) -> None:
    channel = FakeChannel(products)
    http = create_app(channel, FakeChannel(orders)).test_client()
    response = http.get("/api/v1/products/9", headers={"traceparent": TRACEPARENT})
    assert problem(response, 404, "product_not_found")["trace_id"] == TRACEPARENT[3:35]
    assert channel.traceparents == [TRACEPARENT]


@pytest.mark.parametrize("given", [None, "", "garbage", TRACEPARENT.upper(), TRACEPARENT.replace("0af7", "zzzz")])
def test_without_a_trace_there_is_a_new_one(products: FakeProducts, orders: FakeOrders, given: str | None) -> None:
    channel = FakeChannel(products)
    http = create_app(channel, FakeChannel(orders)).test_client()
    headers = {} if given is None else {"traceparent": given}
    named = [problem(http.get("/api/v1/products/9", headers=headers), 404, "product_not_found") for _ in range(2)]
    assert [each["trace_id"] for each in named] == [each[3:35] for each in channel.traceparents]
    assert len(set(channel.traceparents)) == 2
    assert all(ids.is_traceparent(each) for each in channel.traceparents)


@pytest.mark.parametrize(
    ("method", "path", "data", "status"),
    [
        ("GET", "/nothing", b"", 404),
        ("DELETE", ORDERS, b"", 405),
        ("POST", ORDERS, b"{", 400),
        ("POST", ORDERS, b"{}", 400),
        ("POST", ORDERS, b"x" * (MAX_BODY_BYTES + 1), 413),
        ("GET", "/api/data", b"", 500),
    ],
)
def test_every_failure_names_its_trace(
    http: FlaskClient, products: FakeProducts, method: str, path: str, data: bytes, status: int
) -> None:
    products.failure = ZeroDivisionError("x")
    headers = {"traceparent": TRACEPARENT}
    response = http.open(path, method=method, data=data, headers=headers, content_type="application/json")
    assert (response.status_code, response.json["trace_id"]) == (status, TRACEPARENT[3:35])


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == request_log.__name__]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "facts"),
    [
        ("POST", ORDERS, BODY, 201, {"http.route": ORDERS, "ordersys.order.id": an_order(1).id}),
        ("POST", ORDERS, {}, 400, {"http.route": ORDERS, "error.code": "invalid_argument"}),
        (
            "POST",
            f"{SEVEN}/ship",
            None,
            200,
            {"http.route": f"{ORDERS}/<id>/ship", "ordersys.order.id": an_order(7).id},
        ),
        ("GET", "/nothing", None, 404, {"error.code": "not_found"}),
    ],
)
def test_a_request_leaves_one_line_and_no_secret(
    http: FlaskClient,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    body: Any,
    status: int,
    facts: dict[str, str],
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = {
        "X-Request-Id": "r-1",
        "traceparent": TRACEPARENT,
        "Authorization": "secret-1",
        "Idempotency-Key": "secret-2",
    }
    http.open(f"{path}?secret=3" if method == "GET" else path, method=method, json=body, headers=headers)
    [line] = lines(caplog)
    assert line.levelno == logging.INFO
    why = f": {facts['error.code']}" if status >= 400 else ""
    assert re.fullmatch(rf"{method} {path}: {status} in \d+\.\d ms, by address 127\.0\.0\.1{why}", line.getMessage())
    told = dict(vars(line)["ecs"])
    assert told.pop("event.duration") > 0
    assert told == {
        "http.request.method": method,
        "http.request.id": "r-1",
        "http.response.status_code": status,
        "url.path": path,
        "client.address": "127.0.0.1",
        "event.outcome": "success" if status < 400 else "failure",
        "trace.id": TRACEPARENT[3:35],
        "span.id": TRACEPARENT[36:52],
        "ordersys.caller": "address 127.0.0.1",
        **facts,
    }
    assert "secret" not in caplog.text
    assert "c-1" not in caplog.text


def test_what_machines_ask_all_the_time_is_logged_for_debugging(
    http: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for path in ("/healthz", "/metrics", "/readyz"):
        assert http.get(path).status_code == 200
    assert [line.levelno for line in lines(caplog)] == [logging.DEBUG] * 3
    http.post("/healthz")
    assert lines(caplog)[-1].levelno == logging.INFO


def test_nobody_writes_lines_of_their_own_into_the_log(
    products: FakeProducts, orders: FakeOrders, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd:
        def identify(self, headers: Any, address: str) -> Caller:
            return Caller("token a\nGET /forged", frozenset(Scope))

    caplog.set_level(logging.DEBUG)
    products.failure = errors.Unavailable("gone")
    http = sharing(products, orders, who=Odd())
    http.get("/api/v1/products/1%0aforged%1b%5b31m")
    http.get(f"/{'x' * 5000}")
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert max(len(line.getMessage()) for line in lines(caplog)) < 600


def test_a_stream_is_logged_when_it_ends(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(2):
            assert lines(caplog) == []
            yield b"x"

    caplog.set_level(logging.DEBUG)
    app.add_url_rule("/stream", view_func=lambda: Response(pieces()), endpoint="stream")
    with app.test_client().get("/stream") as response:
        assert response.data == b"xx"
    [line] = lines(caplog)
    assert line.getMessage().startswith("GET /stream: 200 in ")


@pytest.mark.parametrize("path", ["/", "/api/data", SEVEN, "/nothing", "/healthz", "/openapi.json"])
def test_no_answer_is_taken_for_what_it_is_not(http: FlaskClient, path: str) -> None:
    headers = http.get(path).headers
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")


# --- strict JSON ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ('{"customer_id": "c-1", "customer_id": "c-2", "lines": []}', ["customer_id"]),
        ('{"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 1, "quantity": 9}]}', ["quantity"]),
        ('{"b": 1, "a": 1, "a": 1, "b": 1, "c": 1}', ["b", "a"]),
        ('{"a": 1, "\\u0061": 2}', ["a"]),
        ('{"": 1, "": 2}', ["body"]),
    ],
)
def test_a_name_that_stands_twice_is_refused(
    http: FlaskClient, products: FakeProducts, body: str, fields: list[str]
) -> None:
    response = http.post(ORDERS, data=body, content_type="application/json")
    document = problem(response, 400, "invalid_argument")
    assert [each["field"] for each in document["errors"]] == fields
    assert "only once" in document["errors"][0]["description"]
    assert products.requests == []


def test_a_byte_order_mark_is_no_trouble(http: FlaskClient) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(BODY).encode()
    assert http.post(ORDERS, data=body, content_type="application/json").status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        {f"x{number}": 1 for number in range(20_000)},
        {**BODY, "x" * 200_000: 1},
        {**BODY, "lines": [{"product_id": 1, "quantity": "1"}] * 100},
    ],
    ids=["many", "long", "lines"],
)
def test_the_complaint_stays_short(http: FlaskClient, body: dict[str, Any]) -> None:
    response = http.post(ORDERS, json=body)
    document = problem(response, 400, "invalid_argument")
    assert 1 <= len(document["errors"]) <= 100
    assert len(response.data) < 30_000


def test_many_names_that_stand_twice_cost_no_more_than_reading_them(http: FlaskClient) -> None:
    body = "{" + ",".join(f'"{number % 10_000}": 1' for number in range(20_000)) + "}"
    document = problem(http.post(ORDERS, data=body, content_type="application/json"), 400, "invalid_argument")
    assert len(document["errors"]) == 100


def test_who_is_not_known_is_told_how_to_be(products: FakeProducts, orders: FakeOrders) -> None:
    response = sharing(products, orders, who=Nobody()).get("/api/data")
    problem(response, 401, "unauthenticated")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
