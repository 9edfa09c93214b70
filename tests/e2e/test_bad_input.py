"""Bad input, everywhere: one line on stderr that names the trouble, nothing on stdout, the right exit code."""

import json
from collections.abc import Iterator

import pytest
from e2e.processes import Backend, Done

SECRET = "s3cret-word"  # noqa: S105 - the point is that nobody ever sees it


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Both services."""
    with Backend(tmp_path_factory.mktemp("cli"), {}) as backend:
        backend.start_all("serve-product", "serve-order")
        yield backend


def refused(done: Done, exit_code: int, code: str, *words: str) -> None:
    """One line on stderr and nothing else, with the exit code, the error's code, and what names the trouble."""
    assert done.complaint.startswith(f"error: {code}: ")
    assert done.code == exit_code
    assert [word for word in words if word not in done.complaint] == [], done.complaint


# --- refused by a rule ------------------------------------------------------------------------------------------


REFUSED: list[tuple[str, str, list[str]]] = [
    ("place-order --line nope:1", "product_not_found", ["'nope'"]),
    ("place-order --line 8:11", "insufficient_stock", ["'8'", "11 requested", "10 available"]),
    ("place-order --line 8:6 --line 8:5", "insufficient_stock", ["11 requested", "10 available"]),
    ("place-order --line 1:0", "invalid_argument", ["lines[0].quantity", "is 0", "1 to 1000000"]),
    ("place-order --line 1:1 --line 2:-3", "invalid_argument", ["lines[1].quantity", "is -3"]),
    ("place-order --line 1:99999999999999999999", "invalid_argument", ["lines[0].quantity"]),
    (f"place-order --line {'9' * 129}:1", "invalid_argument", ["lines[0].product_id", "129 characters"]),
    (f"place-order --line 1:1 --customer {'c' * 129}", "invalid_argument", ["customer_id", "129 characters"]),
    ("place-order --line 1:1 --customer=", "invalid_argument", ["customer_id", "must not be empty"]),
    (f"place-order --line 1:1 --idempotency-key {'k' * 256}", "invalid_argument", ["idempotency_key", "256"]),
    ("place-order" + " --line 1:1" * 101, "invalid_argument", ["lines", "101 lines", "at most 100"]),
    ("update-order nope --line 1:1", "order_not_found", ["'nope'"]),
    ("cancel-order nope --expected-version -1", "invalid_argument", ["expected_version", "is -1"]),
    (f"get-order {'o' * 129}", "invalid_argument", ["order_id", "129 characters"]),
    ("get-order ''", "invalid_argument", ["order_id", "must not be empty"]),
    ("cancel-order ' '", "invalid_argument", ["order_id", "must not be empty"]),
    ("get-product ''", "invalid_argument", ["product_id", "must not be empty"]),
    ("ship-order nope", "order_not_found", ["'nope'"]),
    ("get-product nope", "product_not_found", ["'nope'"]),
    ("adjust-stock 1 0", "invalid_argument", ["delta", "is 0"]),
    ("adjust-stock 8 -11", "insufficient_stock", ["'8'", "11 requested", "10 available"]),
    ("list-orders --page-size 1001", "invalid_argument", ["page_size"]),
    ("watch --after -1", "invalid_argument", ["after_sequence", "is -1"]),
]


@pytest.fixture(scope="module")
def refusals(shop: Backend) -> dict[str, Done]:
    return shop.run_all(f"client {command}" for command, _, _ in REFUSED)


@pytest.mark.parametrize(("command", "code", "words"), REFUSED)
def test_what_a_service_refuses(refusals: dict[str, Done], command: str, code: str, words: list[str]) -> None:
    refused(refusals[f"client {command}"], 1, code, *words)


def test_what_the_state_of_an_order_refuses(shop: Backend) -> None:
    order_id = shop.place("4:1")["id"]
    late = shop.run("client", "update-order", order_id, "--line", "4:2", "--expected-version", "2")
    refused(late, 1, "version_conflict", order_id, "version 1, not 2")
    shop.client("ship-order", order_id)
    refused(shop.run("client", "cancel-order", order_id), 1, "invalid_transition", order_id, "shipped", "cancelled")
    refused(shop.run("client", "ship-order", order_id), 1, "invalid_transition", order_id, "shipped")


def test_a_refused_order_changes_nothing(shop: Backend) -> None:
    before = shop.client("list-products"), shop.client("list-orders", "--all")
    for lines in (["1:1", "nope:1"], ["1:1", "8:11"], ["1:1", "2:0"]):
        done = shop.run("client", "place-order", *(f"--line={line}" for line in lines))
        assert done.code == 1
    assert (shop.client("list-products"), shop.client("list-orders", "--all")) == before
    assert shop.pending() == 0


def test_a_name_cannot_steer_the_terminal(shop: Backend) -> None:
    done = shop.run("client", "get-order", "\x1b[2Jx\ny")
    refused(done, 1, "invalid_argument", "order_id", "control characters")
    assert "\x1b" not in done.err


# --- wrong usage ------------------------------------------------------------------------------------------------


WRONG: list[tuple[str, list[str]]] = [
    ("client place-order", ["--line ID:N"]),
    ("client place-order --line 1", ["'1'", "ID:N"]),
    ("client place-order --line :1", ["':1'", "ID:N"]),
    ("client place-order --line 1:two", ["'1:two'", "ID:N"]),
    ("client place-order --product 1", ["--quantity N is missing"]),
    ("client place-order --product 1 --quantity many", ["--quantity"]),
    ("client place-order --product 1 --quantity 1 --line 1:1", ["not both"]),
    ("client adjust-stock 1 some", ["'some'", "whole number"]),
    ("client get-order", ["ID"]),
    ("client list-orders --status lost", ["'lost'", "placed, shipped, delivered, cancelled"]),
    ("client fetch-order", ["fetch-order"]),
    ("client --deadline soon get-data", ["--deadline"]),
    ("client --product-address nowhere get-data", ["nowhere", "HOST:PORT"]),
    ("notify", ["--mode"]),
    ("notify --mode sideways", ["'sideways'", "fanout or topic"]),
    ("notify --mode fanout --bind order.#", ["--mode topic"]),
    ("notify --mode topic --bind a..b", ["'a..b'"]),
    ("notify --mode topic --queue notify.topic --bind order.created", ["notify.topic", "another name"]),
    ("serve-product --bind 50051", ["50051", "HOST:PORT"]),
    ("serve-product --workers 2", ["--workers 2", "needs PostgreSQL", "ORDERSYS_PRODUCT_DATABASE_URL"]),
    ("serve-order --workers 0", ["--workers"]),
    ("serve-product --bind 203.0.113.1:1", ["203.0.113.1:1", "without TLS", "--insecure"]),
    ("api --bind 203.0.113.1:1", ["203.0.113.1:1", "ordersys keys create"]),
    ("serve-product --database-url nonsense", ["sqlite:///FILE", "postgresql"]),
    ("serve-product --database-url sqlite://", ["sqlite:///FILE"]),
    ("serve-order --database-url mysql://user:s3cret-word@host/shop", ["sqlite:///FILE", "postgresql"]),
    ("serve-order --broker-url kafka://host", ["sqlite:///FILE", "amqp://"]),
    ("serve-order --broker-url amqp://user:s3cret-word@host:port/x", ["amqp://USER:PASSWORD@HOST:PORT/VHOST"]),
    ("serve-order --broker-url sqlite:///:memory:", ["sqlite:///FILE"]),
    ("demo --orders 0", ["--orders"]),
    ("serve", ["No such command", "serve"]),
    ("up --speed 11", ["--speed"]),
]


@pytest.fixture(scope="module")
def mistakes(alone: Backend) -> dict[str, Done]:
    return alone.run_all(command for command, _ in WRONG)


@pytest.mark.parametrize(("command", "words"), WRONG)
def test_wrong_usage(mistakes: dict[str, Done], command: str, words: list[str]) -> None:
    refused(mistakes[command], 2, "usage", *words)
    assert SECRET not in mistakes[command].err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ORDERSYS_BROKR_URL", "x", ["ORDERSYS_BROKR_URL", "did you mean ORDERSYS_BROKER_URL?"]),
        ("ORDERSYS_COLOUR", "x", ["ORDERSYS_COLOUR", "ordersys config"]),
        ("ORDERSYS_BROKER_URL", f"kafka://u:{SECRET}@h", ["ORDERSYS_BROKER_URL", "amqp://"]),
        ("ORDERSYS_PRODUCT_BIND", "nowhere", ["ORDERSYS_PRODUCT_BIND", "'nowhere'", "127.0.0.1:50051"]),
        ("ORDERSYS_ORDER_ADDRESS", "host:99999", ["ORDERSYS_ORDER_ADDRESS", "'host:99999'"]),
        ("ORDERSYS_LOG_LEVEL", "loud", ["ORDERSYS_LOG_LEVEL", "'debug', 'info', 'warning' or 'error'"]),
        ("ORDERSYS_RETRY_WAITS", "soon", ["ORDERSYS_RETRY_WAITS", "number"]),
        ("ORDERSYS_RETRY_WAITS", "-1", ["ORDERSYS_RETRY_WAITS", "1,5,30"]),
        ("ORDERSYS_DEADLINE_SECONDS", "0", ["ORDERSYS_DEADLINE_SECONDS", "greater than 0"]),
    ],
)
def test_wrong_settings(embedded: Backend, name: str, value: str, words: list[str]) -> None:
    done = embedded.run("serve-order", **{name: value})
    refused(done, 2, "usage", *words)
    assert SECRET not in done.err


def test_a_home_that_cannot_be(embedded: Backend) -> None:
    (embedded.folder / "file").touch()
    for command in ("serve-product", "serve-order", "notify --mode fanout", "up"):
        done = embedded.run(*command.split(), ORDERSYS_HOME=str(embedded.folder / "file" / "home"))
        refused(done, 2, "usage", str(embedded.folder / "file"))


# --- broken seed files ------------------------------------------------------------------------------------------

PRODUCT = {"id": "1", "name": "Mug", "price": "9.90", "currency": "EUR"}
ORDER = {"id": "o-1", "customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 1}]}


SEEDS: list[tuple[str, object, list[str]]] = [
    ("products.json", None, ["does not exist"]),
    ("products.json", "{", ["JSON"]),
    ("products.json", [PRODUCT, {"id": "2"}], ["entry 1", "is missing"]),
    ("products.json", [{**PRODUCT, "price": "9.999"}], ["entry 0", "price", "9.999"]),
    ("products.json", [PRODUCT, PRODUCT], ["entry 1", "id", "twice"]),
    ("inventory.json", [{"product_id": "1", "quantity": -1}], ["entry 0", "quantity", "-1"]),
    ("inventory.json", [{"product_id": "9", "quantity": 1}], ["entry 0", "product_id", "'9'"]),
    ("orders.json", [{**ORDER, "status": "lost"}], ["entry 0", "status", "lost"]),
    (
        "orders.json",
        [ORDER, {**ORDER, "lines": [{"product_id": "1", "quantity": 0}]}],
        ["entry 1", "lines[0].quantity"],
    ),
]


@pytest.fixture(scope="module")
def seedings(alone: Backend) -> list[Done]:
    """What `db seed` says of each broken folder, and serve-product of the last."""
    folders = []
    for number, (file, content, _) in enumerate(SEEDS):
        folder = alone.folder / f"data-{number}"
        folder.mkdir()
        (folder / "products.json").write_text(json.dumps([PRODUCT]))
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
        folders.append(folder)
    *others, last = folders
    commands = [*(f"db seed --data {folder}" for folder in others), f"serve-product --data {last}"]
    return list(alone.run_all(commands).values())


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_a_broken_seed_file_is_named_with_entry_and_field(alone: Backend, seedings: list[Done], number: int) -> None:
    file, _, words = SEEDS[number]
    done = seedings[number]
    assert done.code in (1, 2)
    expected = [str(alone.folder / f"data-{number}" / file), *words]
    assert [word for word in expected if word not in done.complaint] == [], done.complaint
