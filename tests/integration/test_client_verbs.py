"""The verbs of `ordersys client` against real gRPC: what they ask, what they print, how they end."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fake_services import FakeServices, until
from typer.testing import CliRunner

from ordersys.client.verbs import app
from ordersys.core import errors, events, ids
from ordersys.core.events import Change
from ordersys.core.records import Line, Status, order_json, product_json


@pytest.fixture
def services() -> Iterator[FakeServices]:
    services = FakeServices().start()
    yield services
    services.stop()


class Ran:
    def __init__(self, code: int, out: str, err: str, error: BaseException | None) -> None:
        self.code, self.out, self.err, self.error = code, out, err, error

    @property
    def document(self) -> Any:
        """The one JSON document that was printed, and nothing else."""
        assert self.code == 0, (self.err, self.error)
        assert self.out.count("\n") == 1
        return json.loads(self.out)


@pytest.fixture
def client(services: FakeServices) -> "Client":
    return Client(services)


class Client:
    """Runs a verb in this process; an error of ours is kept for the test to look at."""

    def __init__(self, services: FakeServices) -> None:
        self._addresses = ["--product-address", services.address, "--order-address", services.address]

    def __call__(self, *arguments: str) -> Ran:
        result = CliRunner().invoke(app, [*self._addresses, *arguments])
        error = result.exception if not isinstance(result.exception, SystemExit) else None
        return Ran(result.exit_code, result.stdout, result.stderr, error)


# JSON: the documents of the contract, and nothing else


def test_get_data(client: Client) -> None:
    assert client("get-data", "--json").document == {"message": "2 products, 20 units"}


def test_list_products(client: Client, services: FakeServices) -> None:
    services.page_size = 1
    found = client("list-products", "--json").document
    assert found == {"products": [product_json(product) for product in services.products.values()]}
    assert found["products"][0] == {
        "id": "1",
        "name": "Mug",
        "description": "A thing",
        "attributes": {"colour": "red"},
        "price": {"currency": "EUR", "amount": 1999},
        "available": 10,
    }


def test_get_product(client: Client, services: FakeServices) -> None:
    assert client("get-product", "2", "--json").document == {"product": product_json(services.products["2"])}


@pytest.mark.parametrize(("delta", "available"), [("-5", 5), ("5", 15), ("+5", 15), ("-10", 0)])
def test_adjust_stock_takes_a_negative_delta_as_it_is_typed(
    client: Client, services: FakeServices, delta: str, available: int
) -> None:
    document = client("adjust-stock", "1", delta, "--reason", "counted", "--json").document
    assert document == {"product": product_json(services.products["1"])}
    assert document["product"]["available"] == available
    [request] = services.received("AdjustStock")
    assert (request.delta, request.reason) == (int(delta), "counted")
    assert ids.is_uuid(request.idempotency_key)


def test_place_order_with_product_and_quantity(client: Client, services: FakeServices) -> None:
    document = client("place-order", "--product", "1", "--quantity", "2", "--json").document
    [order] = services.orders.values()
    assert document == {"order": order_json(order), "replayed": False}
    [request] = services.received("PlaceOrder")
    assert request.customer_id == "customer-1"
    assert [(line.product_id, line.quantity) for line in request.lines] == [("1", 2)]
    assert ids.is_uuid(request.idempotency_key)
    assert request.idempotency_key not in json.dumps(document)


def test_place_order_with_lines(client: Client, services: FakeServices) -> None:
    lines = ["--line", "1:2", "--line", "urn:shop:7:30", "--line", "2:-1", "--line", "3:0"]
    client("place-order", *lines, "--customer", "Zoë", "--json")
    [request] = services.received("PlaceOrder")
    assert request.customer_id == "Zoë"
    wanted = [("1", 2), ("urn:shop:7", 30), ("2", -1), ("3", 0)]
    assert [(line.product_id, line.quantity) for line in request.lines] == wanted


def test_a_key_of_ones_own_makes_a_repetition_a_replay(client: Client, services: FakeServices) -> None:
    place = ["place-order", "--line", "1:2", "--idempotency-key", "mine", "--json"]
    first, again = client(*place).document, client(*place).document
    assert again == {"order": first["order"], "replayed": True}
    assert {request.idempotency_key for request in services.received("PlaceOrder")} == {"mine"}

    order_id = first["order"]["id"]
    for verb in (["update-order", order_id, "--line", "1:1"], ["cancel-order", order_id], ["adjust-stock", "1", "1"]):
        client(*verb, "--idempotency-key", f"{verb[0]}-key")
    keys = [request.idempotency_key for rpc, request in services.requests if rpc != "PlaceOrder"]  # type: ignore[attr-defined]
    assert keys == ["update-order-key", "cancel-order-key", "adjust-stock-key"]


def test_an_order_lives_its_life(client: Client, services: FakeServices) -> None:
    order_id = services.order().id

    def document_of(*arguments: str) -> Any:
        document = client(*arguments, "--json").document
        assert document == {"order": order_json(services.found(order_id)), "replayed": False}
        return document["order"]

    assert document_of("get-order", order_id)["version"] == 1
    assert document_of("update-order", order_id, "--line", "2:5", "--expected-version", "1")["lines"] == [
        {"product_id": "2", "quantity": 5, "unit_price": {"currency": "EUR", "amount": 1999}}
    ]
    assert document_of("ship-order", order_id, "--expected-version", "2")["status"] == "shipped"
    assert document_of("deliver-order", order_id, "--expected-version", "3")["status"] == "delivered"
    assert services.received("UpdateOrder")[0].expected_version == 1
    assert [request.expected_version for request in services.received("AdvanceOrder")] == [2, 3]


def test_cancel_order(client: Client, services: FakeServices) -> None:
    order_id = services.order().id
    document = client("cancel-order", order_id, "--reason", "too late", "--expected-version", "1", "--json").document
    assert document == {"order": order_json(services.found(order_id)), "replayed": False}
    assert document["order"]["status"] == "cancelled"
    [request] = services.received("CancelOrder")
    assert (request.reason, request.expected_version) == ("too late", 1)


def test_list_orders_by_page_customer_and_status(client: Client, services: FakeServices) -> None:
    mine = [services.order("c-1") for _ in range(3)]
    services.order("c-2")
    services.changed(mine[0].id, Change.SHIPPED, status=Status.SHIPPED)

    filters = ["list-orders", "--customer", "c-1", "--status", "placed", "--page-size", "1", "--json"]
    first = client(*filters).document
    assert first == {"orders": [order_json(mine[2])], "next_page_token": "1"}
    assert client(*filters, "--page-token", "1").document == {"orders": [order_json(mine[1])], "next_page_token": ""}
    everything = {"orders": [order_json(mine[2]), order_json(mine[1])], "next_page_token": ""}
    assert client(*filters, "--all").document == everything
    assert len(client("list-orders", "--json").document["orders"]) == 4


def test_watch_prints_each_cloudevent_as_it_came(client: Client, services: FakeServices) -> None:
    order = services.order("Zoë")
    services.changed(order.id, Change.LINES, lines=(Line("1", 3, 1999),))
    services.order("c-2")

    ran = client("watch", "--limit", "3", "--json")
    assert ran.out.splitlines() == [events.encode(event) for event in services.log]
    ran = client("watch", "--customer", "Zoë", "--after", "1", "--limit", "1", "--json")
    assert [json.loads(line)["sequence"] for line in ran.out.splitlines()] == ["2"]
    ran = client("watch", "--order", order.id, "--limit", "2", "--json")
    assert [json.loads(line)["data"]["change"] for line in ran.out.splitlines()] == ["created", "lines"]


# For people


def test_a_pipe_gets_plain_aligned_text(client: Client, services: FakeServices) -> None:
    order = services.order("Zoë", quantity=1000)
    services.changed(order.id, Change.SHIPPED, status=Status.SHIPPED)

    assert client("get-data").out == "2 products, 20 units\n"
    assert client("list-products").out.splitlines() == [
        "id  name                 price  available",
        "1   Mug              19.99 EUR         10",
        "2   Ünïque tea 東京    500 JPY         10",
    ]
    assert client("get-product", "1").out.splitlines() == [
        "id           1",
        "name         Mug",
        "description  A thing",
        "price        19.99 EUR",
        "available    10",
        "colour       red",
    ]
    assert client("get-order", order.id).out.splitlines() == [
        f"order     {order.id}",
        "customer  Zoë",
        "status    shipped",
        "version   2",
        "created   2026-11-03 12:03:44Z",
        "updated   2026-11-03 12:03:44Z",
        "",
        "product  quantity  unit price        amount",
        "1            1000   19.99 EUR  19990.00 EUR",
        "total                          19990.00 EUR",
    ]
    assert client("list-orders").out.splitlines() == [
        "order                                 status   customer  units         total  version  created",
        f"{order.id}  shipped  Zoë        1000  19990.00 EUR        2  2026-11-03 12:03:44Z",
    ]
    assert client("watch", "--limit", "2").out.splitlines() == [
        f"2026-11-03 12:03:44Z  created    {order.id} v1  Zoë  1000 units  19990.00 EUR",
        f"2026-11-03 12:03:44Z  shipped    {order.id} v2  Zoë  1000 units  19990.00 EUR",
    ]


def test_what_is_empty_and_what_goes_on_is_said(client: Client, services: FakeServices) -> None:
    services.products.clear()
    assert client("list-products").out == "no products\n"
    assert client("list-orders").out == "no orders\n"
    services.order()
    services.order()
    assert client("list-orders", "--page-size", "1").out.splitlines()[-1] == "more: --page-token 1"


def test_a_replay_is_said(client: Client) -> None:
    place = ["place-order", "--line", "1:2", "--idempotency-key", "mine"]
    assert "replayed" not in client(*place).out
    assert "replayed  yes: an earlier call with this idempotency key had done it" in client(*place).out


def test_nobody_steers_the_terminal_with_a_name(client: Client, services: FakeServices) -> None:
    order = services.order("[bold]x[/bold]\x1b[2J\r\n")
    for verb in (["get-order", order.id], ["list-orders"], ["watch", "--limit", "1"]):
        out = client(*verb).out
        assert r"[bold]x[/bold]\x1b[2J\r\n" in out
        assert "\x1b" not in out


# Wrong usage, refused before anybody is called


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["place-order"], "--line ID:N"),
        (["place-order", "--product", "1"], "--quantity N is missing"),
        (["place-order", "--quantity", "1"], "--product ID is missing"),
        (["place-order", "--product", "1", "--quantity", "1", "--line", "1:1"], "not both"),
        (["place-order", "--product", "1", "--quantity", "two"], "--quantity"),
        (["place-order", "--line", "1"], "expected ID:N"),
        (["place-order", "--line", "1:"], "expected ID:N"),
        (["place-order", "--line", ":1"], "expected ID:N"),
        (["place-order", "--line", "1:2.5"], "expected ID:N"),
        (["place-order", "--line", "1:1_0"], "expected ID:N"),
        (["update-order", "o-1"], "--line ID:N"),
        (["update-order", "o-1", "--line", "x"], "expected ID:N"),
        (["update-order"], "ID"),
        (["adjust-stock", "1", "many"], "DELTA 'many': expected a whole number, for example 5 or -5"),
        (["adjust-stock", "1", "-5", "--resaon", "x"], "--resaon"),
        (["adjust-stock", "1", "--resaon"], "DELTA '--resaon'"),
        (["adjust-stock", "1"], "DELTA"),
        (["list-orders", "--status", "lost"], "expected placed, shipped, delivered, cancelled"),
        (["watch", "--limit", "0"], "--limit"),
        (["get-order", "o-1", "--no-such-option"], "--no-such-option"),
        (["no-such-verb"], "no-such-verb"),
    ],
)
def test_wrong_usage_says_what_would_be_right(
    client: Client, services: FakeServices, arguments: list[str], message: str
) -> None:
    ran = client(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", ran.err).split())
    assert services.requests == []


@pytest.mark.parametrize("flags", [["--product-address", "nowhere"], ["--deadline", "0"], ["--deadline", "-1"]])
def test_flags_that_are_no_settings_are_usage_errors(client: Client, flags: list[str]) -> None:
    ran = client(*flags, "get-data")
    assert isinstance(ran.error, errors.UsageError)


def test_flags_win_over_the_environment(services: FakeServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSYS_PRODUCT_ADDRESS", services.address)
    monkeypatch.setenv("ORDERSYS_ORDER_ADDRESS", services.address)
    assert CliRunner().invoke(app, ["get-data"]).exit_code == 0
    monkeypatch.setenv("ORDERSYS_PRODUCT_ADDRESS", "127.0.0.1:1")
    assert CliRunner().invoke(app, ["--product-address", services.address, "get-data"]).exit_code == 0
    assert CliRunner().invoke(app, ["list-orders"]).exit_code == 0


# Errors rise as they are: the command line gives them their line and exit code


def test_refusals_and_absence_rise_as_our_errors(client: Client, services: FakeServices) -> None:
    services.fail("PlaceOrder", errors.InsufficientStock.of("1", 20, 10))
    ran = client("place-order", "--line", "1:20", "--json")
    assert isinstance(ran.error, errors.InsufficientStock)
    assert ran.error.metadata == {"product_id": "1", "requested": "20", "available": "10"}
    assert ran.out == ""
    assert isinstance(client("get-product", "no").error, errors.ProductNotFound)
    assert isinstance(
        client("place-order", "--product", "1", "--quantity", "99999999999").error, errors.InvalidArgument
    )


def test_a_deadline_is_kept(client: Client, services: FakeServices) -> None:
    services.hang("GetOrder")
    ran = client("--deadline", "0.2", "get-order", "o-1")
    assert isinstance(ran.error, errors.Unavailable)
    assert services.address in ran.error.message


# The real command in a process of its own


def command(services: FakeServices | None, *arguments: str) -> list[str]:
    address = services.address if services else "127.0.0.1:1"
    addresses = ["--product-address", address, "--order-address", address]
    return [sys.executable, "-m", "ordersys", "client", *addresses, *arguments]


def run(services: FakeServices | None, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(services, *arguments), capture_output=True, text=True, encoding="utf-8", timeout=60, check=False
    )


def test_the_command_prints_json_alone_and_ends_with_the_code_of_the_outcome(services: FakeServices) -> None:
    done = run(services, "adjust-stock", "1", "-5", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"product": product_json(services.products["1"])}

    refused = run(services, "get-order", "no-such-order", "--json")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "order_not_found" in refused.stderr
    assert "no-such-order" in refused.stderr

    assert run(services, "update-order", "o-1", "--line", "x").returncode == 2
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{probe.getsockname()[1]}"
    away = run(services, "--order-address", nobody, "watch")
    assert (away.returncode, away.stdout) == (3, "")
    assert nobody in away.stderr
    for outcome in (refused, away):
        assert "Traceback" not in outcome.stderr


def test_a_reader_that_leaves_ends_the_command_quietly(services: FakeServices) -> None:
    for _ in range(500):
        services.order()
    for verb in (["watch", "--json"], ["watch"], ["list-orders", "--all", "--page-size", "1000"]):
        process = subprocess.Popen(command(services, *verb), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        services.order()  # a watch that has printed everything is idle until the next event
        assert process.stderr is not None
        with process.stderr:
            complaints = process.stderr.read()
        assert (process.wait(30), complaints) == (0, b""), verb


def test_ctrl_c_ends_a_watch_with_130(services: FakeServices) -> None:
    services.order()
    process = subprocess.Popen(command(services, "watch"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in err


def on_a_terminal(services: FakeServices, *arguments: str, **environment: str) -> str:
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        command(services, *arguments),
        stdout=writer,
        stdin=writer,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "PYTHONIOENCODING": "utf-8", **environment},
    )
    os.close(writer)
    shown = b""
    try:
        while piece := os.read(reader, 65536):
            shown += piece
    except OSError:  # Linux: the other end has been closed
        pass
    os.close(reader)
    assert process.wait(30) == 0
    return shown.decode()


def test_a_terminal_gets_tables_with_colour_unless_no_color_asks_otherwise(services: FakeServices) -> None:
    order = services.order("[x]")
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
    for verb in (["get-order", order.id], ["list-orders"], ["watch", "--limit", "1"]):
        shown = on_a_terminal(services, *verb)
        assert colour.search(shown), verb
        assert not colour.search(on_a_terminal(services, *verb, NO_COLOR="1")), verb
        assert "39.98 EUR" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "─" in on_a_terminal(services, "list-products")
    assert on_a_terminal(services, "list-products", "--json").count("\x1b") == 0


HELP = """
import sys
from typer.testing import CliRunner
from ordersys.client.verbs import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
assert CliRunner().invoke(app, ["place-order", "--help"]).exit_code == 0
print(*sorted({"grpc", "sqlalchemy", "pydantic_settings", "google.protobuf"} & set(sys.modules)))
"""


def test_help_is_quick() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"


def test_watch_goes_on_when_the_service_was_away(services: FakeServices) -> None:
    services.order()
    process = subprocess.Popen(
        command(services, "watch", "--json", "--limit", "3"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    services.stop()
    services.order()
    services.start()
    services.order()
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [json.loads(line)["sequence"] for line in (first + rest).splitlines()] == ["1", "2", "3"]
    assert "watching again after sequence 1" in err
    until(lambda: services.watching == 0)
