"""deploy/kubernetes: Kubernetes takes it, and commands, settings, ports, probes and arrows are those of the code."""

import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import custom_resources
import deployed
import jsonschema
import kubernetes_validate
import kustomized
import pytest
import yaml
from deployed import HERE, role_of, roles
from kustomized import Manifest

from ordersys.api import keys
from ordersys.core import topology
from ordersys.settings import Settings

KUBERNETES = HERE / "kubernetes"
OVERLAYS = ("one-node", "production")
LISTENING = {"product_address": "product-service", "order_address": "order-service"}
SERVERS = {"database": {5432}, "rabbitmq": {5672, 5671}}
CLIENTS = "ordersys-client"


@functools.cache
def built(overlay: str) -> list[Manifest]:
    return kustomized.built(KUBERNETES / "overlays" / overlay)


def of_kind(overlay: str, *kinds: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in built(overlay) if each["kind"] in kinds}


def ours(overlay: str) -> Iterator[tuple[Manifest, Manifest]]:
    """Each workload that runs the image, with each of its containers."""
    for manifest in of_kind(overlay, "Deployment", "Job").values():
        for container in kustomized.containers(manifest):
            yield manifest, container


def environment(container: Manifest) -> dict[str, str]:
    found = {each["name"]: each["value"] for each in container["env"]}
    assert len(found) == len(container["env"]), container["name"]
    return found


def drawn(overlay: str) -> list[Manifest]:
    """The secrets that the script prints."""
    script = KUBERNETES / "secrets.sh"
    done = subprocess.run(["sh", str(script), overlay], check=True, capture_output=True, text=True, timeout=60)
    return list(yaml.safe_load_all(done.stdout))


# --- what Kubernetes takes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_is_one(overlay: str) -> None:
    checked = 0
    for manifest in (*built(overlay), *drawn(overlay)):
        if (manifest["apiVersion"], manifest["kind"]) in custom_resources.SPECS:
            jsonschema.validate(manifest, custom_resources.schema(manifest))
            continue
        kubernetes_validate.validate(manifest, "1.31", strict=True)
        checked += 1
    assert checked > 20


def test_a_manifest_that_is_none_is_noticed() -> None:
    deployment = yaml.safe_load(yaml.safe_dump(of_kind("one-node", "Deployment")["api"]))
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.31", strict=True)
    cluster = dict(of_kind("production", "RabbitmqCluster")["rabbitmq"])
    cluster["spec"] = cluster["spec"] | {"replica": 3}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster, custom_resources.schema(cluster))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_two_manifests_have_one_name_and_all_are_in_the_namespace(overlay: str) -> None:
    found = [(each["kind"], each["metadata"]["name"]) for each in built(overlay)]
    assert len(set(found)) == len(found)
    spaces = {each["metadata"].get("namespace") for each in built(overlay) if each["kind"] != "Namespace"}
    assert spaces == set(of_kind(overlay, "Namespace"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_what_our_own_reader_does(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here: our own reader was asked alone")
    folder = KUBERNETES / "overlays" / overlay
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=True)

    def sort(found: list[Manifest]) -> list[Manifest]:
        return sorted(found, key=lambda each: (each["kind"], each["metadata"]["name"]))

    assert sort(list(yaml.safe_load_all(done.stdout))) == sort(built(overlay))


def test_the_reader_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("namePrefix: x-\n")
    with pytest.raises(NotImplementedError, match="namePrefix"):
        kustomized.built(tmp_path)
    (tmp_path / "a.yaml").write_text("kind: Job\nmetadata: {name: a}\n")
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [a.yaml]\npatches: [{target: {kind: Job, name: b}, patch: '[]'}]\n"
    )
    with pytest.raises(LookupError, match="not there"):
        kustomized.built(tmp_path)


# --- what the code says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_role_is_there_and_both_notifiers(overlay: str) -> None:
    ran = sorted(" ".join(container["args"]) for each, container in ours(overlay) if each["kind"] == "Deployment")
    assert ran == ["api", "notify --mode fanout --json", "notify --mode topic --json", "serve-order", "serve-product"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_commands_and_settings_are_what_the_command_line_takes(
    overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for manifest, container in ours(overlay):
        deployed.accepts(container["args"])
        deployed.loads(environment(container), monkeypatch, tmp_path)
        if manifest["kind"] == "Deployment":
            role = role_of(container["args"])
            named = deployed.named(environment(container))
            beside = {each for each in named if "tls" in each or each == "insecure"}
            assert named - beside == role.needs | role.binds
            if overlay == "one-node":  # a notifier serves nobody
                assert beside == (set() if role.name == "notification-service" else {"insecure"})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_role_listens_where_services_and_probes_look(overlay: str) -> None:
    services = of_kind(overlay, "Service")
    for name, manifest in of_kind(overlay, "Deployment").items():
        [container] = kustomized.containers(manifest)
        role, given = role_of(container["args"]), environment(container)
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        assert set(ports.values()) == role.ports
        assert {given[f"ORDERSYS_{bind.upper()}"] for bind in role.binds} == {f"0.0.0.0:{port}" for port in role.ports}
        admin = next(key for key, value in ports.items() if value == deployed.port(role.admin))
        secured = "ORDERSYS_API_TLS_CERT_FILE" in given
        for probe, path in (("startup", "/readyz"), ("readiness", "/readyz"), ("liveness", "/healthz")):
            asked = container[f"{probe}Probe"]["httpGet"]
            assert (asked["path"], asked["port"]) == (path, admin), name
            assert asked.get("scheme", "HTTP") == ("HTTPS" if secured else "HTTP")
        assert manifest["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(ports[admin])
        if name in services:
            [port] = services[name]["spec"]["ports"]
            assert ports[port["targetPort"]] == port["port"]
            labels = manifest["spec"]["template"]["metadata"]["labels"]
            assert services[name]["spec"]["selector"].items() <= labels.items()
    assert set(services) >= {"product-service", "order-service", "api"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whom_a_role_calls_is_where_it_was_told(overlay: str) -> None:
    for manifest in of_kind(overlay, "Deployment").values():
        [container] = kustomized.containers(manifest)
        for need in role_of(container["args"]).needs & set(LISTENING):
            address = environment(container)[f"ORDERSYS_{need.upper()}"]
            called = LISTENING[need]
            assert address == f"{called}:{deployed.port(need.replace('address', 'bind'))}"
            assert address.endswith(f":{of_kind(overlay, 'Service')[called]['spec']['ports'][0]['port']}")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_file_that_a_setting_names_is_mounted_from_a_secret_that_is_there(overlay: str) -> None:
    made = {each["metadata"]["name"]: set(each["stringData"]) for each in drawn(overlay)}
    for each in of_kind(overlay, "Certificate").values():
        made[each["spec"]["secretName"]] = {"ca.crt", "tls.crt", "tls.key"}
    for name in of_kind(overlay, "Cluster"):
        made[f"{name}-ca"] = {"ca.crt"}  # CloudNativePG's own
    for manifest, container in ours(overlay):
        volumes = {each["name"]: each for each in manifest["spec"]["template"]["spec"]["volumes"]}
        files = {}
        for mount in container["volumeMounts"]:
            if secret := volumes[mount["name"]].get("secret"):
                assert mount["readOnly"] is True
                shown = [item["key"] for item in secret.get("items", [])] or made[secret["secretName"]]
                assert set(shown) <= made[secret["secretName"]]
                files |= {f"{mount['mountPath']}/{key}": secret["secretName"] for key in shown}
        named = [value for value in environment(container).values() if value.startswith("/etc/")]
        named += [word for word in container["args"] if word.startswith("/etc/")]
        assert named
        assert set(named) <= set(files), (manifest["metadata"]["name"], container["name"])
        if "verify-full" in str(drawn(overlay)):
            assert "/etc/ordersys/database-ca/ca.crt" in files


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_role_is_shut_in(overlay: str) -> None:
    for manifest, container in ours(overlay):
        pod = manifest["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        dockerfile = (HERE / "docker" / "Dockerfile").read_text(encoding="utf-8")
        assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in dockerfile
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        if manifest["kind"] == "Deployment":
            slept = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pod["terminationGracePeriodSeconds"] > slept + Settings().grace_seconds


def test_the_job_makes_the_schemas_and_then_takes_the_key() -> None:
    job = of_kind("production", "Job")["migrate"]
    assert [each["args"][:2] for each in kustomized.containers(job)] == [["db", "upgrade"], ["keys", "create"]]


# --- who may talk to whom -------------------------------------------------------------------------------------------

Arrow = tuple[str, str, int]


def wanted(overlay: str) -> set[Arrow]:
    """The arrows of the picture, from what each role needs to be told."""
    secured = overlay == "production"
    found = {(CLIENTS, "product-service", 50051), (CLIENTS, "order-service", 50052)}
    for name, manifest in of_kind(overlay, "Deployment").items():
        for need in role_of(kustomized.containers(manifest)[0]["args"]).needs:
            if need in LISTENING:
                found.add((name, LISTENING[need], deployed.port(need.replace("address", "bind"))))
            elif need == "broker_url":
                found.add((name, "rabbitmq", 5671 if secured else 5672))
            else:
                found.add((name, "database", 5432))
    return found | {("migrate", "database", 5432)}


def peer(selector: dict[str, Any]) -> str:
    [label] = selector["podSelector"]["matchLabels"].values()
    return str(label)


def arrows(overlay: str, direction: str) -> set[Arrow]:
    """Those between pods that the policies of the base allow."""
    found = set()
    for name, policy in of_kind(overlay, "NetworkPolicy").items():
        if name.endswith("-cluster") or name in ("nobody", "names", "monitoring"):
            continue
        assert peer(policy["spec"]) == name
        side = "from" if direction == "ingress" else "to"
        for rule in policy["spec"].get(direction, []):
            for each in rule.get(side, []):
                for port in rule["ports"]:
                    other = peer(each)
                    found.add((other, name, port["port"]) if side == "from" else (name, other, port["port"]))
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_allows_exactly_the_arrows_of_the_picture(overlay: str) -> None:
    assert arrows(overlay, "ingress") == wanted(overlay)
    assert arrows(overlay, "egress") == {each for each in wanted(overlay) if each[0] != CLIENTS}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whatever_is_not_allowed_is_refused_for_every_role(overlay: str) -> None:
    policies = of_kind(overlay, "NetworkPolicy")
    nobody = policies["nobody"]["spec"]
    assert nobody["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in nobody
    assert "egress" not in nobody
    for manifest, _ in ours(overlay):
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        assert nobody["podSelector"]["matchLabels"].items() <= labels.items()
        assert labels["app.kubernetes.io/name"] in policies
    monitored = {port["port"] for port in policies["monitoring"]["spec"]["ingress"][0]["ports"]}
    assert monitored == {deployed.port(role.admin) for role in roles().values()}
    # The API is the one door for everybody.
    rules = [(name, rule) for name, each in policies.items() for rule in each["spec"].get("ingress", [])]
    open_to_all = [name for name, rule in rules if "from" not in rule]
    assert open_to_all == ["api"]
    assert policies["api"]["spec"]["ingress"] == [{"ports": [{"port": deployed.port("api_bind")}]}]


# --- production -----------------------------------------------------------------------------------------------------


def test_everything_is_replaced_one_at_a_time_and_spread() -> None:
    budgets, deployments = (of_kind("production", kind) for kind in ("PodDisruptionBudget", "Deployment"))
    assert set(budgets) == set(deployments)
    for name, manifest in deployments.items():
        labels = {"matchLabels": {"app.kubernetes.io/name": name}}
        assert manifest["spec"]["selector"] == labels
        assert budgets[name]["spec"]["selector"] == labels
        spread = manifest["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {each["topologyKey"] for each in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        assert all(each["labelSelector"] == labels for each in spread)


def test_replicas_follow_the_load_and_nothing_else_sets_them() -> None:
    deployments = of_kind("production", "Deployment")
    assert all("replicas" not in each["spec"] for each in deployments.values())
    by_cpu = of_kind("production", "HorizontalPodAutoscaler")
    by_queue = of_kind("production", "ScaledObject")
    for name, each in {**by_cpu, **by_queue}.items():
        assert each["spec"]["scaleTargetRef"]["name"] == name
    assert {*by_cpu, *by_queue} == set(deployments)
    assert not set(by_cpu) & set(by_queue)
    declared = {each.name for each in topology.standard(Settings().retry_waits).queues}
    watched = {}
    for name, each in by_queue.items():
        [trigger] = each["spec"]["triggers"]
        mode = kustomized.containers(deployments[name])[0]["args"][2]
        watched[mode] = trigger["metadata"]["queueName"]
        assert trigger["authenticationRef"]["name"] in of_kind("production", "TriggerAuthentication")
    assert watched == {"fanout": "notify.fanout", "topic": "notify.topic"}
    assert set(watched.values()) == declared


def test_production_is_tls_alone_with_the_names_that_the_settings_expect() -> None:
    certificates = {each["spec"]["secretName"]: each["spec"] for each in of_kind("production", "Certificate").values()}
    for name, manifest in of_kind("production", "Deployment").items():
        [container] = kustomized.containers(manifest)
        given = environment(container)
        assert "ORDERSYS_INSECURE" not in given
        assert {"ORDERSYS_TLS_CA_FILE", "ORDERSYS_TLS_CERT_FILE", "ORDERSYS_TLS_KEY_FILE"} <= set(given)
        volumes = {each["name"]: each for each in manifest["spec"]["template"]["spec"]["volumes"]}
        own = certificates[volumes["tls"]["secret"]["secretName"]]
        assert own["dnsNames"][0] == role_of(container["args"]).name, name
    chosen = Settings()
    names = {each["dnsNames"][0] for each in certificates.values() if "dnsNames" in each}
    assert {chosen.tls_product_identity, *chosen.tls_admin_identities} <= names
    urls = {each["metadata"]["name"]: each["stringData"].get("url", "") for each in drawn("production")}
    assert urls["ordersys-broker"].startswith("amqps://")
    assert "sslmode=verify-full" in urls["ordersys-database"]


def test_the_engines_are_three_and_take_the_secrets_that_were_drawn() -> None:
    made = {each["metadata"]["name"]: each for each in drawn("production")}
    [rabbitmq] = of_kind("production", "RabbitmqCluster").values()
    [postgres] = of_kind("production", "Cluster").values()
    assert rabbitmq["spec"]["replicas"] == postgres["spec"]["instances"] == 3
    assert rabbitmq["spec"]["secretBackend"]["externalSecret"]["name"] in made
    initial = postgres["spec"]["bootstrap"]["initdb"]
    login = made[initial["secret"]["name"]]["stringData"]
    assert login["username"] == initial["owner"]
    host = postgres["metadata"]["name"] + "-rw"
    assert f"@{host}:5432/{initial['database']}?" in login["url"]
    asked = f"{rabbitmq['metadata']['name']}.{rabbitmq['metadata']['namespace']}.svc"
    assert f"@{asked}:5671/" in made["ordersys-broker"]["stringData"]["url"]
    assert asked in of_kind("production", "Certificate")["rabbitmq"]["spec"]["dnsNames"]
    assert postgres["spec"]["inheritedMetadata"]["labels"] == {"ordersys/server": "database"}


def test_one_node_has_the_servers_that_the_secrets_name() -> None:
    services = of_kind("one-node", "Service")
    urls = {each["metadata"]["name"]: each["stringData"].get("url", "") for each in drawn("one-node")}
    assert "@database-rw:5432/ordersys" in urls["ordersys-database"]
    assert "@rabbitmq:5672/" in urls["ordersys-broker"]
    for name, manifest in of_kind("one-node", "StatefulSet").items():
        [container] = kustomized.containers(manifest)
        service = services[manifest["spec"]["serviceName"]]
        assert service["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"], name
        assert container["ports"][0]["containerPort"] in SERVERS[name]
        assert (
            container["image"]
            == deployed.read(HERE / "docker/compose.yaml")["services"][{"database": "postgres"}.get(name, name)][
                "image"
            ]
        )


def test_the_script_draws_another_key_each_time_and_says_how_it_is_used() -> None:
    one, other = (drawn("one-node")[2]["stringData"]["key"] for _ in range(2))
    assert keys.parts(one)
    assert one != other
    done = subprocess.run(
        ["sh", str(KUBERNETES / "secrets.sh")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "one-node|production" in done.stderr
