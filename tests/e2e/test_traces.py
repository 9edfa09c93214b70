"""One trace from the command line or an HTTP request to both notifications, by the processes of every role."""

import json
import signal
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
from collector import Collector, Seen, collecting, tree
from e2e.processes import Backend, free_port, until

from ordersys import __version__

SERVICES = "ordersys.core.v1"

# From the Product Service on, whoever asked it.
PLACED = f"""\
product-service SERVER {SERVICES}.ProductService/PlaceOrder
  product-service INTERNAL ask order-service
    order-service INTERNAL process command
      order-service PRODUCER send orders.fanout
        notification-service CONSUMER process notify.fanout
      order-service PRODUCER send orders.topic
        notification-service CONSUMER process notify.topic"""


def below(depth: int, lines: str) -> list[str]:
    return ["  " * depth + line for line in lines.splitlines()]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def only(spans: list[Seen], name: str, kind: str = "") -> Seen:
    [found] = [span for span in spans if span.name == name and kind in ("", span.kind)]
    return found


def post(backend: Backend, path: str, body: object, traceparent: str = "") -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json", **({"traceparent": traceparent} if traceparent else {})}
    with closing(HTTPConnection(backend.api_address, timeout=30)) as connection:
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.load(answer)


def test_an_order_is_one_trace_from_its_caller_to_both_notifications(backend: Backend, collector: Collector) -> None:
    backend.environment |= collector.environment
    fanout, topic, order, _, _ = backend.start_all(
        "notify --mode fanout --json", "notify --mode topic --json", "serve-order", "serve-product", "api"
    )

    # from the command line
    placed = backend.place("1:2")
    spans = collector.trace_with(lambda span: span.attributes.get("ordersys.order.id") == placed["id"], 9)
    assert tree(spans) == [
        "ordersys-cli INTERNAL ordersys client place-order",
        f"  ordersys-cli CLIENT {SERVICES}.ProductService/PlaceOrder",
        *below(2, PLACED),
    ]
    assert {span.version for span in spans} == {__version__}
    client = only(spans, f"{SERVICES}.ProductService/PlaceOrder", "CLIENT")
    host, _, port = backend.product_address.rpartition(":")
    assert client.attributes == {
        "rpc.system": "grpc",
        "rpc.service": f"{SERVICES}.ProductService",
        "rpc.method": "PlaceOrder",
        "rpc.grpc.status_code": 0,
        "server.address": host,
        "server.port": int(port),
    }
    served = only(spans, f"{SERVICES}.ProductService/PlaceOrder", "SERVER")
    assert served.attributes == {
        "rpc.system": "grpc",
        "rpc.service": f"{SERVICES}.ProductService",
        "rpc.method": "PlaceOrder",
        "rpc.grpc.status_code": 0,
    }
    [event] = fanout.events(placed["id"])
    asked, worked = only(spans, "ask order-service"), only(spans, "process command")
    assert event["traceparent"] == f"00-{worked.trace}-{worked.id}-{event['traceparent'][-2:]}"
    sent, processed = only(spans, "send orders.topic"), only(spans, "process notify.topic")
    system = "rabbitmq" if "ORDERSYS_BROKER_URL" in backend.environment else "ordersys-embedded"
    assert sent.attributes == {
        "messaging.system": system,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders.topic",
        "messaging.rabbitmq.destination.routing_key": "order.created",
        "messaging.message.id": event["id"],
        "ordersys.order.id": placed["id"],
    }
    assert processed.attributes == {
        "messaging.system": system,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "notify.topic",
        "messaging.rabbitmq.destination.routing_key": "order.created",
        "messaging.message.id": event["id"],
        "ordersys.order.id": placed["id"],
        "ordersys.notification.try": 1,
    }

    # the call that carried the command is a trace of its own, and each knows of the other
    batch = collector.trace_with(lambda span: asked.id in span.links, 2)
    call = f"{SERVICES}.OrderService/ProcessOrders"
    assert tree(batch) == [f"product-service CLIENT {call}", f"  order-service SERVER {call}"]
    assert only(batch, call, "CLIENT").links == (asked.id,)
    assert worked.links == (only(batch, call, "SERVER").id,)

    # from an HTTP request that belongs to a trace already
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    wanted = {"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 1}]}
    status, answer = post(backend, "/api/v1/orders", wanted, f"00-{trace}-{span}-01")
    assert status == 201
    spans = collector.trace_with(lambda span: span.trace == trace, 9)
    assert tree(spans) == [
        "api SERVER POST /api/v1/orders",
        f"  api CLIENT {SERVICES}.ProductService/PlaceOrder",
        *below(2, PLACED),
    ]
    request = only(spans, "POST /api/v1/orders")
    assert (request.parent, request.attributes) == (
        span,
        {
            "http.request.method": "POST",
            "http.route": "/api/v1/orders",
            "url.path": "/api/v1/orders",
            "url.scheme": "http",
            "http.response.status_code": 201,
        },
    )
    assert topic.events(answer["id"])[0]["traceparent"].split("-")[1] == trace

    # a refusal is no error of the servers', but of their clients; its trace id stands in the answer
    status, problem = post(backend, "/api/v1/orders", wanted | {"lines": [{"product_id": "1", "quantity": 99_999}]})
    assert (status, problem["code"]) == (409, "insufficient_stock")
    spans = collector.trace_with(lambda span: span.trace == problem["trace_id"], 3)
    assert tree(spans) == [
        "api SERVER POST /api/v1/orders",
        f"  api CLIENT {SERVICES}.ProductService/PlaceOrder !",
        f"    product-service SERVER {SERVICES}.ProductService/PlaceOrder",
    ]
    assert {span.attributes["ordersys.error.code"] for span in spans} == {"insufficient_stock"}
    assert {span.attributes.get("rpc.grpc.status_code") for span in spans} == {None, 9}

    # nobody asked for this one
    unwanted = "00-11111111111111111111111111111111-2222222222222222-00"
    status, answer = post(backend, "/api/v1/orders", wanted, unwanted)
    until(lambda: bool(topic.events(answer["id"])), "the order is heard of")
    assert topic.events(answer["id"])[0]["traceparent"] == unwanted

    # what is still with a process is sent when it ends
    backend.client("ship-order", placed["id"])
    until(lambda: len(topic.events(placed["id"])) == 2, "the change is heard of")
    assert order.stop(signal.SIGTERM) == 0
    advanced = collector.trace_with(lambda span: span.name == "ordersys client ship-order", 5)
    assert tree(advanced) == [
        "ordersys-cli INTERNAL ordersys client ship-order",
        f"  ordersys-cli CLIENT {SERVICES}.OrderService/AdvanceOrder",
        f"    order-service SERVER {SERVICES}.OrderService/AdvanceOrder",
        "      order-service PRODUCER send orders.topic",
        "        notification-service CONSUMER process notify.topic",
    ]
    assert not [span for span in collector.spans if span.trace == "1" * 32]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_what_was_not_sent_yet_is_sent_at_the_end(
    embedded: Backend, collector: Collector, number: signal.Signals, code: int
) -> None:
    rarely = {**collector.environment, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    everything = embedded.start("up", "--json", **rarely).ready()
    order = embedded.place("1:1")
    until(lambda: everything.out.count(order["id"]) >= 2, "both notifiers heard of the order")
    assert collector.spans == []
    assert everything.stop(number) == code
    spans = collector.trace_with(lambda span: span.attributes.get("ordersys.order.id") == order["id"], 7)
    assert tree(spans) == PLACED.splitlines()


def test_nobody_suffers_from_a_collector_that_is_away(embedded: Backend) -> None:
    nobody = {
        "ORDERSYS_TRACES": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
    }
    everything = embedded.start("up", "--json", **nobody).ready()
    orders = [embedded.place("1:1")["id"]]
    everything.says("spans are lost")
    orders += [embedded.place("1:1")["id"] for _ in range(3)]
    until(lambda: all(everything.out.count(order) >= 2 for order in orders), "both notifiers heard of every order")
    done = embedded.run("client", "get-data", **nobody)
    assert (done.code, "products" in done.out) == (0, True)
    assert "spans are lost" in done.err
    assert everything.stop(signal.SIGTERM) == 0
    assert everything.err.count("spans are lost") == 1
    assert "Traceback" not in everything.err
