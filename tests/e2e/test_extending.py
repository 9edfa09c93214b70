"""The example of docs/extending.md, installed and run: its sink hears, its rules refuse, its goods are sold."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from e2e.processes import Backend, Done, until

from ordersys import lifecycle, settings, wiring
from ordersys.client.calls import Orders
from ordersys.core import errors
from ordersys.core.watch.traces import Traces
from ordersys.notify.queues import queue_for

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
FILE = re.compile(r"^<!-- example: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Shop:
    folder: Path
    site: Path  # where its package is installed

    @property
    def ledger(self) -> list[list[str]]:
        file = self.folder / "ledger.csv"
        return [line.split(";") for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    for name, content in FILE.findall(PAGE.read_text(encoding="utf-8")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    alone = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *alone, "--target", str(folder / "site"), str(folder / "package")],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return Shop(folder, folder / "site")


@pytest.fixture
def orders(shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Orders]:
    monkeypatch.syspath_prepend(str(shop.site))
    monkeypatch.setenv("SHOP_LEDGER", str(shop.folder / "ledger.csv"))
    monkeypatch.setenv("SHOP_BLOCKED", "bob")
    places = {f"{role}_bind": "127.0.0.1:0" for role in ("product", "order")}
    quiet = {f"{role}_admin_bind": "off" for role in ("product", "order", "notify")}
    chosen = settings.load(
        {"home": tmp_path, "data": shop.folder / "data", "rules": "at-most-50,not-blocked", **places, **quiet}
    )
    traces = Traces(chosen.traces)
    order = wiring.OrderPart(chosen, traces)
    product = wiring.ProductPart(chosen, lambda: order.address, traces)
    queue = queue_for("topic", [], "shop.ledger", chosen.retry_waits)
    notifier = wiring.NotifierPart(chosen, queue, StringIO(), traces, json=True, sink="ledger")
    with (
        lifecycle.background([traces, order, product, notifier], chosen.grace_seconds),
        Orders(product.address, order.address) as opened,
    ):
        yield opened


def test_the_example_refuses_by_its_rules_tells_its_ledger_and_sells_its_goods(shop: Shop, orders: Orders) -> None:
    assert {each.id: each.available for each in orders.list_products()} == {"rose": 200, "vase": 10}
    [first] = orders.list_orders().orders
    assert (first.customer_id, first.total) == ("ann", 1400)

    placed = orders.place_order("ann", [("rose", 49), ("vase", 1)]).order
    for customer, quantity, rule, reason in (
        ("ann", 51, "at-most-50", "too_many_stems"),
        ("bob", 1, "not-blocked", "customer_blocked"),
    ):
        with pytest.raises(errors.OrderRefused) as refused:
            orders.place_order(customer, [("rose", quantity)])
        assert refused.value.metadata == {"rule": rule, "reason": reason}
    assert str(refused.value) == "please call us"
    with pytest.raises(errors.OrderRefused, match="51 stems: at most 50 at a time"):
        orders.update_order(placed.id, [("rose", 51)])
    orders.cancel_order(placed.id, "")
    assert orders.get_product("rose").available == 200

    last = orders.place_order("bert", [("vase", 1)]).order
    until(lambda: len(shop.ledger) == 2, "both new orders in the ledger")
    assert [line[1:] for line in shop.ledger] == [[placed.id, "ann", str(placed.total)], [last.id, "bert", "1400"]]


def test_a_package_that_cannot_be_used_ends_the_start_with_exit_code_2(shop: Shop, tmp_path: Path) -> None:
    with Backend(tmp_path, {}, fresh=True) as backend:  # Python itself looks for packages at its start
        absent = backend.run("serve-product", ORDERSYS_RULES="at-most-50")
        role = backend.start("notify", "--mode", "topic", "--sink", "ledger", PYTHONPATH=str(shop.site))
        unset = Done(role.ends(), role.out, role.err)
    assert (absent.code, unset.code) == (2, 2)
    assert absent.complaint == "error: usage: there is no 'at-most-50' in ordersys.rules; there are: none"
    assert unset.complaint == "error: usage: 'ledger' in ordersys.sinks cannot be used: KeyError: 'SHOP_LEDGER'"
