"""The event stream of real roles: each event once, across reconnects and restarts. Everything goes over REST."""

import http.client
import json
import signal
import threading
import uuid
from typing import Any, Self

from e2e.processes import Backend, Role, until
from sse_client import EventStream, Received, Refused

ORDERS = "/api/v1/orders"


class Follower:
    """Comes back with the last id whenever its stream has ended, as EventSource does."""

    def __init__(self, address: str) -> None:
        self.events: list[Received] = []
        self.streams = 0
        self._address = address
        self._stream: EventStream | None = None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.streams == 1, "the stream begins")
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self.break_off()
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def seen(self) -> list[int]:
        return [event.sequence for event in self.events]

    def changes(self, order_id: str) -> list[str]:
        documents = [event.document for event in self.events]
        return [each["data"]["change"] for each in documents if each["subject"] == order_id]

    def break_off(self) -> None:
        """Lose the connection."""
        stream = self._stream
        if stream is not None:
            stream.close()

    def _follow(self) -> None:
        last_event_id = ""
        while not self._left.wait(0.05):
            try:
                self._stream = stream = EventStream(self._address, last_event_id=last_event_id)
            except (OSError, http.client.HTTPException, Refused):
                continue  # not back yet
            self.streams += 1
            taken = 0
            while True:
                ended = stream.ended  # before the look: what came at the end is seen
                new = stream.events[taken:]
                self.events += new
                taken += len(new)
                if ended:
                    break
                self._left.wait(0.02)
            last_event_id = stream.last_event_id
            stream.close()


def ask(backend: Backend, method: str, path: str, body: Any = None, key: str = "") -> tuple[int, Any]:
    """Status and document of one request; raises OSError or HTTPException when nobody answers."""
    connection = http.client.HTTPConnection(backend.api_address, timeout=20)
    try:
        headers = {"Content-Type": "application/json", "Idempotency-Key": key or str(uuid.uuid4())}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def done(backend: Backend, method: str, path: str, body: Any = None) -> Any:
    status, document = ask(backend, method, path, body)
    assert status in (200, 201), document
    return document


def lines(*wanted: tuple[str, int]) -> dict[str, Any]:
    return {"lines": [{"product_id": product_id, "quantity": quantity} for product_id, quantity in wanted]}


class Placing:
    """Places orders until told to end, each repeated with its key until it is answered."""

    def __init__(self, backend: Backend) -> None:
        self.placed: list[str] = []
        self._backend = backend
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._place, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._ended.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def some_more(self) -> None:
        """Return when several more are placed."""
        before = len(self.placed)
        until(lambda: len(self.placed) >= before + 10, "more orders are placed", 60)

    def _place(self) -> None:
        while not self._ended.wait(0.01):
            key = str(uuid.uuid4())
            while True:
                try:
                    status, order = ask(self._backend, "POST", ORDERS, {"customer_id": "load", **lines(("4", 1))}, key)
                except (OSError, http.client.HTTPException):
                    status = 503
                if status == 201:
                    self.placed.append(order["id"])
                    break
                assert status == 503
                self._ended.wait(0.1)


def test_the_whole_life_of_orders_over_rest_is_seen_once_across_a_reconnect(backend: Backend) -> None:
    backend.start_all("serve-order", "serve-product", "api")
    with Follower(backend.api_address) as follower:
        first = done(backend, "POST", ORDERS, {"customer_id": "ida", **lines(("1", 2))})["id"]
        until(lambda: follower.changes(first) == ["created"], "the order is heard of")
        follower.break_off()
        done(backend, "PATCH", f"{ORDERS}/{first}", lines(("1", 1), ("2", 3)))
        second = done(backend, "POST", ORDERS, {"customer_id": "bob", **lines(("1", 1))})["id"]
        until(lambda: follower.streams == 2, "the reader is back")
        done(backend, "POST", f"{ORDERS}/{first}/ship", {})
        done(backend, "POST", f"{ORDERS}/{second}/cancel", {})
        follower.break_off()
        done(backend, "POST", f"{ORDERS}/{first}/deliver", {})
        until(lambda: follower.changes(first)[-1:] == ["delivered"], "the end is heard of")
        assert follower.changes(first) == ["created", "lines", "shipped", "delivered"]
        assert follower.changes(second) == ["created", "cancelled"]
        assert follower.seen == list(range(follower.seen[0], follower.seen[0] + 6))
        assert done(backend, "GET", f"{ORDERS}/{first}")["status"] == "delivered"
    with EventStream(backend.api_address, f"?after=0&order_id={first}") as again:
        until(lambda: len(again.events) == 4, "the log is read again")
        assert again.events == [event for event in follower.events if event.document["subject"] == first]


def test_each_event_is_seen_once_whatever_is_restarted(backend: Backend) -> None:
    order_service, _, gateway = backend.start_all("serve-order", "serve-product", "api")

    def again(role: Role, command: str, number: int) -> Role:
        role.stop(number)
        return backend.start(command).ready()

    with Follower(backend.api_address) as follower, Placing(backend) as placing:
        placing.some_more()
        order_service = again(order_service, "serve-order", signal.SIGTERM)
        placing.some_more()
        assert follower.streams == 1  # the stream stayed open
        gateway = again(gateway, "api", signal.SIGTERM)
        placing.some_more()
        order_service = again(order_service, "serve-order", signal.SIGKILL)
        placing.some_more()
        gateway = again(gateway, "api", signal.SIGKILL)
        placing.some_more()
        follower.break_off()
        placing.some_more()
        placing.end()
        until(lambda: len(follower.events) >= len(placing.placed), "every event is heard of")
        with EventStream(backend.api_address, "?after=0&customer_id=load") as log:
            until(lambda: len(log.events) >= len(placing.placed), "the log is read")
            assert follower.events == log.events  # each once, in order, and the same to the last byte
        assert [event.document["subject"] for event in follower.events] == placing.placed
        assert gateway.running
        assert order_service.running
        assert "Traceback" not in gateway.err + order_service.err
