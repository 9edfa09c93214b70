"""Roles that are stopped, interrupted and killed, and what their successors find."""

import signal
from collections import Counter
from collections.abc import Callable

from e2e.load import Load
from e2e.processes import Backend, Role, until

FEW_SECONDS = 8.0
ROLES = ("serve-order", "serve-product", "notify --mode fanout --json", "notify --mode topic --json")


def test_roles_that_are_stopped_under_load_lose_and_repeat_nothing(embedded: Backend) -> None:
    def stop(role: Role) -> None:
        assert role.stop(signal.SIGTERM, FEW_SECONDS) == 0

    fanout, topic = through_the_end_of_each_role(embedded, stop)
    for copies in (fanout, topic):
        assert max(Counter(event["id"] for role in copies for event in role.events()).values()) == 1


def test_roles_that_are_killed_under_load_lose_nothing(backend: Backend) -> None:
    through_the_end_of_each_role(backend, Role.kill)


def through_the_end_of_each_role(backend: Backend, end: Callable[[Role], None]) -> tuple[list[Role], list[Role]]:
    """Each role ends and gets a successor while orders are placed; the processes of both notifiers."""
    before = 100_000
    started = {command: [role] for command, role in zip(ROLES, backend.start_all(*ROLES), strict=True)}
    backend.client("adjust-stock", "1", str(before - backend.available("1")))
    watch = backend.start("client", "watch", "--customer", "load", "--json")
    with Load(backend, "1", "load") as load:
        until(lambda: bool(watch.events()), "the watch has begun")
        for command in ROLES:
            load.goes_on()
            end(started[command][-1])
            started[command] += backend.start_all(command)
        load.goes_on()

    placed = set(load.placed.values())
    assert len(placed) == len(load.placed)  # every key is an order of its own
    orders = backend.client("list-orders", "--all", "--customer", "load", "--page-size", "1000")["orders"]
    assert sorted(order["id"] for order in orders) == sorted(placed)
    backend.settled()
    assert backend.available("1") == before - len(placed)
    backend.balances()

    fanout, topic = started[ROLES[2]], started[ROLES[3]]
    for copies in (fanout, topic, [watch]):
        until(lambda copies=copies: heard(copies) >= placed, f"{len(placed)} orders are heard of")  # type: ignore[misc]
        assert heard(copies) == placed
        for role in copies:  # a notifier that is killed may have told of what it could not record any more
            assert max(Counter(event["id"] for event in role.events()).values(), default=0) <= 1
    assert watch.stop(signal.SIGINT, FEW_SECONDS) == 130
    return fanout, topic


def heard(copies: list[Role]) -> set[str]:
    return {event["subject"] for role in copies for event in role.events()}


def test_a_restart_on_the_same_home_goes_on_where_it_was(embedded: Backend) -> None:
    roles = embedded.start_all(*ROLES)
    place = ["place-order", "--line", "3:2", "--customer", "ida", "--idempotency-key", "restart"]
    placed = embedded.client(*place)
    order_id = placed["order"]["id"]
    for role in roles[2:]:
        until(lambda role=role: bool(role.events(order_id)), "the order is heard of")  # type: ignore[misc]
        assert role.stop(signal.SIGTERM, FEW_SECONDS) == 0
    shipped = embedded.client("ship-order", order_id)["order"]
    other = embedded.place("3:1", customer="ida")
    for role in roles[:2]:
        assert role.stop(signal.SIGTERM, FEW_SECONDS) == 0

    _, _, fanout, topic = embedded.start_all(*ROLES)
    assert embedded.client("list-orders", "--customer", "ida")["orders"] == [other, shipped]
    assert embedded.client(*place) == {**placed, "replayed": True}
    assert embedded.available("3") == 120 - 3
    cancelled = embedded.client("cancel-order", other["id"])["order"]
    until(lambda: len(topic.events()) == 3, "everything is heard of")
    assert [(event["subject"], event["data"]["change"]) for event in topic.events()] == [
        (order_id, "shipped"),
        (other["id"], "created"),
        (cancelled["id"], "cancelled"),
    ]
    assert [event["subject"] for event in fanout.events()] == [other["id"]]


def test_ctrl_c_ends_every_role_with_130(embedded: Backend) -> None:
    roles = embedded.start_all(*ROLES, "api")
    roles.append(embedded.start("client", "watch", "--json"))
    order = embedded.place("1:1")
    until(lambda: bool(roles[-1].events(order["id"])), "the watch sees the order")
    for role in reversed(roles):
        role.send(signal.SIGINT)
    assert [role.ends(FEW_SECONDS) for role in roles] == [130] * len(roles)
    assert not [role.name for role in roles if "Traceback" in role.err]


def test_a_stop_during_the_start_is_heeded(embedded: Backend) -> None:
    everything = embedded.start("up")
    everything.says("Order Service listens on")  # the first part of several
    assert everything.stop(signal.SIGTERM, FEW_SECONDS) == 0


def test_a_second_service_on_the_same_port_says_so_and_leaves_the_first_alone(embedded: Backend) -> None:
    firsts = embedded.start_all("serve-order", "serve-product", "api")
    addresses = {
        "serve-order": embedded.order_address,
        "serve-product": embedded.product_address,
        "api": embedded.api_address,
        "up": embedded.order_address,
    }
    for command, second in embedded.run_all(addresses).items():
        assert second.code == 2
        assert second.complaint.startswith(f"error: usage: cannot listen on {addresses[command]}: ")
        assert "in use" in second.complaint
    assert embedded.place("1:1")["version"] == 1
    assert [role.stop(signal.SIGTERM, FEW_SECONDS) for role in firsts] == [0, 0, 0]
