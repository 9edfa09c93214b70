"""What whoever watches the roles gets to see: metrics, readiness, and what becomes of both when something goes away."""

import json
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit

import pytest
import servers
from contract.tcp_proxy import TcpProxy
from e2e.processes import Backend, Done, Role, free_port, until
from prometheus_client.parser import text_string_to_metric_families

Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
ROLES = {
    "product-service": "serve-product",
    "order-service": "serve-order",
    "notification-service": "notify --mode topic --json",
    "api": "api",
}


class Watched:
    """A deployment with admin ports of its own."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.addresses = {"api": backend.api_address}
        for role in ("product", "order", "notify"):
            address = f"127.0.0.1:{free_port()}"
            backend.environment[f"ORDERSYS_{role.upper()}_ADMIN_BIND"] = address
            self.addresses["notification-service" if role == "notify" else f"{role}-service"] = address
        self.roles: dict[str, Role] = {}

    def start(self, *services: str) -> None:
        started = self.backend.start_all(*(ROLES[each] for each in services))
        self.roles |= dict(zip(services, started, strict=True))

    def ask(self, service: str, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.addresses[service]}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def scrape(self, service: str) -> Series:
        status, text = self.ask(service, "/metrics")
        assert status == 200
        return parsed(text)

    def value(self, service: str, name: str, /, **labels: str) -> float | None:
        return self.scrape(service).get((f"ordersys_{name}", frozenset(labels.items())))

    def waiting(self) -> float | None:
        """In the queue that nobody reads here."""
        return self.value("order-service", "queue_messages", queue="notify.fanout", state="ready")

    def up(self, service: str, dependency: str) -> float | None:
        return self.value(service, "dependency_up", service=service, dependency=dependency)

    def ready(self, service: str) -> tuple[int, str, dict[str, str]]:
        """Status code, status, and the word for each dependency."""
        code, text = self.ask(service, "/readyz")
        found = json.loads(text)
        return code, found["status"], {name: check["status"] for name, check in found["checks"].items()}

    def health(self, service: str) -> Done:
        return self.backend.run("health", "--service", service, "--timeout", "10")


def parsed(text: str) -> Series:
    families = text_string_to_metric_families(text)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def names(series: Series) -> set[str]:
    return {name for name, _ in series}


# --- everything is well ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """All roles, which have handled one order."""
    with Backend(tmp_path_factory.mktemp("watched"), {}) as backend:
        watched = Watched(backend)
        watched.start(*ROLES)
        order = backend.place("1:1")
        until(lambda: bool(watched.roles["notification-service"].events(order["id"])), "its event was heard of")
        yield watched


OF_ALL = {"ordersys_build_info", "ordersys_dependency_up", "process_cpu_seconds_total"}
OF_GRPC = {
    "ordersys_grpc_server_calls_total",
    "ordersys_grpc_server_call_duration_seconds_bucket",
    "ordersys_grpc_server_calls_in_flight",
    "ordersys_grpc_server_streams",
    "ordersys_batch_size_bucket",
    "ordersys_batch_wait_seconds_bucket",
    "ordersys_batch_duration_seconds_bucket",
    "ordersys_batch_waiting",
}
OWN = {
    "product-service": OF_GRPC
    | {
        "ordersys_stock_refusals_total",
        "ordersys_settlements_total",
        "ordersys_unsettled_commands",
        "ordersys_unsettled_oldest_age_seconds",
        "ordersys_stock_drift_units",
    },
    "order-service": OF_GRPC
    | {
        "ordersys_order_changes_total",
        "ordersys_outbox_depth",
        "ordersys_outbox_oldest_age_seconds",
        "ordersys_relay_messages_total",
        "ordersys_relay_events_total",
        "ordersys_relay_retries_total",
        "ordersys_relay_round_duration_seconds_bucket",
        "ordersys_queue_messages",
    },
    "notification-service": {
        "ordersys_notifications_total",
        "ordersys_notification_lag_seconds_bucket",
        "ordersys_notification_duration_seconds_bucket",
        "ordersys_notification_batch_size_bucket",
    },
    "api": {"ordersys_http_requests_total", "ordersys_upstream_breaker_state"},
}


@pytest.mark.parametrize("service", ROLES)
def test_each_role_shows_what_it_promises(watched: Watched, service: str) -> None:
    watched.ask(service, "/healthz")
    until(lambda: OF_ALL | OWN[service] <= names(watched.scrape(service)), "everything was looked at once")
    series = watched.scrape(service)
    assert all(name.startswith(("ordersys_", "process_")) for name in names(series))
    builds = [dict(labels)["service"] for name, labels in series if name == "ordersys_build_info"]
    assert builds == [service]


@pytest.mark.parametrize("service", ROLES)
def test_promtool_has_nothing_to_say(watched: Watched, service: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here")
    text = watched.ask(service, "/metrics")[1]
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_one_order_is_in_the_numbers_of_every_role(watched: Watched) -> None:
    own = {"service": "product-service", "method": "PlaceOrder", "code": "OK"}
    assert watched.value("product-service", "grpc_server_calls_total", **own) == 1
    assert watched.value("order-service", "order_changes_total", change="created") == 1
    assert watched.value("order-service", "relay_messages_total", outcome="confirmed") == 2
    handled = {"queue": "notify.topic", "outcome": "handled"}
    until(lambda: watched.value("notification-service", "notifications_total", **handled) == 1, "it was counted")


@pytest.mark.parametrize(
    ("service", "dependencies"),
    [
        ("product-service", {"database", "schema", "order-service"}),
        ("order-service", {"database", "schema", "broker"}),
        ("notification-service", {"database", "schema", "broker"}),
        ("api", {"product-service", "order-service", "broker", "database"}),
    ],
)
def test_each_role_is_ready_says_so_everywhere_and_names_what_it_needs(
    watched: Watched, service: str, dependencies: set[str]
) -> None:
    until(lambda: watched.ready(service) == (200, "ready", dict.fromkeys(dependencies, "ready")), "it is ready")
    assert {each: watched.up(service, each) for each in dependencies} == dict.fromkeys(dependencies, 1)
    assert watched.ask(service, "/healthz")[0] == 200
    for name in (service, {"notification-service": "notify"}.get(service, service.removesuffix("-service"))):
        done = watched.health(name)
        assert (done.code, done.out, done.err) == (0, f"{service}: ready\n", "")


def test_health_has_one_document(watched: Watched) -> None:
    done = watched.backend.run("health", "--service", "product", "--json")
    assert done.document == {"service": "product-service", "status": "ready", "missing": []}


def test_the_log_says_where_a_role_is_watched(watched: Watched) -> None:
    for service in ("product-service", "order-service", "notification-service"):
        assert f"(metrics at http://{watched.addresses[service]}/metrics)" in watched.roles[service].err


@pytest.mark.parametrize("service", ["product-service", "order-service", "notification-service"])
def test_an_admin_port_that_was_asked_for_and_is_taken_is_refused(watched: Watched, service: str) -> None:
    setting = f"ORDERSYS_{service.partition('-')[0].replace('notification', 'notify').upper()}_ADMIN_BIND"
    taken = watched.addresses[service]
    free = {f"ORDERSYS_{role}_BIND": f"127.0.0.1:{free_port()}" for role in ("PRODUCT", "ORDER")}
    refused = watched.backend.run(*ROLES[service].split(), **free, **{setting: taken})
    assert refused.code == 2
    assert f"the admin port cannot listen on {taken}: " in refused.complaint


# --- where there is none --------------------------------------------------------------------------------------------


def test_by_default_a_second_copy_takes_another_port(embedded: Backend) -> None:
    addresses = set()
    for role in (embedded.start("serve-order", ORDERSYS_ORDER_BIND=f"127.0.0.1:{free_port()}") for _ in range(2)):
        address = role.ready().err.partition("(metrics at http://")[2].partition("/metrics)")[0]
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=20) as answer:
            assert json.load(answer)["status"] == "ready"
        addresses.add(address)
    assert len(addresses) == 2


def test_the_admin_port_can_be_left_out(embedded: Backend) -> None:
    role = embedded.start(*ROLES["notification-service"].split(), ORDERSYS_NOTIFY_ADMIN_BIND="off").ready()
    assert "metrics at" not in role.err
    refused = embedded.run("health", "--service", "notify", ORDERSYS_NOTIFY_ADMIN_BIND="off")
    assert refused.code == 2
    assert "ORDERSYS_NOTIFY_ADMIN_BIND is off" in refused.complaint


def test_up_shows_every_role_at_the_api_and_opens_no_other_port(embedded: Backend) -> None:
    watched = Watched(embedded)
    up = embedded.start("up").ready()
    until(lambda: set().union(*OWN.values()) - OF_GRPC <= names(watched.scrape("api")), "everything was looked at once")
    series = watched.scrape("api")
    builds = {dict(labels)["service"] for name, labels in series if name == "ordersys_build_info"}
    assert builds == set(ROLES)
    queues = {dict(labels)["queue"] for name, labels in series if name == "ordersys_notifications_total"}
    assert queues == {"notify.fanout", "notify.topic"}
    assert "metrics at" not in up.err
    with pytest.raises(OSError, match="refused"):
        watched.ask("order-service", "/metrics")
    for service in ("product", "order", "api"):
        assert watched.health(service).code == 0
    assert watched.health("notify").code == 3


# --- something goes away --------------------------------------------------------------------------------------------


def through(proxy: TcpProxy, url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}"))


def road_to(url: str) -> TcpProxy:
    parts = urlsplit(url)
    return TcpProxy(str(parts.hostname), int(parts.port or 0))


def test_a_broker_that_goes_is_seen_at_once_while_orders_are_taken_and_all_recovers_by_itself(tmp_path: Path) -> None:
    with (
        servers.vhost() as url,
        road_to(url) as road,
        Backend(tmp_path, {"ORDERSYS_BROKER_URL": through(road, url)}) as backend,
    ):
        watched = Watched(backend)
        watched.start(*ROLES)
        backend.place("1:1")
        until(lambda: watched.ready("api")[:2] == (200, "ready"), "all is well")
        until(lambda: watched.waiting() == 1, "q")

        road.refuse()
        gone = time.monotonic()
        until(lambda: watched.ready("order-service")[2]["broker"] == "unavailable", "the order service says so")
        until(lambda: watched.ready("api")[:2] == (200, "degraded"), "the gateway says so")
        until(lambda: watched.ready("notification-service")[:2] == (503, "not_ready"), "the notifier says so")
        assert time.monotonic() - gone < 15
        assert watched.ready("order-service")[:2] == (200, "degraded")
        assert watched.ready("api")[2]["broker"] == "unavailable"
        assert [watched.up(each, "broker") for each in ("order-service", "api", "notification-service")] == [0] * 3
        assert watched.health("order").out == "order-service: ready\n"  # orders are taken
        assert watched.health("api").out == "api: degraded: broker\n"
        refused = watched.health("notify")
        assert (refused.code, refused.out) == (1, "notification-service: not ready: broker\n")

        for _ in range(3):
            backend.place("1:1")
        until(lambda: watched.value("order-service", "outbox_depth") == 3, "the outbox is seen to fill")
        before = watched.value("order-service", "outbox_oldest_age_seconds") or 0
        until(lambda: (watched.value("order-service", "outbox_oldest_age_seconds") or 0) > before + 1, "and to age")
        assert watched.waiting() is None

        road.flow()
        until(lambda: watched.ready("api")[:2] == (200, "ready"), "the gateway is well", 60)
        until(lambda: watched.ready("notification-service")[:2] == (200, "ready"), "so is the notifier", 60)
        until(lambda: watched.value("order-service", "outbox_depth") == 0, "the outbox is empty", 60)
        until(lambda: watched.up("order-service", "broker") == 1, "the order service is well")
        # An event whose confirm was lost on the way is published once more: at least once.
        until(lambda: (watched.waiting() or 0) >= 4, "every event is in the queue")
        assert watched.value("order-service", "outbox_oldest_age_seconds") == 0
        assert watched.value("order-service", "relay_events_total") == 4


def test_a_database_that_goes_ends_the_readiness_and_not_the_metrics(tmp_path: Path) -> None:
    with (
        servers.postgres_database() as url,
        road_to(url) as road,
        Backend(tmp_path, {"ORDERSYS_ORDER_DATABASE_URL": through(road, url)}) as backend,
    ):
        watched = Watched(backend)
        watched.start("product-service", "order-service", "api")
        backend.place("1:1")
        until(lambda: watched.ready("product-service")[:2] == (200, "ready"), "all is well")
        until(lambda: watched.value("order-service", "outbox_depth") is not None, "the outbox was looked at")

        for away in (road.refuse, road.fall_silent):
            away()
            until(lambda: watched.ready("order-service")[:2] == (503, "not_ready"), "it says so")
            refused = watched.health("order")
            assert (refused.code, "database" in refused.out) == (1, True)
            until(lambda: watched.ready("product-service")[:2] == (200, "degraded"), "reads go on, orders do not")
            assert watched.up("product-service", "order-service") == 0
            assert watched.health("product").code == 0
            until(lambda: watched.ready("api")[:2] == (503, "not_ready"), "the gateway says so")
            assert watched.ready("api")[2]["broker"] == "ready"  # one that is not ready can still tell
            begun = time.monotonic()
            scraped = watched.scrape("order-service")
            assert time.monotonic() - begun < 5
            assert scraped["ordersys_outbox_depth", frozenset()] == 0
            assert watched.up("order-service", "database") == 0
            assert watched.ask("order-service", "/healthz")[0] == 200

            road.flow()
            until(lambda: watched.ready("order-service")[:2] == (200, "ready"), "it is well again", 60)
            until(lambda: watched.ready("api")[:2] == (200, "ready"), "and all the others", 60)
            assert watched.health("order").code == 0


def test_a_role_that_is_not_there_cannot_be_reached(alone: Backend) -> None:
    watched = Watched(alone)
    told = {service: watched.health(service) for service in ("product", "order", "api", "notify")}
    for service, done in told.items():
        assert (done.code, done.out) == (3, ""), service
        assert done.complaint.startswith("error: unavailable: 127.0.0.1:")


def test_a_role_that_stops_is_not_ready_while_it_drains(embedded: Backend) -> None:
    embedded.environment |= {"ORDERSYS_DEADLINE_SECONDS": "20", "ORDERSYS_GRACE_SECONDS": "20"}
    watched = Watched(embedded)
    watched.start("order-service", "product-service")
    until(lambda: watched.ready("product-service")[:2] == (200, "ready"), "it is ready")
    watched.roles["order-service"].send(signal.SIGSTOP)
    embedded.start("client", "place-order", "--line=1:1")  # its answer does not come: it holds the drain
    until(lambda: watched.value("product-service", "batch_size_count", batcher="order-asker") == 1, "it is at work")
    watched.roles["product-service"].send(signal.SIGTERM)
    until(lambda: watched.ready("product-service") == (503, "not_ready", {}), "it drains")
    assert watched.ask("product-service", "/healthz")[0] == 200
