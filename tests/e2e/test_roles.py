"""Five terminals and more: an order on its way from the client to every notifier, on both engines.

The roles are started once per engine; each test has orders of its own and looks at nothing else.
"""

import http.client
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from e2e import processes
from e2e.processes import Backend, Role, until

from ordersys import settings, wiring
from ordersys.broker.broker import Message, Outcome
from ordersys.client.calls import Orders
from ordersys.core import errors, events

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

BEANS = {"currency": "EUR", "amount": 2490}
FILTERS = {"currency": "EUR", "amount": 490}


@dataclass(frozen=True)
class Shop:
    """A deployment with all its roles running; two copies of the fanout notifier share its queue."""

    backend: Backend
    fanout: tuple[Role, Role]
    topic: Role
    audit: Role

    def created(self, subject: str | set[str]) -> list[dict[str, Any]]:
        return [event for copy in self.fanout for event in copy.events(subject)]

    def heard(self, customer: str) -> None:
        """Wait until every notifier has passed on an order placed now: what was published before it has come too."""
        order = self.backend.place("4:1", customer=customer)
        self.backend.client("cancel-order", order["id"])
        until(lambda: bool(self.created(order["id"])), "the last order is at notify.fanout")
        until(lambda: len(self.topic.events(order["id"])) == 2, "the last order is at notify.topic")
        until(lambda: bool(self.audit.events(order["id"])), "the last order is at audit")


@pytest.fixture(scope="module", params=processes.ENGINES)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp(f"roles-{request.param}")
    with processes.engine(request.param) as settings, Backend(folder, settings) as backend:
        commands = [
            "notify --mode fanout --json",
            "notify --mode fanout --json",
            "notify --mode topic --json",
            "notify --mode topic --queue audit --bind order.updated.# --json",
            "serve-product",
            "serve-order",
            "api",
        ]
        one, other, topic, audit, *_ = backend.start_all(*commands)
        yield Shop(backend, (one, other), topic, audit)


@pytest.fixture
def shop(running: Shop) -> Iterator[Shop]:
    yield running
    running.backend.show()


def created(order: dict[str, Any]) -> dict[str, Any]:
    """The order as its `created` event carries it."""
    return {"order_id": order["id"], "change": "created", **{name: order[name] for name in order if name != "id"}}


def test_an_order_goes_from_the_client_to_every_notifier(shop: Shop) -> None:
    backend = shop.backend
    before = backend.available("1")
    answer = backend.client(
        "place-order", "--line", "1:2", "--line", "4:1", "--customer", "ann", "--idempotency-key", "roles-ann"
    )
    order = answer["order"]
    assert answer == {
        "order": {
            "id": order["id"],
            "customer_id": "ann",
            "status": "placed",
            "lines": [
                {"product_id": "1", "quantity": 2, "unit_price": BEANS},
                {"product_id": "4", "quantity": 1, "unit_price": FILTERS},
            ],
            "total": {"currency": "EUR", "amount": 2 * 2490 + 490},
            "version": 1,
            "created_at": order["created_at"],
            "updated_at": order["created_at"],
        },
        "replayed": False,
    }
    assert UUID7.fullmatch(order["id"])
    assert UTC_TIME.fullmatch(order["created_at"])
    assert backend.client("get-order", order["id"]) == {"order": order, "replayed": False}
    assert backend.available("1") == before - 2

    updated = backend.client("update-order", order["id"], "--line", "1:5", "--expected-version", "1")["order"]
    assert updated["lines"] == [{"product_id": "1", "quantity": 5, "unit_price": BEANS}]
    assert (updated["version"], updated["total"]["amount"]) == (2, 5 * 2490)
    cancelled = backend.client("cancel-order", order["id"], "--reason", "changed my mind")["order"]
    assert cancelled == {**updated, "status": "cancelled", "version": 3, "updated_at": cancelled["updated_at"]}
    backend.settled()
    assert backend.available("1") == before

    second = backend.client("place-order", "--product", "1", "--quantity", "1", "--customer", "ann")["order"]
    assert backend.client("ship-order", second["id"])["order"]["status"] == "shipped"
    delivered = backend.client("deliver-order", second["id"], "--expected-version", "2")["order"]
    assert (delivered["status"], delivered["version"]) == ("delivered", 3)
    assert backend.client("list-orders", "--customer", "ann") == {
        "orders": [delivered, cancelled],
        "next_page_token": "",
    }
    assert backend.client("list-orders", "--customer", "ann", "--status", "delivered")["orders"] == [delivered]

    shop.heard("ann-last")
    orders = {order["id"], second["id"]}
    assert sorted(event["subject"] for event in shop.created(orders)) == sorted(orders)
    every = shop.topic.events(orders)
    assert [event["data"]["change"] for event in every if event["subject"] == order["id"]] == [
        "created",
        "lines",
        "cancelled",
    ]
    assert [event["data"]["change"] for event in every if event["subject"] == second["id"]] == [
        "created",
        "shipped",
        "delivered",
    ]
    assert shop.audit.events(orders) == [event for event in every if event["data"]["change"] != "created"]

    [first, *_] = shop.topic.events(order["id"])
    assert first == {
        "specversion": "1.0",
        "id": first["id"],
        "source": "/ordersys/order-service",
        "type": "ordersys.order.created.v1",
        "subject": order["id"],
        "time": first["time"],
        "datacontenttype": "application/json",
        "sequence": first["sequence"],
        "traceparent": first["traceparent"],
        "data": created(order),
    }
    assert UUID7.fullmatch(first["id"])
    assert UTC_TIME.fullmatch(first["time"])
    assert re.fullmatch(r"[1-9]\d*", first["sequence"])
    assert TRACEPARENT.fullmatch(first["traceparent"])
    assert [first] == shop.created(order["id"])  # the same event, whichever way it came
    assert {event["type"] for event in every[1:] if event["data"]["change"] != "created"} == {
        "ordersys.order.updated.v1"
    }
    assert shop.topic.events(second["id"])[-1]["data"] == {
        **created(delivered),
        "change": "delivered",
        "status": "delivered",
    }


def test_an_event_that_is_delivered_again_is_told_once(shop: Shop) -> None:
    order = shop.backend.place("1:1", customer="hal")
    shop.heard("hal-first")
    [event] = shop.topic.events(order["id"])
    again = [
        Message(
            exchange=exchange,
            routing_key="order.created",
            body=json.dumps(event).encode(),
            message_id=event["id"],
            content_type=events.CONTENT_TYPE,
        )
        for exchange in ("orders.fanout", "orders.topic")
    ]
    url = shop.backend.environment.get("ORDERSYS_BROKER_URL", f"sqlite:///{shop.backend.home}/broker.db")
    broker = wiring.broker(settings.load({"broker_url": url}))
    try:
        assert broker.publisher().publish(again * 2) == [Outcome.CONFIRMED] * 4
    finally:
        broker.close()
    shop.heard("hal-last")
    assert shop.topic.events(order["id"]) == shop.created(order["id"]) == [event]


def test_a_watch_starts_where_another_process_left_off(shop: Shop) -> None:
    backend = shop.backend
    follower = backend.start("client", "watch", "--customer", "bea", "--json")
    order = backend.place("1:1", customer="bea")
    until(lambda: len(follower.events()) == 1, "the follower sees the order")
    follower.kill()
    last = follower.events()[-1]
    backend.client("ship-order", order["id"])
    backend.client("deliver-order", order["id"])
    other = backend.place("1:1", customer="bea")

    again = backend.run("client", "watch", "--customer", "bea", "--json", "--after", last["sequence"], "--limit", "3")
    assert (again.code, again.err) == (0, "")
    rest = [json.loads(line) for line in again.out.splitlines()]
    assert [event["data"]["change"] for event in rest] == ["shipped", "delivered", "created"]
    assert rest[2]["data"] == created(other)
    sequences = [int(event["sequence"]) for event in [last, *rest]]
    assert sequences == sorted(set(sequences))
    shop.heard("bea-last")
    assert [last, *rest] == [*shop.topic.events(order["id"]), *shop.topic.events(other["id"])]  # word for word

    ordered = backend.run("client", "watch", "--order", order["id"], "--json", "--limit", "3")
    assert [json.loads(line) for line in ordered.out.splitlines()] == [last, *rest[:2]]


def test_200_callers_for_100_in_stock(shop: Shop) -> None:
    backend = shop.backend
    backend.client("adjust-stock", "7", str(100 - backend.available("7")))
    start = threading.Barrier(200)
    told: list[str] = []

    def place(number: int) -> str | None:
        start.wait()
        try:
            return orders.place_order(f"rush-{number}", [("7", 1)]).order.id
        except errors.InsufficientStock as error:
            told.append(error.metadata["available"])
            return None

    with Orders(backend.product_address, backend.order_address, 30) as orders, ThreadPoolExecutor(200) as callers:
        placed = {order_id for order_id in callers.map(place, range(200)) if order_id}
    assert (len(placed), told) == (100, ["0"] * 100)
    backend.settled()
    assert backend.available("7") == 0
    found = backend.client("list-orders", "--all", "--page-size", "1000")["orders"]
    assert {each["id"] for each in found if each["customer_id"].startswith("rush-")} == placed

    shop.heard("rush-last")
    for told_of in (shop.created(placed), shop.topic.events(placed)):
        assert sorted(event["subject"] for event in told_of) == sorted(placed)


def test_a_repeated_call_gets_the_first_answer(shop: Shop) -> None:
    backend = shop.backend
    before = backend.available("2")
    place = ["place-order", "--customer", "cleo", "--idempotency-key", "roles-cleo", "--line"]
    first = backend.client(*place, "2:3")
    assert backend.client(*place, "2:3") == {**first, "replayed": True}
    refused = backend.run("client", *place, "2:4")
    assert (refused.code, refused.complaint.partition(": ")[2].partition(":")[0]) == (1, "idempotency_key_reused")
    assert backend.available("2") == before - 3

    adjust = ["adjust-stock", "2", "-4", "--reason", "broken", "--idempotency-key", "roles-cleo-stock"]
    adjusted = backend.client(*adjust)
    assert adjusted["product"]["available"] == before - 7
    assert backend.client(*adjust) == adjusted
    assert backend.available("2") == before - 7


def test_what_the_client_prints_of_products(shop: Shop) -> None:
    products = shop.backend.client("list-products")["products"]
    assert [product["id"] for product in products] == ["1", "2", "3", "4", "5", "6", "7", "8"]
    assert products[2] == {
        "id": "3",
        "name": "Pour-over dripper",
        "description": "Ceramic, for one or two cups",
        "attributes": {"colour": "white", "material": "ceramic"},
        "price": {"currency": "EUR", "amount": 3200},
        "available": 120,
    }
    assert shop.backend.client("get-product", "3") == {"product": products[2]}
    data = shop.backend.client("get-data")
    assert list(data) == ["message"]
    assert data["message"].startswith("Product Service: 8 products, ")


def test_the_rest_api_is_a_door_to_the_same_orders(shop: Shop) -> None:
    def call(path: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, Any, Any]:
        connection = http.client.HTTPConnection(shop.backend.api_address, timeout=30)
        with closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request(
                "GET" if body is None else "POST", path, content, {"Content-Type": "application/json", **headers}
            )
            response = connection.getresponse()
            return response.status, json.load(response), response.headers

    assert call("/healthz")[0] == 200
    assert call("/api/data")[1] == shop.backend.client("get-data")
    wanted = {"customer_id": "dora", "lines": [{"product_id": "3", "quantity": 1}]}
    status, order, headers = call("/api/v1/orders", wanted, **{"Idempotency-Key": "roles-dora"})
    assert (status, headers["Location"], headers["ETag"]) == (201, f"/api/v1/orders/{order['id']}", '"1"')
    assert shop.backend.client("get-order", order["id"])["order"] == order
    assert call(headers["Location"])[1] == order
    assert call("/api/v1/orders", wanted, **{"Idempotency-Key": "roles-dora"})[1] == order
    assert call("/api/v1/products/3")[1] == shop.backend.client("get-product", "3")["product"]

    status, problem, headers = call("/api/v1/orders", {"customer_id": "dora", "lines": []})
    assert (status, headers["Content-Type"], problem["code"]) == (400, "application/problem+json", "invalid_argument")
    assert [each["field"] for each in problem["errors"]] == ["lines"]
    shop.backend.client("cancel-order", order["id"])
    shop.heard("dora-last")
    assert [event["data"] for event in shop.created(order["id"])] == [created(order)]


@pytest.mark.parametrize("running", ["servers"], indirect=True)
def test_consumers_of_others_read_cloudevents_from_rabbitmq(shop: Shop) -> None:
    import pika

    with pika.BlockingConnection(pika.URLParameters(shop.backend.environment["ORDERSYS_BROKER_URL"])) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        for exchange, pattern in (("orders.fanout", ""), ("orders.topic", "order.updated.shipped")):
            channel.queue_bind(queue, exchange, pattern)
        order = shop.backend.place("1:1", customer="eve")
        shop.backend.client("ship-order", order["id"])
        consuming = channel.consume(queue, auto_ack=True, inactivity_timeout=30)
        messages = [next(consuming) for _ in range(2)]
        channel.cancel()
    changes = []
    for method, properties, body in messages:
        event = json.loads(body)
        changes.append((method.exchange, method.routing_key, event["data"]["change"]))
        assert properties.content_type == "application/cloudevents+json"
        assert properties.delivery_mode == 2
        assert properties.message_id == event["id"]
        assert event["subject"] == order["id"]
    assert changes == [
        ("orders.fanout", "order.created", "created"),
        ("orders.topic", "order.updated.shipped", "shipped"),
    ]
