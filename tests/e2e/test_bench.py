"""`ordersys bench` on a system of its own and on one that runs, through both doors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ordersys", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


@pytest.mark.parametrize("via", ["grpc", "rest"])
def test_every_order_is_placed_measured_and_right(via: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    done = bench("--orders", "150", "--concurrency", "8", "--clients", "2", "--via", via, "--json", "--html", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["ok"], found["orders"], found["refused"]) == (True, 150, {})
    assert set(found["verdict"].values()) == {0}
    assert set(found["notified_ms"]) == {"notify.fanout", "notify.topic"}
    assert all(0 < times["p50"] <= times["p99.9"] <= times["max"] for times in found["notified_ms"].values())
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_with_a_rate_orders_are_placed_at_their_moments() -> None:
    done = bench("--orders", "60", "--rate", "30", "--concurrency", "8", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["orders_per_second"] <= 31  # slower it may be, on a busy machine


def test_without_anybody_to_measure_it_says_so() -> None:
    done = bench("--running", "--orders", "1", "--json")
    assert (done.returncode, done.stdout) == (3, "")
    assert "unavailable" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--running", "--broker-url", "sqlite:///x"), "not with --running"),
        (("--restock",), "--restock is for --running"),
        (("--hot", "2"), "--hot"),
        (("--html", "/no/such/folder/page.html"), "there is no folder /no/such/folder"),
    ],
)
def test_a_wrong_wish_is_refused_before_anything_starts(arguments: tuple[str, ...], says: str) -> None:
    refused = bench(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert says in refused.stderr
