"""A client in another language, which knows the protos and the names of the contract and nothing else."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import published_events
import pytest
import servers
import yaml
from e2e.processes import Backend, until
from jsonschema import Draft7Validator, Draft202012Validator

HERE = Path(__file__).resolve().parent
PROTOS = HERE.parents[1] / "protos"

PATIENCE = ("--prefer-offline", "--fetch-retries=1", "--fetch-timeout=20000")
NO_NETWORK = re.compile(
    r"^npm (?:error|ERR!) code (E(?:CONN\w+|TIMEDOUT|AI_AGAIN|NOTFOUND)|ERR_SOCKET_TIMEOUT)$", re.MULTILINE
)
"""What npm says of a registry that cannot be reached."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with the packages of its lock file, installed outside the checkout."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("no node and npm here: another language needs them")
    folder = tmp_path_factory.mktemp("interop")
    for name in ("package.json", "package-lock.json", "order.js"):
        shutil.copy(HERE / name, folder)
    done = subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", *PATIENCE],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if unreachable := NO_NETWORK.search(done.stderr):
        pytest.skip(
            f"the npm registry cannot be reached ({unreachable[1]}), and the packages of tests/interop come from there"
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "order.js"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The two services and a broker that nobody else uses."""
    with (
        servers.vhost() as broker_url,
        Backend(tmp_path_factory.mktemp("backend"), {"ORDERSYS_BROKER_URL": broker_url}) as backend,
    ):
        backend.start_all("serve-order", "serve-product")
        yield backend


@pytest.fixture(scope="module")
def seen(program: Path, backend: Backend) -> dict[str, Any]:
    """All that the program saw of the two services and of the broker."""
    broker_url = backend.environment["ORDERSYS_BROKER_URL"]
    done = node(program, str(PROTOS), backend.product_address, backend.order_address, broker_url)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def node(
    program: Path, *arguments: str, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", program.name, *arguments],
        cwd=program.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    ("said", "unreachable"),
    [
        ("npm warn config\nnpm error code ECONNREFUSED\nnpm error syscall connect\n", True),
        ("npm ERR! code ENOTFOUND\n", True),
        ("npm error code EAI_AGAIN\n", True),
        ("npm error code ETIMEDOUT\n", True),
        ("npm error code EUSAGE\nnpm error `npm ci` can only install with an existing package-lock.json\n", False),
        ("npm error code EINTEGRITY\n", False),
        ("npm error code E404\n", False),
    ],
)
def test_only_an_unreachable_registry_is_a_reason_to_skip(said: str, unreachable: bool) -> None:
    assert bool(NO_NETWORK.search(said)) is unreachable


def test_the_protos_work_as_they_are(seen: dict[str, Any]) -> None:
    assert seen["data"]["message"]
    order = seen["placed"]["order"]
    assert (order["status"], order["version"], order["customer_id"]) == ("ORDER_STATUS_PLACED", 1, "nöde-客")
    assert order["total"]["amount"] == 2 * seen["before"]["price"]["amount"]
    assert seen["read"]["order"] == seen["shipped"]["order"]
    assert (seen["read"]["order"]["status"], seen["read"]["order"]["version"]) == ("ORDER_STATUS_SHIPPED", 3)
    assert seen["before"]["available"] - seen["after"]["available"] == 3


def test_a_repeated_call_answers_with_the_same_order(seen: dict[str, Any]) -> None:
    assert (seen["placed"]["replayed"], seen["again"]["replayed"]) == (False, True)
    assert seen["again"]["order"] == seen["placed"]["order"]


@pytest.mark.parametrize(
    ("call", "status", "reason"),
    [
        ("too_much", "FAILED_PRECONDITION", "INSUFFICIENT_STOCK"),
        ("bad", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ("reused", "ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"),
        ("conflict", "ABORTED", "VERSION_CONFLICT"),
        ("unknown", "NOT_FOUND", "ORDER_NOT_FOUND"),
    ],
)
def test_a_refusal_carries_its_reason(seen: dict[str, Any], call: str, status: str, reason: str) -> None:
    info = seen[call]["ErrorInfo"]
    assert (seen[call]["status"], info["domain"], info["reason"]) == (status, "ordersys", reason)
    assert seen[call]["message"]


def test_a_refusal_carries_its_figures(seen: dict[str, Any]) -> None:
    available = str(seen["before"]["available"] - 2)
    assert seen["too_much"]["ErrorInfo"]["metadata"] == {
        "product_id": "1",
        "requested": "1000000",
        "available": available,
    }


def test_bad_input_names_every_field(seen: dict[str, Any]) -> None:
    violations = seen["bad"]["BadRequest"]["field_violations"]
    assert sorted(each["field"] for each in violations) == ["customer_id", "lines[0].quantity"]
    assert all(each["description"] for each in violations)


def test_a_queue_of_its_own_hears_every_event_of_both_exchanges(seen: dict[str, Any]) -> None:
    heard = [(each["exchange"], each["routing_key"]) for each in seen["heard"]]
    assert sorted(heard) == [
        ("orders.fanout", "order.created"),
        ("orders.topic", "order.created"),
        ("orders.topic", "order.updated.lines"),
        ("orders.topic", "order.updated.shipped"),
    ]


def test_the_events_are_persistent_cloudevents(seen: dict[str, Any]) -> None:
    order = seen["placed"]["order"]
    for message in (*seen["heard"], *seen["notify_fanout"], *seen["notify_topic"]):
        event = message["event"]
        assert message["content_type"] == "application/cloudevents+json"
        assert message["delivery_mode"] == 2
        assert message["message_id"] == event["id"]
        assert (event["specversion"], event["source"]) == ("1.0", "/ordersys/order-service")
        assert event["subject"] == event["data"]["order_id"] == order["id"]
        assert event["data"]["customer_id"] == "nöde-客"
    created = seen["notify_fanout"][0]["event"]
    assert created["type"] == "ordersys.order.created.v1"
    assert created["data"]["lines"] == [
        {"product_id": "1", "quantity": 2, "unit_price": seen["before"]["price"]},
    ]
    assert created["data"]["total"] == order["total"]


def test_the_events_are_right_by_their_published_schemas(seen: dict[str, Any]) -> None:
    heard = [each["event"] for each in (*seen["heard"], *seen["notify_fanout"], *seen["notify_topic"])]
    assert {event["type"] for event in heard} == {"ordersys.order.created.v1", "ordersys.order.updated.v1"}
    for event in heard:
        schema = json.loads(published_events.path(event["type"]).read_text(encoding="utf-8"))
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(event)


def test_the_description_of_the_events_is_valid_asyncapi_3(program: Path) -> None:
    """By the schema of AsyncAPI itself, which npm has: @asyncapi/specs, Apache-2.0."""
    schemas = program.parent / "node_modules" / "@asyncapi" / "specs" / "schemas"
    validator = Draft7Validator(json.loads((schemas / "3.0.0-without-$id.json").read_text(encoding="utf-8")))
    described = yaml.safe_load(published_events.DOCUMENT.read_text(encoding="utf-8"))
    validator.validate(described)
    for place, wrong in (("asyncapi", "3.0"), ("channels", []), ("operations", {"o": {"action": "shout"}})):
        assert not validator.is_valid({**described, place: wrong})


def test_the_standard_queues_hear_what_they_are_bound_to(seen: dict[str, Any]) -> None:
    assert [each["event"]["data"]["change"] for each in seen["notify_fanout"]] == ["created"]
    assert [each["event"]["data"]["change"] for each in seen["notify_topic"]] == ["created", "lines", "shipped"]


def test_the_stream_of_events_tells_the_same(seen: dict[str, Any]) -> None:
    assert [event["change"] for event in seen["watched"]] == ["created", "lines", "shipped"]
    sequences = [event["sequence"] for event in seen["watched"]]
    assert sequences == sorted(set(sequences))
    assert [event["id"] for event in seen["watched"]] == [each["event"]["id"] for each in seen["notify_topic"]]


@pytest.mark.usefixtures("seen")  # it counts the messages of the standard queues: it comes first
def test_the_programs_of_the_page_do_what_they_say(program: Path, backend: Backend) -> None:
    folder = program.parent
    page = (HERE.parents[1] / "docs" / "clients" / "node.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"^```js\n// (\w+\.js)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "protos").symlink_to(PROTOS)
    out = folder / "consume.out"
    with out.open("wb") as written:
        consumer = subprocess.Popen(
            ["node", "consume.js"],
            cwd=folder,
            env=backend.environment,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: "waiting at my-team.orders\n" in out.read_text(encoding="utf-8"), "the consumer waits")
        placed = node(folder / "place.js", environment=backend.environment)
        assert placed.returncode == 0, placed.stderr
        order, status, *total = placed.stdout.split()
        assert (status, total[1]) == ("ORDER_STATUS_PLACED", "EUR")
        assert int(total[0]) > 0
        event = f" ordersys.order.created.v1 created {order} 1\n"
        until(lambda: event in out.read_text(encoding="utf-8"), "the event of the order")
    finally:
        consumer.kill()
        consumer.wait()
