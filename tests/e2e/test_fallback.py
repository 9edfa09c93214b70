"""The Product Service goes away under the gateway, and comes back: nobody touches the gateway meanwhile."""

import http.client
import json
import signal
import time
from dataclasses import dataclass
from typing import Any

import pytest
from e2e.processes import Backend, until
from prometheus_client.parser import text_string_to_metric_families

DEADLINE = 2.0
PATIENCE = 1.0  # what a read waits that has something to fall back to
BUSY = 1.5  # what this machine may need beside, with other tests on it
FAST = 0.2
READS = ("/api/data", "/api/v1/products", "/api/v1/products/1")
ORDER = {"customer_id": "ann", "lines": [{"product_id": "1", "quantity": 1}]}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: Any
    seconds: float

    @property
    def stale(self) -> bool:
        """True when body and headers say so, False when none does."""
        marks = {
            self.body.get("stale") is True,
            self.headers.get("Warning") == '111 ordersys "Revalidation Failed"',
            self.headers.get("Age", "").isdigit(),
            "ETag" not in self.headers,
        }
        assert len(marks) == 1, self
        return marks.pop()


class Gateway:
    """`ordersys api` of this deployment, between an Order Service and a Product Service that can be made to go away."""

    def __init__(self, backend: Backend) -> None:
        backend.environment["ORDERSYS_DEADLINE_SECONDS"] = f"{DEADLINE:g}"
        self._backend = backend
        self.product, _, self.role = backend.start_all("serve-product", "serve-order", "api")

    def ask(self, path: str, body: Any = None) -> Answer:
        begun = time.monotonic()
        connection = http.client.HTTPConnection(self._backend.api_address, timeout=30)
        try:
            sent, kind = (json.dumps(body), {"Content-Type": "application/json"}) if body else (None, {})
            connection.request("POST" if body else "GET", path, sent, kind)
            response = connection.getresponse()
            read = response.read()
        finally:
            connection.close()
        text = read.decode()
        content = text if path == "/metrics" else json.loads(text)
        return Answer(response.status, dict(response.getheaders()), content, time.monotonic() - begun)

    def place(self) -> Answer:
        return self.ask("/api/v1/orders", ORDER)

    def measured(self, name: str, **labels: str) -> float:
        """The sum of this metric over everything that has these labels."""
        families = text_string_to_metric_families(self.ask("/metrics").body)
        found = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(each.value for each in found if labels.items() <= each.labels.items())

    def breaker(self) -> float:
        return self.measured("ordersys_upstream_breaker_state", service="product-service")


@pytest.fixture
def gateway(embedded: Backend) -> Gateway:
    return Gateway(embedded)


def degraded(gateway: Gateway, fresh: dict[str, Any]) -> None:
    """What callers see from the moment on at which the Product Service is away."""
    for path in READS:
        last = gateway.ask(path)
        assert last.stale
        assert last.body == {**fresh[path], "stale": True}
        assert last.seconds < PATIENCE + BUSY
    for _ in range(5):
        refused = gateway.place()
        assert (refused.status, refused.body["code"]) == (503, "unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.seconds < DEADLINE + BUSY
    assert gateway.breaker() > 0
    never_asked = gateway.ask("/api/v1/products/2")
    assert (never_asked.status, never_asked.body["code"]) == (503, "unavailable")


def recovered(gateway: Gateway) -> None:
    until(lambda: not gateway.ask("/api/data").stale, "reads are fresh again")
    assert not any(gateway.ask(path).stale for path in READS)
    assert gateway.place().status == 201
    assert gateway.breaker() == 0
    until(lambda: gateway.ask("/readyz").body["status"] == "ready", "what is looked at in the background is seen")
    assert gateway.role.running


def test_while_the_product_service_is_dead_reads_degrade_and_writes_fail_fast(
    gateway: Gateway, embedded: Backend
) -> None:
    order = gateway.place().body
    fresh = {path: gateway.ask(path) for path in READS}
    assert not any(each.stale for each in fresh.values())
    gateway.product.kill()
    degraded(gateway, {path: each.body for path, each in fresh.items()})

    writes = [gateway.place() for _ in range(30)]
    assert {each.status for each in writes} == {503}
    assert all("Retry-After" in each.headers for each in writes)
    # The pauses are some seconds long, and to find the end of one costs a failed connection: all are fast, or the
    # machine is not. One in ten may have met other work on it.
    assert sorted(each.seconds for each in writes)[-4] < FAST
    reads = [gateway.ask(path) for path in READS * 5]
    assert all(each.stale for each in reads)
    assert sorted(each.seconds for each in reads)[-2] < FAST

    found = gateway.ask(f"/api/v1/orders/{order['id']}")
    assert (found.status, found.body) == (200, order)
    assert gateway.ask("/api/v1/orders/nope").status == 404
    assert gateway.ask("/healthz").status == 200
    ready = gateway.ask("/readyz")
    assert (ready.status, ready.body["status"]) == (503, "not_ready")
    assert ready.body["checks"]["order-service"] == {"status": "ready"}
    assert ready.body["checks"]["product-service"]["status"] == "unavailable"
    assert ready.body["checks"]["product-service"]["breaker"] in ("open", "half-open")
    assert embedded.product_address not in json.dumps(ready.body)

    called = {"service": "product-service"}
    assert gateway.measured("ordersys_upstream_calls_total", **called, code="no_answer") >= 5
    assert gateway.measured("ordersys_upstream_calls_total", **called, code="breaker_open") >= 20
    assert gateway.measured("ordersys_upstream_calls_total", service="order-service", code="no_answer") == 0
    assert gateway.measured("ordersys_stale_answers_total") == 3 + 15
    assert gateway.measured("ordersys_stale_answers_total", route="/api/v1/products/<id>") == 1 + 5

    embedded.start_all("serve-product")
    recovered(gateway)
    embedded.settled()
    embedded.balances()


def test_a_product_service_that_hangs_is_left_alone_too(gateway: Gateway, embedded: Backend) -> None:
    fresh = {path: gateway.ask(path).body for path in READS}
    gateway.product.send(signal.SIGSTOP)
    try:
        degraded(gateway, fresh)
        # In the pauses nobody waits; each probe at most a second, and only its own caller.
        seconds = sorted(gateway.place().seconds for _ in range(20))
        assert seconds[10] < FAST
        assert seconds[-1] < PATIENCE + BUSY
    finally:
        gateway.product.send(signal.SIGCONT)
    recovered(gateway)
    embedded.settled()
    embedded.balances()
