"""`ordersys up`: everything in one process, on both engines."""

import http.client
import json
import signal
from contextlib import closing
from typing import Any

from e2e.processes import Backend, Role, until
from e2e.terminal import COLOUR, Terminal

FEW_SECONDS = 8.0


def printed(role: Role) -> tuple[Any, list[Any]]:
    """The first line of `up --json`, and the events that follow."""
    first, *events = [json.loads(line) for line in role.out.rpartition("\n")[0].splitlines()]
    return first, events


def test_up_runs_everything_until_ctrl_c(backend: Backend) -> None:
    up = backend.start("up", "--json").ready()
    until(lambda: "\n" in up.out, "it says where each part listens")
    assert printed(up)[0] == {
        "product_service": backend.product_address,
        "order_service": backend.order_address,
        "api": f"http://{backend.api_address}",
    }
    order = backend.place("1:2", "5:1")
    backend.client("cancel-order", order["id"])
    with closing(http.client.HTTPConnection(backend.api_address, timeout=30)) as connection:
        connection.request("GET", f"/api/v1/orders/{order['id']}")
        assert json.load(connection.getresponse())["status"] == "cancelled"
    # Both notifiers write here: the created order comes twice, each other event once.
    until(lambda: len(printed(up)[1]) >= 3, "the events are shown")
    backend.settled()
    backend.balances()
    assert up.stop(signal.SIGINT, FEW_SECONDS) == 130
    events = printed(up)[1]
    assert sorted(event["data"]["change"] for event in events) == ["cancelled", "created", "created"]
    assert len({event["id"] for event in events}) == 2
    assert "Traceback" not in up.err

    again = backend.start("up", "--json").ready()
    assert backend.client("get-order", order["id"])["order"]["version"] == 2
    assert again.stop(signal.SIGTERM, FEW_SECONDS) == 0
    assert printed(again)[1] == []


def test_up_takes_any_free_ports_and_tells_which(embedded: Backend) -> None:
    anywhere = dict.fromkeys([f"ORDERSYS_{name}_BIND" for name in ("PRODUCT", "ORDER", "API")], "127.0.0.1:0")
    up = embedded.start("up", **anywhere).ready()
    until(lambda: "curl" in up.out, "it says what to try next")
    lines = up.out.splitlines()
    told = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert list(told) == ["Product Service", "Order Service", "REST API", "Broker", "Notifications"]
    assert told["Broker"] == f"sqlite:///{embedded.home}/broker.db"
    for command in [line.split()[1:] for line in lines if line.startswith("ordersys client")]:
        tried = embedded.run(*command)
        assert (tried.code, tried.err) == (0, "")
    [url] = [line.split()[1] for line in lines if line.startswith("curl")]
    with closing(http.client.HTTPConnection(url.split("/")[2], timeout=30)) as connection:
        connection.request("GET", "/api/data")
        assert "8 products" in json.load(connection.getresponse())["message"]
    assert up.stop(signal.SIGINT, FEW_SECONDS) == 130


def test_a_person_sees_a_panel_and_readable_lines(embedded: Backend) -> None:
    with Terminal(embedded, "up") as terminal:
        terminal.shows("Ctrl-C")
        assert "ordersys is up" in terminal.text
        assert COLOUR.search(terminal.shown)
        order = embedded.place("1:2", customer="zoe")
        for queue in ("notify.fanout", "notify.topic"):
            until(
                lambda queue=queue: any(  # type: ignore[misc]
                    line.startswith(queue) and order["id"] in line and "49.80 EUR" in line
                    for line in terminal.text.splitlines()
                ),
                f"the order on a line of {queue}",
            )
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ends(FEW_SECONDS) == 130
