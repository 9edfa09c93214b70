"""The calls behind the verbs, over real gRPC."""

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from fake_services import FakeServices, until

from ordersys.client.calls import Adjusted, Answer, Orders
from ordersys.core import errors, ids
from ordersys.core.backoff import Backoff
from ordersys.core.errors import FieldViolation
from ordersys.core.events import Change, Event
from ordersys.core.records import Line, Status
from ordersys.core.rpc import status
from ordersys.core.rpc.channel import Channel
from ordersys.core.v1 import order_pb2


@pytest.fixture
def services() -> Iterator[FakeServices]:
    services = FakeServices().start()
    yield services
    services.stop()


@pytest.fixture
def orders(services: FakeServices) -> Iterator[Orders]:
    with Orders(services.address, services.address, deadline=10) as orders:
        yield orders


def test_products_come_as_records(orders: Orders, services: FakeServices) -> None:
    assert orders.get_data() == "2 products, 20 units"
    assert orders.list_products() == list(services.products.values())
    assert orders.get_product("2") == services.products["2"]


def test_every_page_of_products_is_read(orders: Orders, services: FakeServices) -> None:
    services.page_size = 1
    assert orders.list_products() == list(services.products.values())
    assert [request.page_token for request in services.received("ListProducts")] == ["", "1"]


def test_stock_is_adjusted(orders: Orders, services: FakeServices) -> None:
    assert orders.adjust_stock("1", -3, "broken") == Adjusted(services.products["1"], replayed=False)
    [request] = services.received("AdjustStock")
    assert (request.product_id, request.delta, request.reason) == ("1", -3, "broken")
    assert ids.is_uuid(request.idempotency_key)
    assert services.products["1"].available == 7


def test_an_order_lives_its_life(orders: Orders, services: FakeServices) -> None:
    placed = orders.place_order("c-1", [("1", 2), ("2", 3)])
    assert placed == Answer(services.found(placed.order.id), replayed=False)
    [request] = services.received("PlaceOrder")
    assert request.customer_id == "c-1"
    assert [(line.product_id, line.quantity) for line in request.lines] == [("1", 2), ("2", 3)]
    assert not any(line.HasField("unit_price") for line in request.lines)

    order_id = placed.order.id
    updated = orders.update_order(order_id, [("2", 5)], expected_version=1)
    assert updated.order.lines == (Line("2", 5, 1999),)
    [request] = services.received("UpdateOrder")
    assert (request.order_id, request.expected_version) == (order_id, 1)

    assert orders.ship_order(order_id, expected_version=2).order.status is Status.SHIPPED
    assert orders.deliver_order(order_id).order.status is Status.DELIVERED
    assert [request.expected_version for request in services.received("AdvanceOrder")] == [2, 0]
    assert orders.get_order(order_id) == services.found(order_id)

    other = orders.place_order("c-2", [("1", 1)]).order.id
    assert orders.cancel_order(other, "changed my mind", expected_version=1).order.status is Status.CANCELLED
    [request] = services.received("CancelOrder")
    assert (request.order_id, request.reason, request.expected_version) == (other, "changed my mind", 1)


def test_orders_are_listed_by_customer_and_status_in_pages(orders: Orders, services: FakeServices) -> None:
    mine = [services.order("c-1").id for _ in range(3)]
    services.order("c-2")
    orders.ship_order(mine[0])

    page = orders.list_orders(customer_id="c-1", status=Status.PLACED, page_size=1)
    assert [order.id for order in page.orders] == [mine[2]]
    page = orders.list_orders(customer_id="c-1", status=Status.PLACED, page_size=1, page_token=page.next_page_token)
    assert [order.id for order in page.orders] == [mine[1]]
    assert page.next_page_token == ""
    assert len(orders.list_orders().orders) == 4


# Idempotency and retries


def test_a_key_that_is_given_is_used_and_a_repetition_is_replayed(orders: Orders) -> None:
    first = orders.place_order("c-1", [("1", 2)], "my-key")
    again = orders.place_order("c-1", [("1", 2)], "my-key")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.order == first.order
    assert orders.adjust_stock("1", 1, "", "other-key").replayed is False
    assert orders.adjust_stock("1", 1, "", "other-key").replayed is True


def test_each_call_has_a_key_of_its_own(orders: Orders, services: FakeServices) -> None:
    order_id = orders.place_order("c-1", [("1", 2)]).order.id
    orders.place_order("c-1", [("1", 2)])
    orders.update_order(order_id, [("1", 1)])
    orders.cancel_order(order_id)
    writes = [request for rpc, request in services.requests if rpc.endswith("Order")]
    assert len({request.idempotency_key for request in writes}) == 4  # type: ignore[attr-defined]


def test_unavailable_is_tried_again_with_the_same_key(orders: Orders, services: FakeServices) -> None:
    services.fail("PlaceOrder", errors.Unavailable("restarting"), errors.Unavailable("restarting"))
    answer = orders.place_order("c-1", [("1", 2)])

    requests = services.received("PlaceOrder")
    assert len(requests) == 3
    assert len({request.idempotency_key for request in requests}) == 1
    assert ids.is_uuid(requests[0].idempotency_key)
    assert list(services.orders) == [answer.order.id]


def test_an_outcome_that_stays_unknown_names_the_key_to_repeat_with(orders: Orders, services: FakeServices) -> None:
    services.fail("CancelOrder", *[errors.Unavailable("database away", 2.5, {"dependency": "database"})] * 5)
    with pytest.raises(errors.Unavailable) as unknown:
        orders.cancel_order("some-order")
    key = services.received("CancelOrder")[0].idempotency_key
    assert "database away" in unknown.value.message
    assert f"idempotency key {key}" in unknown.value.message
    assert unknown.value.metadata == {"dependency": "database", "idempotency_key": key}
    assert unknown.value.retry_after == 2.5


def test_a_refusal_is_not_tried_again(orders: Orders, services: FakeServices) -> None:
    services.fail("PlaceOrder", errors.InsufficientStock.of("1", 20, 10))
    with pytest.raises(errors.InsufficientStock):
        orders.place_order("c-1", [("1", 20)])
    assert len(services.received("PlaceOrder")) == 1


# Errors


EVERY_ERROR = [
    errors.InvalidArgument(
        [
            FieldViolation("lines[0].quantity", "must be 1 to 1000000"),
            FieldViolation("customer_id", "must not be empty"),
        ]
    ),
    errors.ProductNotFound.of("nö\n"),
    errors.OrderNotFound.of("o-1"),
    errors.InsufficientStock.of("1", 20, 10),
    errors.OrderRefused.of("no-rum", "no_licence", "not for you"),
    errors.InvalidTransition.of("o-1", "shipped", "cancelled"),
    errors.VersionConflict.of("o-1", 1, 3),
    errors.IdempotencyKeyReused.of("key"),
    errors.Unauthenticated("no token"),
    errors.PermissionDenied("not yours", {"action": "cancel"}),
    errors.Unavailable("database away", 2.5, {"dependency": "database"}),
]


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: error.code)
def test_every_error_of_a_service_arrives_as_it_was_raised(
    orders: Orders, services: FakeServices, error: errors.OrdersysError
) -> None:
    services.fail("GetOrder", *[error] * 5)
    with pytest.raises(type(error)) as raised:
        orders.get_order("o-1")
    found = raised.value
    assert type(found) is type(error)
    assert (found.code, found.message, found.metadata) == (error.code, error.message, error.metadata)
    if isinstance(error, errors.InvalidArgument):
        assert isinstance(found, errors.InvalidArgument)
        assert found.violations == error.violations
    if isinstance(error, errors.Unavailable):
        assert isinstance(found, errors.Unavailable)
        assert found.retry_after == error.retry_after


def test_every_code_was_tried() -> None:
    assert {error.code for error in EVERY_ERROR} | {"internal"} == set(status.STATUS)


@pytest.mark.parametrize("error", [RuntimeError("the inside"), errors.Internal("the inside", {"secret": "1"})])
def test_a_bug_of_the_service_says_nothing_of_the_inside(
    orders: Orders, services: FakeServices, error: Exception
) -> None:
    services.fail("GetOrder", error)
    with pytest.raises(errors.Internal) as raised:
        orders.get_order("o-1")
    assert (raised.value.message, raised.value.metadata) == ("internal error", {})


def test_an_rpc_that_the_server_does_not_have_is_internal_and_names_the_address(services: FakeServices) -> None:
    channel = Channel(services.address)
    try:
        newer = channel.raw.unary_unary(
            "/ordersys.core.v1.OrderService/Newer",
            request_serializer=order_pb2.GetOrderRequest.SerializeToString,
            response_deserializer=order_pb2.GetOrderResponse.FromString,
        )
        with pytest.raises(errors.Internal, match=f"{services.address}: UNIMPLEMENTED"):
            channel.call(newer, order_pb2.GetOrderRequest(), deadline=10)
    finally:
        channel.close()


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda orders: orders.place_order("c-1", [("1", 1), ("2", 2**31)]), "lines[1].quantity"),
        (lambda orders: orders.place_order("c-\udc80", [("1", 1)]), "customer_id"),
        (lambda orders: orders.place_order("c-1", [("\udc80", 1)]), "lines[0].product_id"),
        (lambda orders: orders.adjust_stock("1", -(2**63) - 1), "delta"),
        (lambda orders: orders.cancel_order("o-1", expected_version=2**63), "expected_version"),
        (lambda orders: orders.list_orders(page_size=2**31), "page_size"),
    ],
)
def test_what_no_request_can_carry_is_refused_here_naming_the_field(
    orders: Orders, services: FakeServices, call: object, field: str
) -> None:
    with pytest.raises(errors.InvalidArgument) as raised:
        call(orders)  # type: ignore[operator]
    assert [violation.field for violation in raised.value.violations] == [field]
    assert services.requests == []


# Nobody there


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_call_that_hangs_ends_at_its_deadline(services: FakeServices) -> None:
    services.hang("GetProduct")
    with Orders(services.address, services.address, deadline=0.3) as orders:
        began = time.monotonic()
        with pytest.raises(errors.Unavailable, match=f"{services.address}: DEADLINE_EXCEEDED") as raised:
            orders.get_product("1")
        assert 0.25 < time.monotonic() - began < 10
    assert raised.value.metadata == {"address": services.address}


def test_an_address_where_nobody_listens_is_unavailable_and_named(services: FakeServices) -> None:
    nobody = free_address()
    with Orders(nobody, services.address) as orders:
        with pytest.raises(errors.Unavailable, match=nobody):
            orders.get_data()
        assert orders.list_orders().orders == []
    with Orders(services.address, nobody) as orders:
        assert orders.get_data()
        with pytest.raises(errors.Unavailable, match=nobody):
            orders.get_order("o-1")


def test_a_port_that_speaks_something_else_is_unavailable_and_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with Orders(address, address, deadline=1) as orders, pytest.raises(errors.Unavailable, match=address):
                orders.get_data()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# Watching


QUICK = (0.01, 0.05)


class Watcher:
    """Watches in a thread, as the verb does."""

    def __init__(self, orders: Orders, **filters: object) -> None:
        self.seen: list[Event] = []
        self.error: errors.OrdersysError | None = None
        self._enough = threading.Event()
        self._stream = orders.watch(backoff=Backoff(*QUICK), **filters)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with closing(self._stream):
                for event in self._stream:
                    self.seen.append(event)
                    if self._enough.is_set():
                        return
        except errors.OrdersysError as error:
            self.error = error

    def stop(self, services: FakeServices) -> None:
        self._enough.set()
        services.order()  # one more event wakes it
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_watching_shows_what_was_and_then_what_happens(orders: Orders, services: FakeServices) -> None:
    order = services.order()
    watcher = Watcher(orders)
    until(lambda: len(watcher.seen) == 1)
    services.changed(order.id, Change.SHIPPED, status=Status.SHIPPED)
    until(lambda: len(watcher.seen) == 2)
    assert watcher.seen == services.log
    watcher.stop(services)


def test_watching_may_begin_later_and_be_about_one_order_or_customer(orders: Orders, services: FakeServices) -> None:
    first, second = services.order("c-1"), services.order("c-2")
    services.order("c-1")
    services.changed(first.id, Change.LINES)

    def numbers(count: int, **filters: object) -> list[int]:
        with closing(orders.watch(**filters)) as stream:  # type: ignore[arg-type]
            return [event.sequence for event in itertools.islice(stream, count)]

    assert numbers(2, after_sequence=2) == [3, 4]
    assert numbers(2, order_id=first.id) == [1, 4]
    assert numbers(1, customer_id="c-2") == [2]
    assert services.received("WatchOrders")[-1].HasField("order_id") is False
    assert services.found(second.id)


def test_leaving_ends_the_stream_on_the_server(orders: Orders, services: FakeServices) -> None:
    services.order()
    with closing(orders.watch()) as stream:
        next(stream)
        assert services.watching == 1
    until(lambda: services.watching == 0)


def test_watching_goes_on_after_the_service_was_away_without_loss_or_repetition(
    orders: Orders, services: FakeServices
) -> None:
    for _ in range(3):
        services.order()
    watcher = Watcher(orders)
    until(lambda: len(watcher.seen) == 3)
    for _ in range(3):
        services.stop()
        services.order()
        services.start()
        services.order()
        until(lambda: len(watcher.seen) == len(services.log))
    assert [event.sequence for event in watcher.seen] == list(range(1, 10))
    assert watcher.seen == services.log
    assert {request.after_sequence for request in services.received("WatchOrders")} >= {0, 3, 5, 7}
    watcher.stop(services)


def test_a_silent_stream_is_resumed_too(orders: Orders, services: FakeServices) -> None:
    watcher = Watcher(orders)
    until(lambda: services.watching == 1)
    services.stop()
    services.start()
    services.order()
    until(lambda: len(watcher.seen) == 1)
    watcher.stop(services)


def test_a_stream_that_the_service_cannot_serve_now_is_asked_for_again(orders: Orders, services: FakeServices) -> None:
    services.order()
    services.fail("WatchOrders", *[errors.Unavailable("database away")] * 7)
    watcher = Watcher(orders)
    until(lambda: len(watcher.seen) == 1)
    watcher.stop(services)


def test_watching_gives_up_when_nobody_was_there_at_the_beginning() -> None:
    nobody = free_address()
    with Orders(nobody, nobody) as orders, pytest.raises(errors.Unavailable, match=nobody):
        next(orders.watch())


def test_a_refusal_ends_the_watching(orders: Orders, services: FakeServices) -> None:
    services.fail("WatchOrders", errors.PermissionDenied("not yours"))
    watcher = Watcher(orders)
    until(lambda: watcher.error is not None)
    assert isinstance(watcher.error, errors.PermissionDenied)
