"""Whole traces across the seams: a batch of many orders, events that wait, notifications that fail. Both brokers."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from collector import Recorder, Seen, tree
from fake_services import until

from ordersys.broker.broker import Broker, Delivery, Message
from ordersys.broker.rabbitmq import RabbitBroker
from ordersys.broker.sqlite import SqliteBroker
from ordersys.core import errors, events, ids, topology
from ordersys.core.events import Change, Event
from ordersys.core.records import Line
from ordersys.core.rpc.server import GrpcServer
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.core.v1 import order_pb2
from ordersys.core.watch import spans
from ordersys.core.watch.tracing import Tracing
from ordersys.notify import inbox
from ordersys.notify.consumer import Notifier
from ordersys.notify.sinks import LogSink
from ordersys.order import store as order_store
from ordersys.order.model import Command
from ordersys.order.relay import Relay
from ordersys.order.service import OrderService
from ordersys.order.servicer import SERVICE, OrderServicer
from ordersys.order.store import OrderStore
from ordersys.product.authority import GrpcAuthority

WAITS = (0.05, 0.05)
STANDARD = topology.standard(WAITS)
[TOPIC] = [queue for queue in STANDARD.queues if queue.name == "notify.topic"]
CALL = "ordersys.core.v1.OrderService/ProcessOrders"


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(params=["embedded", "rabbitmq"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    if request.param == "embedded":
        broker: Broker = SqliteBroker(f"sqlite:///{tmp_path / 'broker.db'}")
    else:
        broker = RabbitBroker(request.getfixturevalue("rabbitmq_url"))
    broker.declare(STANDARD)
    yield broker
    broker.close()


@pytest.fixture
def orders(tmp_path: Path) -> Iterator[OrderStore]:
    database = Database(f"sqlite:///{tmp_path / 'order.db'}")
    migrations.upgrade(database, order_store.CHAIN)
    yield OrderStore(database)
    database.close()


class Flaky(LogSink):
    def __init__(self, failures: int) -> None:
        super().__init__(io.StringIO())
        self.failures = failures

    def handle(self, event: Event, body: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the mail server is away")
        super().handle(event, body)


@contextmanager
def relaying(orders: OrderStore, broker: Broker, tracing: Tracing) -> Iterator[None]:
    relay = Relay(orders, broker, STANDARD, tracing=tracing)
    relay.start()
    try:
        yield
    finally:
        relay.stop(20)


@contextmanager
def notifying(broker: Broker, folder: Path, tracing: Tracing, failures: int = 0) -> Iterator[Notifier]:
    database = Database(f"sqlite:///{folder / 'notify.db'}")
    migrations.upgrade(database, inbox.CHAIN)
    notifier = Notifier(broker, TOPIC, inbox.Inbox(database), Flaky(failures), name="n", tracing=tracing)
    notifier.start()
    try:
        yield notifier
    finally:
        assert notifier.stop(20)
        database.close()


def placed(orders: OrderStore, traceparent: str) -> str:
    """An order on record, its event in the outbox."""
    command = Command(
        command_id=ids.uuid7(),
        order_id=ids.uuid7(),
        change=Change.CREATED,
        customer_id="c",
        lines=(Line("1", 1, 100),),
        currency="EUR",
        traceparent=traceparent,
    )
    asyncio.run(orders.apply([command], ids.now_us(), ids.uuid7))
    return command.order_id


def of(recorder: Recorder, trace: Seen) -> list[Seen]:
    return [span for span in recorder.spans if span.trace == trace.trace]


def test_an_event_that_waits_for_the_relay_still_belongs_to_its_trace(
    broker: Broker, orders: OrderStore, recorder: Recorder, tmp_path: Path
) -> None:
    with recorder.tracing("caller").begin("place") as caller:
        placed(orders, caller.traceparent)
    placed(orders, ids.new_traceparent())  # nobody asked for spans of this one
    with (
        notifying(broker, tmp_path, recorder.tracing("notifier")) as notifier,
        relaying(orders, broker, recorder.tracing("relay")),
    ):
        until(lambda: notifier.counts.handled == 2)
    assert tree(recorder.spans) == [
        "caller INTERNAL place",
        "  relay PRODUCER send orders.fanout",
        "  relay PRODUCER send orders.topic",
        "    notifier CONSUMER process notify.topic",
    ]
    assert recorder.only("send orders.topic").attributes["messaging.system"] == broker.system


def test_each_try_of_a_notification_belongs_to_the_sending_of_its_message(
    broker: Broker, orders: OrderStore, recorder: Recorder, tmp_path: Path
) -> None:
    with recorder.tracing("caller").begin("place") as caller:
        placed(orders, caller.traceparent)
    with (
        notifying(broker, tmp_path, recorder.tracing("notifier"), failures=2) as notifier,
        relaying(orders, broker, recorder.tracing("relay")),
    ):
        until(lambda: notifier.counts.handled == 1)
    assert tree(recorder.spans) == [
        "caller INTERNAL place",
        "  relay PRODUCER send orders.fanout",
        "  relay PRODUCER send orders.topic",
        "    notifier CONSUMER process notify.topic !",
        "    notifier CONSUMER process notify.topic !",
        "    notifier CONSUMER process notify.topic",
    ]
    tries = [span for span in recorder.spans if span.kind == "CONSUMER"]
    assert [span.attributes["ordersys.notification.try"] for span in tries] == [1, 2, 3]
    assert [span.attributes.get("error.type") for span in tries] == ["ConnectionError", "ConnectionError", None]
    assert {span.attributes["messaging.rabbitmq.destination.routing_key"] for span in tries} == {"order.created"}


@pytest.mark.parametrize("header", [None, "nonsense"])
def test_a_message_that_does_not_say_who_sent_it_belongs_to_what_made_the_event(
    broker: Broker, orders: OrderStore, recorder: Recorder, tmp_path: Path, header: str | None
) -> None:
    with recorder.tracing("caller").begin("place") as caller:
        placed(orders, caller.traceparent)
    [waiting] = orders.unsent(1)
    message = Message(
        exchange=topology.TOPIC,
        routing_key="order.created",
        body=waiting.body.encode(),
        message_id=waiting.event_id,
        content_type=events.CONTENT_TYPE,
        headers={spans.TRACEPARENT: header} if header else {},
    )
    broker.publisher().publish([message])
    with notifying(broker, tmp_path, recorder.tracing("notifier")) as notifier:
        until(lambda: notifier.counts.handled == 1)
    assert tree(recorder.spans) == ["caller INTERNAL place", "  notifier CONSUMER process notify.topic"]


def test_without_traces_messages_carry_no_header_and_events_the_context_as_it_came(
    broker: Broker, orders: OrderStore
) -> None:
    came = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    placed(orders, came)
    subscription = broker.subscribe(TOPIC, prefetch=10)
    found: list[Delivery] = []
    with relaying(orders, broker, Tracing()):
        until(lambda: found.extend(subscription.receive(10, 0.1)) or bool(found))
    assert [(dict(each.headers), events.decode(each.body).traceparent) for each in found] == [({}, came)]


# --- the batch


class Door:
    """Order-service behind gRPC, and product-service's way to it."""

    def __init__(self, authority: GrpcAuthority, service: OrderService) -> None:
        self.authority = authority
        self.service = service


@asynccontextmanager
async def door(orders: OrderStore, recorder: Recorder) -> AsyncIterator[Door]:
    tracing = recorder.tracing("order-service")
    service = OrderService(orders, lambda: None)
    servicer = OrderServicer(service, tracing)
    server = GrpcServer("127.0.0.1:0", [SERVICE], servicer.add_to, observers=spans.observers(tracing))
    await server.start()
    authority = GrpcAuthority(server.address, 20, tracing=recorder.tracing("product-service"))
    try:
        yield Door(authority, service)
    finally:
        await authority.close()
        await server.stop(0)


def place(traceparent: str, order_id: str = "") -> order_pb2.OrderCommand:
    command = order_pb2.OrderCommand(command_id=ids.uuid7(), order_id=order_id or ids.uuid7(), traceparent=traceparent)
    command.place.customer_id = "c"
    price = order_pb2.Money(currency="EUR", amount=100)
    command.place.lines.append(order_pb2.OrderLine(product_id="1", quantity=1, unit_price=price))
    return command


def cancel(traceparent: str) -> order_pb2.OrderCommand:
    command = order_pb2.OrderCommand(command_id=ids.uuid7(), order_id=ids.uuid7(), traceparent=traceparent)
    command.cancel.reason = "there is no such order"
    return command


def asked(orders: OrderStore, recorder: Recorder, commands: Sequence[order_pb2.OrderCommand]) -> None:
    async def ask() -> None:
        async with door(orders, recorder) as there:
            await there.authority.process(commands)

    asyncio.run(asyncio.wait_for(ask(), 30))


def test_in_a_batch_every_order_keeps_its_own_trace(orders: OrderStore, recorder: Recorder) -> None:
    shop = recorder.tracing("shop")
    callers = [shop.begin(name) for name in ("one", "two", "three")]
    unwanted = ids.new_traceparent()
    one, two, three = (caller.traceparent for caller in callers)
    asked(orders, recorder, [place(one), place(two), cancel(three), place(unwanted)])
    for caller in callers:
        caller.end()
    roots = [recorder.only(name) for name in ("one", "two", "three")]
    for root in roots:
        assert tree(of(recorder, root)) == [
            f"shop INTERNAL {root.name}",
            "  product-service INTERNAL ask order-service",
            "    order-service INTERNAL process command",
        ]
    batch = recorder.only(CALL, "CLIENT")
    assert tree(of(recorder, batch)) == [f"product-service CLIENT {CALL}", f"  order-service SERVER {CALL}"]
    asks, works = (
        [next(span for span in of(recorder, root) if span.name == name) for root in roots]
        for name in ("ask order-service", "process command")
    )
    assert batch.links == tuple(span.id for span in asks)
    assert {span.links for span in works} == {(recorder.only(CALL, "SERVER").id,)}
    assert len(recorder.spans) == 3 + 3 + 3 + 2  # none for the one that nobody asked for

    # what was refused says so, and is no error
    refused = {span.attributes.get("ordersys.error.code"): span.error for span in (*asks, *works)}
    assert refused == {None: False, "order_not_found": False}
    assert {span.attributes["ordersys.command.action"] for span in asks} == {"place", "cancel"}

    # the events name what made them
    made = {waiting.order_id: events.traceparent_of(waiting.body) for waiting in orders.unsent(10)}
    expected = {span.attributes["ordersys.order.id"]: f"00-{span.trace}-{span.id}" for span in works[:2]}
    assert {order: context.rpartition("-")[0] for order, context in made.items() if context != unwanted} == expected
    assert list(made.values()).count(unwanted) == 1


def test_a_batch_that_nobody_wants_to_see_makes_no_spans_on_either_side(orders: OrderStore, recorder: Recorder) -> None:
    asked(orders, recorder, [place(ids.new_traceparent()) for _ in range(3)])
    assert recorder.spans == []
    assert len(orders.unsent(10)) == 3


def test_an_order_service_that_is_away_is_an_error_of_the_call_and_of_each_command(recorder: Recorder) -> None:
    async def ask() -> None:
        authority = GrpcAuthority("127.0.0.1:1", 5, tracing=recorder.tracing("product-service"))
        try:
            await authority.process([place(ids.new_traceparent()[:-2] + "01") for _ in range(2)])
        finally:
            await authority.close()

    with pytest.raises(errors.Unavailable):
        asyncio.run(asyncio.wait_for(ask(), 30))
    assert sorted((span.name, span.error) for span in recorder.spans) == [
        ("ask order-service", True),
        ("ask order-service", True),
        (CALL, True),
    ]
    call = recorder.only(CALL)
    assert (call.attributes["rpc.grpc.status_code"], call.attributes["error.type"]) == (14, "unavailable")
