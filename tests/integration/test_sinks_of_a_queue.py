"""Notifiers that tell somebody else: retries under one id, dead letters with the reason, a slow sink and the broker."""

import logging
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from fake_services import until
from integration.test_notify import WAITS, Running, Sender
from receivers import Receiver, receiver

from ordersys.core.events import Event
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database
from ordersys.notify.consumer import Counts
from ordersys.notify.inbox import CHAIN, Inbox
from ordersys.notify.queues import queue_for
from ordersys.notify.webhook import WebhookSink

TOPIC = queue_for("topic", [], "", WAITS)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'notify.db'}")
    migrations.upgrade(opened, CHAIN)
    yield opened
    opened.close()


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as started:
        yield started


def test_a_webhook_is_tried_again_under_its_id_until_it_arrives_or_is_a_dead_letter(
    tmp_path: Path, database: Database, hook: Receiver
) -> None:
    url = f"sqlite:///{tmp_path / 'broker.db'}"
    sent = Sender(url)
    first, gone, last = sent.created(3)
    statuses = {first.id: [503, 429, 204], gone.id: [410], last.id: [200]}

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(statuses[handler.headers["webhook-id"]].pop(0))
        handler.end_headers()

    hook.behave = behave
    running = Running(url, database, TOPIC, WebhookSink(hook.url, (b"s" * 32,), 20.0, None))
    until(lambda: running.notifier.counts == Counts(handled=2, retried=2, dead=1))
    sent.publish(first, last)  # the broker may bring what it has brought before
    until(lambda: running.notifier.counts == Counts(handled=2, retried=2, dead=1, duplicates=2))
    running.stop()

    tried = [request.headers["webhook-id"] for request in hook.requests]
    assert {event_id: tried.count(event_id) for event_id in statuses} == {first.id: 3, gone.id: 1, last.id: 1}
    assert len({request.body for request in hook.requests if request.headers["webhook-id"] == first.id}) == 1
    [dead] = sent.left_in(TOPIC.dead_letters, 1)
    assert "answered 410 Gone: the receiver wants no more events" in str(dead.headers["x-ordersys-reason"])
    assert [each.reason.partition(" answered ")[2] for each in Inbox(database).history(first.order.id)] == [
        "503 Service Unavailable",
        "429 Too Many Requests",
        "",
    ]
    sent.close()


class Slow:
    """Takes longer than the broker waits for a heartbeat."""

    def __init__(self) -> None:
        self.handled: list[str] = []

    def handle(self, event: Event, body: bytes) -> None:
        self.handled.append(event.id)
        if len(self.handled) == 1:
            time.sleep(8)


def test_a_slow_sink_does_not_cost_the_connection_to_rabbitmq(
    rabbitmq_url: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{rabbitmq_url}?heartbeat=2"  # RabbitMQ gives up who was silent for two of them
    sink = Slow()
    caplog.set_level(logging.INFO)
    sent = Sender(url)
    running = Running(url, database, TOPIC, sink)
    published = sent.created(2)
    until(lambda: len(sink.handled) == 1)
    until(lambda: len(sink.handled) == 2)
    until(lambda: running.notifier.counts == Counts(handled=2))
    running.stop()
    assert sink.handled == [event.id for event in published]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    for queue in (TOPIC.name, TOPIC.dead_letters):
        assert sent.left_in(queue, 0) == []
    sent.close()
