"""The gateway does what its own OpenAPI document says, and nothing else: https://schemathesis.readthedocs.io.

ORDERSYS_FAULT_EXAMPLES=500 is the long run; ORDERSYS_FAULT_SEED repeats a failed one.
"""

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.processes import Backend

EXAMPLES = int(os.environ.get("ORDERSYS_FAULT_EXAMPLES", "0"))
"""Per operation and phase; 0 = the few of an ordinary run, with the same seed every time."""
FEW = 4
SEED = 20_260_131

# What a valid request may be answered: no 5xx, and 412 and 422 when the world is not as the caller thinks.
# Which page tokens are ours no schema can say, so that an invented one is 400.
CONFIG = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "412", "422", "429"]

[[operations]]
include-operation-id = ["list_products", "list_orders"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "3xx", "400", "401", "403"]
"""


@pytest.fixture(scope="module")
def seed() -> int:
    chosen = int(
        os.environ.get("ORDERSYS_FAULT_SEED") or (random.SystemRandom().randrange(10**6) if EXAMPLES else SEED)
    )
    print(f"ORDERSYS_FAULT_SEED={chosen}")
    return chosen


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, str]]:
    """All roles, and a key that may do everything: from then on nobody may do anything without one."""
    with Backend(tmp_path_factory.mktemp("shop"), {"ORDERSYS_API_RATE_LIMIT": "off"}) as backend:
        key = backend.run("keys", "create", "--name", "schemathesis", "--scope", "admin", "--json").document["api_key"]
        backend.start("up").ready()
        yield backend, key


def schemathesis(folder: Path, backend: Backend, seed: int, *arguments: str) -> int:
    """How many requests it has tried, every check being on; fails when it has found a fault."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config), "run"]
    command += [f"http://{backend.api_address}/openapi.json", "--checks", "all", "--continue-on-failure"]
    command += ["--seed", str(seed), "--max-examples", str(EXAMPLES or FEW), "--no-color", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,  # where it keeps its database of examples
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=3600 if EXAMPLES else 110,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-20_000:]
    tried = re.search(r"([0-9]+) generated", done.stdout)
    assert tried, done.stdout
    return int(tried[1])


# An event stream does not end, and every valid request for one would be waited for until its time is over: with a
# right key only what is refused is asked for here. tests/integration/test_api_events.py reads the streams.
STREAM = "watch_events"


@pytest.mark.timeout(3700)
def test_with_a_key(tmp_path: Path, shop: tuple[Backend, str], seed: int) -> None:
    backend, key = shop
    asked = schemathesis(tmp_path, backend, seed, "-H", f"X-API-Key: {key}", "--exclude-operation-id", STREAM)
    assert asked > 500
    backend.settled()  # and all that came of it adds up
    backend.balances()


@pytest.mark.timeout(3700)
def test_a_wrong_request_for_the_stream(tmp_path: Path, shop: tuple[Backend, str], seed: int) -> None:
    backend, key = shop
    arguments = ("--include-operation-id", STREAM, "--mode", "negative", "--phases", "coverage,fuzzing")
    # Now and then what was meant to be wrong is right, and opens a stream.
    arguments += ("--request-timeout", "5")
    assert schemathesis(tmp_path, backend, seed, "-H", f"X-API-Key: {key}", *arguments) > 20


@pytest.mark.timeout(3700)
def test_without_a_key(tmp_path: Path, shop: tuple[Backend, str], seed: int) -> None:
    backend, _ = shop
    # Everything is refused for the same reason: the many cases of the coverage phase are left to the long run.
    phases = "examples,coverage,fuzzing,stateful" if EXAMPLES else "examples,fuzzing"
    assert schemathesis(tmp_path, backend, seed, "--phases", phases) > 50
