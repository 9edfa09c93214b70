"""`ordersys top` on running roles: once for a script, live for a person, with and without metrics."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from e2e.processes import Backend, free_port, until
from e2e.terminal import Terminal

from ordersys.client.calls import Orders
from ordersys.core import errors


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Every role as a process of its own, each with an admin port that no other deployment has."""
    with Backend(tmp_path_factory.mktemp("top"), {}) as backend:
        for role in ("PRODUCT", "ORDER", "NOTIFY"):
            backend.environment[f"ORDERSYS_{role}_ADMIN_BIND"] = f"127.0.0.1:{free_port()}"
        backend.start_all("serve-order", "serve-product", "notify --mode fanout", "api")
        backend.start("notify", "--mode", "topic", ORDERSYS_NOTIFY_ADMIN_BIND="off").ready()
        yield backend


@contextmanager
def selling(backend: Backend) -> Iterator[None]:
    """Somebody places one order after the other, and takes no for an answer."""
    stop = threading.Event()

    def sell() -> None:
        with Orders(backend.product_address, backend.order_address) as orders:
            while not stop.wait(0.02):
                try:
                    orders.place_order("customer-1", [("1", 1)])
                except errors.InsufficientStock:
                    orders.adjust_stock("1", 1000)
                except errors.OrdersysError:
                    continue

    seller = threading.Thread(target=sell)
    seller.start()
    try:
        yield
    finally:
        stop.set()
        seller.join(30)


def once(backend: Backend, *arguments: str, **settings: str) -> Any:
    return backend.run("top", "--once", "--json", *arguments, **settings).document


def test_one_document_tells_how_the_system_does(shop: Backend) -> None:
    found: dict[str, Any] = {}

    def complete() -> bool:
        """A look that was late on a busy machine is not the last one."""
        found.update(once(shop, "--interval", "2", "--low", "1000000"))
        calls = {each["method"] for each in found["calls"] if each["per_second"]}
        handled = [each["handled_per_second"] for each in found["queues"] if each["name"] == "notify.fanout"]
        return found["away"] == {} and {"PlaceOrder", "ProcessOrders"} <= calls and any(handled)

    with selling(shop):
        until(complete, "every figure is there")
    assert found["orders_per_second"] > 0
    [placed] = [each for each in found["calls"] if each["method"] == "PlaceOrder"]
    assert 0 < placed["p50_seconds"] <= placed["p99_seconds"]
    assert {each["batcher"] for each in found["batches"] if each["per_second"]} >= {"product-writer", "order-writer"}
    assert found["outbox"]["depth"] >= 0
    assert {each["name"] for each in found["queues"]} == {"notify.fanout", "notify.topic"}
    assert found["dead_letters"] == 0
    assert {(each["service"], each["dependency"]) for each in found["dependencies"] if each["up"]} >= {
        ("order-service", "broker"),
        ("product-service", "database"),
        ("notification-service", "broker"),
    }
    assert found["low_stock"]
    assert found["newest_events"][-1]["change"] == "created"


def test_without_metrics_it_shows_what_the_services_know(shop: Backend) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/metrics"
    found: dict[str, Any] = {}

    def counted() -> bool:
        found.update(once(shop, "--metrics", nobody))
        return bool(found["orders_per_second"])

    with selling(shop):
        until(counted, "the orders of the event log are counted")
    assert (found["calls"], found["batches"], found["measured"]) == ([], [], [])
    assert list(found["away"]) == [nobody]
    assert found["newest_events"]


def test_in_a_pipe_it_prints_lines_of_cells_and_ends(shop: Backend) -> None:
    done = shop.run("top", "--interval", "0.5")
    assert (done.code, done.err) == (0, "")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert {"orders/s", "outbox", "queue", "dependency"} <= {row[0] for row in rows}


def test_a_person_sees_services_go_and_come_and_ends_with_q(shop: Backend) -> None:
    with selling(shop), Terminal(shop, "top", "--interval", "0.3") as terminal:
        terminal.shows("orders/s")
        terminal.shows("PlaceOrder")
        terminal.shows("newest events")
        others = {"ORDERSYS_PRODUCT_ADMIN_BIND": "off", "ORDERSYS_PRODUCT_BIND": shop.product_address}
        product = next(role for role in shop._roles if "serve-product" in role.name)
        assert product.stop() == 0
        terminal.shows("product-service: ")
        shop.start("serve-product", **others).ready()
        before = len(terminal.text)
        until(lambda: "PlaceOrder" in terminal.text[before:] or "low stock" in terminal.text[before:], "it is back")
        terminal.press("xq")
        assert terminal.ends() == 0
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize("arguments", [("top",), ("top", "--json")])
def test_ctrl_c_ends_it_like_every_command(shop: Backend, arguments: tuple[str, ...]) -> None:
    with Terminal(shop, *arguments, "--interval", "0.3") as terminal:
        terminal.shows("orders/s" if arguments == ("top",) else '"orders_per_second"')
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ends() == 130
    assert "Traceback" not in terminal.text


def test_live_json_is_one_document_per_interval(shop: Backend) -> None:
    role = shop.start("top", "--json", "--interval", "0.3")
    until(lambda: role.out.count("\n") >= 2, "two documents")
    assert role.stop(signal.SIGINT) == 130
    first, second, *_ = [json.loads(line) for line in role.out.splitlines()]
    assert first["at"] < second["at"]


def test_it_wants_a_key_where_keys_exist(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All roles in one process have no admin ports: their figures are those of the API."""
    with Backend(tmp_path_factory.mktemp("up"), {}) as backend:
        made = backend.run("keys", "create", "--name", "me", "--scope", "admin", "--json").document
        backend.start("up").ready()
        url = f"http://{backend.api_address}/metrics"
        assert "ORDERSYS_API_KEY" in once(backend, "--metrics", url)["away"][url]
        found = once(backend, "--metrics", url, ORDERSYS_API_KEY=made["api_key"])
        assert (found["measured"], found["away"]) == ([url], {})
        assert {each["service"] for each in found["dependencies"]} >= {"order-service", "product-service", "api"}
