"""deploy/observability: Prometheus takes it, its alerts fire when they should, Grafana and Filebeat find their files.

promtool is part of Prometheus; without it the tests that ask it are skipped, and say so.
"""

import functools
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import log_fields
import published_api
import published_metrics
import pytest
import servers
import typer
import yaml

from ordersys import cli
from ordersys.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "deploy" / "observability"
RULES = HERE / "rules" / "ordersys.yml"
GRAFANA = HERE / "grafana"
DASHBOARD = GRAFANA / "provisioning" / "dashboards" / "ordersys.json"
RUNBOOKS = ROOT / "docs" / "runbooks.md"


def promtool(*arguments: str, folder: Path = HERE) -> None:
    """Fails with what promtool says when it does not like something."""
    if shutil.which("promtool") is None:
        servers.missing("no promtool here: apt-get install prometheus")
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@functools.cache
def rules() -> list[dict[str, Any]]:
    return [rule for group in read(RULES)["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


@functools.cache
def panels() -> list[dict[str, Any]]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])]


# --- Prometheus -----------------------------------------------------------------------------------------------------


def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(HERE, tmp_path / "observability"))
    (copy / "ordersys-api.key").write_text("osk_1_secret\n", encoding="utf-8")
    promtool("check", "config", "prometheus.yml", folder=copy)


def test_what_is_scraped_is_where_the_roles_listen() -> None:
    jobs = {job["job_name"]: job for job in read(HERE / "prometheus.yml")["scrape_configs"]}
    targets = {name: job["static_configs"][0]["targets"] for name, job in jobs.items()}
    settings = Settings()
    assert targets == {
        "ordersys-product": [settings.product_admin_bind],
        "ordersys-order": [settings.order_admin_bind],
        "ordersys-notify": [settings.notify_admin_bind],
        "ordersys-api": [settings.api_bind],
        "rabbitmq": ["127.0.0.1:15692"],
    }
    assert jobs["ordersys-api"]["authorization"] == {"credentials_file": "ordersys-api.key"}


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", str(RULES))


def test_the_alerts_do_what_their_own_tests_say() -> None:
    promtool("test", "rules", "rules/ordersys_test.yml")


def test_every_alert_is_shown_firing_and_not_firing() -> None:
    shown = [each for test in read(HERE / "rules" / "ordersys_test.yml")["tests"] for each in test["alert_rule_test"]]
    assert {each["alertname"] for each in shown if each["exp_alerts"]} == set(alerts())
    assert {each["alertname"] for each in shown if not each["exp_alerts"]} == set(alerts())


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{name.lower()}"


def test_every_alert_has_a_runbook_in_the_order_of_the_rules() -> None:
    parts = re.split(r"^## (\w+)\n", RUNBOOKS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert parts[::2] == list(alerts())
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        assert re.findall(r"^- \*\*(.+?):\*\*", text, re.MULTILINE) == ["Means", "Look at", "Mend"], name


# --- Grafana --------------------------------------------------------------------------------------------------------


def test_the_dashboard_is_what_its_generator_makes(tmp_path: Path) -> None:
    made = tmp_path / "dashboard.json"
    subprocess.run([sys.executable, str(GRAFANA / "generate.py"), str(made)], check=True, timeout=60)
    assert made.read_text() == DASHBOARD.read_text(), (
        "run `python deploy/observability/grafana/generate.py` and commit what it writes"
    )


def test_grafana_can_show_every_panel() -> None:
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    for panel in found:
        if panel["type"] == "row":
            continue
        about = panel["title"]
        assert panel["description"].endswith("."), about
        assert panel["fieldConfig"]["defaults"]["unit"], about
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert steps[0]["value"] is None, about
        values = [step["value"] for step in steps[1:]]
        assert values == sorted(values), about
        refs = [target["refId"] for target in panel["targets"]]
        assert refs, about
        assert len(set(refs)) == len(refs), about
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}, about


def test_no_panel_lies_on_another() -> None:
    def cells(panel: dict[str, Any]) -> Iterator[tuple[int, int]]:
        place = panel["gridPos"]
        yield from itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )

    taken = Counter(cell for panel in panels() for cell in cells(panel))
    assert max(taken.values()) == 1
    assert max(x for x, _ in taken) < 24


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    chosen = [re.sub(r"\$(job|instance)\b", ".*", query.replace("$__rate_interval", "1m")) for query in queries()]
    assert not [query for query in chosen if "$" in query]
    recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(chosen)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "queries", "rules": recorded}]}))
    promtool("check", "rules", str(tmp_path / "rules.yml"))


def test_grafana_finds_the_dashboard_and_its_data() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    [source] = read(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    [provider] = read(GRAFANA / "provisioning" / "dashboards" / "ordersys.yml")["providers"]
    variables = {each["name"]: each for each in document["templating"]["list"]}
    assert document["uid"] == "ordersys"
    assert variables["datasource"]["current"]["value"] == source["uid"]
    assert source["jsonData"]["timeInterval"] == read(HERE / "prometheus.yml")["global"]["scrape_interval"]
    assert provider["options"]["path"].endswith("provisioning/dashboards")
    assert set(re.findall(r"\$(\w+)", " ".join(queries()))) == set(variables) - {"datasource"} | {"__rate_interval"}


# --- the names ------------------------------------------------------------------------------------------------------

EXPORTED = {
    name: {*family.labels, *more, "job", "instance"}
    for family in published_metrics.families()
    for name, more in (
        [(family.name + suffix, ["le"] if suffix == "_bucket" else []) for suffix in ("_bucket", "_sum", "_count")]
        if family.kind == "histogram"
        else [(family.name, [])]
    )
}
"""Every series that the roles export, and its labels once Prometheus has it."""

SELECTOR = re.compile(r"(ordersys_\w+)\{([^}]*)\}")


def expressions() -> list[str]:
    return [*queries(), *(rule["expr"] for rule in rules())]


def expanded(query: str) -> str:
    """With what the recording rules compute in the place of their names."""
    recorded: dict[str, str] = {}
    for rule in rules():
        if "record" in rule:
            recorded[rule["record"]] = f"{recorded.get(rule['record'], '')} {rule['expr']}"
    return re.sub(r"\w+(?::\w+)+", lambda found: recorded[found[0]], query)


def carried(query: str) -> set[str]:
    """The labels that its metrics have."""
    names = re.findall(r"ordersys_\w+", expanded(query))
    return {"job", "instance"}.union(*(EXPORTED[name] for name in names))


def test_the_dashboard_and_the_rules_ask_only_for_what_the_roles_export() -> None:
    named = {name for query in expressions() for name in re.findall(r"ordersys_\w+", expanded(query))}
    assert named <= set(EXPORTED)
    assert {name.removesuffix("_total") for name in named} >= {
        family.name.removesuffix("_total") for family in published_metrics.families() if family.kind != "histogram"
    }, "a metric that nobody looks at"


def test_every_label_that_is_matched_is_one_of_its_metric() -> None:
    found = [each for query in expressions() for each in SELECTOR.findall(query)]
    assert len(found) > 50
    for name, matchers in found:
        assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers)) <= EXPORTED[name], f"{name}{{{matchers}}}"


def test_every_label_that_is_grouped_by_or_shown_is_there() -> None:
    shown = [(target["expr"], target["legendFormat"]) for panel in panels() for target in panel.get("targets", [])]
    shown += [(rule["expr"], json.dumps(rule.get("annotations", {}))) for rule in rules()]
    for query, text in shown:
        grouped = ",".join(re.findall(r"\b(?:by|on) \(([^)]*)\)", expanded(query)))
        named = {*re.findall(r"\w+", grouped), *re.findall(r"\{\{(\w+)\}\}|\$labels\.(\w+)", text)}
        assert {"".join(each) for each in named} <= carried(query), query


def test_the_page_has_every_metric() -> None:
    page = published_metrics.PAGE.read_text(encoding="utf-8")
    assert published_api.with_table(page, published_metrics.table(), "metrics") == page, published_metrics.RENEW


# --- logs -----------------------------------------------------------------------------------------------------------


def test_filebeat_sends_to_the_data_stream_of_the_template() -> None:
    config = read(HERE / "logs" / "filebeat.yml")
    template = json.loads((HERE / "logs" / "index-template.json").read_text(encoding="utf-8"))
    [pattern] = template["index_patterns"]
    assert Path(config["output.elasticsearch"]["index"]).match(pattern)
    assert template["priority"] > 200  # above what Elasticsearch has for logs-*-* itself
    [source] = config["filebeat.inputs"]
    [parser] = source["parsers"]
    assert parser["ndjson"] == {"target": "", "expand_keys": True, "overwrite_keys": True, "add_error_key": True}


def test_elasticsearch_has_a_type_for_every_field_of_a_log_line_and_for_no_other() -> None:
    by_the_shipper = {
        "host.name",
        "log.file.path",
        *(f"data_stream.{each}" for each in ("type", "dataset", "namespace")),
    }
    assert set(log_fields.mapped()) == log_fields.logged() | by_the_shipper


def test_ids_and_codes_are_found_as_they_are_and_times_are_times() -> None:
    types = log_fields.mapped()
    assert types["@timestamp"] == "date"
    exact = {"keyword", "constant_keyword", "wildcard", "long"}
    assert {name for name, kind in types.items() if kind not in exact} == {"@timestamp", "message", "error.message"}


# --- the pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["runbooks.md", "observability.md"])
def test_every_command_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(r"`(ordersys [a-z][^`]*)`", text)
    assert named
    for line in named:
        words = shlex.split(line)[1:]
        command: Any = typer.main.get_command(cli.app)
        while words and hasattr(command, "commands"):
            word = words.pop(0)
            assert word in command.commands, line
            command = command.commands[word]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line
