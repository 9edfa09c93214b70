import json
import logging
from typing import Any

import pytest
from api_fakes import NEXT, FakeChannel, FakeOrders, FakeProducts, an_order
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from ordersys.api import problems
from ordersys.api.app import MAX_BODY_BYTES, create_app
from ordersys.core import errors
from ordersys.core.rpc import status as grpc_status

BODY: dict[str, Any] = {"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 2}]}
ORDERS = "/api/v1/orders"


@pytest.fixture
def products() -> FakeProducts:
    return FakeProducts()


@pytest.fixture
def orders() -> FakeOrders:
    return FakeOrders()


@pytest.fixture
def http(products: FakeProducts, orders: FakeOrders) -> FlaskClient:
    return create_app(FakeChannel(products), FakeChannel(orders), deadline=3.0).test_client()


def problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer that has this status and code."""
    assert response.status_code == status, response.text
    assert response.content_type == "application/problem+json"
    document = response.json
    assert isinstance(document, dict)
    assert document["status"] == status
    assert document["code"] == code
    assert document["type"] == f"urn:ordersys:problem:{code}"
    assert document["title"]
    return document


def fields_of(document: dict[str, Any]) -> list[str]:
    assert all(each["description"] for each in document["errors"])
    return [each["field"] for each in document["errors"]]


# --- what the resources answer --------------------------------------------------------------------------------------


def test_data_is_the_summary_of_the_product_service(http: FlaskClient) -> None:
    response = http.get("/api/data")
    assert (response.status_code, response.json) == (200, {"message": "1 product, 10 units"})


def test_a_product_is_bare_with_numbers_as_numbers(http: FlaskClient) -> None:
    response = http.get("/api/v1/products/1")
    assert response.status_code == 200
    assert response.json == {
        "id": "1",
        "name": "Keyboard",
        "description": "Ä mechanical one",
        "attributes": {"layout": "de"},
        "price": {"currency": "EUR", "amount": 4999},
        "available": 10,
    }


def test_products_come_in_pages(http: FlaskClient, products: FakeProducts) -> None:
    response = http.get("/api/v1/products?page_size=1&page_token=abc")
    assert [each["id"] for each in response.json["products"]] == ["1"]
    assert response.json["next_page_token"] == NEXT
    assert (products.requests[0].page_size, products.requests[0].page_token) == (1, "abc")


def test_a_placed_order_is_created_with_its_location_and_version(http: FlaskClient) -> None:
    response = http.post(ORDERS, json=BODY)
    assert response.status_code == 201
    assert response.json == {
        "id": an_order(1).id,
        "customer_id": "c-1",
        "status": "placed",
        "lines": [{"product_id": "1", "quantity": 2, "unit_price": {"currency": "EUR", "amount": 4999}}],
        "total": {"currency": "EUR", "amount": 9998},
        "version": 1,
        "created_at": "2025-06-15T15:06:40.123456Z",
        "updated_at": "2025-06-15T15:06:40.123456Z",
    }
    assert response.headers["Location"] == f"{ORDERS}/{an_order(1).id}"
    assert response.headers["ETag"] == '"1"'
    assert response.content_type == "application/json"


def test_the_idempotency_key_of_the_header_reaches_the_service(http: FlaskClient, products: FakeProducts) -> None:
    http.post(ORDERS, json=BODY, headers={"Idempotency-Key": "k-1"})
    assert products.requests[0].idempotency_key == "k-1"


def test_a_replay_answers_the_same_status_and_body(http: FlaskClient) -> None:
    first, second = (http.post(ORDERS, json=BODY, headers={"Idempotency-Key": "k-1"}) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.data == second.data
    assert first.headers["Location"] == second.headers["Location"]


def test_without_a_key_each_request_is_an_order_of_its_own(http: FlaskClient, products: FakeProducts) -> None:
    placed = {http.post(ORDERS, json=BODY).json["id"] for _ in range(2)}
    assert len(placed) == 2
    # Each carries a key of its own all the same: the retries below the gateway must not make two orders of it.
    assert all(request.idempotency_key for request in products.requests)


def test_an_order_is_read_from_the_order_service(http: FlaskClient) -> None:
    response = http.get(f"{ORDERS}/{an_order(7).id}")
    assert response.status_code == 200
    assert response.json["id"] == an_order(7).id
    assert response.headers["ETag"] == '"1"'


def test_an_order_that_the_caller_has_already_is_not_sent_again(http: FlaskClient) -> None:
    path = f"{ORDERS}/{an_order(7).id}"
    assert http.get(path, headers={"If-None-Match": '"1"'}).status_code == 304
    assert http.get(path, headers={"If-None-Match": '"2"'}).status_code == 200


def test_every_call_has_the_deadline_it_was_configured_with() -> None:
    channel = FakeChannel(FakeProducts())
    create_app(channel, FakeChannel(FakeOrders()), deadline=1.5).test_client().get("/api/data")
    assert channel.deadlines == [1.5]


def test_healthz_touches_nothing(http: FlaskClient, products: FakeProducts) -> None:
    products.failure = errors.Unavailable("gone")
    assert http.get("/healthz").json == {"status": "ok"}
    assert products.requests == []


# --- what the services refuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidArgument.of("customer_id", "must not be empty"), 400),
        (errors.Unauthenticated("who are you?"), 401),
        (errors.PermissionDenied("not you"), 403),
        (errors.ProductNotFound.of("9"), 404),
        (errors.OrderNotFound.of("9"), 404),
        (errors.InsufficientStock.of("1", 5, 2), 409),
        (errors.InvalidTransition.of("9", "shipped", "cancelled"), 409),
        (errors.VersionConflict.of("9", 1, 2), 409),
        (errors.IdempotencyKeyReused.of("k"), 422),
    ],
    ids=lambda value: value.code if isinstance(value, errors.OrdersysError) else str(value),
)
def test_a_refusal_has_its_status_code_and_words(
    http: FlaskClient, products: FakeProducts, error: errors.OrdersysError, status: int
) -> None:
    products.failure = error
    document = problem(http.post(ORDERS, json=BODY, headers={"Idempotency-Key": "k"}), status, error.code)
    assert document["detail"] == error.message
    assert document.get("metadata", {}) == error.metadata


def test_a_version_conflict_answers_412_to_a_precondition(http: FlaskClient, products: FakeProducts) -> None:
    products.failure = errors.VersionConflict.of("9", 1, 2)
    problem(http.post(ORDERS, json=BODY, headers={"If-Match": '"1"'}), 412, "version_conflict")


def test_every_code_that_crosses_the_wire_has_a_status() -> None:
    assert set(grpc_status.STATUS) <= set(problems.STATUS)


def test_a_field_that_the_service_refuses_is_named(http: FlaskClient, products: FakeProducts) -> None:
    products.failure = errors.InvalidArgument.of("lines[0].product_id", "must not contain control characters")
    document = problem(http.post(ORDERS, json=BODY), 400, "invalid_argument")
    assert document["errors"] == [
        {"field": "lines[0].product_id", "description": "must not contain control characters"}
    ]


@pytest.mark.parametrize(("seconds", "header"), [(0.1, "1"), (1.0, "1"), (2.3, "3")])
def test_unavailable_says_when_to_come_back_and_nothing_of_the_inside(
    http: FlaskClient,
    products: FakeProducts,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
    header: str,
) -> None:
    inside = "10.0.0.7:50051: database postgresql://secret"
    products.failure = errors.Unavailable(inside, seconds, metadata={"address": "10.0.0.7:50051"})
    response = http.get("/api/data")
    problem(response, 503, "unavailable")
    assert response.headers["Retry-After"] == header
    assert "10.0.0.7" not in response.text
    assert inside in caplog.text


@pytest.mark.parametrize(
    "error", [errors.Internal("10.0.0.7:50051: UNKNOWN: secret"), ZeroDivisionError("secret"), KeyError("secret")]
)
def test_a_fault_of_ours_is_logged_and_leaks_nothing(
    http: FlaskClient, products: FakeProducts, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    products.failure = error
    response = http.get("/api/data")
    document = problem(response, 500, "internal")
    assert document["detail"] == "internal error"
    assert "secret" not in response.text
    assert "secret" in caplog.text
    assert any(record.levelno == logging.ERROR for record in caplog.records)


# --- what the gateway refuses itself --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"lines": BODY["lines"]}, "customer_id"),
        ({**BODY, "customer_id": 7}, "customer_id"),
        ({**BODY, "customer_id": ""}, "customer_id"),
        ({**BODY, "customer_id": "x" * 129}, "customer_id"),
        ({**BODY, "customer_id": None}, "customer_id"),
        ({**BODY, "customer_id": "\ud800"}, "customer_id"),
        ({**BODY, "currency": "EUR"}, "currency"),
        ({**BODY, "lines": []}, "lines"),
        ({**BODY, "lines": BODY["lines"] * 101}, "lines"),
        ({**BODY, "lines": {}}, "lines"),
        ({**BODY, "lines": ["1"]}, "lines[0]"),
        ({**BODY, "lines": [{"product_id": 1, "quantity": 2}]}, "lines[0].product_id"),
        ({**BODY, "lines": [{"product_id": "1", "quantity": 2, "unit_price": 1}]}, "lines[0].unit_price"),
        *(
            ({**BODY, "lines": [BODY["lines"][0], {"product_id": "1", "quantity": quantity}]}, "lines[1].quantity")
            for quantity in ("2", 2.5, True, None, 0, -1, 1_000_001, 10**30, 10**4000, float("nan"), float("inf"), [2])
        ),
    ],
    ids=str,
)
def test_a_field_with_an_impossible_value_is_named(
    http: FlaskClient, products: FakeProducts, body: dict[str, Any], field: str
) -> None:
    document = problem(http.post(ORDERS, json=body), 400, "invalid_argument")
    assert fields_of(document) == [field]
    assert products.requests == []


def test_every_wrong_field_has_an_entry(http: FlaskClient) -> None:
    body = {"lines": [{"quantity": "2"}, {"product_id": "1", "quantity": 0}], "colour": "red"}
    document = problem(http.post(ORDERS, json=body), 400, "invalid_argument")
    assert sorted(fields_of(document)) == [
        "colour",
        "customer_id",
        "lines[0].product_id",
        "lines[0].quantity",
        "lines[1].quantity",
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"customer_id": "c-1",}',
        b"[1]",
        b"7",
        b"null",
        b'"text"',
        b'"{\\"customer_id\\": \\"c-1\\", \\"lines\\": [{\\"product_id\\": \\"1\\", \\"quantity\\": 2}]}"',
        b"\xff\xfe",
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b'{"a": "\xed\xa0\x80"}',
        json.dumps(BODY).encode("utf-16"),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_not_a_json_object_is_refused(http: FlaskClient, products: FakeProducts, body: bytes) -> None:
    document = problem(http.post(ORDERS, data=body, content_type="application/json"), 400, "invalid_argument")
    assert fields_of(document) == ["body"]
    assert products.requests == []


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_of_another_content_type_is_refused(http: FlaskClient, content_type: str | None) -> None:
    response = http.post(ORDERS, data=b'{"customer_id": "c-1"}', content_type=content_type)
    assert "expected a JSON body" in problem(response, 415, "unsupported_media_type")["detail"]


def test_a_body_that_is_too_large_is_refused(http: FlaskClient, products: FakeProducts) -> None:
    response = http.post(ORDERS, json={**BODY, "customer_id": "x" * MAX_BODY_BYTES})
    problem(response, 413, "payload_too_large")
    assert products.requests == []


def test_an_idempotency_key_that_is_too_long_is_refused(http: FlaskClient) -> None:
    document = problem(http.post(ORDERS, json=BODY, headers={"Idempotency-Key": "k" * 256}), 400, "invalid_argument")
    assert fields_of(document) == ["Idempotency-Key"]


@pytest.mark.parametrize("page_size", ["-1", "1001", "two", "1.5", "99999999999999999999"])
def test_an_impossible_page_size_is_refused(http: FlaskClient, products: FakeProducts, page_size: str) -> None:
    document = problem(http.get(f"/api/v1/products?page_size={page_size}"), 400, "invalid_argument")
    assert fields_of(document) == ["page_size"]
    assert products.requests == []


@pytest.mark.parametrize(
    "path", ["/api", "/api/v1/nothing", "//api/data", "/api//data", "/api/v1/products/1/2", "/api/v1/orders/", "/%00"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_path_is_not_found(http: FlaskClient, method: str, path: str) -> None:
    problem(http.open(path, method=method), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("DELETE", ORDERS, "POST"), ("POST", "/api/data", "GET"), ("PUT", "/api/v1/products/1", "GET")],
)
def test_a_wrong_method_is_told_the_right_ones(http: FlaskClient, method: str, path: str, allowed: str) -> None:
    response = http.open(path, method=method)
    problem(response, 405, "method_not_allowed")
    assert allowed in response.headers["Allow"]
