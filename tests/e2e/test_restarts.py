"""Roles that are stopped and interrupted, and what their successors find. tests/faults does it under load."""

import signal

from e2e.processes import Backend, until

FEW_SECONDS = 8.0
ROLES = ("serve-order", "serve-product", "notify --mode fanout --json", "notify --mode topic --json")


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
