"""The users that `ordersys topology permissions` prints, made on a real node: each can do its work, and no more."""

import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pika
import pika.exceptions
import pytest
from contract.broker_site import eventually, message, message_ids, publish_until_confirmed, take
from e2e.processes import Backend, until
from faults import nodes
from faults.nodes import RabbitNode
from pika.adapters.blocking_connection import BlockingChannel

from ordersys.broker.broker import Depth, Findings, Outcome
from ordersys.broker.dead_letters import DeadLetters
from ordersys.broker.rabbitmq import RabbitBroker
from ordersys.core import errors, topology, users
from ordersys.core.events import Change
from ordersys.core.topology import FANOUT, NOTIFY_FANOUT, NOTIFY_TOPIC, TOPIC, Binding, Queue, Topology, routes

PASSWORD = "it-is-typed"  # noqa: S105 - of users that are gone with their node
WAITS = (0.0, 0.0)
AUDIT = Queue("audit log", (Binding(TOPIC, "order.#"),), WAITS)
FAN, TOP = (Queue(queue.name, queue.bindings, WAITS) for queue in (NOTIFY_FANOUT, NOTIFY_TOPIC))
STANDARD = Topology(topology.EXCHANGES, (FAN, TOP))
ADMIN, ORDER, OPERATOR = "shop-admin", "shop-order", "shop-operator"
FAN_NOTIFIER, TOP_NOTIFIER, AUDITOR = (f"shop-notifier-{queue.name}" for queue in (FAN, TOP, AUDIT))


pytestmark = pytest.mark.timeout(300)  # every command that is printed is a rabbitmqctl of its own


class Shop:
    """A vhost with the printed users and nothing else; the administrator has declared the topology."""

    def __init__(self, node: RabbitNode, vhost: str, backend: Backend) -> None:
        self.node = node
        self.vhost = vhost
        self.backend = backend

    def url(self, user: str) -> str:
        return self.node.url(user.replace(" ", "%20"), PASSWORD, self.vhost)

    @contextmanager
    def broker(self, user: str) -> Iterator[RabbitBroker]:
        with closing(RabbitBroker(self.url(user))) as broker:
            yield broker

    @contextmanager
    def channel(self, user: str) -> Iterator[BlockingChannel]:
        with closing(pika.BlockingConnection(pika.URLParameters(self.url(user)))) as connection:
            yield connection.channel()

    def cut(self) -> None:
        """Close every connection."""
        self.node.control("close_all_connections", "-p", self.vhost, "test")

    def declare(self, *more: str) -> None:
        done = self.backend.run("topology", "declare", *more, ORDERSYS_BROKER_URL=self.url(ADMIN))
        assert done.code == 0, done


@pytest.fixture(scope="module")
def open_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    with nodes.rabbitmq_node() as node, Backend(folder, {"ORDERSYS_RETRY_WAITS": "0,0"}) as backend:
        shop = Shop(node, node.vhost().rpartition("/")[2], backend)
        flags = ("--vhost", shop.vhost, "--prefix", "shop", "--queue", AUDIT.name)
        for command in commands(backend.run("topology", "permissions", *flags).out):
            node.control(*command, typed=PASSWORD)
        shop.declare()
        shop.declare("--queue", AUDIT.name, "--bind", "order.#")
        yield shop


@pytest.fixture
def shop(open_shop: Shop) -> Shop:
    """With empty queues."""
    parameters = pika.URLParameters(open_shop.node.url("guest", "guest", open_shop.vhost))
    with closing(pika.BlockingConnection(parameters)) as connection:
        for queue in (FAN, TOP, AUDIT):
            for name in (queue.name, *queue.retries, queue.dead_letters):
                connection.channel().queue_purge(name)
    return open_shop


def commands(printed: str) -> Iterator[list[str]]:
    """The arguments of each rabbitmqctl command; the terminal is where the password would be typed."""
    for line in printed.splitlines():
        if not line.startswith("#"):
            program, *arguments = shlex.split(line.removesuffix(" </dev/tty"))
            assert program == "rabbitmqctl"
            yield arguments


def test_no_password_is_printed_and_none_can_be_taken_from_a_pipe(shop: Shop) -> None:
    printed = shop.backend.run("topology", "permissions").out.splitlines()
    asking = [line for line in printed if "add_user" in line]
    assert len(asking) == 5
    assert all(line.endswith(" </dev/tty") and len(line.split()) == 4 for line in asking)


def test_an_order_reaches_every_notifier_and_fails_into_its_dead_letters(shop: Shop) -> None:
    with shop.broker(ORDER) as order, shop.broker(OPERATOR) as operator:
        assert order.declare(STANDARD) is False
        sent = [message(exchange, key, "created") for exchange, key in routes(Change.CREATED)]
        sent += [message(exchange, key, "cancelled") for exchange, key in routes(Change.CANCELLED)]
        assert order.publisher().publish(sent) == [Outcome.CONFIRMED] * 3
        assert order.depths([FAN, TOP]) == {FAN.name: Depth(1, 0, 0), TOP.name: Depth(2, 0, 0)}

        for user, queue, ids in (
            (FAN_NOTIFIER, FAN, ["created"]),
            (TOP_NOTIFIER, TOP, ["created", "cancelled"]),
            (AUDITOR, AUDIT, ["created", "cancelled"]),
        ):
            with shop.broker(user) as broker:
                assert broker.declare(Topology(topology.EXCHANGES, (queue,))) is False
                subscription = broker.subscribe(queue, 10)
                deliveries = take(subscription, len(ids))
                assert message_ids(deliveries) == ids
                for tries in (1, 2):
                    assert [subscription.retry(each, "away") for each in deliveries] == [True] * len(ids)
                    deliveries = take(subscription, len(ids))
                    assert [each.tries for each in deliveries] == [tries] * len(ids)
                    assert deliveries[0].exchange in (FANOUT, TOPIC)
                assert subscription.retry(deliveries[0], "away") is False
                subscription.ack(deliveries[1:])

        assert operator.declare(STANDARD) is False
        letters = DeadLetters(operator, [FAN, TOP, AUDIT])
        assert [(each.id, each.queue, each.reason) for each in letters.look(lambda _: True)] == [
            ("created", queue.name, "away") for queue in (FAN, TOP, AUDIT)
        ]
        letters.replay(lambda letter: letter.queue == FAN.name)
        letters.discard(lambda letter: letter.queue != FAN.name)
        assert letters.look(lambda _: True) == []
    with shop.broker(FAN_NOTIFIER) as broker:
        subscription = broker.subscribe(FAN, 10)
        subscription.ack(take(subscription, 1))


def test_the_operators_commands_work_with_the_operators_user(shop: Shop) -> None:
    with shop.broker(TOP_NOTIFIER) as broker, shop.broker(ORDER) as order:
        order.publisher().publish([message(TOPIC, "order.created", "poison")])
        subscription = broker.subscribe(TOP, 10)
        subscription.dead_letter(*take(subscription, 1), "poison")
    as_operator = {"ORDERSYS_BROKER_URL": shop.url(OPERATOR)}
    found = shop.backend.run("dlq", "list", "--json", **as_operator).document["dead_letters"]
    assert [each["id"] for each in found] == ["poison"]
    assert shop.backend.run("dlq", "discard", "poison", **as_operator).code == 0


def test_the_roles_themselves_run_with_these_users(shop: Shop) -> None:
    by_role = {
        "serve-order": ORDER,
        "notify --mode fanout --json": FAN_NOTIFIER,
        "notify --mode topic --json": TOP_NOTIFIER,
    }
    running = {
        command: shop.backend.start(*command.split(), ORDERSYS_BROKER_URL=shop.url(user)).ready()
        for command, user in by_role.items()
    }
    shop.backend.start("serve-product").ready()
    order = shop.backend.place("1:2")
    _, *notifiers = running.values()
    until(lambda: all(role.events(order["id"]) for role in notifiers), "both notifiers hear of the order")
    for command, role in running.items():
        assert role.stop() == 0
        assert "ACCESS_REFUSED" not in role.err, command


REFUSED: dict[str, tuple[str, Callable[[BlockingChannel], object]]] = {
    "a notifier publishes an order": (TOP_NOTIFIER, lambda channel: publish(channel, TOPIC, "order.created")),
    "a notifier announces an order": (FAN_NOTIFIER, lambda channel: publish(channel, FANOUT, "")),
    "a notifier writes into its own queue": (TOP_NOTIFIER, lambda channel: publish(channel, "", TOP.name)),
    "a notifier writes into another's queue": (TOP_NOTIFIER, lambda channel: publish(channel, "", FAN.name)),
    "a notifier writes into another's retry queue": (
        TOP_NOTIFIER,
        lambda channel: publish(channel, users.FAILURES, FAN.retries[0]),
    ),
    "a notifier writes into another's dead letters": (
        TOP_NOTIFIER,
        lambda channel: publish(channel, users.FAILURES, FAN.dead_letters),
    ),
    "a notifier reads another's queue": (TOP_NOTIFIER, lambda channel: channel.basic_get(FAN.name)),
    "a notifier reads its dead letters": (TOP_NOTIFIER, lambda channel: channel.basic_get(TOP.dead_letters)),
    "a notifier empties another's queue": (TOP_NOTIFIER, lambda channel: channel.queue_purge(FAN.name)),
    "a notifier declares a queue": (TOP_NOTIFIER, lambda channel: channel.queue_declare("mine")),
    "a notifier deletes its queue": (TOP_NOTIFIER, lambda channel: channel.queue_delete(TOP.name)),
    "a notifier binds its queue": (TOP_NOTIFIER, lambda channel: channel.queue_bind(TOP.name, FANOUT)),
    "order-service consumes": (ORDER, lambda channel: channel.basic_get(TOP.name)),
    "order-service writes into a queue": (ORDER, lambda channel: publish(channel, "", TOP.name)),
    "order-service deletes an exchange": (ORDER, lambda channel: channel.exchange_delete(TOPIC)),
    "the operator publishes an order": (OPERATOR, lambda channel: publish(channel, TOPIC, "order.created")),
    "the operator reads a queue": (OPERATOR, lambda channel: channel.basic_get(TOP.name)),
    "the operator deletes the dead letters": (OPERATOR, lambda channel: channel.queue_delete(TOP.dead_letters)),
    "the administrator publishes an order": (ADMIN, lambda channel: publish(channel, TOPIC, "order.created")),
    "the administrator makes something else": (ADMIN, lambda channel: channel.queue_declare("something.else")),
}


def publish(channel: BlockingChannel, exchange: str, key: str) -> None:
    channel.confirm_delivery()
    channel.basic_publish(exchange, key, b"{}", mandatory=True)


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_that(shop: Shop, what: str) -> None:
    user, ask = REFUSED[what]
    with shop.channel(user) as channel, pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        ask(channel)
    assert caught.value.reply_code == 403


def test_who_may_not_declare_says_what_is_missing_and_who_can_help(shop: Shop) -> None:
    empty = shop.node.vhost().rpartition("/")[2]
    shop.node.control("set_permissions", "-p", empty, TOP_NOTIFIER, "^$", "^$", "^$")
    broker = RabbitBroker(shop.node.url(TOP_NOTIFIER, PASSWORD, empty))
    with pytest.raises(errors.UsageError) as caught:
        broker.declare(STANDARD)
    for part in ("exchange orders.topic", "queue notify.topic.retry,", "queue notify.topic.dlq", "topology declare"):
        assert part in caught.value.message


def test_only_who_may_declare_is_told_that_it_was_done(shop: Shop) -> None:
    done = shop.backend.run("topology", "declare", ORDERSYS_BROKER_URL=shop.url(OPERATOR))
    assert done.code == 1
    assert "permission_denied: this user may not declare" in done.complaint


def test_restricted_users_come_back_after_their_connections_were_closed(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    with shop.broker(ORDER) as order, shop.broker(TOP_NOTIFIER) as notifier:
        caplog.set_level(logging.INFO)
        order.declare(STANDARD)
        notifier.declare(STANDARD)
        publisher, subscription = order.publisher(), notifier.subscribe(TOP, 10)
        for number, name in enumerate(("before", "between", "after"), 1):
            publish_until_confirmed(publisher, [message(TOPIC, "order.created", name)])
            deliveries = take(subscription, 1)
            assert message_ids(deliveries) == [name]
            subscription.ack(deliveries)
            shop.cut()
            assert eventually(lambda count=2 * number: caplog.text.count("is back") == count)


def test_who_may_not_declare_any_more_goes_on_publishing(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.node.control("add_user", "demoted", typed=PASSWORD)
    shop.node.control("set_permissions", "-p", shop.vhost, "demoted", ".*", ".*", ".*")
    with shop.broker("demoted") as broker, shop.broker(TOP_NOTIFIER) as notifier:
        assert broker.declare(STANDARD) is True
        publisher = broker.publisher()
        publish_until_confirmed(publisher, [message(TOPIC, "order.created", "before")])
        shop.node.control("set_permissions", "-p", shop.vhost, "demoted", "^$", "^orders", "^$")
        shop.cut()
        publish_until_confirmed(publisher, [message(TOPIC, "order.created", "after")])
        assert "for another reason: 403 ACCESS_REFUSED" in caplog.text  # it tried to declare
        subscription = notifier.subscribe(TOP, 10)
        deliveries = take(subscription, 2)
        assert message_ids(deliveries) == ["before", "after"]
        subscription.ack(deliveries)
        assert eventually(lambda: broker.depths([TOP])[TOP.name] == Depth(0, 0, 0))


def test_each_user_can_do_what_its_role_needs_and_says_what_another_role_would_need(shop: Shop) -> None:
    everybody = Topology(STANDARD.exchanges, (FAN, TOP, AUDIT))
    expected = {user.name: user for user in users.users(everybody, "shop")}
    for name, user in expected.items():
        with shop.broker(name) as broker:
            assert broker.inspect(STANDARD, user) == Findings(), name
    with shop.broker(ORDER) as order:
        found = order.inspect(STANDARD, expected[TOP_NOTIFIER])
    assert found.refused == (
        "write amq.topic notify.topic.retry",
        "write amq.topic notify.topic.dlq",
        "read notify.topic",
    )


def test_the_inspection_finds_what_is_missing_and_what_differs_and_changes_nothing(shop: Shop) -> None:
    nowhere = Queue("nowhere", (), (0.0,))
    audit = Queue(AUDIT.name, (), (*WAITS, 0.0))
    with shop.broker(ADMIN) as broker:
        longer = Topology((topology.Exchange(TOPIC, topology.Kind.FANOUT),), (audit, nowhere))
        for _ in range(2):
            assert broker.inspect(longer) == Findings(
                missing=("queue audit log.retry.3", "queue nowhere.dlq", "queue nowhere", "queue nowhere.retry"),
                differing=(f"exchange {TOPIC}",),
            )
