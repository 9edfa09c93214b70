"""What only RabbitMQ can do to us: connections that are lost, closed, silent or refused."""

import json
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import published_events
import pytest
import servers
import yaml
from contract.broker_site import Site, eventually, message, message_ids, publish_until_confirmed, rest, take, to
from contract.tcp_proxy import TcpProxy
from pika import SelectConnection

from ordersys.broker import rabbitmq_consumer, rabbitmq_link
from ordersys.broker.broker import Outcome
from ordersys.broker.rabbitmq import RabbitBroker
from ordersys.core import errors, topology
from ordersys.core.topology import Queue, Topology

CONFIRMED, FAILED = Outcome.CONFIRMED, Outcome.FAILED


@pytest.fixture(scope="module")
def vhost_url() -> Iterator[str]:
    with servers.vhost() as url:
        yield url


@pytest.fixture
def site(vhost_url: str) -> Iterator[Site]:
    site = Site(vhost_url)
    yield site
    site.close()


@pytest.fixture
def proxy(vhost_url: str) -> Iterator[TcpProxy]:
    url = urlsplit(vhost_url)
    with TcpProxy(str(url.hostname), int(url.port or 5672)) as proxy:
        yield proxy


@pytest.fixture
def proxied(vhost_url: str, proxy: TcpProxy) -> Iterator[Site]:
    """The same vhost through the proxy."""
    url = urlsplit(vhost_url)
    site = Site(f"amqp://{url.username}:{url.password}@127.0.0.1:{proxy.port}{url.path}")
    yield site
    site.close()


def rabbitmqctl(site: Site, command: str, *arguments: str) -> bytes:
    vhost = unquote(urlsplit(site.url).path[1:])
    call = ["rabbitmqctl", "-q", command, "-p", vhost, *arguments]
    return subprocess.run(call, check=True, capture_output=True, timeout=60).stdout


def listed(site: Site, command: str, *columns: str) -> list[dict[str, Any]]:
    found = json.loads(rabbitmqctl(site, command, "--formatter", "json", *columns))
    assert isinstance(found, list)
    return found


def test_publisher_and_subscription_survive_closed_connections_and_nothing_is_lost(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    queue = site.queue()
    subscription = site.subscribe(queue, 50)
    seen: list[str] = []
    done = threading.Event()

    def consume() -> None:
        while not done.is_set():
            deliveries = subscription.receive(20, 0.2)
            time.sleep(0.005)
            subscription.ack(deliveries)
            seen.extend(message_ids(deliveries))

    consumer = threading.Thread(target=consume)
    consumer.start()
    publisher = site.broker().publisher()

    def close_three_times() -> None:
        for _ in range(3):
            rabbitmqctl(site, "close_all_connections", "test")

    closer = threading.Thread(target=close_three_times)
    closer.start()
    names: list[str] = []
    while closer.is_alive() or len(names) < 2500:
        step = [str(len(names) + number) for number in range(25)]
        publish_until_confirmed(publisher, [to(queue, name) for name in step])
        names += step
        time.sleep(0.02)
    closer.join()
    complete = eventually(lambda: set(seen) == set(names), 30.0)
    done.set()
    consumer.join()

    assert complete, sorted(set(names) - set(seen))
    assert list(dict.fromkeys(seen)) == names  # some twice, none out of order
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("ordersys")]
    lost = [line for line in ours if "no connection" in line]
    assert len(lost) >= 3  # publisher and subscription, more than once
    assert all("127.0.0.1" in line or "localhost" in line for line in lost)
    assert len([line for line in ours if "is back" in line]) == len(lost)
    assert "guest" not in " ".join(ours)


def test_a_delivery_from_before_a_reconnect_is_never_settled_on_the_new_channel(site: Site) -> None:
    queue = site.queue(waits=(0.0,))
    site.publish(queue, *"abc")
    subscription = site.subscribe(queue)
    old = take(subscription, 3)
    rabbitmqctl(site, "close_all_connections", "test")
    again = take(subscription, 3)
    assert message_ids(again) == list("abc")
    assert all(delivery.redelivered for delivery in again)

    subscription.ack(old[:1])
    subscription.reject(old[1])
    assert subscription.retry(old[1], "reason") is True
    subscription.dead_letter(old[2], "reason")
    subscription.ack(again[:1])
    subscription.close()
    after = site.subscribe(queue)
    assert message_ids(take(after, 2)) == ["b", "c"]
    assert rest(after) == rest(site.subscribe(queue.dead_letters)) == []


def test_a_deleted_queue_is_declared_again_by_those_who_declared_it(site: Site) -> None:
    exchange, [queue] = site.fanout("q")
    declarer = site._brokers[0]
    subscription, publisher = declarer.subscribe(queue, 10), declarer.publisher()
    assert publisher.publish([message(exchange, "", "1")]) == [CONFIRMED]
    assert message_ids(take(subscription, 1)) == ["1"]

    rabbitmqctl(site, "delete_queue", queue.name)
    publish_until_confirmed(publisher, [message(exchange, "", "2")])
    assert message_ids(take(subscription, 1)) == ["2"]


def test_heartbeats_are_answered_while_a_handler_works(vhost_url: str) -> None:
    site = Site(f"{vhost_url}?heartbeat=1")
    queue = site.queue()
    site.publish(queue, "slow")
    subscription = site.subscribe(queue)
    held = take(subscription, 1)
    other = site.subscribe(queue)
    assert rest(other, 3.0) == []
    subscription.ack(held)
    subscription.close()
    assert rest(other) == []
    site.close()


def test_a_broker_that_falls_silent_fails_what_it_does_not_confirm_in_time(proxied: Site, proxy: TcpProxy) -> None:
    queue = proxied.queue()
    publisher = proxied.broker().publisher()
    assert publisher.publish([to(queue, "1")]) == [CONFIRMED]

    proxy.fall_silent()
    started = time.monotonic()
    batch = [to(queue, str(number)) for number in range(2500)]  # more than the window
    assert publisher.publish(batch, timeout=0.5) == [FAILED] * 2500
    assert publisher.publish([to(queue, "2")], timeout=0.5) == [FAILED]
    assert time.monotonic() - started < 3

    proxy.flow()
    assert publisher.publish([to(queue, "last")], timeout=20.0) == [CONFIRMED]
    found = message_ids(take(proxied.subscribe(queue, 3000), 1002))
    assert found[0] == "1"
    assert found[-1] == "last"
    assert found[1:-1] == [str(number) for number in range(1000)]  # what was in flight, and nothing given up before


def test_nothing_of_a_batch_is_sent_once_a_part_of_it_was_lost(proxied: Site, proxy: TcpProxy) -> None:
    queue = proxied.queue()
    publisher = proxied.broker().publisher()
    assert publisher.publish([to(queue, "first")]) == [CONFIRMED]
    proxy.fall_silent()

    def break_and_come_back() -> None:
        proxy.cut()
        proxy.flow()

    cut = threading.Timer(0.5, break_and_come_back)
    cut.start()
    batch = [to(queue, str(number)) for number in range(2500)]  # more than the window
    assert publisher.publish(batch, timeout=20.0) == [FAILED] * 2500  # the rest would overtake the repeat of the start
    cut.join()
    assert publisher.publish([to(queue, "last")], timeout=20.0) == [CONFIRMED]
    found = message_ids(take(proxied.subscribe(queue, 3000), 2))
    assert found == ["first", "last"]


def test_closing_does_not_wait_for_a_silent_broker(
    proxied: Site, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq_link, "CLOSE_SECONDS", 0.5)
    queue = proxied.queue()
    publisher, subscription = proxied.broker().publisher(), proxied.subscribe(queue)
    assert publisher.publish([to(queue, "1")]) == [CONFIRMED]
    assert message_ids(take(subscription, 1)) == ["1"]
    proxy.fall_silent()
    for part in (publisher, subscription):
        started = time.monotonic()
        part.close()
        assert time.monotonic() - started < 2
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("rabbitmq-")]
    assert publisher.publish([to(queue, "2")]) == [FAILED]
    assert subscription.receive(1, 5.0) == []


def test_a_failure_that_was_not_confirmed_is_not_acked(
    proxied: Site, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq_consumer, "CONFIRM_SECONDS", 0.5)
    monkeypatch.setattr(rabbitmq_link, "CLOSE_SECONDS", 0.5)
    queue = proxied.queue(waits=(0.0,))
    proxied.publish(queue, "1")
    subscription = proxied.subscribe(queue)
    [delivery] = take(subscription, 1)
    proxy.fall_silent()
    with pytest.raises(errors.Unavailable, match=queue.retries[0]):
        subscription.retry(delivery, "reason")
    subscription.close()
    proxy.flow()
    assert "1" in message_ids(take(proxied.subscribe(queue), 2, 10.0))


def test_a_server_that_says_nothing_is_not_waited_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        site = Site(f"amqp://user:secret@127.0.0.1:{port}/?stack_timeout=1&socket_timeout=1")
        started = time.monotonic()
        for call in (site.broker().ping, site.queue):
            with pytest.raises(errors.Unavailable, match=f"127.0.0.1:{port}"):
                call()
        publisher = site.broker().publisher()
        assert publisher.publish([to("q", "1")], timeout=0.3) == [FAILED]
        site.close()
        assert time.monotonic() - started < 8


@pytest.mark.parametrize("part", ["password", "vhost"])
def test_a_refused_login_says_where_and_keeps_the_password(vhost_url: str, part: str) -> None:
    url = urlsplit(vhost_url)
    address = f"{url.hostname}:{url.port}"
    wrong = {
        "password": f"amqp://{url.username}:se-cret@{address}{url.path}",
        "vhost": f"amqp://{url.username}:{url.password}@{address}/no-such-vhost",
    }
    broker = RabbitBroker(wrong[part])
    with pytest.raises(errors.Unavailable, match=address) as caught:
        broker.ping()
    assert "se-cret" not in str(caught.value)


def test_a_fault_in_our_own_code_does_not_end_the_publisher(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [ValueError("while connecting")]

    def connect(*arguments: Any, **named: Any) -> SelectConnection:
        if faults:
            raise faults.pop()
        return SelectConnection(*arguments, **named)

    def fail() -> None:
        raise ValueError("while connected")

    monkeypatch.setattr(rabbitmq_link, "SelectConnection", connect)
    queue = site.queue()
    publisher = RabbitBroker(site.url).publisher()
    assert publisher.publish([to(queue, "1")]) == [CONFIRMED]
    publisher._link.call(fail)
    publish_until_confirmed(publisher, [to(queue, "2")])
    publisher.close()
    assert message_ids(take(site.subscribe(queue), 2)) == ["1", "2"]
    assert caplog.text.count("failed inside") == 2


def test_a_message_that_amqp_has_no_form_for_fails_alone(site: Site) -> None:
    queue = site.queue()
    publisher = site.broker().publisher()
    outcomes = publisher.publish(
        [to(queue, "1"), to("k" * 256, "2"), to(queue, "3", headers={"big": 2**64}), to(queue, "4")]
    )
    assert outcomes == [CONFIRMED, FAILED, FAILED, CONFIRMED]
    assert message_ids(take(site.subscribe(queue), 2)) == ["1", "4"]


def test_a_consumer_may_come_before_its_queue(site: Site) -> None:
    queue = Queue(site.name("later"), ())
    subscription = site.subscribe(queue)
    assert subscription.receive(1, 0.3) == []
    site.broker().declare(Topology((), (queue,)))
    site.publish(queue, "1")
    assert message_ids(take(subscription, 1)) == ["1"]


def test_what_is_declared_is_what_is_published(site: Site) -> None:
    """Exchanges, queues, their arguments and all bindings as RabbitMQ has them, and as docs/asyncapi.yaml says."""
    site.broker().declare(topology.standard())
    channels = yaml.safe_load(published_events.DOCUMENT.read_text(encoding="utf-8"))["channels"].values()
    amqp = [(channel, channel["bindings"]["amqp"]) for channel in channels]
    queues = {said["queue"]["name"]: (said["queue"], channel) for channel, said in amqp if "queue" in said}

    found = {each["name"]: each for each in listed(site, "list_queues", "name", "durable", "auto_delete", "arguments")}
    for name, (said, channel) in queues.items():
        assert (found[name]["durable"], found[name]["auto_delete"]) == (said["durable"], said["autoDelete"])
        arguments = found[name]["arguments"]  # an object, or (name, type, value) from older servers
        known = arguments if isinstance(arguments, dict) else {key: value for key, _, value in arguments}
        assert known == channel["x-arguments"]

    bindings = listed(site, "list_bindings", "source_name", "destination_name", "routing_key")
    bound = {tuple(each.values()) for each in bindings if each["source_name"] and each["destination_name"] in queues}
    assert bound == {
        (each["exchange"], name, each["routingKey"])
        for name, (_, channel) in queues.items()
        for each in channel["x-bindings"]
    }

    exchanges = listed(site, "list_exchanges", "name", "type", "durable", "auto_delete")
    made = [tuple(each.values()) for each in exchanges]
    for said in (said["exchange"] for _, said in amqp if "exchange" in said):
        assert (said["name"], said["type"], said["durable"], said["autoDelete"]) in made
