"""A service, the broker or a database that is not there: what a caller is told, and what comes of it later."""

import time

import pytest
from e2e.processes import Backend, free_port, until

SECRET = "s3cret-word"  # noqa: S105 - the point is that nobody ever sees it


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    return f"127.0.0.1:{free_port()}"


def test_without_the_order_service_an_order_waits_and_is_settled_when_it_comes(embedded: Backend) -> None:
    embedded.environment["ORDERSYS_DEADLINE_SECONDS"] = "1"
    [_product] = embedded.start_all("serve-product")
    place = ["place-order", "--line", "6:5", "--customer", "olga", "--idempotency-key"]
    for key in ("kept", "kept", "dropped"):
        began = time.monotonic()
        told = embedded.run("client", *place, key)
        assert told.code == 3
        assert "unavailable" in told.complaint
        assert f"idempotency key {key}" in told.complaint
        assert time.monotonic() - began < 1 + 3  # the deadline, and what it takes to start and end
    assert embedded.available("6") == 75 - 10  # held, because nobody knows what became of them
    assert embedded.pending() == 2

    _, fanout = embedded.start_all("serve-order", "notify --mode fanout --json")
    until(lambda: embedded.run("client", *place, "kept").code == 0, "the product service has found it")
    kept = embedded.client(*place, "kept")
    assert kept["replayed"] is True
    embedded.settled()
    assert embedded.available("6") == 75 - 5
    assert embedded.client("list-orders", "--customer", "olga")["orders"] == [kept["order"]]
    late = embedded.client(*place, "dropped")  # it was given up, so this is the first time
    assert late["replayed"] is False
    assert embedded.available("6") == 75 - 10
    embedded.balances()
    until(lambda: len(fanout.events()) >= 2, "both orders are heard of")
    assert [event["subject"] for event in fanout.events()] == [kept["order"]["id"], late["order"]["id"]]


def test_without_the_broker_orders_are_placed_and_their_events_wait(embedded: Backend, nobody: str) -> None:
    url = f"amqp://user:{SECRET}@{nobody}/%2F"
    embedded.start_all("serve-product")
    alone = embedded.start("serve-order", ORDERSYS_BROKER_URL=url, ORDERSYS_LOG_LEVEL="debug").ready()
    orders = [embedded.place("1:1") for _ in range(3)]
    embedded.client("cancel-order", orders[0]["id"])
    alone.says("events wait in the outbox")
    assert nobody in alone.err
    assert SECRET not in alone.err
    assert alone.stop(seconds=15) == 0

    _, fanout, topic = embedded.start_all("serve-order", "notify --mode fanout --json", "notify --mode topic --json")
    until(lambda: len(topic.events()) >= 4 and len(fanout.events()) >= 3, "what waited has come")
    changes = sorted((event["subject"], event["data"]["version"]) for event in topic.events())
    assert changes == sorted([(order["id"], 1) for order in orders] + [(orders[0]["id"], 2)])
    assert sorted(event["subject"] for event in fanout.events()) == sorted(order["id"] for order in orders)


def test_without_a_service_the_client_names_the_address_it_tried(alone: Backend) -> None:
    product, order = ("get-data", "place-order --line 1:1"), ("get-order nope", "ship-order nope", "watch")
    told = alone.run_all(f"client {command} --json" for command in product + order)
    for command, done in told.items():
        address = alone.product_address if command.split()[1] in {"get-data", "place-order"} else alone.order_address
        assert done.code == 3
        assert done.complaint.startswith(f"error: unavailable: {address}: UNAVAILABLE: ")


@pytest.mark.parametrize("level", ["info", "debug"])
def test_without_the_broker_a_notifier_names_it_and_no_password(alone: Backend, nobody: str, level: str) -> None:
    url = f"amqp://user:{SECRET}@{nobody}/%2F"
    commands = ["notify --mode fanout", "notify --mode topic", "topology declare"]
    for done in alone.run_all(commands, ORDERSYS_BROKER_URL=url, ORDERSYS_LOG_LEVEL=level).values():
        assert (done.code, done.out) == (3, "")
        assert SECRET not in done.err
        complaint = done.complaint if done.err.startswith("{") else done.err.splitlines()[-1]  # pika has its say first
        assert complaint.startswith(f"error: unavailable: RabbitMQ at {nobody}: ")
        if level == "info":
            assert "refused" in done.complaint


def test_without_the_database_a_role_names_it_and_no_password(alone: Backend, nobody: str) -> None:
    pytest.importorskip("psycopg")
    names = [f"ORDERSYS_{name}_DATABASE_URL" for name in ("PRODUCT", "ORDER", "NOTIFY")]
    urls = dict.fromkeys(names, f"postgresql+psycopg://user:{SECRET}@{nobody}/shop")
    commands = ["serve-product", "serve-order", "notify --mode fanout", "db upgrade", "db seed", "up"]
    for done in alone.run_all(commands, **urls).values():
        assert done.code == 3
        assert done.complaint.startswith(f"error: unavailable: database postgresql+psycopg://user:***@{nobody}/shop: ")
        assert SECRET not in done.err
