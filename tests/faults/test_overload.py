"""More work than can be done: whoever is too much is told so at once, and nobody's work is begun after he has left."""

import http.client
import json
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import grpc
from e2e.processes import SECONDS, Backend, until
from faults import figures
from faults.crowd import Site
from faults.program import Program
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from ordersys.core.v1 import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc

LIMIT = 20
CALLERS = 200
SOON = 2.0
"""Seconds: much less than any deadline here, much more than a refusal takes on a busy machine."""


class Call:
    """One call on its way, repeated by nobody."""

    def __init__(self, method: Any, request: Any, timeout: float) -> None:
        began = time.monotonic()
        self.seconds = 0.0
        self.future = method.future(request, timeout=timeout)
        self.future.add_done_callback(lambda _: self._ended(began))

    def _ended(self, began: float) -> None:
        self.seconds = time.monotonic() - began

    @property
    def code(self) -> grpc.StatusCode:
        return self.future.code()

    @property
    def retry_after(self) -> float:
        """Seconds after which the service says one may come again; 0 when it says nothing."""
        retry = error_details_pb2.RetryInfo()
        status = rpc_status.from_call(self.future)
        for detail in status.details if status else ():
            detail.Unpack(retry)
        return retry.retry_delay.ToMicroseconds() / 1e6


@contextmanager
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as opened:
        yield opened


def refused_at_once(calls: Sequence[Call], by: str) -> list[Call]:
    """All but LIMIT calls are refused, each soon and with a time to come again; those that were taken."""
    until(lambda: sum(call.future.done() for call in calls) >= len(calls) - LIMIT, "the rest is refused")
    refused = [call for call in calls if call.future.done()]
    assert {call.code for call in refused} == {grpc.StatusCode.UNAVAILABLE}
    assert {call.future.details().partition(":")[0] for call in refused} == {f"{by} is overloaded"}
    assert all(call.retry_after > 0 for call in refused)
    assert max(call.seconds for call in refused) < SOON
    return [call for call in calls if not call.future.done()]


def place(customer: str) -> product_pb2.PlaceOrderRequest:
    return product_pb2.PlaceOrderRequest(
        idempotency_key=customer, customer_id=customer, lines=[order_pb2.OrderLine(product_id="1", quantity=1)]
    )


def test_a_full_product_service_says_so_at_once_and_answers_whom_it_took(backend: Backend, engine: str) -> None:
    backend.environment["ORDERSYS_DEADLINE_SECONDS"] = str(SECONDS)
    order_service, api = backend.start("serve-order"), backend.start("api")
    with small(backend, "serve-product", "Product Service listens on"), running(backend) as site:
        order_service.ready(), api.ready()
        site.client.place_order("before", [("1", 1)])  # who is not connected yet would be refused soon, not wait
        before = site.available("1")
        order_service.send(signal.SIGSTOP)
        with channel(backend.product_address) as opened:
            stub = product_pb2_grpc.ProductServiceStub(opened)
            calls = [Call(stub.PlaceOrder, place(f"flood-{number}"), 2 * SECONDS) for number in range(CALLERS)]
            taken = refused_at_once(calls, "product-service")
            assert site.client.get_product("1").id == "1"  # reading goes on
            assert _placed_over_http(backend) == (503, "unavailable", True)
            order_service.send(signal.SIGCONT)
            assert all(call.future.result(SECONDS).order.version == 1 for call in taken)
        assert site.available("1") == before - LIMIT
        site.balances()
        assert site.client.place_order("after", [("1", 1)]).order.version == 1
    slowest = max(call.seconds for call in calls if call not in taken)
    figures.record("overload", engine, callers=CALLERS, taken=LIMIT, refused=CALLERS - LIMIT, slowest_refusal=slowest)


def _placed_over_http(backend: Backend) -> tuple[int, str, bool]:
    """Status, code, and whether the answer says when to come again."""
    with closing(http.client.HTTPConnection(backend.api_address, timeout=SECONDS)) as connection:
        body = json.dumps({"customer_id": "http", "lines": [{"product_id": "1", "quantity": 1}]})
        connection.request("POST", "/api/v1/orders", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.load(response)["code"], int(response.headers["Retry-After"]) >= 1


def test_a_full_order_service_says_so_at_once_and_answers_whom_it_took(backend: Backend, engine: str) -> None:
    product_service = backend.start("serve-product")
    with small(backend, "serve-order", "Order Service listens on"), running(backend) as site:
        product_service.ready()
        order = site.client.place_order("overload", [("1", 1)]).order
        with channel(backend.order_address) as opened:
            stub = order_pb2_grpc.OrderServiceStub(opened)
            request = order_pb2.AdvanceOrderRequest(order_id=order.id, to_status=order_pb2.ORDER_STATUS_SHIPPED)
            with locked(backend, "order"):
                first = Call(stub.AdvanceOrder, request, SECONDS)
                begun(lambda: site.client.get_order(order.id))
                calls = [Call(stub.AdvanceOrder, request, SECONDS) for _ in range(CALLERS)]
                taken = refused_at_once(calls, "order-writer")
            assert first.future.result(SECONDS).order.version == 2
            told = [call.future.exception(SECONDS).code() for call in taken]
        assert told == [grpc.StatusCode.FAILED_PRECONDITION] * LIMIT  # it is shipped already
        site.balances()


def test_work_whose_caller_has_gone_is_not_started(backend: Backend, engine: str) -> None:
    backend.start_all("serve-order", "serve-product")
    with running(backend) as site, channel(backend.product_address) as opened:
        stub = product_pb2_grpc.ProductServiceStub(opened)
        before = site.available("1")
        with locked(backend, "product"):
            first = Call(stub.PlaceOrder, place("stays"), SECONDS)
            begun(lambda: site.client.get_product("1"))
            late = [Call(stub.PlaceOrder, place(f"late-{number}"), 0.5) for number in range(LIMIT)]
            leaving = [Call(stub.PlaceOrder, place(f"leaving-{number}"), SECONDS) for number in range(LIMIT)]
            begun(lambda: site.client.get_product("1"))
            for call in leaving:
                call.future.cancel()
            assert {call.future.exception(SECONDS).code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
            assert {call.code for call in leaving} == {grpc.StatusCode.CANCELLED}
            begun(lambda: site.client.get_product("1"))
        assert first.future.result(SECONDS).order.version == 1
        gone = [f"{kind}-{number}" for kind in ("late", "leaving") for number in range(LIMIT)]
        assert site.client.place_order("after", [("1", 1)]).order.version == 1  # what was waiting has had its turn
        assert site.available("1") == before - 2
        started = [name for name in gone if site.client.list_orders(customer_id=name).orders]
        assert started == []
        assert site.client.place_order(gone[0], [("1", 1)], gone[0]).replayed is False  # its key was not taken either
        site.balances()
    figures.record("overload", engine, left_in_time=len(gone), started_all_the_same=len(started))


@contextmanager
def small(backend: Backend, command: str, listening: str) -> Iterator[Program]:
    """A service that takes at most LIMIT commands at a time."""
    with Program(backend, "small_limits.py", str(LIMIT), command, ready=listening) as program:
        yield program.ready()


@contextmanager
def running(backend: Backend) -> Iterator[Site]:
    with closing(Site(backend, [backend.product_address])) as site:
        yield site


@contextmanager
def locked(backend: Backend, service: str) -> Iterator[None]:
    """Nobody else can write the service's database while the block runs; reading goes on."""
    url = backend.environment.get(f"ORDERSYS_{service.upper()}_DATABASE_URL", "")
    if url:
        import psycopg

        table = {"product": "products", "order": "orders"}[service]
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
            yield
        return
    with closing(sqlite3.connect(backend.home / f"{service}.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def begun(read: Callable[[], object]) -> None:
    """What was asked before has reached the service when a few reads that were asked later are answered."""
    for _ in range(5):
        read()
