"""Which queue the flags of `ordersys notify` mean."""

import logging

import pytest

from ordersys.core import errors
from ordersys.core.topology import FANOUT, NOTIFY_FANOUT, NOTIFY_TOPIC, TOPIC, Binding, Queue
from ordersys.notify.queues import queue_for

WAITS = (0.5, 2.0)


@pytest.mark.parametrize("name", ["", "notify.fanout"])
def test_fanout_alone_is_the_standard_queue(name: str) -> None:
    assert queue_for("fanout", [], name, WAITS) == Queue("notify.fanout", NOTIFY_FANOUT.bindings, WAITS)


@pytest.mark.parametrize("name", ["", "notify.topic"])
def test_topic_alone_is_the_standard_queue(name: str) -> None:
    assert queue_for("topic", [], name, WAITS) == Queue("notify.topic", NOTIFY_TOPIC.bindings, WAITS)


def test_a_name_makes_another_subscriber_to_everything_of_the_mode() -> None:
    assert queue_for("fanout", [], "billing", WAITS) == Queue("billing", (Binding(FANOUT),), WAITS)
    assert queue_for("topic", [], "billing", WAITS) == Queue("billing", NOTIFY_TOPIC.bindings, WAITS)


def test_patterns_and_a_name_make_a_queue_bound_to_those_patterns_once_each() -> None:
    queue = queue_for("topic", ["order.updated.cancelled", "order.*", "order.*"], "refunds", WAITS)
    assert queue == Queue("refunds", (Binding(TOPIC, "order.updated.cancelled"), Binding(TOPIC, "order.*")), WAITS)


def test_patterns_alone_always_make_the_same_queue_in_any_order() -> None:
    one = queue_for("topic", ["order.created", "order.updated.shipped"], "", WAITS)
    same = queue_for("topic", ["order.updated.shipped", "order.created", "order.created"], "", WAITS)
    other = queue_for("topic", ["order.created"], "", WAITS)

    assert one.name == same.name == "notify.topic.0428267b"
    assert set(one.bindings) == set(same.bindings)
    assert other.name.startswith("notify.topic.")
    assert other.name != one.name


@pytest.mark.parametrize("pattern", ["#", "order.#", "order.created", "*.created", "order.updated.*", "#.shipped"])
def test_patterns_of_words_are_allowed(pattern: str, caplog: pytest.LogCaptureFixture) -> None:
    assert queue_for("topic", [pattern], "q", WAITS).bindings == (Binding(TOPIC, pattern),)
    assert caplog.text == ""


def test_a_pattern_that_can_match_nothing_of_ours_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        queue_for("topic", ["orders.created"], "q", WAITS)
    assert "'orders.created' matches none of our routing keys: order.created, order.updated.lines" in caplog.text


@pytest.mark.parametrize(
    ("mode", "binds", "name", "message"),
    [
        ("direct", [], "", "--mode 'direct': expected fanout or topic"),
        ("fanout", ["order.created"], "", "use --mode topic"),
        ("fanout", ["order.created"], "q", "use --mode topic"),
        ("topic", [""], "q", "--bind ''"),
        ("topic", ["order..created"], "q", "expected words between dots"),
        ("topic", ["order.up*"], "q", "exactly one whole word"),
        ("topic", ["order.created "], "q", "--bind 'order.created '"),
        ("topic", ["order created"], "q", "expected words between dots"),
        ("topic", ["ordér"], "q", "expected words between dots"),
        ("topic", ["x." * 127 + "xx"], "q", "longer than 255 bytes"),
        ("topic", ["order.created"], "notify.topic", "standard queue"),
        ("topic", [], "notify.fanout", "standard queue"),
        ("fanout", [], "notify.topic", "standard queue"),
        ("topic", [], "amq.mine", "belong to the broker"),
        ("topic", [], "mine.retry", "leave that ending out"),
        ("topic", [], "mine.retry.2", "leave that ending out"),
        ("topic", [], "mine.dlq", "leave that ending out"),
        ("topic", [], "mine.*", "* and # stand for other words"),
        ("topic", [], "#", "* and # stand for other words"),
        ("topic", [], " mine", "expected printable text"),
        ("topic", [], "   ", "expected printable text"),
        ("topic", [], "mi\nne", "expected printable text"),
        ("topic", [], "mine\udc80", "expected printable text"),
        ("topic", [], "x" * 248, "has 248 bytes: expected at most 247"),
        ("topic", [], "é" * 124, "has 248 bytes: expected at most 247"),
    ],
)
def test_what_cannot_be_is_refused_and_says_what_would_be_right(
    mode: str, binds: list[str], name: str, message: str
) -> None:
    with pytest.raises(errors.UsageError) as refused:
        queue_for(mode, binds, name, WAITS)
    assert message in refused.value.message


def test_the_longest_name_still_leaves_room_for_the_retry_queues() -> None:
    queue = queue_for("topic", [], "x" * 247, WAITS)
    assert max(len(name) for name in queue.retries) == 255
