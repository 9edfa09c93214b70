"""A real Prometheus with the shipped configuration watches the real roles: the dashboard has something to show.

Of the log lines it checks that the index template knows their fields.
"""

import http.client
import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import log_fields
import published_metrics
import pytest
import servers
import yaml
from e2e.processes import Backend, free_port, until

HERE = Path(__file__).resolve().parents[2] / "deploy" / "observability"
DASHBOARD = HERE / "grafana" / "provisioning" / "dashboards" / "ordersys.json"


class Prometheus:
    """One server in a folder of its own, with the shipped rules."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._address = address

    def asks(self, path: str) -> Any:
        """The data of an answer of its HTTP API."""
        status, body = self._get(f"/api/v1/{path}")
        assert status == 200, body
        return json.loads(body)["data"]

    def query(self, expression: str) -> list[Any]:
        """The series of one instant query."""
        found: list[Any] = self.asks(f"query?query={quote(expression)}")["result"]
        return found

    def ready(self) -> bool:
        try:
            return self._get("/-/ready")[0] == 200
        except OSError:
            return False

    def _get(self, path: str) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection(self._address, timeout=30)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    @property
    def log(self) -> str:
        return (self._folder / "prometheus.log").read_text(encoding="utf-8")


@contextmanager
def watching(folder: Path, targets: dict[str, list[str]], key: str, ca: str) -> Iterator[Prometheus]:
    """The shipped configuration with other addresses, an API over TLS, and a quicker pace."""
    if shutil.which("prometheus") is None:
        servers.missing("no prometheus here: apt-get install prometheus")
    shutil.copytree(HERE / "rules", folder / "rules")
    config = yaml.safe_load((HERE / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] in targets]
    assert len(config["scrape_configs"]) == len(targets)
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": targets[job["job_name"]]}]
        if job["job_name"] == "ordersys-api":
            job |= {"scheme": "https", "tls_config": {"ca_file": ca}}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "ordersys-api.key").write_text(key, encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                f"--web.listen-address={address}",
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        started = Prometheus(folder, address)
        until(lambda: process.poll() is not None or started.ready(), "Prometheus is ready")
        assert process.poll() is None, started.log
        yield started
    finally:
        process.kill()
        process.wait()


def shown() -> dict[str, list[str]]:
    """The queries of each panel, of all jobs and instances and the last seconds."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return {
        panel["title"]: [
            re.sub(r"\$(job|instance)\b", ".*", target["expr"].replace("$__rate_interval", "30s"))
            for target in panel["targets"]
        ]
        for panel in panels
        if panel["type"] != "row"
    }


@pytest.mark.timeout(180)
def test_prometheus_watches_every_role_and_the_dashboard_has_something_to_show(tmp_path: Path) -> None:
    product, order, fanout, topic = (f"127.0.0.1:{free_port()}" for _ in range(4))
    ports = {"ORDERSYS_PRODUCT_ADMIN_BIND": product, "ORDERSYS_ORDER_ADMIN_BIND": order}
    with Backend(tmp_path, ports) as backend:
        made = backend.run("certs", "init", "--dir", str(tmp_path / "certs"), "--json").document["environments"]
        own = {
            role: dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
            for role, lines in made.items()
        }
        ca = own["api"]["ORDERSYS_TLS_CA_FILE"]
        roles = [
            backend.start("serve-order", **own["order-service"]),
            backend.start("serve-product", **own["product-service"]),
            backend.start("api", **own["api"]),
            *(
                backend.start("notify", "--mode", mode, ORDERSYS_NOTIFY_ADMIN_BIND=bind, **own["notification-service"])
                for mode, bind in (("fanout", fanout), ("topic", topic))
            ),
        ]
        key = backend.run("keys", "create", "--name", "prometheus", "--scope", "admin").out
        for role in roles:
            role.ready()
        targets = {
            "ordersys-product": [product],
            "ordersys-order": [order],
            "ordersys-notify": [fanout, topic],
            "ordersys-api": [backend.api_address],
        }
        (tmp_path / "watch").mkdir()
        with watching(tmp_path / "watch", targets, key, ca) as prometheus:
            until(lambda: len(prometheus.query("up == 1")) == 5, "every role is scraped")
            assert [place(backend, key, ca, product_id) for product_id in ("1", "no-such-product")] == [201, 404]
            for title, queries in shown().items():
                until(lambda asked=queries: all(map(prometheus.query, asked)), f"{title} shows something")
            exported = {each["metric"] for each in prometheus.asks("targets/metadata")}
            assert {bare(name) for name in exported if name.startswith("ordersys_")} == {
                bare(family.name) for family in published_metrics.families()
            }
            groups = prometheus.asks("rules")["groups"]
            assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
            assert prometheus.query("ALERTS") == []
        fields = {field for role in roles for line in role.err.splitlines() for field in json.loads(line)}
        assert {"rpc.method", "http.route", "trace.id"} <= fields <= set(log_fields.mapped())


def bare(name: str) -> str:
    """As OpenMetrics names a family: its series have the suffix."""
    return name.removesuffix("_total").removesuffix("_info")


def place(backend: Backend, key: str, ca: str, product_id: str) -> int:
    """The HTTP status of an order for one of a product."""
    context = ssl.create_default_context(cafile=ca)
    body = json.dumps({"customer_id": "c-1", "lines": [{"product_id": product_id, "quantity": 1}]})
    headers = {"Content-Type": "application/json", "X-API-Key": key.strip()}
    with closing(http.client.HTTPSConnection(backend.api_address, timeout=30, context=context)) as connection:
        connection.request("POST", "/api/v1/orders", body, headers)
        return connection.getresponse().status
