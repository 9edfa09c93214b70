from typing import Any

import pytest
from api_fakes import NEXT, FakeChannel, FakeOrders, FakeProducts
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from ordersys.api.app import create_app
from ordersys.api.metrics import Metrics
from ordersys.api.stale import PATIENCE_SECONDS, Answer, Known, or_last_known
from ordersys.api.upstream import Upstream
from ordersys.core import errors

READS = ["/api/data", "/api/v1/products", "/api/v1/products?page_size=1", "/api/v1/products/1"]
AWAY = errors.NoAnswer("gone")


@pytest.fixture
def products() -> FakeProducts:
    return FakeProducts()


@pytest.fixture
def channel(products: FakeProducts) -> FakeChannel:
    return FakeChannel(products)


@pytest.fixture
def http(channel: FakeChannel) -> FlaskClient:
    return create_app(channel, FakeChannel(FakeOrders()), deadline=3.0).test_client()


def is_stale(response: TestResponse) -> bool:
    """True for one that says so wherever it should, False for one that says so nowhere."""
    assert response.status_code == 200, response.text
    marks = (
        response.json.get("stale") is True,
        response.headers.get("Warning") == '111 ordersys "Revalidation Failed"',
        "Age" in response.headers,
        "ETag" not in response.headers,
    )
    assert len(set(marks)) == 1, marks
    return marks[0]


# --- what callers see -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("failure", [AWAY, errors.Unavailable("too much to do")], ids=["away", "busy"])
def test_a_read_is_answered_from_the_last_known_data_and_then_again_from_the_service(
    http: FlaskClient, products: FakeProducts, path: str, failure: Exception
) -> None:
    fresh = http.get(path)
    assert not is_stale(fresh)
    products.failure = failure
    last = http.get(path)
    assert is_stale(last)
    assert last.json == {**fresh.json, "stale": True}
    assert last.headers["Age"] == "0"
    assert last.headers["Cache-Control"] == "no-store"
    products.failure = None
    assert not is_stale(http.get(path))


@pytest.mark.parametrize("path", READS)
def test_what_was_never_answered_is_unavailable(http: FlaskClient, products: FakeProducts, path: str) -> None:
    products.failure = AWAY
    response = http.get(path)
    assert (response.status_code, response.json["code"]) == (503, "unavailable")
    assert int(response.headers["Retry-After"]) >= 1


def test_each_path_and_query_has_its_own_answer(http: FlaskClient, products: FakeProducts) -> None:
    http.get("/api/v1/products?page_size=1")
    products.failure = AWAY
    assert is_stale(http.get("/api/v1/products?page_size=1"))
    assert is_stale(http.get("/api/v1/products?page_token=&page_size=1"))
    assert http.get("/api/v1/products?page_size=2").status_code == 503
    assert http.get(f"/api/v1/products?page_size=1&page_token={NEXT}").status_code == 503
    assert http.get("/api/v1/products/1").status_code == 503


@pytest.mark.parametrize(
    ("refusal", "status"),
    [(errors.ProductNotFound.of("1"), 404), (errors.InvalidArgument.of("id", "?"), 400), (errors.Internal("?"), 500)],
    ids=str,
)
def test_a_refusal_is_neither_replaced_nor_remembered(
    http: FlaskClient, products: FakeProducts, refusal: Exception, status: int
) -> None:
    fresh = http.get("/api/v1/products/1")
    products.failure = refusal
    assert http.get("/api/v1/products/1").status_code == status
    products.failure = AWAY
    assert http.get("/api/v1/products/1").json == {**fresh.json, "stale": True}


def test_who_has_the_same_already_is_not_told_that_nothing_changed(http: FlaskClient, products: FakeProducts) -> None:
    etag = http.get("/api/v1/products/1").headers["ETag"]
    assert http.get("/api/v1/products/1", headers={"If-None-Match": etag}).status_code == 304
    products.failure = AWAY
    assert is_stale(http.get("/api/v1/products/1", headers={"If-None-Match": etag}))


def test_an_answer_of_304_is_remembered_whole(http: FlaskClient, products: FakeProducts) -> None:
    assert http.get("/api/data", headers={"If-None-Match": "*"}).status_code in (200, 304)
    products.failure = AWAY
    assert is_stale(http.get("/api/data"))


def test_who_has_something_to_fall_back_to_does_not_wait_the_whole_deadline(
    http: FlaskClient, channel: FakeChannel
) -> None:
    for _ in range(2):
        http.get("/api/data")
    http.get("/api/v1/products/1")
    assert channel.deadlines == [3.0, PATIENCE_SECONDS, 3.0]


def test_a_write_waits_the_whole_deadline(http: FlaskClient, channel: FakeChannel) -> None:
    http.get("/api/data")
    body = {"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 2}]}
    assert http.post("/api/v1/orders", json=body).status_code == 201
    assert channel.deadlines == [3.0, 3.0]


def test_a_gateway_knows_only_what_it_has_answered_itself(products: FakeProducts, http: FlaskClient) -> None:
    http.get("/api/data")
    products.failure = AWAY
    other = create_app(FakeChannel(products), FakeChannel(FakeOrders())).test_client()
    assert other.get("/api/data").status_code == 503


def test_stale_answers_are_counted_by_route(http: FlaskClient, products: FakeProducts) -> None:
    http.get("/api/v1/products/1")
    products.failure = AWAY
    http.get("/api/v1/products/1")
    assert 'ordersys_stale_answers_total{route="/api/v1/products/<id>"} 1.0' in http.get("/metrics").text


# --- the age --------------------------------------------------------------------------------------------------------


def test_the_age_is_the_time_since_it_was_true() -> None:
    now = [1000.0]
    answers: list[Any] = [{"n": 1}, AWAY, {"n": 2}, AWAY]

    def view() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    app = Flask("one-view")
    upstream = Upstream("product-service", FakeChannel(FakeProducts()), deadline=1, metrics=Metrics())
    app.add_url_rule("/", "view", or_last_known(upstream, lambda: now[0])(view))
    http = app.test_client()
    for number, seconds, age in ((1, 7.9, "7"), (2, 1.0, "1")):
        http.get("/")
        now[0] += seconds
        last = http.get("/")
        assert (last.json, last.headers["Age"]) == ({"n": number, "stale": True}, age)


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_the_least_used_is_forgotten_first() -> None:
    known = Known(most=3)
    for name in "abc":
        known.keep(name, Answer(b"{}", 0))
    known.find("a")
    known.keep("d", Answer(b"{}", 0))
    assert [name for name in "abcd" if known.find(name)] == ["a", "c", "d"]


def test_all_of_it_together_stays_within_its_bytes() -> None:
    known = Known(most_bytes=100)
    known.keep("a", Answer(b"x" * 60, 0))
    known.keep("a", Answer(b"x" * 50, 0))
    known.keep("b", Answer(b"x" * 50, 0))
    assert known.find("a")
    known.keep("c", Answer(b"x", 0))
    assert [name for name in "abc" if known.find(name)] == ["a", "c"]
    known.keep("d", Answer(b"x" * 101, 0))
    assert [name for name in "abcd" if known.find(name)] == ["a", "c"]
    known.keep("e", Answer(b"x" * 100, 0))
    assert [name for name in "ace" if known.find(name)] == ["e"]
