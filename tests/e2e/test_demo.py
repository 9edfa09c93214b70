"""`ordersys demo`: needs nothing, checks itself, leaves nothing behind."""

import json
import signal
import time

import pytest
from e2e.processes import Backend, until
from e2e.terminal import COLOUR, Terminal

BROKEN = {
    "ORDERSYS_BROKER_URL": "amqp://guest:guest@127.0.0.1:1/nowhere",
    "ORDERSYS_PRODUCT_DATABASE_URL": "nonsense",
    "ORDERSYS_PRODUCT_BIND": "203.0.113.1:1",
    "ORDERSYS_ORDER_ADDRESS": "nowhere",
    "ORDERSYS_DATA": "/no/such/folder",
    "ORDERSYS_DEADLINE_SECONDS": "0.000001",
    "ORDERSYS_RETRY_WAITS": "soon",
    "ORDERSYS_LOG_FORMAT": "papyrus",
    "ORDERSYS_NO_SUCH_SETTING": "1",
}
"""What a developer's environment may hold: the demo is not to care."""


@pytest.fixture
def empty(embedded: Backend) -> Backend:
    """A home and a folder for temporary files with nothing in them."""
    (embedded.folder / "temporary").mkdir()
    embedded.environment = {
        "PATH": embedded.environment["PATH"],
        "HOME": str(embedded.folder),
        "TMPDIR": str(embedded.folder / "temporary"),
    }
    return embedded


def left_behind(backend: Backend) -> list[str]:
    return sorted(str(each.relative_to(backend.folder)) for each in backend.folder.rglob("*"))


def test_the_demo_is_right_and_leaves_nothing_behind(empty: Backend) -> None:
    began = time.monotonic()
    done = empty.run("demo")
    assert time.monotonic() - began < 20
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    assert done.out.splitlines()[-1].endswith(": all is right")
    assert "notify.fanout received 12 events" in done.out
    assert "notify.topic received 16 events" in done.out
    assert "WRONG" not in done.out
    assert left_behind(empty) == ["temporary"]


def test_the_demo_cares_for_nothing_in_the_environment(empty: Backend) -> None:
    summary = empty.run("demo", "--json", "--orders", "3", **BROKEN).document
    assert (summary["ok"], summary["orders"]) == (True, 3)
    checks = {check["check"]: (check["expected"], check["seen"], check["ok"]) for check in summary["checks"]}
    assert all(expected == seen and ok for expected, seen, ok in checks.values())
    assert checks["orders on record"][0] == 3
    assert checks["events at notify.fanout, each order created once"][0] == 3
    assert checks["events at notify.topic, each change once"][0] == 7
    assert checks["an order larger than the stock"][0] == "insufficient_stock"
    assert checks["units available"] == checks["units in the ledger"]
    assert left_behind(empty) == ["temporary"]


@pytest.mark.parametrize("orders", [1, 200])
def test_the_demo_places_as_many_orders_as_one_likes(empty: Backend, orders: int) -> None:
    summary = empty.run("demo", "--json", "--orders", str(orders)).document
    assert (summary["ok"], summary["orders"]) == (True, orders)


def test_a_person_sees_progress_both_notifiers_and_a_table(empty: Backend) -> None:
    with Terminal(empty, "demo") as terminal:
        assert terminal.ends() == 0
    assert COLOUR.search(terminal.shown)
    for text in ("placing orders", "12/12", "notify.fanout received 12 events", "notify.topic received 16 events"):
        assert text in terminal.text
    assert "what came of it" in terminal.text
    assert "all is right" in terminal.text


def test_the_demo_honours_no_color(empty: Backend) -> None:
    with Terminal(empty, "demo", NO_COLOR="1") as terminal:
        assert terminal.ends() == 0
    assert not COLOUR.search(terminal.shown)
    assert "all is right" in terminal.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_and_leaves_nothing_behind(empty: Backend, number: int) -> None:
    with Terminal(empty, "demo", "--orders", "100000") as terminal:
        terminal.shows("notify.topic received 1")
        terminal.process.send_signal(number)
        assert terminal.ends(30) == 130
    assert "Traceback" not in terminal.text
    until(lambda: left_behind(empty) == ["temporary"], "nothing is left")


def test_the_summary_is_one_document(empty: Backend) -> None:
    done = empty.run("demo", "--json", "--orders", "1")
    assert set(json.loads(done.out)) == {"ok", "orders", "seconds", "checks"}
