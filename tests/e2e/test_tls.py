"""Every role as a process, with the certificates of `ordersys certs init`: an order goes through, strangers do not."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from certificates import EXPIRED, Authority
from e2e.processes import Backend, until
from e2e.secured import Secured, all_roles, https

from ordersys.core.tls import Files
from ordersys.operate import issuing


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    with Backend(
        tmp_path, {}, fresh=True
    ) as backend:  # what gRPC is to say of handshakes it is told before it is loaded
        yield Secured(backend)


def test_an_order_goes_through_every_role_and_each_door_is_closed_to_strangers(
    secured: Secured, tmp_path: Path
) -> None:
    roles = all_roles(secured)
    order = secured.client("place-order", "--product", "1", "--quantity", "2")["order"]
    line = {"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 1}]}
    second = https(secured, "/api/v1/orders", line)
    for name in ("fanout", "topic"):
        heard = {order["id"], second["id"]}
        until(lambda name=name, heard=heard: {e["subject"] for e in roles[name].events(heard)} == heard, f"{name}")
    moved = https(secured, "/api/v1/flow")  # the API's own identity may ask for what is an admin's
    assert "outbox" in json.dumps(moved)

    # What is the operator's is nobody else's.
    denied = secured.backend.run("client", "adjust-stock", "1", "5", **secured.environments["client"])
    assert denied.code == 1
    assert denied.complaint.startswith(
        "error: permission_denied: AdjustStock is not for client: the service's ORDERSYS_"
    )
    assert secured.client("adjust-stock", "1", "5", role="operator")["product"]["id"] == "1"
    assert secured.backend.run("inventory", "audit", "--json", **secured.environments["operator"]).document["ok"]

    # Expired, of another CA, none at all, and no TLS: refused at each door, with the reason and the address in its log.
    pair = issuing.load(secured.ca, secured.ca.with_suffix(".key"))
    (tmp_path / "expired").mkdir()
    expired = Authority(tmp_path / "expired", pair).issue("client", EXPIRED)
    other = Authority.at(tmp_path / "other").issue("client")
    for door, address in (("product", secured.backend.product_address), ("order", secured.backend.order_address)):
        for shown, reason in (
            (expired, "its certificate has expired"),
            (other, "unknown CA: its certificate is not from a CA that is trusted here"),
            (None, "it showed no certificate"),
        ):
            call_with(shown, secured.ca, address)
            roles[door].says(f"failed: {reason}")
        knocked = secured.backend.run("client", "list-orders" if door == "order" else "list-products")
        assert knocked.code == 3
        assert "it speaks TLS: set ORDERSYS_TLS_CA_FILE" in knocked.complaint
        roles[door].says("failed: it does not speak TLS")
        for line in roles[door].err.splitlines():
            said = json.loads(line)  # gRPC's own lines are none of it
            if "TLS handshake" in said["message"]:
                assert said["log.level"] == "warning"
                assert said["message"].startswith("TLS handshake with ipv4:127.0.0.1:")

    # And whoever shows one of those with our own client hears why.
    for shown, complaint in ((expired, "TLS_CERT_FILE: the certificate in"), (other, "it refuses our certificate in")):
        told = secured.backend.run(
            "client",
            "list-orders",
            ORDERSYS_TLS_CA_FILE=str(secured.ca),
            ORDERSYS_TLS_CERT_FILE=shown.cert,
            ORDERSYS_TLS_KEY_FILE=shown.key,
        )
        assert complaint in told.complaint


def call_with(files: Files | None, ca: Path, address: str) -> None:
    """A call from another program, with this certificate; it is refused."""
    key, cert = (Path(file).read_bytes() if file else None for file in ((files.key, files.cert) if files else ("", "")))
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes(), key, cert)) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_up_serves_with_one_certificate_for_all_roles(secured: Secured) -> None:
    up = secured.start("api", "up", "--json").ready()
    order = secured.client("place-order", "--product", "1", "--quantity", "2")["order"]
    until(lambda: order["id"] in up.out, "the notification")
    assert https(secured, f"/api/v1/orders/{order['id']}")["id"] == order["id"]
    assert secured.client("adjust-stock", "1", "5", role="operator")["product"]["id"] == "1"
    denied = secured.backend.run("client", "adjust-stock", "1", "5", **secured.environments["client"])
    assert "AdjustStock is not for client" in denied.complaint


def test_renewed_certificates_are_taken_by_services_that_run(secured: Secured) -> None:
    roles = [secured.start("order-service", "serve-order"), secured.start("product-service", "serve-product")]
    for role in roles:
        role.ready()
    secured.client("place-order", "--product", "1", "--quantity", "2")
    assert secured.backend.run("certs", "renew", "--dir", str(secured.ca.parent), "--json").code == 0
    secured.client("place-order", "--product", "1", "--quantity", "2")
    for role in roles:
        role.says("certificates were read again, good for new connections")


def test_other_machines_are_not_served_without_tls_unless_it_is_said(secured: Secured) -> None:
    backend = secured.backend
    port = backend.order_address.rpartition(":")[2]
    everywhere = {f"ORDERSYS_{each}_BIND": f"0.0.0.0:{port}" for each in ("PRODUCT", "ORDER")}
    for command, done in backend.run_all(("serve-product", "serve-order", "up"), **everywhere).items():
        assert done.code == 2
        name = "Product" if command == "serve-product" else "Order"
        assert done.complaint.startswith(f"error: usage: the {name} Service would listen on 0.0.0.0:{port} without TLS")
    aloud = backend.start("serve-order", "--insecure", **everywhere).ready()
    aloud.says(f"INSECURE: the Order Service has no TLS on 0.0.0.0:{port}")
    aloud.stop()
    served = backend.start("serve-order", **everywhere, **secured.environments["order-service"]).ready()
    assert "INSECURE" not in served.err


def test_half_of_the_settings_is_no_tls_and_said_so(secured: Secured) -> None:
    for settings, complaint in (
        ({"ORDERSYS_TLS_CA_FILE": str(secured.ca)}, "a service needs a certificate of its own"),
        ({"ORDERSYS_TLS_CERT_FILE": secured.certificate("client").cert}, "TLS_KEY_FILE is not"),
    ):
        refused = secured.backend.run("serve-order", **settings)
        assert refused.code == 2
        assert complaint in refused.complaint


def test_probes_ask_over_tls_and_the_certificates_are_watched(secured: Secured) -> None:
    secured.environments["api"]["ORDERSYS_API_TLS_CLIENT_CA_FILE"] = str(secured.ca)  # probes must show theirs, too
    secured.environments["api"]["ORDERSYS_API_BIND"] = secured.backend.api_address
    order, product = secured.start("order-service", "serve-order"), secured.start("product-service", "serve-product")
    api = secured.start("api", "api")
    for role in (order, product, api):
        role.ready()
    for service in ("order-service", "product-service", "api"):

        def asked(service: str = service) -> tuple[int, str, str]:
            done = secured.backend.run("health", "--service", service, **secured.environments[service])
            return done.code, done.out, done.err

        until(lambda asked=asked, service=service: asked() == (0, f"{service}: ready\n", ""), f"{service} is ready")
    stranger = secured.backend.run("health", "--service", "product")
    assert stranger.code == 3
    assert "it speaks TLS" in stranger.complaint
    beside = {**secured.environments["api"], "ORDERSYS_API_TLS_CERT_FILE": "", "ORDERSYS_API_TLS_KEY_FILE": ""}
    plain = secured.backend.run("health", "--service", "api", **{**beside, "ORDERSYS_API_TLS_CLIENT_CA_FILE": ""})
    assert plain.code == 3

    address = product.err.partition("(metrics at http://")[2].partition("/metrics)")[0]

    def expiry(setting: str) -> float | None:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
            name = f'ordersys_certificate_expiry_timestamp_seconds{{file="{setting}"}} '
            return next((float(line.split()[1]) for line in answer.read().decode().splitlines() if name in line), None)

    until(lambda: expiry("tls_cert_file") is not None, "the certificates were looked at")
    expires = secured.certificate("product-service").read().expires
    assert abs((expiry("tls_cert_file") or 0) - expires) < 1
    assert (expiry("tls_ca_file") or 0) >= expires
    assert expiry("tls_key_file") is None
