"""Row 17: whatever a field says, it is refused by its name, on gRPC as over REST, and nothing of it is stored."""

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest
from e2e import processes
from e2e.processes import SECONDS
from faults import crowd, figures
from faults.crowd import Site
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from ordersys.core.v1 import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc

KEY = "row-17"
LONG = "x" * 129
UNICODE = "Zoë Ñandú 株式会社 👩\u200d🍳 e\u0301"


@pytest.fixture(scope="module", params=processes.ENGINES)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Site]]:
    with crowd.site(request.param, tmp_path_factory.mktemp(f"input-{request.param}")) as site:
        site.backend.start_all("api")
        yield request.param, site


@pytest.fixture
def engine(running: tuple[str, Site]) -> str:
    return running[0]


@pytest.fixture
def site(running: tuple[str, Site]) -> Iterator[Site]:
    yield running[1]
    running[1].backend.show()


Fields = set[str]
GrpcCase = tuple[str, dict[str, Any], Fields]
"""A method, the fields of its request, and those that have to be complained about."""


def line(product_id: str = "1", quantity: int = 1) -> order_pb2.OrderLine:
    return order_pb2.OrderLine(product_id=product_id, quantity=quantity)


LINES: list[tuple[list[tuple[str, int]], Fields]] = [
    ([], {"lines"}),
    ([("1", 1)] * 101, {"lines"}),
    ([("1", 1)] * 5_000, {"lines"}),
    ([("1", 0)], {"lines[0].quantity"}),
    ([("1", -1)], {"lines[0].quantity"}),
    ([("1", 1_000_001)], {"lines[0].quantity"}),
    ([("1", 2**31 - 1)], {"lines[0].quantity"}),
    ([("1", -(2**31))], {"lines[0].quantity"}),
    ([("1", 1), ("", 1)], {"lines[1].product_id"}),
    ([("1", 1), (LONG, 1)], {"lines[1].product_id"}),
    ([("1\x00", 1)], {"lines[0].product_id"}),
    ([("1", 0), ("", 1), ("2", -5)], {"lines[0].quantity", "lines[1].product_id", "lines[2].quantity"}),
]
"""Lines that no order may have, whether it is placed or changed; gRPC and REST name the same fields."""


def placement(**changed: Any) -> dict[str, Any]:
    """A command to order-service itself, whose one line is right but for what is changed."""
    price = {"currency": "EUR", "amount": 100}
    wanted = {"product_id": "1", "quantity": 4, "unit_price": price, **changed}
    return {"command_id": "row-17", "order_id": "row-17", "place": {"customer_id": "c", "lines": [wanted]}}


GRPC: list[GrpcCase] = [
    *[("PlaceOrder", {"customer_id": "c", "lines": [line(*each) for each in lines]}, bad) for lines, bad in LINES],
    *[("UpdateOrder", {"order_id": "o", "lines": [line(*each) for each in lines]}, bad) for lines, bad in LINES],
    *[
        ("PlaceOrder", {"customer_id": customer, "lines": [line()]}, {"customer_id"})
        for customer in ("", "  ", LONG, "a\x00b", "a\nb", "a\x9bb")
    ],
    ("PlaceOrder", {}, {"customer_id", "lines"}),
    ("PlaceOrder", {"idempotency_key": "x" * 256, "customer_id": "c", "lines": [line()]}, {"idempotency_key"}),
    ("PlaceOrder", {"idempotency_key": "a\x07b", "customer_id": "c", "lines": [line()]}, {"idempotency_key"}),
    ("UpdateOrder", {"order_id": "", "lines": [line()]}, {"order_id"}),
    ("UpdateOrder", {"order_id": "o", "lines": [line()], "expected_version": -1}, {"expected_version"}),
    (
        "CancelOrder",
        {"order_id": LONG, "reason": "x" * 501, "expected_version": -7},
        {"order_id", "reason", "expected_version"},
    ),
    *[
        ("AdjustStock", {"product_id": "1", "delta": delta}, {"delta"})
        for delta in (0, 10**9 + 1, -(10**9) - 1, 2**63 - 1, -(2**63))
    ],
    ("AdjustStock", {"product_id": "", "delta": 5, "reason": "a\x1b[31mb"}, {"product_id", "reason"}),
    ("GetProduct", {"product_id": ""}, {"product_id"}),
    ("GetProduct", {"product_id": "a\x00"}, {"product_id"}),
    ("ListProducts", {"page_size": -1}, {"page_size"}),
    ("ListProducts", {"page_size": 2**31 - 1}, {"page_size"}),
    ("ListProducts", {"page_token": "certainly not"}, {"page_token"}),
    ("ListStockMoves", {"order_id": ""}, {"order_id"}),
    ("GetOrder", {"order_id": LONG}, {"order_id"}),
    ("ListOrders", {"page_size": 1001}, {"page_size"}),
    ("ListOrders", {"page_token": "W10"}, {"page_token"}),
    ("ListOrders", {"status": 99}, {"status"}),
    ("ListOrders", {"customer_id": "a\x00"}, {"customer_id"}),
    *[("AdvanceOrder", {"order_id": "o", "to_status": status}, {"to_status"}) for status in (0, 1, 4, 99)],
    ("AdvanceOrder", {"order_id": "o", "to_status": 2, "expected_version": -1}, {"expected_version"}),
    ("ListEvents", {"change": "eaten"}, {"change"}),
    ("ListEvents", {"order_id": "a\x00"}, {"order_id"}),
    ("SettleCommands", {"command_ids": [""]}, {"command_ids[0]"}),
    ("SettleCommands", {"command_ids": ["x"] * 1001}, {"command_ids"}),
    ("ProcessOrders", {"commands": [{"command_id": "x", "order_id": "o"}]}, {"commands[0].action"}),
    *[
        ("ProcessOrders", {"commands": [placement(**{name: value})]}, {f"commands[0].lines{field}"})
        for name, value, field in (
            ("product_id", "a\x00", "[0].product_id"),
            ("quantity", 0, "[0].quantity"),
            ("quantity", -5, "[0].quantity"),
            ("unit_price", {"currency": "EUR", "amount": -1}, "[0].unit_price"),
            ("unit_price", {"currency": "EUR", "amount": 2**62}, ""),
            ("unit_price", {}, ""),
        )
    ],
    ("WatchOrders", {"after_sequence": -1}, {"after_sequence"}),
    ("WatchOrders", {"order_id": ""}, {"order_id"}),
]

ORDER = {"customer_id": "c", "lines": [{"product_id": "1", "quantity": 1}]}


def lines_json(*quantities: Any) -> dict[str, Any]:
    return {**ORDER, "lines": [{"product_id": "1", "quantity": each} for each in quantities]}


REST: list[tuple[Any, Fields]] = [
    *[
        ({**ORDER, "lines": [{"product_id": product_id, "quantity": quantity} for product_id, quantity in lines]}, bad)
        for lines, bad in LINES
    ],
    *[
        (lines_json(each), {"lines[0].quantity"})
        for each in ("2", 2.5, True, None, [], 10**30, -(10**30), float("nan"))
    ],
    *[({**ORDER, "customer_id": each}, {"customer_id"}) for each in ("", "  ", LONG, "a\x00b", "\ud800", 7, None, [])],
    ({**ORDER, "lines": {"product_id": "1"}}, {"lines"}),
    ({**ORDER, "lines": [None]}, {"lines[0]"}),
    ({**ORDER, "lines": [{"quantity": 1}]}, {"lines[0].product_id"}),
    ({**ORDER, "total": 0}, {"total"}),
    ({"lines": ORDER["lines"]}, {"customer_id"}),
    ({}, {"customer_id", "lines"}),
    ([ORDER], {"body"}),
    ("text", {"body"}),
]


def test_row_17_a_bad_field_is_named_on_grpc(site: Site, engine: str) -> None:
    before = everything(site)
    with (
        grpc.insecure_channel(site.addresses[0]) as products,
        grpc.insecure_channel(site.backend.order_address) as orders,
    ):
        stubs = (product_pb2_grpc.ProductServiceStub(products), order_pb2_grpc.OrderServiceStub(orders))
        for method, values, expected in GRPC:
            module = product_pb2 if hasattr(stubs[0], method) else order_pb2
            request = getattr(module, f"{method}Request")(**values)
            call = getattr(stubs[0] if module is product_pb2 else stubs[1], method)
            assert refused_fields(call, request) == expected, (method, values)
    assert everything(site) == before
    figures.record(17, engine, door="gRPC", refused=len(GRPC), stored=0)


def refused_fields(call: Any, request: Any) -> Fields:
    """The fields of the BadRequest that the call is refused with; everything else about the refusal is checked here."""
    with pytest.raises(grpc.RpcError) as told:
        answered(call(request, timeout=SECONDS))
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT, told.value
    assert told.value.details()
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status = rpc_status.from_call(told.value)
    assert status is not None
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(bad)
    assert (info.domain, info.reason) == ("ordersys", "INVALID_ARGUMENT")
    assert all(each.description for each in bad.field_violations)
    return {each.field for each in bad.field_violations}


def answered(answer: Any) -> Any:
    """A stream says what is wrong only when it is read."""
    return next(answer) if isinstance(answer, grpc.Call) else answer


def test_row_17_a_bad_field_is_named_over_rest(site: Site, engine: str) -> None:
    before = everything(site)
    for body, expected in REST:
        status, kind, problem = post(site, json.dumps(body))
        assert (status, kind) == (400, "application/problem+json"), (str(body)[:200], problem)
        assert (problem["code"], problem["status"]) == ("invalid_argument", 400)
        assert {each["field"] for each in problem["errors"]} == expected, str(body)[:200]
        assert all(each["description"] for each in problem["errors"])
    for text in ("", "{", "\0", '{"customer_id": "c", "lines": [}', "[" * 100_000, "9" * 5_000):
        assert [each["field"] for each in post(site, text)[2]["errors"]] == ["body"]
    status, _, problem = post(site, json.dumps(ORDER), **{"Idempotency-Key": "x" * 256})
    assert (status, [each["field"] for each in problem["errors"]]) == (400, ["Idempotency-Key"])
    assert post(site, json.dumps(ORDER), **{"Content-Type": "text/plain"})[0] == 415
    assert everything(site) == before
    figures.record(17, engine, door="REST", refused=len(REST) + 8, stored=0)


def test_row_17_an_unknown_product_and_a_refused_key_leave_nothing(site: Site, engine: str) -> None:
    before = everything(site)
    for product_id in ("nothing", UNICODE, "1' OR '1'='1", "x" * 128):
        lines = [{"product_id": "1", "quantity": 1}, {"product_id": product_id, "quantity": 1}]
        status, _, problem = post(site, json.dumps({**ORDER, "lines": lines}))
        assert (status, problem["code"], problem["metadata"]) == (404, "product_not_found", {"product_id": product_id})
    assert post(site, json.dumps({**ORDER, "lines": []}), **{"Idempotency-Key": KEY})[0] == 400
    assert everything(site) == before

    status, _, placed = post(site, json.dumps({**ORDER, "customer_id": UNICODE}), **{"Idempotency-Key": KEY})
    assert (status, placed["customer_id"]) == (201, UNICODE)  # the refused request had not used the key up
    assert site.client.get_order(placed["id"]).customer_id == UNICODE
    assert [order.id for order in site.client.list_orders(customer_id=UNICODE).orders] == [placed["id"]]
    site.client.cancel_order(placed["id"])
    site.balances()
    figures.record(17, engine, unknown_products=4, stored=0)


def post(site: Site, body: str, **headers: str) -> tuple[int, str, Any]:
    """Status, content type and document of the answer to an order."""
    with closing(http.client.HTTPConnection(site.backend.api_address, timeout=SECONDS)) as connection:
        connection.request("POST", "/api/v1/orders", body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], json.load(response)


def everything(site: Site) -> tuple[Any, ...]:
    """All that is stored and can be seen: the books, the orders, the events."""
    orders = site.client.list_orders(page_size=1000).orders
    return site.client.audit_stock(), orders, [logged.event for logged in site.client.log()]
