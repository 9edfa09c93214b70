"""deploy/docker: the image can be built as it says, the compose file is one, and both say what the code says."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import deployed
import pytest
import servers
from deployed import HERE, ROOT, read, role_of, roles

from ordersys.api import keys
from ordersys.settings import Settings

DOCKER = HERE / "docker"
COMPOSE = read(DOCKER / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("ordersys:")}
LASTING = {name: service for name, service in OURS.items() if service["restart"] == "unless-stopped"}
SERVERS = {"database_url": "postgres", "broker_url": "rabbitmq"}
"""What a setting that is no address calls."""


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines if line]


def final() -> list[tuple[str, str]]:
    """The instructions of the last stage, which becomes the image."""
    found = instructions()
    return found[max(number for number, (word, _) in enumerate(found) if word == "FROM") :]


def tool(name: str) -> str:
    """A program of the extra `test`."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        servers.missing(f"no {name} here: pip install '.[test]' on Linux")
    return str(found)


def passes(*command: str) -> None:
    done = subprocess.run(command, cwd=DOCKER, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- the image ------------------------------------------------------------------------------------------------------


def test_hadolint_has_nothing_to_say() -> None:
    passes(tool("hadolint"), "--failure-threshold", "style", "Dockerfile")


def test_the_image_runs_as_nobody_in_particular_and_can_install_and_compile_nothing() -> None:
    stage = final()
    assert len([word for word, _ in instructions() if word == "FROM"]) == 2
    [user] = [what for word, what in stage if word == "USER"]
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", user)
    ran = " ".join(what for word, what in stage if word == "RUN")
    assert not re.search(r"\b(pip|apt|apt-get|gcc)\b", ran)
    assert f"--uid {user.partition(':')[0]} " in ran
    [copied] = [what for word, what in stage if word == "COPY"]
    assert copied == "--from=build /opt/ordersys /opt/ordersys"
    assert "--without-pip /opt/ordersys" in (DOCKER / "Dockerfile").read_text(encoding="utf-8")


def test_the_image_starts_any_role_and_asks_whichever_runs_for_its_health() -> None:
    stage = dict(final())
    assert stage["ENTRYPOINT"] == '["ordersys"]'
    assert stage["HEALTHCHECK"].endswith('CMD ["ordersys", "health"]')
    deployed.accepts(["health"])
    assert set(stage["EXPOSE"].split()) == {str(port) for role in roles().values() for port in role.ports}


def test_the_settings_of_the_image_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [variables] = [what for word, what in final() if word == "ENV"]
    environment = dict(each.split("=", 1) for each in variables.split())
    chosen = deployed.loads(environment, monkeypatch, tmp_path)
    assert str(chosen.home) == environment["ORDERSYS_HOME"]
    assert chosen.log_format == "json"
    [folder] = [what for word, what in final() if word == "WORKDIR"]
    assert folder == environment["ORDERSYS_HOME"]


def test_the_build_gets_what_it_copies_and_what_the_wheel_is_made_of() -> None:
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    copied = {
        each
        for word, what in instructions()
        for each in what.split()[:-1]
        if word == "COPY" and not what.startswith("--from")
    }
    assert copied == kept
    assert all((ROOT / each).exists() for each in copied)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    included = re.findall(r'^"(\w+)" = "ordersys/', project, re.MULTILINE)
    assert included
    assert copied == {*included, "ordersys", "pyproject.toml", "README.md", "LICENSE"}
    for word, what in instructions():
        if word == "ARG":
            assert f"Python :: {what.removeprefix('PYTHON=').partition('-')[0]}" in project


# --- compose --------------------------------------------------------------------------------------------------------


def test_the_compose_file_is_one() -> None:
    passes(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")


def test_every_role_is_there_and_both_notifiers() -> None:
    ran = sorted(" ".join(service["command"]) for service in LASTING.values())
    assert ran == ["api", "notify --mode fanout --json", "notify --mode topic --json", "serve-order", "serve-product"]
    assert {role_of(service["command"]) for service in LASTING.values()} == set(roles().values())


@pytest.mark.parametrize("name", OURS)
def test_commands_and_settings_are_what_the_command_line_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = OURS[name]
    deployed.accepts(service["command"])
    chosen = deployed.loads(service["environment"], monkeypatch, tmp_path)
    assert not chosen.broker_url.startswith("sqlite") or "broker_url" not in deployed.named(service["environment"])


@pytest.mark.parametrize("name", OURS)
def test_every_role_is_shut_in(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert int(service["stop_grace_period"].removesuffix("s")) > Settings().grace_seconds


@pytest.mark.parametrize("name", LASTING)
def test_a_role_listens_where_the_others_and_the_probe_look(name: str) -> None:
    service, role = LASTING[name], role_of(LASTING[name]["command"])
    given = {key.removeprefix("ORDERSYS_").lower(): value for key, value in service["environment"].items()}
    assert {key: value for key, value in given.items() if key.endswith("_bind")} == {
        bind: f"0.0.0.0:{deployed.port(bind)}" for bind in role.binds
    }
    [test] = [service["healthcheck"]["test"]]
    assert test == ["CMD", "ordersys", "health", "--service", role.name]
    deployed.accepts(test[2:])
    for published in service.get("ports", []):
        host, outer, inner = published.split(":")
        assert (host, outer) == ("127.0.0.1", inner)
        assert int(inner) in role.ports


@pytest.mark.parametrize("name", LASTING)
def test_a_role_is_told_of_all_that_it_calls_and_starts_when_that_is_ready(name: str) -> None:
    service, role = LASTING[name], role_of(LASTING[name]["command"])
    assert deployed.named(service["environment"]) - role.binds - {"insecure"} == role.needs
    before = everything_before(name)
    for need in role.needs:
        if need.endswith("_address"):
            host, _, port = service["environment"][f"ORDERSYS_{need.upper()}"].partition(":")
            called = role_of(LASTING[host]["command"])
            assert need.replace("address", "bind") in called.binds
            assert int(port) == deployed.port(need.replace("address", "bind"))
            assert service["depends_on"][host] == {"condition": "service_healthy"}
            assert set(service["networks"]) & set(LASTING[host]["networks"])
        else:
            server = SERVERS["broker_url" if need == "broker_url" else "database_url"]
            assert before[server] == "service_healthy"
            assert set(service["networks"]) & set(SERVICES[server]["networks"])


def everything_before(name: str) -> dict[str, str]:
    """Whatever has been waited for when this starts, and what for."""
    found: dict[str, str] = {}
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        found |= everything_before(needed) | {needed: how["condition"]}
    return found


def test_schemas_and_the_first_key_are_there_before_who_needs_them() -> None:
    for name, service in LASTING.items():
        if any(need.endswith("_database_url") for need in role_of(service["command"]).needs):
            assert everything_before(name)["migrate"] == "service_completed_successfully"
    assert everything_before("api")["first-key"] == "service_completed_successfully"
    for once in ("migrate", "first-key"):
        assert SERVICES[once]["restart"] == "on-failure"
        assert SERVICES[once]["healthcheck"] == {"disable": True}


def test_what_is_waited_for_says_when_it_is_healthy() -> None:
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert SERVICES[needed]["healthcheck"]["test"], needed


def test_nothing_but_a_file_holds_a_secret() -> None:
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    assert not re.search(r"\w+://\w+:[^/\s]+@", text)
    for name, service in SERVICES.items():
        mounted = {each if isinstance(each, str) else each["source"] for each in service.get("secrets", [])}
        words = [str(each) for each in (*service.get("environment", {}).values(), *service.get("command", []))]
        used = {word.rpartition("/")[2] for word in words if word.startswith("/run/secrets/")}
        assert used <= mounted <= set(COMPOSE["secrets"]), name
        for key in service.get("environment", {}):
            assert key.endswith("_FILE") or not re.search(r"URL|PASSWORD|KEY|SECRET", key), key


def test_only_the_machine_itself_reaches_what_is_published() -> None:
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name, service in SERVICES.items():
        assert all(each.startswith("127.0.0.1:") for each in service.get("ports", [])), name
        assert service.get("networks") == ["inside"] or service.get("ports") or "network_mode" in service, name


def test_the_observability_is_a_profile_that_reuses_what_is_shipped() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" in service} == {"prometheus", "grafana"}
    for name in ("prometheus", "grafana"):
        assert SERVICES[name]["profiles"] == ["observability"]
        for volume in SERVICES[name]["volumes"]:
            source = volume.partition(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    # Grafana shares Prometheus's network: its data source is where the provisioning says.
    assert SERVICES["grafana"]["network_mode"] == "service:prometheus"
    [source] = read(HERE / "observability/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert f"{source['url'].removeprefix('http://')}:9090" in SERVICES["prometheus"]["ports"]


def test_prometheus_scrapes_what_it_does_elsewhere_under_the_names_of_the_services() -> None:
    shipped, own = read(HERE / "observability/prometheus.yml"), read(DOCKER / "prometheus.yml")
    jobs = {job.pop("job_name"): job for job in own["scrape_configs"]}
    assert own["global"] == shipped["global"]
    assert own["rule_files"] == shipped["rule_files"]
    assert list(jobs) == [job["job_name"] for job in shipped["scrape_configs"]]
    assert jobs["ordersys-api"]["authorization"] == {"credentials_file": "/run/secrets/api_key"}
    assert "api_key" in SERVICES["prometheus"]["secrets"]
    scraped = {target for job in jobs.values() for target in job["static_configs"][0]["targets"]}
    listening = {f"{name}:{deployed.port(role_of(service['command']).admin)}" for name, service in LASTING.items()}
    assert scraped == listening | {"rabbitmq:15692"}


def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        servers.missing("no promtool here: apt-get install prometheus")
    key = tmp_path / "api_key"
    key.write_text("osk_1_secret\n", encoding="utf-8")
    text = (DOCKER / "prometheus.yml").read_text(encoding="utf-8").replace("/run/secrets/api_key", str(key))
    (tmp_path / "prometheus.yml").write_text(text, encoding="utf-8")
    shutil.copytree(HERE / "observability" / "rules", tmp_path / "rules")
    passes("promtool", "check", "config", str(tmp_path / "prometheus.yml"))


# --- the secrets ----------------------------------------------------------------------------------------------------


def test_the_script_draws_every_secret_once(tmp_path: Path) -> None:
    script = Path(shutil.copy(DOCKER / "secrets.sh", tmp_path))
    folder = tmp_path / "secrets"

    def drawn() -> dict[str, str]:
        subprocess.run(["sh", str(script)], check=True, timeout=60, stdin=subprocess.DEVNULL)
        return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}

    first = drawn()
    assert drawn() == first
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in folder.iterdir())
    mounted = {Path(each["file"]).name for each in COMPOSE["secrets"].values()}
    assert mounted <= set(first) == mounted | {"rabbitmq_password"}
    assert keys.parts(first["api_key"].strip())
    password = first["rabbitmq_password"].strip()
    assert f"default_pass = {password}\n" in first["rabbitmq.conf"]
    assert f":{password}@rabbitmq:5672/" in first["broker_url"]
    assert f":{first['postgres_password'].strip()}@postgres:5432/ordersys\n" in first["database_url"]
    assert SERVICES["postgres"]["environment"]["POSTGRES_USER"] == "ordersys"
    shutil.rmtree(folder)
    assert all(drawn()[name] != first[name] for name in first)
