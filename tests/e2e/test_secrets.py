"""A secret is planted wherever there may be one, everything is made to fail, and all that is printed is searched.

So is what the system tells about the processes, and whether each line of a role's log is one that Elasticsearch takes.
"""

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import ecs
import pytest
from e2e.processes import Backend, Role, free_port

SECRET = "s3cretW0rdThatNobodySees"  # noqa: S105 - the point is that nobody ever sees it
KEY = f"osk_0123456789ab_{SECRET:x<43}"
TOKEN = f"eyJhbGciOiJSUzI1NiJ9.{SECRET}.{SECRET}"
SQL = "postgresql+psycopg"
DEBUG = {"ORDERSYS_LOG_LEVEL": "debug", "ORDERSYS_DEADLINE_SECONDS": "5"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Secrets in every setting that may hold one, some in files, and nothing that they lead to."""
    folder = tmp_path_factory.mktemp("planted")
    nobody = f"127.0.0.1:{free_port()}"
    (folder / "broker").write_text(f"amqp://user:{SECRET}@{nobody}/%2F\n")
    (folder / "webhook").write_text(f"whsec_{SECRET:A<32}\n")
    settings = {
        "ORDERSYS_BROKER_URL_FILE": str(folder / "broker"),
        "ORDERSYS_API_JWT_JWKS_URL": f"http://user:{SECRET}@{nobody}/keys?api_token={SECRET}",
        "ORDERSYS_API_JWT_ISSUER": "https://issuer.example",
        "ORDERSYS_API_JWT_AUDIENCE": "shop",
        "ORDERSYS_API_KEY": KEY,
        "ORDERSYS_WEBHOOK_URL": f"http://{nobody}/{SECRET}?token={SECRET}",
        "ORDERSYS_WEBHOOK_SECRET_FILE": str(folder / "webhook"),
        "ORDERSYS_SMTP_URL": f"smtp://user:{SECRET}@{nobody}",
        "ORDERSYS_SMTP_FROM": "orders@shop.example",
        "ORDERSYS_SMTP_TO": "shop@shop.example",
    }
    with Backend(folder, {**DEBUG, **settings}, fresh=True) as backend:
        yield backend


def leaks(*texts: str) -> list[str]:
    return [line for text in texts for line in text.splitlines() if SECRET in line or SECRET[:12] in line]


def wrong_log_lines(role: Role) -> list[tuple[str, str]]:
    return [(line["message"], each) for line in role.log for each in ecs.complaints(line)]


def seen_by_others(pid: int) -> str:
    """What every user of this machine may read of a process."""
    about = Path(f"/proc/{pid}")
    return (about / "cmdline").read_bytes().replace(b"\0", b" ").decode() + (about / "comm").read_text()


def send(url: str, **headers: str) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=names), timeout=10) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_roles_keep_secrets_to_themselves_while_everything_fails(planted: Backend) -> None:
    product, order, api = planted.start_all("serve-product", "serve-order", "api")
    where = f"http://{planted.api_address}"
    answers = {
        send(f"{where}/api/data", X_API_Key=KEY),
        send(f"{where}/api/data", X_API_Key=SECRET),
        send(f"{where}/api/data", Authorization=f"Bearer {KEY}"),
        send(f"{where}/api/data", Authorization=f"Bearer {TOKEN}"),
        send(f"{where}/api/data", Authorization=f"Basic {SECRET}"),
        send(f"{where}/api/data?api_key={SECRET}", Cookie=f"session={SECRET}", Idempotency_Key=SECRET),
        send(f"{where}/api/v1/orders/{KEY}", X_API_Key=KEY),
        send(f"{where}/{KEY}?token={SECRET}"),
        send(f"{where}/api/data", X_Request_Id=KEY, traceparent=SECRET),
    }
    assert answers == {401, 404, 503}  # 503: nobody has the keys of the tokens
    planted.place("1:1")  # the relay finds no broker for its event
    order.says("events wait in the outbox")
    planted.run("client", "get-order", KEY)

    roles = (product, order, api)
    assert leaks(*(role.err + role.out + seen_by_others(role.pid) for role in roles)) == []
    assert [role.stop() for role in roles] == [0, 0, 0]
    assert leaks(*(role.err + role.out for role in roles)) == []
    assert [wrong_log_lines(role) for role in roles] == [[], [], []]
    assert {line["service.name"] for role in roles for line in role.log} == {"product-service", "order-service", "api"}


def test_notifiers_keep_the_secrets_of_their_sinks_to_themselves(planted: Backend) -> None:
    own = {"ORDERSYS_BROKER_URL": f"sqlite:///{planted.home / 'broker.db'}", "ORDERSYS_BROKER_URL_FILE": ""}
    own["ORDERSYS_RETRY_WAITS"] = "0"
    roles = [
        planted.start(*command.split(), **own)
        for command in ("serve-order", "serve-product", "notify --mode fanout --sink webhook")
    ]
    roles.append(planted.start("notify", "--mode", "topic", ORDERSYS_NOTIFY_SINK="smtp", **own))
    for role in roles:
        role.ready()
    planted.place("1:1")
    for notifier in roles[2:]:
        notifier.says("now a dead letter")
        notifier.says("Connection refused")
    assert leaks(*(role.err + role.out + seen_by_others(role.pid) for role in roles)) == []
    assert leaks(planted.run("dlq", "list", "--json", **own).out) == []
    assert [wrong_log_lines(role) for role in roles] == [[], [], [], []]
    assert [role.stop() for role in roles] == [0, 0, 0, 0]


FAILING = [
    "topology declare",
    "dlq list",
    "notify --mode fanout",
    *(
        f"topology declare --broker-url {url}"
        for url in (
            f"amqp://guest:{SECRET}@127.0.0.1:5672/%2F",  # a broker that does not let us in
            f"amqp://user:{SECRET}@host:port/x",
            f"amqp://user:a@{SECRET}/x@host.invalid/x",
            f"amqp://user:{SECRET}@host.invalid/x?heartbeat={SECRET}",
            f"kafka://user:{SECRET}@host/x",
        )
    ),
    *(
        f"serve-order --broker-url {url}"  # which only a URL that is none keeps from starting
        for url in (f"amqp://user:{SECRET}@host:port/x", f"amqp://user:a@{SECRET}/x@host.invalid/x")
    ),
    *(
        f"serve-product --database-url '{url}'"
        for url in (
            f"{SQL}://user:{SECRET}@127.0.0.1:1/shop",
            f"{SQL}://user:{SECRET}@host.invalid/shop",
            f"{SQL}://user:{SECRET}@host:port/shop",
            f"{SQL}://user:a@{SECRET}/x@host/shop",
            f"{SQL}://user@127.0.0.1:1/shop?password={SECRET}",
            f"{SQL}://user:{SECRET}@127.0.0.1:5432/nothing?sslmode=verify-full&sslrootcert=/nowhere",
            f"mysql://user:{SECRET}@host/shop",
        )
    ),
    f"client --product-address amqp://user:{SECRET}@host/x get-data",
    f"serve-product amqp://user:{SECRET}@host/x",
    f"keys revoke {KEY}",
]


def test_no_command_tells_a_secret_when_it_fails(planted: Backend) -> None:
    done = planted.run_all(f"--debug {command}" for command in FAILING)  # with the traceback
    assert [command for command, each in done.items() if leaks(each.out + each.err)] == []
    assert [command for command, each in done.items() if each.code == 0] == []


def test_a_password_in_a_flag_is_warned_of_with_what_would_be_better(planted: Backend) -> None:
    url = f"sqlite:///{planted.home / 'broker.db'}"
    quiet = planted.start("serve-order", "--broker-url", url, ORDERSYS_BROKER_URL_FILE="").ready()
    loud = planted.start(
        "serve-order", "--broker-url", f"amqp://user:{SECRET}@127.0.0.1:1/x", ORDERSYS_ORDER_BIND="127.0.0.1:0"
    )
    loud.says("ORDERSYS_BROKER_URL_FILE")
    warned = [line for line in loud.log if "ORDERSYS_BROKER_URL_FILE" in line["message"]]
    assert [line["log.level"] for line in warned] == ["warning"]
    assert "--broker-url" in warned[0]["message"]
    assert leaks(loud.err) == []
    assert "ORDERSYS_BROKER_URL_FILE" not in quiet.err
    quiet.stop()
    loud.stop()


def test_the_settings_are_shown_without_their_secrets(planted: Backend) -> None:
    table = planted.run("config")
    assert leaks(table.out, table.err) == []
    shown = planted.run("config", "--json").document
    user, _, place = shown["ORDERSYS_BROKER_URL"].partition(":***@")
    assert (user, place[:10]) == ("amqp://user", "127.0.0.1:")
    assert shown["ORDERSYS_API_KEY"] == "***"
    assert SECRET not in str(shown)
