"""SIGTERM under load, and with work in flight that cannot end before the signal: row 14 of the guarantees."""

import random
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest
from e2e.processes import Backend, until
from faults import figures
from faults.fleet import COMMANDS, Fleet
from faults.load import PLENTY, Load
from faults.moments import locked
from faults.once import asking, placings

from ordersys.client.calls import Orders
from ordersys.core import errors
from ordersys.core.records import STATUS_TO_PROTO, Order, Status
from ordersys.core.rpc.channel import Channel
from ordersys.core.v1 import order_pb2, order_pb2_grpc

GRACE_SECONDS = 10
"""The default of ORDERSYS_GRACE_SECONDS."""
MARGIN_SECONDS = 3
"""For a busy machine to notice, and for the process to end."""
CALLERS = 8


@pytest.fixture
def fleet(backend: Backend) -> Fleet:
    """All roles. The Product Service waits long for an answer, so that what is in flight stays in flight."""
    backend.environment["ORDERSYS_DEADLINE_SECONDS"] = "8"
    return Fleet(backend, *COMMANDS)


def test_row_14_a_stop_under_load(engine: str, backend: Backend, fleet: Fleet, rounds: int, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - to be repeated, not secret
    slowest = 0.0
    stops = 0
    with Load(backend, seed=seed, over_http=2) as load:
        for _ in range(max(1, rounds // 3)):
            for name in dice.sample(list(COMMANDS), len(COMMANDS)):
                load.goes_on(dice.randint(10, 60))
                slowest = max(slowest, stop(fleet, name))
                stops += 1
                fleet.start(name)
        load.goes_on()
    with Orders(backend.product_address, backend.order_address, GRACE_SECONDS) as orders:
        finished = [
            product_service_finishes(fleet),
            order_service_finishes(fleet, orders),
            gateway_finishes(fleet),
            notifiers_finish(fleet, orders),
        ]
    found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"), in_order=True)
    assert found["printed_again"] == 0
    figures.record(14, engine, stops=stops, finished_in_flight=sum(finished), slowest_end=slowest, **found)


def stop(fleet: Fleet, name: str) -> float:
    """How many seconds it took to end with 0."""
    began = time.monotonic()
    assert fleet[name].stop(signal.SIGTERM, GRACE_SECONDS + MARGIN_SECONDS) == 0
    return time.monotonic() - began


def product_service_finishes(fleet: Fleet) -> int:
    """How many placings were in flight; all of them are answered by the process that was told to stop."""
    fleet.settled()
    with ExitStack() as lock:
        lock.enter_context(locked(fleet.backend, "order"))
        with asking(fleet.backend, placings("product", CALLERS, PLENTY[0]), GRACE_SECONDS) as asked:
            until(lambda: fleet.pending() == CALLERS, "the stock of all is reserved")
            fleet["product"].send(signal.SIGTERM)
            until(lambda: refuses(fleet.pending), "no new call is taken")
            lock.close()
    answers = [each.result().answer for each in asked]
    assert all(isinstance(answer, Order) for answer in answers), answers
    assert fleet["product"].ends(GRACE_SECONDS + MARGIN_SECONDS) == 0
    fleet.start("product")
    return CALLERS


def order_service_finishes(fleet: Fleet, orders: Orders) -> int:
    """The same for calls to the Order Service, of which each was begun and finishes, or was not and has done nothing.

    gRPC keeps no order among calls, and a server that stops cancels what it has received and not begun.
    """
    placed = [write.ask(orders) for write in placings("order", CALLERS, PLENTY[0])]
    requests = [
        order_pb2.AdvanceOrderRequest(order_id=order.id, to_status=STATUS_TO_PROTO[Status.SHIPPED], expected_version=1)
        for order in placed
        if isinstance(order, Order)
    ]
    channel = Channel(fleet.backend.order_address, retry=False)
    service = order_pb2_grpc.OrderServiceStub(channel.raw)
    later = order_pb2.GetOrderRequest(order_id=requests[-1].order_id)
    channel.call(service.GetOrder, later, deadline=GRACE_SECONDS)
    with locked(fleet.backend, "order"):
        answers = [service.AdvanceOrder.future(request, timeout=GRACE_SECONDS) for request in requests]
        for _ in answers:
            assert channel.call(service.GetOrder, later, deadline=GRACE_SECONDS).order.version == 1
        fleet["order"].send(signal.SIGTERM)
        until(lambda: refuses(lambda: orders.get_order(later.order_id)), "no new call is taken")
    begun = [answer.code() is not grpc.StatusCode.CANCELLED for answer in answers]
    assert any(begun)
    for answer, finishes in zip(answers, begun, strict=True):
        assert not finishes or answer.result().order.version == 2
    channel.close()
    assert fleet["order"].ends(GRACE_SECONDS + MARGIN_SECONDS) == 0
    fleet.start("order")
    versions = [orders.get_order(request.order_id).version for request in requests]
    assert versions == [2 if finishes else 1 for finishes in begun]
    return sum(begun)


def gateway_finishes(fleet: Fleet) -> int:
    """The same for placings through the REST API."""
    address = fleet.backend.api_address
    fleet.settled()
    writes = placings("gateway", CALLERS, PLENTY[0])
    with ThreadPoolExecutor(CALLERS) as pool:
        with locked(fleet.backend, "order"):
            answers = [pool.submit(write.place_over_http, address) for write in writes]
            until(lambda: fleet.pending() == CALLERS, "the stock of all is reserved")
            fleet["api"].send(signal.SIGTERM)
            until(lambda: not listens(address), "no new connection is taken")
        assert len({answer.result() for answer in answers}) == CALLERS
    assert fleet["api"].ends(GRACE_SECONDS + MARGIN_SECONDS) == 0
    fleet.start("api")
    return CALLERS


def notifiers_finish(fleet: Fleet, orders: Orders) -> int:
    """Told to stop in the middle of a message they record what they have told of: it is not told again."""
    with locked(fleet.backend, "notify"):
        order_id = orders.place_order("notifiers", [(PLENTY[0], 1)]).order.id
        for name in ("fanout", "topic"):
            until(lambda name=name: bool(fleet[name].events(order_id)), f"{name} has told of it")  # type: ignore[misc]
            fleet[name].send(signal.SIGTERM)
    for name in ("fanout", "topic"):
        assert fleet[name].ends(GRACE_SECONDS + MARGIN_SECONDS) == 0
    fleet.start("fanout", "topic")
    return 2


def refuses(call: Callable[[], object]) -> bool:
    try:
        call()
    except errors.Unavailable:
        return True
    return False


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True
