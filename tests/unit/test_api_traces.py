"""The span of an HTTP request: what it is called, what it says, and whose fault an error is."""

import pytest
from api_fakes import FakeChannel, FakeOrders, FakeProducts
from collector import Recorder
from flask.testing import FlaskClient

from ordersys.api.app import Options, create_app
from ordersys.core import errors

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def products() -> FakeProducts:
    return FakeProducts()


@pytest.fixture
def channel(products: FakeProducts) -> FakeChannel:
    return FakeChannel(products)


@pytest.fixture
def http(channel: FakeChannel, recorder: Recorder) -> FlaskClient:
    options = Options(tracing=recorder.tracing("api"))
    return create_app(channel, FakeChannel(FakeOrders()), options=options).test_client()


def test_a_request_is_a_span_by_its_route_and_its_calls_belong_to_it(
    http: FlaskClient, recorder: Recorder, channel: FakeChannel
) -> None:
    http.get("/api/v1/products/1", headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    [span] = recorder.spans
    assert (span.kind, span.name, span.error) == ("SERVER", "GET /api/v1/products/<id>", False)
    assert (span.trace, span.parent) == (TRACE, SPAN)
    assert span.attributes == {
        "http.request.method": "GET",
        "http.route": "/api/v1/products/<id>",
        "url.path": "/api/v1/products/1",
        "url.scheme": "http",
        "http.response.status_code": 200,
    }
    assert [each.split("-")[1:3] for each in channel.traceparents] == [[TRACE, span.id]]


@pytest.mark.parametrize("given", ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01"])
def test_without_a_context_a_trace_begins_and_a_problem_names_it(
    http: FlaskClient, recorder: Recorder, given: str
) -> None:
    answer = http.get("/api/v1/products/9", headers={"traceparent": given})
    [span] = recorder.spans
    assert (span.parent, span.trace) == ("", answer.json["trace_id"])


def test_a_refusal_is_no_error_of_the_gateway(http: FlaskClient, recorder: Recorder) -> None:
    http.get("/api/v1/products/9")
    http.get("/nothing/here?secret=1")
    refused, unknown = recorder.spans
    assert (refused.error, refused.attributes["ordersys.error.code"]) == (False, "product_not_found")
    assert (unknown.name, unknown.error, unknown.attributes["ordersys.error.code"]) == ("GET", False, "not_found")
    assert "http.route" not in unknown.attributes
    assert "secret" not in str(unknown)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [(errors.Unavailable("away"), 503, "unavailable"), (ZeroDivisionError("of ours"), 500, "internal")],
)
def test_what_is_our_fault_is_an_error(
    http: FlaskClient, recorder: Recorder, products: FakeProducts, failure: Exception, status: int, code: str
) -> None:
    products.failure = failure
    assert http.get("/api/data").status_code == status
    [span] = recorder.spans
    assert (span.error, span.attributes["error.type"], span.attributes["http.response.status_code"]) == (
        True,
        code,
        status,
    )
    assert span.description == ""


def test_the_status_is_the_one_that_goes_out(http: FlaskClient, recorder: Recorder) -> None:
    etag = http.get("/api/v1/products/1").headers["ETag"]
    assert http.get("/api/v1/products/1", headers={"If-None-Match": etag}).status_code == 304
    assert [span.attributes["http.response.status_code"] for span in recorder.spans] == [200, 304]


def test_a_method_that_a_caller_invents_makes_no_name(http: FlaskClient, recorder: Recorder) -> None:
    http.open("/api/data", method="X" * 100)
    [span] = recorder.spans
    assert span.name.split()[0] == "HTTP"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "X" * 32


def test_what_machines_repeat_every_few_seconds_makes_no_spans(http: FlaskClient, recorder: Recorder) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        http.get(path)
    assert recorder.spans == []


def test_an_unsampled_request_makes_no_spans_and_its_context_passes_on(
    http: FlaskClient, recorder: Recorder, channel: FakeChannel
) -> None:
    http.get("/api/data", headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    assert recorder.spans == []
    assert channel.traceparents == [f"00-{TRACE}-{SPAN}-00"]
