"""An order through its whole life over REST alone, on both engines: nothing here knows that there is gRPC behind it.

The roles are started once per engine; each test has orders and customers of its own.
"""

import gzip
import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from e2e import processes
from e2e.processes import Backend, Role, until

ORDERS = "/api/v1/orders"
PRODUCTS = "/api/v1/products"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self, status: int, code: str) -> Any:
        """The problem document of an answer that has this status and code."""
        assert (self.status, self.headers["Content-Type"]) == (status, "application/problem+json"), self.body
        assert (self.json["status"], self.json["code"]) == (status, code)
        return self.json

    def order(self, status: int = 200) -> Any:
        """The order of an answer that has this status; its version is the ETag."""
        assert self.status == status, self.body
        assert self.headers["ETag"] == f'"{self.json["version"]}"'
        return self.json


@dataclass(frozen=True)
class Api:
    address: str

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; `If_Match="1"` is the header If-Match."""
        with closing(http.client.HTTPConnection(self.address, timeout=processes.SECONDS)) as connection:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            if body is not None:
                sent["Content-Type"] = "application/json"
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def place(self, customer_id: str, *lines: tuple[str, int], **headers: str) -> Answer:
        return self("POST", ORDERS, {"customer_id": customer_id, **wanted(*lines)}, **headers)

    def available(self, product_id: str) -> int:
        return int(self("GET", f"{PRODUCTS}/{product_id}").json["available"])


def wanted(*lines: tuple[str, int]) -> dict[str, Any]:
    return {"lines": [{"product_id": product_id, "quantity": quantity} for product_id, quantity in lines]}


@pytest.fixture(scope="module", params=processes.ENGINES)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, Role]]:
    folder = tmp_path_factory.mktemp(f"rest-{request.param}")
    with processes.engine(request.param) as settings, Backend(folder, settings) as backend:
        *_, gateway = backend.start_all("serve-product", "serve-order", "api")
        yield backend, gateway


@pytest.fixture
def api(running: tuple[Backend, Role]) -> Iterator[Api]:
    backend, _ = running
    yield Api(backend.api_address)
    backend.show()


@pytest.fixture
def customer() -> str:
    return f"customer-{uuid4()}"


def test_an_order_lives_from_placed_to_delivered(api: Api, customer: str) -> None:
    before = api.available("1")
    answer = api.place(customer, ("1", 2), ("4", 1), Idempotency_Key=f"{customer}-place")
    placed = answer.order(201)
    path = f"{ORDERS}/{placed['id']}"
    assert (answer.headers["Location"], answer.headers["Cache-Control"]) == (path, "no-store")
    assert (placed["customer_id"], placed["status"], placed["version"]) == (customer, "placed", 1)
    assert [(line["product_id"], line["quantity"]) for line in placed["lines"]] == [("1", 2), ("4", 1)]
    assert placed["total"]["amount"] == sum(line["quantity"] * line["unit_price"]["amount"] for line in placed["lines"])
    assert api("GET", path).order() == placed
    assert api("GET", path, If_None_Match='"1"').status == 304
    assert api.available("1") == before - 2

    answer = api("PATCH", path, wanted(("1", 5)), If_Match='"1"', Idempotency_Key=f"{customer}-update")
    updated = answer.order()
    assert (updated["version"], [line["quantity"] for line in updated["lines"]]) == (2, [5])
    assert api.available("1") == before - 5
    stale = api("PATCH", path, wanted(("1", 1)), If_Match='"1"').problem(412, "version_conflict")
    assert (stale["metadata"]["expected_version"], stale["metadata"]["version"]) == ("1", "2")
    api("PATCH", path, wanted(("1", 1)), If_Match='W/"2"').problem(412, "version_conflict")
    assert api("GET", path, If_None_Match='"1"').order() == updated
    assert api.available("1") == before - 5

    shipped = api("POST", f"{path}/ship", If_Match='"2"', Idempotency_Key=f"{customer}-ship").order()
    assert shipped == {**updated, "status": "shipped", "version": 3, "updated_at": shipped["updated_at"]}
    api("POST", f"{path}/deliver", If_Match='"2"').problem(412, "version_conflict")
    delivered = api("POST", f"{path}/deliver", If_Match='"3"').order()
    assert (delivered["status"], delivered["version"]) == ("delivered", 4)
    for change in ("cancel", "ship", "deliver"):
        api("POST", f"{path}/{change}").problem(409, "invalid_transition")
    api("PATCH", path, wanted(("1", 1))).problem(409, "invalid_transition")
    assert api("GET", path).order() == delivered
    assert api.available("1") == before - 5


def test_a_cancelled_order_gives_its_stock_back(api: Api, customer: str) -> None:
    before = api.available("2")
    placed = api.place(customer, ("2", 3)).order(201)
    assert api.available("2") == before - 3
    path = f"{ORDERS}/{placed['id']}"
    cancelled = api("POST", f"{path}/cancel", {"reason": "zu spät"}, If_Match='"1"').order()
    assert (cancelled["status"], cancelled["version"]) == ("cancelled", 2)
    until(lambda: api.available("2") == before, "the stock is back")
    api("POST", f"{path}/cancel").problem(409, "invalid_transition")
    api("POST", f"{path}/ship").problem(409, "invalid_transition")


def test_every_write_with_the_same_key_is_done_once(api: Api, customer: str) -> None:
    before = api.available("3")
    placed = api.place(customer, ("3", 1)).order(201)
    path = f"{ORDERS}/{placed['id']}"
    other = f"{ORDERS}/{api.place(customer, ('4', 1)).order(201)['id']}"
    steps: list[tuple[str, str, Any, Any]] = [
        ("POST", ORDERS, {"customer_id": customer, **wanted(("3", 1))}, {"customer_id": customer, **wanted(("3", 2))}),
        ("PATCH", path, wanted(("3", 2)), wanted(("3", 1))),
        ("POST", f"{path}/ship", None, None),
        ("POST", f"{path}/deliver", None, None),
        ("POST", f"{other}/cancel", {"reason": "a"}, {"reason": "b"}),
        ("POST", f"{PRODUCTS}/3/adjust-stock", {"delta": 1}, {"delta": 2}),
    ]
    for number, (method, target, body, another) in enumerate(steps):
        key = f"{customer}-{number}"
        first, second = (api(method, target, body, Idempotency_Key=key) for _ in range(2))
        assert first.status == (201 if target == ORDERS else 200), first.body
        assert (second.status, second.body) == (first.status, first.body)
        assert (first.headers["Idempotent-Replayed"], second.headers["Idempotent-Replayed"]) == (None, "true")
        for name in ("ETag", "Location"):
            assert second.headers[name] == first.headers[name]
        if another is not None:
            used = api(method, target, another, Idempotency_Key=key).problem(422, "idempotency_key_reused")
            assert used["metadata"] == {"idempotency_key": key}
    assert api("GET", path).order()["version"] == 4
    assert api.available("3") == before - 2 - 1 + 1


def test_of_many_requests_with_one_key_one_is_done(api: Api, customer: str) -> None:
    with ThreadPoolExecutor(8) as callers:
        keyed = [callers.submit(api.place, customer, ("4", 1), Idempotency_Key=customer) for _ in range(16)]
        answers = [each.result() for each in keyed]
    assert {answer.order(201)["id"] for answer in answers} == {answers[0].json["id"]}
    assert sum(answer.headers["Idempotent-Replayed"] is None for answer in answers) == 1
    assert len(api("GET", f"{ORDERS}?customer_id={customer}").json["orders"]) == 1


def test_a_version_is_changed_by_one_of_many(api: Api, customer: str) -> None:
    path = f"{ORDERS}/{api.place(customer, ('4', 1)).order(201)['id']}"
    with ThreadPoolExecutor(8) as callers:
        sent = [callers.submit(api, "PATCH", path, wanted(("4", n)), If_Match='"1"') for n in range(1, 9)]
        answers = [each.result() for each in sent]
    assert sorted(answer.status for answer in answers) == [200] + [412] * 7
    [changed] = [answer.order() for answer in answers if answer.status == 200]
    assert api("GET", path).order() == changed


def test_orders_are_listed_in_pages_the_newest_first(api: Api, customer: str) -> None:
    placed = [api.place(customer, ("4", 1)).order(201) for _ in range(5)]
    shipped = api("POST", f"{ORDERS}/{placed[2]['id']}/ship").order()
    expected = [*reversed(placed[3:]), shipped, *reversed(placed[:2])]

    found, token, pages = [], "", 0
    while True:
        page = api("GET", f"{ORDERS}?customer_id={customer}&page_size=2&page_token={token}")
        assert page.status == 200
        found += page.json["orders"]
        token, pages = page.json["next_page_token"], pages + 1
        if not token:
            break
    assert (found, pages) == (expected, 3)

    listed = api("GET", f"{ORDERS}?customer_id={customer}&status=shipped")
    assert listed.json == {"orders": [shipped], "next_page_token": ""}
    again = api("GET", f"{ORDERS}?customer_id={customer}&status=shipped", If_None_Match=listed.headers["ETag"])
    assert (again.status, again.body) == (304, b"")
    everything = api("GET", f"{ORDERS}?customer_id={customer}", Accept_Encoding="gzip")
    assert everything.headers["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(everything.body))["orders"] == expected

    api("GET", f"{ORDERS}?custmer_id={customer}").problem(400, "invalid_argument")
    api("GET", f"{ORDERS}?page_token=nonsense").problem(400, "invalid_argument")


def test_stock_is_adjusted_but_never_below_zero(api: Api) -> None:
    before = api.available("5")
    answer = api("POST", f"{PRODUCTS}/5/adjust-stock", {"delta": 4, "reason": "delivery"})
    assert (answer.status, answer.json["available"]) == (200, before + 4)
    answer = api("POST", f"{PRODUCTS}/5/adjust-stock", {"delta": -4})
    assert (answer.json["id"], answer.json["available"]) == ("5", before)
    refused = api("POST", f"{PRODUCTS}/5/adjust-stock", {"delta": -before - 1}).problem(409, "insufficient_stock")
    assert refused["metadata"]["available"] == str(before)
    api("POST", f"{PRODUCTS}/5/adjust-stock", {"delta": 0}).problem(400, "invalid_argument")
    api("POST", f"{PRODUCTS}/none/adjust-stock", {"delta": 1}).problem(404, "product_not_found")
    assert api.available("5") == before
    listed = {each["id"]: each for each in api("GET", PRODUCTS).json["products"]}
    assert listed["5"] == api("GET", f"{PRODUCTS}/5").json


def test_an_order_that_cannot_be_is_refused_and_takes_nothing(api: Api, customer: str) -> None:
    before = api.available("4")
    api.place(customer, ("4", 1), ("nope", 1)).problem(404, "product_not_found")
    short = api.place(customer, ("4", before + 1)).problem(409, "insufficient_stock")
    assert (short["metadata"]["requested"], short["metadata"]["available"]) == (str(before + 1), str(before))
    bad = api.place(customer, ("4", 0)).problem(400, "invalid_argument")
    assert [each["field"] for each in bad["errors"]] == ["lines[0].quantity"]
    for method, path in (("GET", "nope"), ("PATCH", "nope"), ("POST", "nope/cancel"), ("POST", "nope/ship")):
        body = wanted(("4", 1)) if method == "PATCH" else None
        api(method, f"{ORDERS}/{path}", body).problem(404, "order_not_found")
    assert api("GET", f"{ORDERS}?customer_id={customer}").json["orders"] == []
    assert api.available("4") == before


def test_a_request_can_be_found_again(api: Api, running: tuple[Backend, Role]) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = api("GET", f"{ORDERS}/nope?a=1", X_Request_Id="find-me", traceparent=f"00-{trace}-b7ad6b7169203331-01")
    assert answer.problem(400, "invalid_argument")["trace_id"] == trace
    assert answer.headers["X-Request-Id"] == "find-me"
    _, gateway = running
    gateway.says("GET /api/v1/orders/nope: 400 in ")
    lines = [line for line in gateway.log if line.get("trace.id") == trace]
    assert [(line["http.request.id"], line["url.path"], line["error.code"]) for line in lines] == [
        ("find-me", "/api/v1/orders/nope", "invalid_argument")
    ]
