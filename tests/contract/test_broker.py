"""The contract of ordersys.broker.broker: each case runs on the embedded broker and on a real RabbitMQ.

Messages are counted by consuming them: a queue's length lies for a while after a kill -9.
"""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import servers
from contract.broker_site import Site, eventually, message, message_ids, rest, take, to

from ordersys.broker import broker
from ordersys.broker.broker import Outcome
from ordersys.broker.sqlite_consumer import LEASE_SECONDS
from ordersys.core import errors, ids
from ordersys.core.topology import Binding, Exchange, Kind, Queue, Topology, matches

CONFIRMED, UNROUTABLE, FAILED = Outcome.CONFIRMED, Outcome.UNROUTABLE, Outcome.FAILED


@pytest.fixture(scope="module")
def vhost_url() -> Iterator[str]:
    """One vhost for the whole module: every test uses names of its own."""
    with servers.vhost() as url:
        yield url


@pytest.fixture(params=["sqlite", "rabbitmq"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    url = f"sqlite:///{tmp_path / 'broker.db'}" if request.param == "sqlite" else request.getfixturevalue("vhost_url")
    site = Site(url)
    yield site
    site.close()


# --- routing


def test_a_fanout_exchange_copies_to_every_queue(site: Site) -> None:
    exchange, queues = site.fanout("a", "b", "c")
    outcomes = site.broker().publisher().publish([message(exchange, "any.key", id_) for id_ in ("1", "2")])

    assert outcomes == [CONFIRMED, CONFIRMED]
    for queue in queues:
        subscription = site.subscribe(queue)
        assert message_ids(take(subscription, 2)) == ["1", "2"]
        assert rest(subscription, 0.1) == []


PATTERNS = [
    "order.created",
    "order.updated.#",
    "order.*",
    "*.*",
    "#",
    "#.shipped",
    "order.#.shipped",
    "*.#",
    "#.*.#",
    "",
]
KEYS = [
    "order.created",
    "order.updated",
    "order.updated.lines",
    "order.updated.shipped",
    "order",
    "shipped",
    "a..b",
    "",
]


def test_topic_patterns_mean_the_same_to_the_broker_and_to_the_topology(site: Site) -> None:
    exchange = Exchange(site.name("topic"), Kind.TOPIC)
    queues = {
        pattern: Queue(site.name(f"q{number}"), (Binding(exchange.name, pattern),), ())
        for number, pattern in enumerate(PATTERNS)
    }
    site.broker().declare(Topology((exchange,), tuple(queues.values())))
    outcomes = site.broker().publisher().publish([message(exchange.name, key, key or "empty") for key in KEYS])

    assert outcomes == [CONFIRMED] * len(KEYS)  # "#" takes every one of them
    for pattern, queue in queues.items():
        expected = [key or "empty" for key in KEYS if matches(pattern, key)]
        subscription = site.subscribe(queue)
        assert message_ids(take(subscription, len(expected))) == expected, pattern
        assert rest(subscription, 0.05) == [], pattern
    assert matches("order.#.shipped", "order.shipped")
    assert matches("#", "")
    assert not matches("order.*", "order")


def test_a_queue_bound_twice_gets_one_copy(site: Site) -> None:
    exchange = Exchange(site.name("topic"), Kind.TOPIC)
    queue = Queue(site.name("twice"), (Binding(exchange.name, "order.*"), Binding(exchange.name, "#")))
    site.broker().declare(Topology((exchange,), (queue,)))
    assert site.broker().publisher().publish([message(exchange.name, "order.created", "1")]) == [CONFIRMED]

    subscription = site.subscribe(queue)
    assert message_ids(take(subscription, 1)) == ["1"]
    assert rest(subscription) == []


def test_the_empty_exchange_leads_to_the_queue_that_the_routing_key_names(site: Site) -> None:
    queue = site.queue()
    site.publish(queue, "1")
    [delivery] = take(site.subscribe(queue), 1)
    assert (delivery.exchange, delivery.routing_key, delivery.queue) == ("", queue.name, queue.name)


def test_each_message_of_a_batch_has_its_own_outcome_in_order(site: Site) -> None:
    exchange = Exchange(site.name("topic"), Kind.TOPIC)
    queue = Queue(site.name("created"), (Binding(exchange.name, "order.created"),))
    site.broker().declare(Topology((exchange,), (queue,)))
    same = "one id for several messages, as for one event on two exchanges"
    batch = [
        message(exchange.name, "order.created", same),
        message(exchange.name, "nobody.wants.this", same),
        to(site.name("no such queue"), same),
        to(queue, same),
        message(exchange.name, "nobody.wants.this", same),
        message(exchange.name, "order.created", same),
    ]
    expected = [CONFIRMED, UNROUTABLE, UNROUTABLE, CONFIRMED, UNROUTABLE, CONFIRMED]
    publisher = site.broker().publisher()

    assert publisher.publish(batch) == expected
    assert publisher.publish(batch * 50) == expected * 50
    assert publisher.publish([]) == []
    assert len(take(site.subscribe(queue, 200), 153)) == 153


def test_an_exchange_that_does_not_exist_fails_its_message_and_the_publisher_goes_on(site: Site) -> None:
    queue = site.queue()
    publisher = site.broker().publisher()
    assert publisher.publish([message(site.name("no such exchange"), "key", "1")]) == [FAILED]
    assert publisher.publish([to(queue, "2")]) == [CONFIRMED]


# --- declaring


def test_declaring_twice_changes_nothing(site: Site) -> None:
    exchange, [queue] = site.fanout("q")
    site.publish(queue, "1")
    topology = Topology((Exchange(exchange, Kind.FANOUT),), (queue,))
    declarer = site.broker()
    declarer.declare(topology)
    declarer.declare(topology)

    assert site.broker().publisher().publish([message(exchange, "", "2")]) == [CONFIRMED]
    subscription = site.subscribe(queue)
    assert message_ids(take(subscription, 2)) == ["1", "2"]
    assert rest(subscription, 0.1) == []


def test_what_exists_with_other_properties_is_refused_by_name(site: Site) -> None:
    exchange, [queue] = site.fanout("q")
    with pytest.raises(errors.UsageError, match=exchange):
        site.broker().declare(Topology((Exchange(exchange, Kind.TOPIC),), ()))
    with pytest.raises(errors.UsageError, match=queue.retries[0]):
        site.broker().declare(Topology((), (Queue(queue.retries[0], ()),)))
    with pytest.raises(errors.UsageError, match="nowhere"):
        site.broker().declare(Topology((), (Queue(site.name("bound"), (Binding(site.name("nowhere")),)),)))


def test_several_processes_may_declare_at_once_on_a_new_broker(site: Site) -> None:
    name = site.name("together")
    processes = [site.process("declare", name) for _ in range(5)]
    assert [process.wait(60) for process in processes] == [0] * 5
    assert site.broker().publisher().publish([message(name, "", "1")]) == [CONFIRMED]
    assert message_ids(take(site.subscribe(name), 1)) == ["1"]


def test_ping_answers_and_a_prefetch_of_none_is_refused(site: Site) -> None:
    site.broker().ping()
    for prefetch in (0, 65_536):
        with pytest.raises(errors.UsageError, match="prefetch"):
            site.broker().subscribe(Queue("q", ()), prefetch)


# --- what is delivered


def test_content_comes_through_unchanged(site: Site) -> None:
    queue = site.queue()
    body = "Grüße, 世界 \N{PACKAGE}".encode() + bytes(range(256))
    headers: dict[str, str | int] = {
        "traceparent": ids.new_traceparent(),
        "text": "żółć 世界",
        "empty": "",
        "big": 2**40,
        "negative": -7,
    }
    sent = broker.Message(
        exchange="",
        routing_key=queue.name,
        body=body,
        message_id="ünïque/世界",
        content_type="application/cloudevents+json; charset=utf-8",
        headers=headers,
    )
    large = to(queue, "large", b"x" * 900_000)
    none = to(queue, "none", b"")
    assert site.broker().publisher().publish([sent, large, none]) == [CONFIRMED] * 3

    first, second, third = take(site.subscribe(queue), 3)
    assert (first.body, first.message_id, first.content_type) == (body, sent.message_id, sent.content_type)
    assert dict(first.headers) == headers
    assert (first.redelivered, first.tries) == (False, 0)
    assert second.body == large.body
    assert third.body == b""


def test_a_queue_keeps_its_order(site: Site) -> None:
    queue = site.queue()
    publisher = site.broker().publisher()
    names = [str(number) for number in range(600)]
    for start in range(0, 600, 150):
        publisher.publish([to(queue, name) for name in names[start : start + 150]])
    assert message_ids(take(site.subscribe(queue, 600), 600)) == names


def test_ten_thousand_messages_each_exactly_once(site: Site) -> None:
    queue = site.queue()
    seen: list[str] = []
    done = threading.Event()

    def consume() -> None:
        subscription = site.subscribe(queue, 200)
        while not done.is_set():
            deliveries = subscription.receive(100, 0.2)
            subscription.ack(deliveries)
            seen.extend(message_ids(deliveries))

    consumers = [threading.Thread(target=consume) for _ in range(2)]
    for consumer in consumers:
        consumer.start()
    publisher = site.broker().publisher()
    names = [str(number) for number in range(10_000)]
    for start in range(0, 10_000, 2_500):
        batch = [to(queue, name) for name in names[start : start + 2_500]]
        assert publisher.publish(batch, timeout=30.0) == [CONFIRMED] * 2_500
    deadline = time.monotonic() + 60
    while len(seen) < 10_000 and time.monotonic() < deadline:
        time.sleep(0.05)
    done.set()
    for consumer in consumers:
        consumer.join()

    assert sorted(seen, key=int) == names
    site.close()  # gives back what was not acked: nothing
    assert rest(site.subscribe(queue)) == []


def test_several_processes_may_publish_at_once(site: Site) -> None:
    queue = site.queue()
    publishers = [site.process("publish", queue.name, name, "50") for name in ("a", "b", "c")]
    found = message_ids(take(site.subscribe(queue, 200), 150, 60.0))

    assert [process.wait(60) for process in publishers] == [0] * 3
    assert sorted(found) == sorted(f"{name}-{number}" for name in "abc" for number in range(50))
    for name in "abc":
        assert [id_ for id_ in found if id_.startswith(name)] == [f"{name}-{number}" for number in range(50)]


def test_an_idle_consumer_sees_a_new_message_soon(site: Site) -> None:
    queue = site.queue()
    subscription = site.subscribe(queue)
    arrived: dict[str, float] = {}
    done = threading.Event()

    def consume() -> None:
        while not done.is_set():
            for delivery in subscription.receive(1, 0.5):
                arrived[delivery.message_id] = time.monotonic()
                subscription.ack([delivery])

    consumer = threading.Thread(target=consume)
    consumer.start()
    publisher = site.broker().publisher()
    waits = []
    for number in range(11):
        assert publisher.publish([to(queue, str(number))]) == [CONFIRMED]
        confirmed = time.monotonic()
        assert eventually(partial(arrived.__contains__, str(number)))
        waits.append(arrived[str(number)] - confirmed)
    done.set()
    consumer.join()
    assert sorted(waits)[5] < 0.06, waits


# --- settling


def test_competing_consumers_share_without_overlap(site: Site) -> None:
    queue = site.queue()
    site.publish(queue, *"abcdef")
    one, other = site.subscribe(queue, 3), site.subscribe(queue, 3)
    first, second = take(one, 3), take(other, 3)
    assert sorted(message_ids(first) + message_ids(second)) == list("abcdef")
    assert rest(one, 0.1) == rest(other, 0.1) == []


def test_an_ack_removes_the_message_for_good(site: Site) -> None:
    queue = site.queue()
    site.publish(queue, *"abcde")
    consumer = site.broker()
    subscription = consumer.subscribe(queue, 10)
    deliveries = take(subscription, 5)
    subscription.ack([deliveries[4], deliveries[0], deliveries[2]])  # in no order, with gaps
    consumer.close()

    again = take(site.subscribe(queue), 2)
    assert message_ids(again) == ["b", "d"]
    assert all(delivery.redelivered for delivery in again)


def test_a_rejected_message_comes_back_to_its_place(site: Site) -> None:
    queue = site.queue()
    site.publish(queue, *"abc")
    subscription = site.subscribe(queue, 1)
    [first] = take(subscription, 1)
    assert (first.message_id, first.redelivered) == ("a", False)
    subscription.reject(first)
    [again] = take(subscription, 1)
    assert (again.message_id, again.redelivered) == ("a", True)
    subscription.ack([again])
    [following] = take(subscription, 1)
    assert (following.message_id, following.redelivered) == ("b", False)


def test_no_more_than_the_prefetch_is_held(site: Site) -> None:
    queue = site.queue()
    site.publish(queue, *"abcde")
    subscription = site.subscribe(queue, 3)
    held = take(subscription, 3)
    assert message_ids(held) == list("abc")
    assert rest(subscription) == []
    subscription.ack(held[:1])
    assert message_ids(take(subscription, 1)) == ["d"]
    assert rest(subscription) == []
    assert message_ids(take(site.subscribe(queue, 10), 1)) == ["e"]


def test_closing_gives_back_what_is_held_and_keeps_what_was_acked(site: Site) -> None:
    queue = site.queue()
    site.publish(queue, *"abc")
    subscription = site.subscribe(queue)
    held = take(subscription, 3)
    subscription.ack(held[1:2])
    subscription.close()
    assert message_ids(take(site.subscribe(queue), 2, 2.0)) == ["a", "c"]


def test_messages_outlive_every_broker_object(site: Site) -> None:
    exchange, [queue] = site.fanout("q")
    site.publish(queue, "a")
    site.close()
    assert site.broker().publisher().publish([message(exchange, "", "b")]) == [CONFIRMED]
    site.close()
    assert message_ids(take(site.subscribe(queue), 2)) == ["a", "b"]


def test_what_a_killed_process_held_goes_to_another_consumer(site: Site) -> None:
    queue = site.queue()
    site.publish(queue, *"abcde")
    victim = site.process("hold", queue.name, "3")
    assert victim.stdout is not None
    assert victim.stdout.readline() == "holding\n"
    subscription = site.subscribe(queue)
    assert message_ids(take(subscription, 2)) == ["d", "e"]

    victim.kill()
    killed = time.monotonic()
    back = take(subscription, 3)
    assert message_ids(back) == list("abc")
    assert all(delivery.redelivered for delivery in back)
    assert time.monotonic() - killed < LEASE_SECONDS + 2


def test_a_slow_handler_keeps_its_message(site: Site) -> None:
    queue = site.queue()
    site.publish(queue, "slow")
    subscription = site.subscribe(queue)
    held = take(subscription, 1)
    other = site.subscribe(queue)
    assert rest(other, LEASE_SECONDS + 0.7 if site.is_sqlite else 1.5) == []
    subscription.ack(held)
    subscription.close()
    assert rest(other) == []


# --- failing


def test_a_failed_message_rests_returns_rests_longer_and_ends_in_the_dead_letters(site: Site) -> None:
    waits = (0.3, 0.8)
    exchange, [queue] = site.fanout("q", waits=waits)
    before = ids.rfc3339(ids.now_us())
    sent = message(exchange, "order.created", "poison", "Füße".encode(), {"mine": "kept"})
    assert site.broker().publisher().publish([sent]) == [CONFIRMED]
    subscription = site.subscribe(queue)

    [delivery] = take(subscription, 1)
    for tries, wait in enumerate(waits, start=1):
        assert subscription.retry(delivery, f"broken for the {tries}. time") is True
        started = time.monotonic()
        [delivery] = take(subscription, 1)
        assert time.monotonic() - started > wait - 0.05
        assert (delivery.tries, delivery.redelivered) == (tries, False)
        assert (delivery.exchange, delivery.routing_key) == (exchange, "order.created")
    assert subscription.retry(delivery, "broken for good: Ünglück") is False
    subscription.close()
    assert rest(site.subscribe(queue)) == []  # it was acked each time

    [dead] = take(site.subscribe(queue.dead_letters), 1)
    assert (dead.body, dead.message_id, dead.content_type) == (sent.body, "poison", "application/json")
    assert (dead.exchange, dead.routing_key) == (exchange, "order.created")
    headers = dict(dead.headers)
    first, last = str(headers.pop(broker.FIRST_FAILED)), str(headers.pop(broker.LAST_FAILED))
    assert before <= first < last <= ids.rfc3339(ids.now_us())
    assert headers == {
        "mine": "kept",
        broker.TRIES: 3,
        broker.REASON: "broken for good: Ünglück",
        broker.EXCHANGE: exchange,
        broker.ROUTING_KEY: "order.created",
        broker.QUEUE: queue.name,
    }


def test_a_dead_letter_goes_there_at_once(site: Site) -> None:
    exchange, [queue] = site.fanout("q", waits=(30.0,))
    site.broker().publisher().publish([message(exchange, "key", "not JSON")])
    subscription = site.subscribe(queue)
    [delivery] = take(subscription, 1)
    subscription.dead_letter(delivery, "no repetition can cure this")

    [dead] = take(site.subscribe(queue.dead_letters), 1, 5.0)
    assert (dead.message_id, dead.tries) == ("not JSON", 1)
    assert dead.headers[broker.REASON] == "no repetition can cure this"
    subscription.close()
    assert rest(site.subscribe(queue)) == []


def test_a_short_wait_is_not_held_up_by_a_long_one_before_it(site: Site) -> None:
    queue = site.queue(waits=(0.3, 30.0))
    site.publish(queue, "long", "short")
    subscription = site.subscribe(queue)
    long, short = take(subscription, 2)
    subscription.retry(long, "first")
    [long] = take(subscription, 1)
    subscription.retry(long, "second: rests for 30 seconds")
    subscription.retry(short, "first")
    assert message_ids(take(subscription, 1, 10.0)) == ["short"]


def test_a_failure_that_has_nowhere_to_go_leaves_the_message_unsettled(site: Site) -> None:
    queue = site.queue()
    site.publish(queue.dead_letters, "1")
    subscription = site.subscribe(queue.dead_letters)  # which has no dead letters of its own
    [delivery] = take(subscription, 1)
    with pytest.raises(errors.Unavailable, match=f"{queue.dead_letters}.dlq"):
        subscription.dead_letter(delivery, "reason")
    subscription.close()
    [again] = take(site.subscribe(queue.dead_letters), 1)
    assert (again.message_id, again.redelivered) == ("1", True)


def test_a_message_that_nobody_ever_settles_is_a_dead_letter_in_the_end(site: Site) -> None:
    exchange, [queue] = site.fanout("q")
    site.broker().publisher().publish([message(exchange, "key", "deadly")])
    subscription = site.subscribe(queue, 1)
    dead_letters = site.subscribe(queue.dead_letters)
    times, dead = 0, None
    deadline = time.monotonic() + 20
    while dead is None and time.monotonic() < deadline:
        for delivery in subscription.receive(1, 0.05):
            times += 1
            subscription.reject(delivery)
        dead = next(iter(dead_letters.receive(1, 0.0)), None)

    assert times == broker.DELIVERY_LIMIT + 1
    assert dead is not None
    assert (dead.message_id, dead.exchange, dead.routing_key) == ("deadly", exchange, "key")
    assert dead.headers[broker.REASON] == broker.NEVER_SETTLED


def test_headers_of_others_that_look_like_ours_do_no_harm(site: Site) -> None:
    queue = site.queue(waits=(0.0,))
    odd = to(queue, "1", headers={broker.TRIES: "many", "x-delivery-count": 3})
    negative = to(queue, "2", headers={broker.TRIES: -5})
    assert site.broker().publisher().publish([odd, negative]) == [CONFIRMED] * 2
    subscription = site.subscribe(queue)
    for delivery in take(subscription, 2):
        assert delivery.tries == 0
        assert subscription.retry(delivery, "reason") is True
    assert [delivery.tries for delivery in take(subscription, 2)] == [1, 1]


# --- out of reach


@pytest.fixture(params=["a file where the folder should be", "a folder where the file should be", "rabbitmq"])
def unreachable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Neither needs permissions, so they fail for root too."""
    (tmp_path / "file").touch()
    urls = {
        "a file where the folder should be": f"sqlite:///{tmp_path}/file/broker.db",
        "a folder where the file should be": f"sqlite:///{tmp_path}",
        "rabbitmq": "amqp://user:secret@127.0.0.1:1/vhost",
    }
    site = Site(urls[request.param])
    yield site
    site.close()


def test_without_a_broker_publishing_fails_in_time_and_nothing_else_hangs(
    unreachable: Site, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    publisher = unreachable.broker().publisher()
    assert publisher.publish([to("q", "1"), to("q", "2")], timeout=0.5) == [FAILED, FAILED]
    subscription = unreachable.subscribe("q")
    assert subscription.receive(1, 0.2) == []
    for call in (unreachable.broker().ping, lambda: unreachable.broker().declare(Topology((), ()))):
        with pytest.raises(errors.Unavailable) as caught:
            call()
        assert "secret" not in str(caught.value)
        assert str(caught.value).startswith(("RabbitMQ at 127.0.0.1:1: ", "broker /"))
    unreachable.close()
    assert time.monotonic() - started < 5
    assert "secret" not in caplog.text
    ours = [record for record in caplog.records if record.name.startswith("ordersys") and record.levelname == "WARNING"]
    assert 2 <= len(ours) <= 4  # each part says it once, however often it tries


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://broker.db",
        "amqp://user:se/cret@host:5672/vhost",
        "amqp://user:secret@host:port/",
        "amqp://user:secret@host:5672/?unknown=1",
        "amqp://secret@host",
        "http://user:secret@host",
    ],
)
def test_a_url_that_is_none_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(errors.UsageError, match="broker URL: expected") as caught:
        Site(url).broker()
    assert "cret" not in str(caught.value)
