"""The event stream over real HTTP and real gRPC: what a reader sees, whatever happens on either side."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import fake_services
import pytest
from fake_services import FakeServices, until
from sse_client import PATH, EventStream, Refused

from ordersys.api.access import Caller, Scope
from ordersys.api.app import Options, create_app
from ordersys.api.connection import Patience
from ordersys.api.feed import Feed
from ordersys.api.server import ApiServer
from ordersys.api.tap import Limits
from ordersys.core import events, pages
from ordersys.core.events import Change
from ordersys.core.rpc.channel import Channel
from ordersys.core.v1 import order_pb2, order_pb2_grpc, product_pb2_grpc

QUICK = Limits(heartbeat=60, pace=0.01, look=0.1, linger=0.2, deadline=2.0)


class Services(FakeServices):
    """With an event log that can be listed."""

    def _add_servicers(self, server: Any) -> None:
        product_pb2_grpc.add_ProductServiceServicer_to_server(fake_services._Products(self), server)
        order_pb2_grpc.add_OrderServiceServicer_to_server(_Orders(self), server)

    def orders_placed(self, count: int, customer_id: str = "customer-1") -> list[int]:
        """Place so many; the sequences of their events."""
        begin = len(self.log)
        for _ in range(count):
            self.order(customer_id)
        return list(range(begin + 1, begin + count + 1))


class _Orders(fake_services._Orders):
    async def ListEvents(self, request: Any, context: Any) -> Any:
        def make() -> order_pb2.ListEventsResponse:
            position = pages.position(request.page_token, (int,))
            after = int(position[0]) if position else 0
            found = [event for event in self._services.log[after:] if request.order_id in ("", event.order.id)]
            page = found[: request.page_size]
            return order_pb2.ListEventsResponse(
                events=[order_pb2.LoggedEvent(event=events.to_proto(event)) for event in page],
                next_page_token=pages.token(page[-1].sequence) if len(found) > len(page) else "",
            )

        return await self._services.answer("ListEvents", request, make)


class Tied:
    """Everybody is the customer in the header, who may do what the header says."""

    def identify(self, headers: Any, address: str) -> Caller:
        return Caller("key", frozenset(map(Scope, headers["X-Scopes"].split())), headers.get("X-Customer", ""))


class Gateway:
    def __init__(self, services: Services, limits: Limits, options: Options, patience: Patience) -> None:
        self.channel = Channel(services.address, retry=False)
        app = create_app(self.channel, self.channel, options=options)
        self.feed: Feed = app.extensions["ordersys.feed"]
        self.feed.limits = limits
        self.server = ApiServer(app, "127.0.0.1:0", 40, patience=patience)
        self.server.start()
        self.address = self.server.address

    def stop(self) -> None:
        self.feed.close()
        self.server.stop(5)
        self.channel.close()


@pytest.fixture
def services() -> Iterator[Services]:
    services = Services()
    services.start()
    yield services
    services.stop()


@contextmanager
def gateway_of(
    services: Services, limits: Limits = QUICK, patience: Patience | None = None, **options: Any
) -> Iterator[Gateway]:
    gateway = Gateway(services, limits, Options(**options), patience or Patience())
    try:
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture
def gateway(services: Services) -> Iterator[Gateway]:
    with gateway_of(services) as gateway:
        yield gateway


def refused(gateway: Gateway, query: str = "", last_event_id: str = "", **headers: str) -> Refused:
    with pytest.raises(Refused) as refusal:
        EventStream(gateway.address, query, last_event_id, **headers)
    assert refusal.value.headers["Content-Type"] == "application/problem+json"
    return refusal.value


def raw(gateway: Gateway, request: bytes = b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n") -> socket.socket:
    """A connection that has sent a request."""
    host, _, port = gateway.address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(request)
    return connection


# --- what a reader sees ---------------------------------------------------------------------------------------------


def test_a_stream_starts_with_the_next_event(gateway: Gateway, services: Services) -> None:
    services.orders_placed(3)
    with EventStream(gateway.address) as stream:
        headers = stream.response.headers
        assert headers["Content-Type"] == "text/event-stream"
        assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
        assert "Content-Encoding" not in headers
        order = services.order()  # after the first byte: it must not be missed
        services.changed(order.id, Change.SHIPPED)
        until(lambda: len(stream.events) == 2)
        assert [(each.id, each.type) for each in stream.events] == [("4", events.CREATED), ("5", events.UPDATED)]
        assert [each.data for each in stream.events] == [events.encode(event) for event in services.log[3:]]
        assert stream.retry == 1000
        assert stream.comments == [": subscribed"]


def test_who_comes_back_before_the_first_event_has_missed_none(gateway: Gateway, services: Services) -> None:
    services.orders_placed(7)
    with EventStream(gateway.address) as stream:
        until(lambda: stream.last_event_id == "7")
    services.orders_placed(2)
    with EventStream(gateway.address, last_event_id=stream.last_event_id) as stream:
        until(lambda: stream.sequences == [8, 9])


def test_the_beginning_can_be_asked_for_and_the_present_follows_without_a_gap(
    gateway: Gateway, services: Services
) -> None:
    services.orders_placed(1700)  # several pages
    ended = threading.Event()

    def place() -> None:
        while not ended.wait(0.002):
            services.order()

    placing = threading.Thread(target=place)
    placing.start()
    try:
        with EventStream(gateway.address) as first, EventStream(gateway.address, "?after=0") as stream:
            until(lambda: len(stream.events) > 2000 and len(first.events) > 200)
            ended.set()
            placing.join()
            until(lambda: len(stream.events) == len(services.log))
            assert stream.sequences == list(range(1, len(services.log) + 1))
            until(lambda: bool(first.events) and first.events[-1].sequence == len(services.log))
            assert first.sequences == list(range(first.sequences[0], len(services.log) + 1))
    finally:
        ended.set()
        placing.join()


def test_a_reconnect_goes_on_exactly_where_it_was(gateway: Gateway, services: Services) -> None:
    seen: list[int] = []
    last = "0"
    for _ in range(5):
        services.orders_placed(40)
        with EventStream(gateway.address, "?after=3", last_event_id=last) as stream:  # the header is the newer one
            until(lambda: len(stream.events) >= 40)
        seen += stream.sequences
        last = stream.last_event_id
    assert seen == list(range(1, 201))


def test_only_what_is_asked_for_is_sent(gateway: Gateway, services: Services) -> None:
    mine, other = services.order("me"), services.order("you")
    queries = {
        f"?order_id={mine.id}&after=0": [1, 3, 5],
        "?customer_id=you&after=0": [2, 4, 6],
        "?type=ordersys.order.created.v1&after=0": [1, 2, 5, 6],
        "?type=ordersys.order.updated.v1&customer_id=me&after=0": [3],
    }
    queries[f"?order_id={mine.id}&after=0"] = [1, 3]
    with ExitStack() as stack:
        streams = {query: stack.enter_context(EventStream(gateway.address, query)) for query in queries}
        services.changed(mine.id, Change.SHIPPED)
        services.changed(other.id, Change.CANCELLED)
        services.order("me")
        services.order("you")
        for query, wanted in queries.items():
            until(lambda: streams[query].sequences[-1:] == wanted[-1:], query)  # noqa: B023
            assert streams[query].sequences == wanted, query


def test_a_reader_tied_to_a_customer_sees_no_others(services: Services) -> None:
    tied = {"X-Scopes": "orders:read", "X-Customer": "me"}
    with gateway_of(services, access=Tied()) as gateway:
        services.orders_placed(5, "you")
        services.orders_placed(1, "me")
        with EventStream(gateway.address, "?after=0", **tied) as stream:
            services.orders_placed(5, "you")
            services.orders_placed(1, "me")
            until(lambda: len(stream.events) == 2)
            assert stream.sequences == [6, 12]
        assert refused(gateway, "?customer_id=you", **tied).problem["code"] == "permission_denied"
        assert refused(gateway, **{"X-Scopes": "orders:write"}).status == 403
        until(lambda: gateway.feed.streams == 0)


@pytest.mark.parametrize(
    ("query", "last_event_id", "field"),
    [
        ("", "abc", "Last-Event-ID"),
        ("", "-1", "Last-Event-ID"),
        ("", "1_0", "Last-Event-ID"),
        ("", "1.5", "Last-Event-ID"),
        ("", "9223372036854775808", "Last-Event-ID"),
        ("?after=x", "", "after"),
        ("?after=%D9%A1", "", "after"),  # a digit, but not ours
        ("?type=created", "", "type"),
        ("?order_id=" + "x" * 200, "", "order_id"),
        ("?customer_id=%0A", "", "customer_id"),
        ("?customer=me", "", "customer"),  # a mistyped filter must not show everything
    ],
)
def test_what_cannot_be_meant_is_refused(gateway: Gateway, query: str, last_event_id: str, field: str) -> None:
    refusal = refused(gateway, query, last_event_id)
    assert (refusal.status, refusal.problem["code"]) == (400, "invalid_argument")
    assert [each["field"] for each in refusal.problem["errors"]] == [field]
    assert gateway.feed.streams == 0


def test_a_quiet_stream_shows_that_it_lives_and_what_it_has_passed_over(services: Services) -> None:
    limits = Limits(heartbeat=0.2, pace=0.01)
    with gateway_of(services, limits) as gateway, EventStream(gateway.address, "?customer_id=me") as stream:
        until(lambda: stream.comments.count(": heartbeat") >= 3)
        assert stream.last_event_id == "0"
        services.orders_placed(9, "you")
        until(lambda: stream.last_event_id == "9")
        assert stream.events == []


def test_a_stream_ends_some_day_so_that_a_revoked_key_ends_too(services: Services) -> None:
    with gateway_of(services, Limits(age=0.3, look=0.1)) as gateway, EventStream(gateway.address) as stream:
        until(lambda: stream.ended)
        until(lambda: gateway.feed.streams == 0)


# --- slots ----------------------------------------------------------------------------------------------------------


def test_too_many_streams_are_told_when_to_come_back(services: Services) -> None:
    with gateway_of(services, max_streams=3) as gateway:
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(EventStream(gateway.address))
            refusal = refused(gateway)
            assert (refusal.status, refusal.problem["code"], refusal.headers["Retry-After"]) == (
                503,
                "unavailable",
                "5",
            )
        until(lambda: gateway.feed.streams == 0)  # nobody wrote anything: that they left was noticed
        with EventStream(gateway.address):
            assert gateway.feed.streams == 1


@pytest.mark.parametrize("wait_for_answer", [False, True])
def test_slammed_connections_leave_no_slot_taken(services: Services, wait_for_answer: bool) -> None:
    with gateway_of(services, max_streams=10) as gateway:
        for number in range(300):
            version = b"1.0" if number % 3 else b"1.1"
            with raw(gateway, b"GET /api/v1/events?after=0 HTTP/%s\r\nHost: localhost\r\n\r\n" % version) as connection:
                if wait_for_answer:
                    assert connection.recv(1000).startswith((b"HTTP/1.1 200", b"HTTP/1.1 503"))
        until(lambda: gateway.feed.streams == 0)
        with EventStream(gateway.address, "?after=0") as stream:
            services.order()
            until(lambda: stream.sequences == [1])


def test_http_1_0_gets_a_stream_without_chunks(gateway: Gateway, services: Services) -> None:
    with raw(gateway, b"GET /api/v1/events?after=0 HTTP/1.0\r\n\r\n") as connection:
        services.order()
        answer = b""
        while not answer.endswith(b"}}\n\n"):
            answer += connection.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"chunked" not in head.lower()
        assert body.startswith(b"retry: 1000\n")
    until(lambda: gateway.feed.streams == 0)


def test_head_answers_the_headers_and_takes_no_slot(services: Services) -> None:
    with gateway_of(services, max_streams=1) as gateway, EventStream(gateway.address):
        connection = http.client.HTTPConnection(gateway.address, timeout=10)
        for _ in range(3):
            connection.request("HEAD", PATH)
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
            assert answer.read() == b""
        connection.close()
        assert gateway.feed.streams == 1


# --- readers that do not keep up ------------------------------------------------------------------------------------


def test_a_reader_that_takes_nothing_is_dropped_and_holds_up_nobody(services: Services) -> None:
    limits = Limits(pace=0.01, look=0.1, slow=4, memory_bytes=300_000)
    patience = Patience(idle=5)  # of a write too
    with (
        gateway_of(services, limits, patience) as gateway,
        raw(gateway) as slow,
        EventStream(gateway.address) as stream,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
        assert gateway.feed.streams == 2
        deadline = time.monotonic() + 60
        while gateway.feed.streams == 2:  # until the buffers between are full, and the socket's time is over
            assert time.monotonic() < deadline
            placed = services.orders_placed(200)[-1]
            until(lambda: stream.ended or stream.sequences[-1:] == [placed])  # noqa: B023
            assert not stream.ended
        assert gateway.feed.streams == 1
        assert b"ordersys_http_streams_dropped_total 1.0" in get(gateway, "/metrics")
        assert b"ordersys_http_streams 1.0" in get(gateway, "/metrics")
        assert stream.sequences == list(range(1, len(services.log) + 1))
        tap = gateway.feed._tap
        assert tap is not None
        assert tap.ring is not None
        assert sum(len(each.text) for each in tap.ring.after(tap.ring.floor, 10**6)) <= limits.memory_bytes


def test_a_reader_that_fell_behind_comes_back_and_catches_up(services: Services) -> None:
    """Pulled by hand: what the socket would take is the test's to say."""
    from ordersys.api.tap import Wanted

    with gateway_of(services, Limits(pace=0, memory_bytes=20_000)) as gateway:
        stream = gateway.feed.open(None, Wanted())
        pieces = iter(stream)
        assert next(pieces).startswith(b"retry: 1000\n")
        services.orders_placed(1)
        assert next(pieces).startswith(b"id: 1\n")
        services.orders_placed(500)
        until(lambda: gateway.feed._tap is not None and gateway.feed._tap.known == 501)
        assert list(pieces) == []  # it ends: what it has missed is no longer here
        stream.close()
        with EventStream(gateway.address, last_event_id="1") as again:
            until(lambda: len(again.events) == 500)
            assert again.sequences == list(range(2, 502))


# --- the Order Service ----------------------------------------------------------------------------------------------


def test_all_readers_share_one_call_which_ends_after_the_last(gateway: Gateway, services: Services) -> None:
    with ExitStack() as stack:
        streams = [stack.enter_context(EventStream(gateway.address)) for _ in range(10)]
        services.orders_placed(20)
        for stream in streams:
            until(lambda: stream.sequences == list(range(1, 21)))  # noqa: B023
        assert services.watching == 1
    until(lambda: services.watching == 0)
    assert not gateway.feed.watches
    services.orders_placed(700)
    with EventStream(gateway.address) as stream:
        services.orders_placed(2)
        until(lambda: stream.sequences == [721, 722])


def test_streams_outlive_the_order_service_and_go_on_exactly(services: Services) -> None:
    with (
        gateway_of(services, Limits(heartbeat=0.2, pace=0.01, look=0.1)) as gateway,
        EventStream(gateway.address) as stream,
        EventStream(gateway.address, "?after=0") as second,
    ):
        for _ in range(3):
            services.orders_placed(30)
            until(lambda: len(stream.events) == len(services.log))
            services.stop()
            beats = len(stream.comments)
            services.orders_placed(30)
            until(lambda: len(stream.comments) > beats + 2)  # noqa: B023
            assert not stream.ended
            services.start()
            until(lambda: len(stream.events) == len(services.log))
        until(lambda: len(second.events) == len(services.log))
        assert stream.sequences == second.sequences == list(range(1, 181))


def test_without_the_order_service_only_who_knows_where_to_go_on_gets_a_stream(
    gateway: Gateway, services: Services
) -> None:
    services.orders_placed(10)
    services.stop()
    refusal = refused(gateway)  # nobody can tell what the newest event is
    assert (refusal.status, refusal.problem["code"]) == (503, "unavailable")
    assert int(refusal.headers["Retry-After"]) >= 1
    assert gateway.feed.streams == 0
    with EventStream(gateway.address, last_event_id="4") as stream:
        services.orders_placed(2)
        services.start()
        until(lambda: stream.sequences == list(range(5, 13)))


def test_a_page_that_fails_is_read_again(gateway: Gateway, services: Services) -> None:
    services.orders_placed(1200)
    with EventStream(gateway.address):
        services.fail("ListEvents", ZeroDivisionError(), ZeroDivisionError())
        with EventStream(gateway.address, "?after=0") as stream:
            until(lambda: len(stream.events) == 1200)
            assert stream.sequences == list(range(1, 1201))


def test_an_id_from_the_future_waits_for_it(gateway: Gateway, services: Services) -> None:
    """Another gateway may be ahead of this one."""
    with EventStream(gateway.address, last_event_id="3") as ahead, EventStream(gateway.address) as stream:
        services.orders_placed(5)
        until(lambda: ahead.sequences == [4, 5])
        until(lambda: stream.sequences == [1, 2, 3, 4, 5])


# --- stopping -------------------------------------------------------------------------------------------------------


def test_a_stop_ends_every_stream_at_once(services: Services) -> None:
    gateway = Gateway(services, Limits(), Options(), Patience())  # as they are by default: waiting for 15 seconds
    with ExitStack() as stack:
        streams = [stack.enter_context(EventStream(gateway.address)) for _ in range(20)]
        services.orders_placed(3)
        for stream in streams:
            until(lambda: len(stream.events) == 3)  # noqa: B023
        begun = time.monotonic()
        gateway.stop()
        assert time.monotonic() - begun < 3
        until(lambda: all(stream.ended for stream in streams))
    assert gateway.feed.streams == 0
    services.orders_placed(2)
    with gateway_of(services) as restarted, EventStream(restarted.address, last_event_id="3") as stream:
        until(lambda: stream.sequences == [4, 5])


def test_what_is_documented_is_what_is_sent(gateway: Gateway) -> None:
    document = json.loads(get(gateway, "/openapi.json"))
    operation = document["paths"][PATH]["get"]
    assert list(operation["responses"]["200"]["content"]) == ["text/event-stream"]
    assert {each["name"] for each in operation["parameters"]} == {
        *("order_id", "customer_id", "type", "after", "Last-Event-ID")
    }


def get(gateway: Gateway, path: str) -> bytes:
    connection = http.client.HTTPConnection(gateway.address, timeout=10)
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    return body
