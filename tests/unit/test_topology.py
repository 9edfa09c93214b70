"""Exchanges, queues and bindings as data, and topic patterns as AMQP 0-9-1 has them."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ordersys.core import topology
from ordersys.core.events import Change
from ordersys.core.topology import Binding, Exchange, Kind, Queue

WORDS = st.sampled_from(["a", "b", ""])
PARTS = st.sampled_from(["a", "b", "*", "#", ""])


def slow_match(parts: list[str], words: list[str]) -> bool:
    """The rule itself, with nothing clever: try every number of words for each `#`."""
    if not parts:
        return not words
    if parts[0] == "#":
        return any(slow_match(parts[1:], words[taken:]) for taken in range(len(words) + 1))
    return bool(words) and parts[0] in ("*", words[0]) and slow_match(parts[1:], words[1:])


def split(text: str) -> list[str]:
    return text.split(".") if text else []


@given(st.lists(PARTS, max_size=6).map(".".join), st.lists(WORDS, max_size=6).map(".".join))
@example("#", "")
@example("*", "")
@example("", "")
@example("order.#", "order")
@example("#.#", "")
def test_patterns_match_what_the_rule_says(pattern: str, routing_key: str) -> None:
    assert topology.matches(pattern, routing_key) is slow_match(split(pattern), split(routing_key))


@pytest.mark.parametrize(
    ("pattern", "routing_key", "matched"),
    [
        ("order.#", "order", True),
        ("order.#", "order.updated.lines", True),
        ("order.#", "orders", False),
        ("order.*", "order.created", True),
        ("order.*", "order", False),
        ("order.*", "order.updated.lines", False),
        ("#.lines", "lines", True),
        ("order.*.lines", "order.updated.lines", True),
        ("#", "", True),
        ("*", "", False),
        ("", "", True),
        ("", "order", False),
        ("order.created", "order.created", True),
        ("order.created", "order.createdx", False),
        ("*.*", "a.", True),
    ],
)
def test_well_known_patterns(pattern: str, routing_key: str, matched: bool) -> None:
    assert topology.matches(pattern, routing_key) is matched


def test_a_hostile_pattern_costs_no_more_than_others() -> None:
    began = time.monotonic()
    assert not topology.matches("#." * 100 + "end", ".".join(["word"] * 125))
    assert time.monotonic() - began < 1


def test_every_queue_has_its_dead_letters_and_a_retry_queue_per_wait() -> None:
    queue = Queue("q", (), (1.0, 5.0, 30.0))
    assert (queue.retries, queue.dead_letters, queue.tries) == (("q.retry", "q.retry.2", "q.retry.3"), "q.dlq", 4)


def test_without_waits_there_is_still_a_retry_queue_but_only_one_try() -> None:
    queue = Queue("q", (), ())
    assert (queue.retries, queue.tries) == (("q.retry",), 1)


def test_the_standard_topology_is_the_contract() -> None:
    standard = topology.standard()
    assert standard.exchanges == (Exchange("orders.fanout", Kind.FANOUT), Exchange("orders.topic", Kind.TOPIC))
    assert {queue.name: queue.bindings for queue in standard.queues} == {
        "notify.fanout": (Binding("orders.fanout"),),
        "notify.topic": (Binding("orders.topic", "order.created"), Binding("orders.topic", "order.updated.#")),
    }


def test_the_waits_are_those_asked_for_in_every_queue() -> None:
    assert [queue.waits for queue in topology.standard([0.5, 2]).queues] == [(0.5, 2), (0.5, 2)]


@pytest.mark.parametrize(
    ("change", "routes"),
    [
        (Change.CREATED, {("orders.fanout", "order.created"), ("orders.topic", "order.created")}),
        (Change.LINES, {("orders.topic", "order.updated.lines")}),
        (Change.CANCELLED, {("orders.topic", "order.updated.cancelled")}),
        (Change.SHIPPED, {("orders.topic", "order.updated.shipped")}),
        (Change.DELIVERED, {("orders.topic", "order.updated.delivered")}),
    ],
)
def test_each_change_goes_where_the_contract_says_and_once(change: Change, routes: set[tuple[str, str]]) -> None:
    found = topology.routes(change)
    assert set(found) == routes
    assert len(found) == len(routes)


@pytest.mark.parametrize("change", Change)
def test_each_change_reaches_the_standard_queues_that_are_bound_for_it(change: Change) -> None:
    reached = {
        queue.name
        for queue in topology.standard().queues
        for binding in queue.bindings
        for exchange, key in topology.routes(change)
        if binding.exchange == exchange and (exchange == topology.FANOUT or topology.matches(binding.pattern, key))
    }
    assert reached == ({"notify.fanout", "notify.topic"} if change is Change.CREATED else {"notify.topic"})
