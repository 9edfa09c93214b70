"""The rights of each role at RabbitMQ, as regular expressions and as commands."""

import re

import pytest

from ordersys.core import topology, users
from ordersys.core.topology import Queue, Topology


def test_a_pattern_is_exactly_its_names() -> None:
    names = ["orders.topic", "a b+c", "naïve-queue_1"]
    found = re.compile(users.pattern(names))
    assert all(found.search(name) for name in names)
    for other in ("ordersXtopic", "orders.topic.dlq", "my.orders.topic", "a bbc", "", "orders.topic|"):
        assert not found.search(other), other


def test_no_names_are_nothing_and_not_everything() -> None:
    assert users.pattern([]) == "^$"


@pytest.mark.parametrize("name", ["q.retry", "q.retry.2", "q.retry.10"])
def test_a_retry_queue_stands_for_those_of_the_longer_waits(name: str) -> None:
    found = re.compile(users.pattern(["q.retry"]))
    assert found.search(name)
    assert not found.search(f"{name}.dlq")
    assert not found.search("q.retry.x")


def test_every_role_has_the_least_it_needs() -> None:
    standard = topology.standard()
    by_name = {
        user.name: user for user in users.users(Topology(standard.exchanges, (*standard.queues, Queue("q", ()))))
    }
    assert list(by_name) == [
        "ordersys-admin",
        "ordersys-order",
        "ordersys-notifier-notify.fanout",
        "ordersys-notifier-notify.topic",
        "ordersys-notifier-q",
        "ordersys-operator",
    ]
    assert [name for name, user in by_name.items() if user.configure] == ["ordersys-admin"]
    assert by_name["ordersys-notifier-q"].commands("/") == [
        ["rabbitmqctl", "add_user", "ordersys-notifier-q"],
        ["rabbitmqctl", "set_permissions", "-p", "/", "ordersys-notifier-q", "^$", r"^(amq\.topic)$", "^(q)$"],
        [
            *("rabbitmqctl", "set_topic_permissions", "-p", "/", "ordersys-notifier-q", "amq.topic"),
            *(r"^(q\.retry(\.[0-9]+)?|q\.dlq)$", "^$"),
        ],
    ]
    assert by_name["ordersys-order"].commands("shop")[1:] == [
        [
            "rabbitmqctl",
            "set_permissions",
            "-p",
            "shop",
            "ordersys-order",
            "^$",
            r"^(orders\.fanout|orders\.topic)$",
            "^$",
        ]
    ]
