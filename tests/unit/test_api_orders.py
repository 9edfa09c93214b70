"""Orders and stock over REST: what each operation asks of the services, for whom, and what it answers."""

from typing import Any

import pytest
from api_fakes import NEXT, FakeChannel, FakeOrders, FakeProducts, an_order
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from ordersys.api.access import Caller, Scope
from ordersys.api.app import Options, create_app
from ordersys.core import errors
from ordersys.core.v1 import order_pb2

ORDERS = "/api/v1/orders"
SEVEN = f"{ORDERS}/{an_order(7).id}"
STOCK = "/api/v1/products/1/adjust-stock"
BODY: dict[str, Any] = {"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 2}]}
LINES: dict[str, Any] = {"lines": [{"product_id": "1", "quantity": 3}]}

WRITES: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "place": ("POST", ORDERS, BODY),
    "update": ("PATCH", SEVEN, LINES),
    "cancel": ("POST", f"{SEVEN}/cancel", {"reason": "too late"}),
    "ship": ("POST", f"{SEVEN}/ship", None),
    "deliver": ("POST", f"{SEVEN}/deliver", None),
    "adjust": ("POST", STOCK, {"delta": -3, "reason": "broken"}),
}
CHANGES = [name for name in WRITES if name not in ("place", "adjust")]


@pytest.fixture
def products() -> FakeProducts:
    return FakeProducts()


@pytest.fixture
def orders() -> FakeOrders:
    return FakeOrders()


class As:
    """Everybody is this caller."""

    def __init__(self, *scopes: Scope, customer_id: str = "") -> None:
        self._caller = Caller("key test", frozenset(scopes), customer_id)

    def identify(self, headers: Any, address: str) -> Caller:
        return self._caller


def served(products: FakeProducts, orders: FakeOrders, who: Any = None) -> FlaskClient:
    options = Options(access=who) if who else None
    return create_app(FakeChannel(products), FakeChannel(orders), options=options).test_client()


@pytest.fixture
def http(products: FakeProducts, orders: FakeOrders) -> FlaskClient:
    return served(products, orders)


@pytest.fixture
def tied(products: FakeProducts, orders: FakeOrders) -> FlaskClient:
    """Customer c-2, whose order number 7 is not."""
    return served(products, orders, As(Scope.ORDERS_READ, Scope.ORDERS_WRITE, customer_id="c-2"))


@pytest.fixture
def owner(products: FakeProducts, orders: FakeOrders) -> FlaskClient:
    """Customer c-1, whose order number 7 is."""
    return served(products, orders, As(Scope.ORDERS_READ, Scope.ORDERS_WRITE, customer_id="c-1"))


def write(http: FlaskClient, name: str, **headers: str) -> TestResponse:
    method, path, body = WRITES[name]
    return http.open(path, method=method, json=body, headers={key.replace("_", "-"): headers[key] for key in headers})


def problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.content_type) == (status, "application/problem+json"), response.text
    document: dict[str, Any] = response.json
    assert (document["status"], document["code"]) == (status, code)
    return document


def fields_of(response: TestResponse) -> list[str]:
    return [each["field"] for each in problem(response, 400, "invalid_argument")["errors"]]


# --- reading --------------------------------------------------------------------------------------------------------


def test_orders_come_in_pages(http: FlaskClient, orders: FakeOrders) -> None:
    response = http.get(f"{ORDERS}?customer_id=c-1&status=shipped&page_size=5&page_token=abc")
    assert response.status_code == 200
    assert [each["id"] for each in response.json["orders"]] == [an_order(7).id]
    assert response.json["next_page_token"] == NEXT
    [asked] = orders.requests
    assert (asked.page_size, asked.page_token) == (5, "abc")
    assert (asked.customer_id, asked.status) == ("c-1", order_pb2.ORDER_STATUS_SHIPPED)


@pytest.mark.parametrize("query", ["", "?customer_id=&status=&page_token="])
def test_without_a_filter_every_order_is_listed(http: FlaskClient, orders: FakeOrders, query: str) -> None:
    assert http.get(f"{ORDERS}{query}").status_code == 200
    assert orders.requests == [order_pb2.ListOrdersRequest()]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (f"{ORDERS}?custmer_id=c-1", ["custmer_id"]),
        (f"{ORDERS}?Status=placed&size=3&page_size=1", ["Status", "size"]),
        (f"{ORDERS}?status=placed&status=shipped", ["status"]),
        (f"{ORDERS}?status=PLACED", ["status"]),
        (f"{ORDERS}?status=lost", ["status"]),
        (f"{ORDERS}?customer_id={'c' * 129}", ["customer_id"]),
        (f"{ORDERS}?customer_id=%00", ["customer_id"]),
        (f"{ORDERS}?customer_id=%20", ["customer_id"]),
        *((f"{ORDERS}?page_size={size}", ["page_size"]) for size in ("", "-1", "1001", "%201", "1.0", "1_0", "9" * 99)),
        (f"{SEVEN}?expand=lines", ["expand"]),
        ("/api/v1/products?page=2", ["page"]),
        ("/api/v1/products/1?a=1", ["a"]),
        ("/api/data?a=1", ["a"]),
        (f"{ORDERS}/{'o' * 129}", ["id"]),
        (f"{ORDERS}/%0a", ["id"]),
        ("/api/v1/products/%20", ["id"]),
    ],
)
def test_a_query_or_path_that_means_nothing_is_refused(
    http: FlaskClient, products: FakeProducts, orders: FakeOrders, path: str, fields: list[str]
) -> None:
    assert fields_of(http.get(path)) == fields
    assert (products.requests, orders.requests) == ([], [])


def test_a_mistyped_parameter_is_told_the_right_ones(http: FlaskClient) -> None:
    document = problem(http.get(f"{ORDERS}?custmer_id=c-1"), 400, "invalid_argument")
    assert document["errors"][0]["description"].endswith("there is: page_size, page_token, customer_id, status")


@pytest.mark.parametrize("name", WRITES)
def test_a_write_takes_no_query(http: FlaskClient, products: FakeProducts, orders: FakeOrders, name: str) -> None:
    method, path, body = WRITES[name]
    assert fields_of(http.open(f"{path}?dry_run=1", method=method, json=body)) == ["dry_run"]
    assert (products.requests, orders.requests) == ([], [])


# --- changing -------------------------------------------------------------------------------------------------------


def test_new_lines_replace_the_old_ones(http: FlaskClient, products: FakeProducts) -> None:
    response = http.patch(SEVEN, json=LINES, headers={"If-Match": '"1"', "Idempotency-Key": "k-1"})
    assert (response.status_code, response.headers["ETag"]) == (200, '"2"')
    assert (response.json["version"], response.json["lines"][0]["quantity"]) == (2, 3)
    [asked] = products.requests
    assert (asked.order_id, asked.expected_version, asked.idempotency_key) == (an_order(7).id, 1, "k-1")
    assert [(each.product_id, each.quantity) for each in asked.lines] == [("1", 3)]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["lines"]),
        ({"lines": []}, ["lines"]),
        ({**LINES, "customer_id": "c-2"}, ["customer_id"]),
        ({"lines": [{"product_id": "1", "quantity": 0}]}, ["lines[0].quantity"]),
        ({"lines": [{"product_id": " ", "quantity": 1}]}, ["lines[0].product_id"]),
    ],
    ids=str,
)
def test_only_lines_can_be_changed(
    http: FlaskClient, products: FakeProducts, body: dict[str, Any], fields: list[str]
) -> None:
    assert fields_of(http.patch(SEVEN, json=body)) == fields
    assert products.requests == []


@pytest.mark.parametrize("content_type", [None, "application/json", "text/plain"])
@pytest.mark.parametrize("name", ["cancel", "ship", "deliver"])
def test_nothing_needs_to_be_said_with_it(http: FlaskClient, name: str, content_type: str | None) -> None:
    _, path, _ = WRITES[name]
    response = http.post(path, data=b"", content_type=content_type)
    assert response.status_code == 200, response.text
    assert http.post(path, json={}).status_code == 200


def test_a_reason_goes_with_the_cancellation(http: FlaskClient, products: FakeProducts) -> None:
    response = http.post(f"{SEVEN}/cancel", json={"reason": "zu spät"}, headers={"If-Match": '"1"'})
    assert (response.status_code, response.json["status"], response.headers["ETag"]) == (200, "cancelled", '"2"')
    assert (products.requests[0].reason, products.requests[0].expected_version) == ("zu spät", 1)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"null", "body"),
        (b"[]", "body"),
        (b"{", "body"),
        (b'{"reason": 7}', "reason"),
        (b'{"reason": null}', "reason"),
        (b'{"reason": "a\\u0000"}', "reason"),
        (b'{"reason": "%s"}' % (b"x" * 501), "reason"),
        (b'{"because": "x"}', "because"),
        (b'{"reason": "a", "reason": "b"}', "reason"),
    ],
)
def test_a_cancellation_that_is_not_understood_is_refused(
    http: FlaskClient, products: FakeProducts, body: bytes, field: str
) -> None:
    assert fields_of(http.post(f"{SEVEN}/cancel", data=body, content_type="application/json")) == [field]
    assert products.requests == []


@pytest.mark.parametrize("name", ["cancel", "ship"])
def test_what_is_said_must_be_json(http: FlaskClient, name: str) -> None:
    problem(http.post(WRITES[name][1], data=b"reason=x", content_type="text/plain"), 415, "unsupported_media_type")


@pytest.mark.parametrize(("name", "status"), [("ship", "shipped"), ("deliver", "delivered")])
def test_an_order_is_shipped_and_delivered(http: FlaskClient, orders: FakeOrders, name: str, status: str) -> None:
    response = write(http, name, If_Match='"1"', Idempotency_Key="k-1")
    assert (response.status_code, response.json["status"], response.headers["ETag"]) == (200, status, '"2"')
    assert orders.requests == [
        order_pb2.AdvanceOrderRequest(
            order_id=an_order(7).id,
            to_status=order_pb2.OrderStatus.Value(f"ORDER_STATUS_{status.upper()}"),
            expected_version=1,
            idempotency_key="k-1",
        )
    ]


def test_shipping_takes_no_body(http: FlaskClient, orders: FakeOrders) -> None:
    assert fields_of(http.post(f"{SEVEN}/ship", json={"carrier": "x"})) == ["body"]
    assert orders.requests == []


def test_stock_is_adjusted(http: FlaskClient, products: FakeProducts) -> None:
    response = write(http, "adjust", Idempotency_Key="k-1")
    assert (response.status_code, response.json["id"], response.json["available"]) == (200, "1", 7)
    [asked] = products.requests
    assert (asked.product_id, asked.delta, asked.reason, asked.idempotency_key) == ("1", -3, "broken", "k-1")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "delta"),
        *(({"delta": delta}, "delta") for delta in ("1", 1.5, True, None, 10**9 + 1, -(10**9) - 1, 10**30, [1])),
        ({"delta": 1, "reason": None}, "reason"),
        ({"delta": 1, "reason": "x" * 501}, "reason"),
        ({"delta": 1, "reson": "x"}, "reson"),
    ],
    ids=str,
)
def test_an_impossible_adjustment_is_refused(
    http: FlaskClient, products: FakeProducts, body: dict[str, Any], field: str
) -> None:
    assert fields_of(http.post(STOCK, json=body)) == [field]
    assert products.requests == []


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "-Infinity", "9" * 5000, "1.5", "0x1"])
def test_a_number_that_no_field_takes_is_named_or_is_not_json(http: FlaskClient, number: str) -> None:
    body = b'{"delta": %s}' % number.encode()
    [field] = fields_of(http.post(STOCK, data=body, content_type="application/json"))
    assert field == ("body" if number == "0x1" else "delta")


def test_a_whole_number_may_carry_a_fraction_of_zero(http: FlaskClient, products: FakeProducts) -> None:
    http.post(STOCK, data=b'{"delta": -5.0}', content_type="application/json")
    assert [asked.delta for asked in products.requests] == [-5]


# --- once -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
def test_a_repeated_write_gets_the_first_answer_and_is_told_so(http: FlaskClient, name: str) -> None:
    first, second = (write(http, name, Idempotency_Key="k-1") for _ in range(2))
    assert first.status_code == second.status_code == (201 if name == "place" else 200)
    assert first.data == second.data
    assert first.headers.get("ETag") == second.headers.get("ETag")
    assert first.headers.get("Location") == second.headers.get("Location")
    assert (first.headers.get("Idempotent-Replayed"), second.headers.get("Idempotent-Replayed")) == (None, "true")


@pytest.mark.parametrize("name", WRITES)
def test_without_a_key_each_write_has_one_of_its_own(
    http: FlaskClient, products: FakeProducts, orders: FakeOrders, name: str
) -> None:
    for _ in range(2):
        assert "Idempotent-Replayed" not in write(http, name).headers
    used = [asked.idempotency_key for asked in products.requests + orders.requests]
    assert len(set(used)) == 2
    assert all(used)


@pytest.mark.parametrize(("method", "path"), [("POST", ORDERS), ("PATCH", SEVEN)])
@pytest.mark.parametrize("who", ["http", "owner"])
def test_a_key_that_was_used_for_something_else_is_refused_by_the_name_its_caller_knows(
    request: pytest.FixtureRequest, method: str, path: str, who: str
) -> None:
    http: FlaskClient = request.getfixturevalue(who)
    bodies = [{**(BODY if method == "POST" else {}), "lines": [{"product_id": "1", "quantity": n}]} for n in (1, 2)]
    first, second = (http.open(path, method=method, json=body, headers={"Idempotency-Key": "k-1"}) for body in bodies)
    assert first.status_code < 300
    document = problem(second, 422, "idempotency_key_reused")
    assert "'k-1'" in document["detail"]
    assert document["metadata"] == {"idempotency_key": "k-1"}


def test_customers_who_choose_the_same_key_do_not_meet(
    products: FakeProducts, owner: FlaskClient, tied: FlaskClient
) -> None:
    for http, customer_id in ((owner, "c-1"), (tied, "c-2")):
        body = {**BODY, "customer_id": customer_id}
        assert http.post(ORDERS, json=body, headers={"Idempotency-Key": "k-1"}).status_code == 201
    assert len({asked.idempotency_key for asked in products.requests}) == 2


@pytest.mark.parametrize("key", ["k" * 256, "a\x07b", "a\x85b"])
@pytest.mark.parametrize("name", WRITES)
def test_a_key_that_no_service_takes_is_refused(http: FlaskClient, products: FakeProducts, name: str, key: str) -> None:
    assert fields_of(write(http, name, Idempotency_Key=key)) == ["Idempotency-Key"]
    assert products.requests == []


# --- only this version ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(("if_match", "version"), [(None, 0), ("*", 0), ('"1"', 1)])
def test_the_etag_is_the_version_to_change(
    http: FlaskClient, products: FakeProducts, orders: FakeOrders, name: str, if_match: str | None, version: int
) -> None:
    response = write(http, name, **({"If_Match": if_match} if if_match else {}))
    assert response.status_code == 200
    [asked] = products.requests + orders.requests
    assert asked.expected_version == version


@pytest.mark.parametrize("name", CHANGES)
def test_another_version_is_412(http: FlaskClient, name: str) -> None:
    document = problem(write(http, name, If_Match='"2"'), 412, "version_conflict")
    assert document["metadata"] == {"order_id": an_order(7).id, "expected_version": "2", "version": "1"}


@pytest.mark.parametrize(
    "if_match", ['W/"1"', '""', '"0"', '"01"', '"-1"', '"+1"', '"1.0"', '"abc"', '"1,1"', f'"{2**64}"', '"\u0661"']
)
def test_a_tag_that_no_version_can_have_is_412_and_changes_nothing(
    http: FlaskClient, products: FakeProducts, if_match: str
) -> None:
    sent = if_match.encode().decode("latin-1")
    document = problem(http.patch(SEVEN, json=LINES, headers={"If-Match": sent}), 412, "version_conflict")
    assert 'strong ETag, "1"' in document["detail"]
    assert document["metadata"] == {"order_id": an_order(7).id, "version": "1"}
    assert products.requests == []
    problem(http.patch(f"{ORDERS}/nope", json=LINES, headers={"If-Match": sent}), 404, "order_not_found")


@pytest.mark.parametrize("if_match", ["", "1", "'1'", '"1', '"1", "2"', '"1""', 'w/"1"', '*, "1"', '"a b"'])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_one_tag_is_refused(http: FlaskClient, name: str, if_match: str) -> None:
    assert fields_of(write(http, name, If_Match=if_match)) == ["If-Match"]


def test_without_if_match_a_conflict_is_409(http: FlaskClient, products: FakeProducts) -> None:
    products.failure = errors.VersionConflict.of(an_order(7).id, 1, 2)
    problem(write(http, "update"), 409, "version_conflict")


# --- who may --------------------------------------------------------------------------------------------------------

NEEDED = {
    ("GET", ORDERS): Scope.ORDERS_READ,
    ("GET", SEVEN): Scope.ORDERS_READ,
    **{(method, path): Scope.ORDERS_WRITE for name, (method, path, _) in WRITES.items() if name != "adjust"},
    ("POST", STOCK): Scope.STOCK_WRITE,
}
BODIES = {(method, path): body for method, path, body in WRITES.values()}


@pytest.mark.parametrize("operation", NEEDED, ids=" ".join)
def test_every_operation_has_its_scope(products: FakeProducts, orders: FakeOrders, operation: tuple[str, str]) -> None:
    needed = NEEDED[operation]
    others = set(Scope) - {needed, Scope.ADMIN}
    method, path = operation
    refused = served(products, orders, As(*others)).open(path, method=method, json=BODIES.get(operation))
    assert problem(refused, 403, "permission_denied")["metadata"] == {"scope": needed}
    assert (products.requests, orders.requests) == ([], [])
    for scope in (needed, Scope.ADMIN):
        done = served(products, orders, As(scope)).open(path, method=method, json=BODIES.get(operation))
        assert done.status_code in (200, 201)


@pytest.mark.parametrize("path", ["/api/data", "/api/v1/products", "/api/v1/products/1"])
def test_products_are_for_everybody_who_is_known(products: FakeProducts, orders: FakeOrders, path: str) -> None:
    assert served(products, orders, As()).get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", SEVEN, None), WRITES["update"], WRITES["cancel"]],
    ids=["get", "patch", "cancel"],
)
@pytest.mark.parametrize("if_match", [None, '"1"', '"5"', 'W/"1"', "*"])
def test_the_orders_of_others_are_not_there(
    tied: FlaskClient, products: FakeProducts, method: str, path: str, body: Any, if_match: str | None
) -> None:
    headers = {"If-Match": if_match} if if_match else {}
    others = problem(tied.open(path, method=method, json=body, headers=headers), 404, "order_not_found")
    nobodys_path = path.replace(an_order(7).id, an_order(9).id)
    nobodys = problem(tied.open(nobodys_path, method=method, json=body, headers=headers), 404, "order_not_found")
    assert others["detail"].replace(an_order(7).id, an_order(9).id) == nobodys["detail"]
    assert set(others) == set(nobodys)
    assert products.requests == []


@pytest.mark.parametrize("name", ["update", "cancel"])
@pytest.mark.parametrize(("if_match", "version"), [(None, 0), ('"1"', 1), ("*", 0)])
def test_a_customer_changes_their_own_order(
    owner: FlaskClient, products: FakeProducts, name: str, if_match: str | None, version: int
) -> None:
    assert owner.get(SEVEN).json["customer_id"] == "c-1"
    assert write(owner, name, **({"If_Match": if_match} if if_match else {})).status_code == 200
    assert [asked.expected_version for asked in products.requests] == [version]


@pytest.mark.parametrize("name", ["ship", "deliver"])
def test_a_customer_does_not_ship(owner: FlaskClient, orders: FakeOrders, name: str) -> None:
    problem(write(owner, name), 403, "permission_denied")
    assert orders.requests == []


def test_a_customer_places_orders_for_themselves_only(
    owner: FlaskClient, tied: FlaskClient, products: FakeProducts
) -> None:
    problem(write(tied, "place"), 403, "permission_denied")
    assert products.requests == []
    assert write(owner, "place").status_code == 201


def test_a_customer_lists_their_own_orders_only(tied: FlaskClient, orders: FakeOrders) -> None:
    orders.listed = [an_order(1), an_order(2, "c-2"), an_order(3, "c-3")]
    for query in ("", "?customer_id=", "?customer_id=c-2"):
        assert [each["customer_id"] for each in tied.get(f"{ORDERS}{query}").json["orders"]] == ["c-2"]
    asked = len(orders.requests)
    problem(tied.get(f"{ORDERS}?customer_id=c-1"), 403, "permission_denied")
    assert len(orders.requests) == asked
