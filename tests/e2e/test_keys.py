"""Who may use the API: the real command makes, lists and revokes keys while real gateways serve, on both engines."""

import http.client
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from e2e import processes
from e2e.processes import Backend, until
from identity_provider import AUDIENCE, ISSUER, RSA, Provider, jwk, signed

KEY = re.compile(r"osk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
ORDERS = "/api/v1/orders"
SECONDS = 5
"""What "within a few seconds" is."""


def ask(
    address: str, path: str, body: dict[str, Any] | None = None, **headers: str
) -> tuple[int, dict[str, str], dict[str, Any]]:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent["Content-Type"] = "application/json"
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), sent)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), json.loads(response.read())
    finally:
        connection.close()


def status(address: str, path: str = "/api/data", **headers: str) -> int:
    return ask(address, path, **headers)[0]


def create(backend: Backend, *arguments: str) -> tuple[str, str]:
    """Id and text of a new key."""
    made = backend.run("keys", "create", "--name", "test", "--json", *arguments).document
    found = KEY.fullmatch(made["api_key"])
    assert found
    assert made["key"]["id"] == found[1]
    return found[1], made["api_key"]


def listed(backend: Backend) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = backend.run("keys", "list", "--json").document["keys"]
    return keys


@pytest.fixture(params=processes.ENGINES)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Both services and an API whose door is still open."""
    with processes.engine(request.param) as settings, Backend(tmp_path_factory.mktemp("shop"), settings) as backend:
        backend.start_all("serve-product", "serve-order")
        yield backend


def test_a_key_from_its_making_to_its_end(shop: Backend) -> None:
    api = shop.start("api").ready()
    where = shop.api_address
    assert [line["message"][:15] for line in api.log if line["log.level"] == "warning"] == ["the API is open"]
    assert status(where) == 200
    assert listed(shop) == []

    read_id, read = create(shop, "--scope", "orders:read")
    until(lambda: status(where) == 401, "the first key closes the door", SECONDS)
    refused, headers, problem = ask(where, "/api/data")
    assert (refused, headers["Content-Type"], problem["code"]) == (401, "application/problem+json", "unauthenticated")
    assert headers["WWW-Authenticate"] == 'Bearer realm="ordersys"'
    assert status(where, "/healthz") == 200

    _, write = create(shop, "--scope", "orders:read", "--scope", "orders:write")
    order = {"customer_id": "ann", "lines": [{"product_id": "1", "quantity": 1}]}
    denied, headers, problem = ask(where, ORDERS, order, X_API_Key=read)
    assert (denied, problem["metadata"]) == (403, {"scope": "orders:write"})
    assert 'error="insufficient_scope", scope="orders:write"' in headers["WWW-Authenticate"]
    assert ask(where, ORDERS, order, X_API_Key=write)[0] == 201
    for headers in ({"X_API_Key": read}, {"Authorization": f"Bearer {read}"}):
        assert status(where, ORDERS, **headers) == 200
    until(lambda: all(key["last_used_at"] for key in listed(shop)), "both uses are written down", SECONDS)

    assert shop.run("keys", "revoke", read_id).out == f"revoked: {read_id}\n"
    until(lambda: status(where, X_API_Key=read) == 401, "the revoked key is refused", SECONDS)
    assert status(where, X_API_Key=write) == 200
    revoked_at = listed(shop)[0]["revoked_at"]
    assert shop.run("keys", "revoke", read, "--json").document["key"]["revoked_at"] == revoked_at

    everything = api.err + shop.run("keys", "list").out + json.dumps(listed(shop))
    assert f"by key {read_id}" in api.err
    assert not any(text.split("_", 2)[2] in everything for text in (read, write))


def test_a_customer_sees_and_touches_only_his_own_orders(shop: Backend) -> None:
    _, admin = create(shop, "--scope", "admin")
    _, ann = create(shop, "--scope", "orders:read", "--scope", "orders:write", "--customer", "ann")
    _, bob = create(shop, "--scope", "orders:read", "--scope", "orders:write", "--customer", "bob")
    shop.start("api").ready()
    where = shop.api_address

    def place(key: str, customer: str) -> tuple[int, dict[str, str], dict[str, Any]]:
        body = {"customer_id": customer, "lines": [{"product_id": "1", "quantity": 1}]}
        return ask(where, ORDERS, body, X_API_Key=key, Idempotency_Key="the-same")

    placed, _, order = place(ann, "ann")
    assert placed == 201
    placed, _, others = place(bob, "bob")  # the same key of another customer is another key
    assert placed == 201
    assert place(ann, "ann")[2]["id"] == order["id"] != others["id"]
    assert place(bob, "ann")[0] == 403

    def ids(key: str, query: str = "") -> set[str]:
        return {each["id"] for each in ask(where, ORDERS + query, X_API_Key=key)[2]["orders"]}

    assert (ids(ann), ids(bob), ids(ann, "?customer_id=ann")) == ({order["id"]}, {others["id"]}, {order["id"]})
    assert ids(admin) >= {order["id"], others["id"]}
    assert status(where, f"{ORDERS}?customer_id=ann", X_API_Key=bob) == 403
    mine, foreign = (status(where, f"{ORDERS}/{order['id']}", X_API_Key=key) for key in (ann, bob))
    assert (mine, foreign) == (200, 404)
    assert ask(where, f"{ORDERS}/{order['id']}/cancel", {}, X_API_Key=bob)[0] == 404
    assert ask(where, f"{ORDERS}/{order['id']}", X_API_Key=admin)[2]["status"] == "placed"


# --- the door ---------------------------------------------------------------------------------------------------


def test_without_a_key_the_api_serves_no_other_machine(embedded: Backend) -> None:
    for bind in ("0.0.0.0:0", "[::]:0"):
        refused = embedded.run("api", "--bind", bind)
        assert refused.code == 2
        assert refused.complaint.startswith(f"error: usage: without a key the API would be open to everybody on {bind}")
        assert "`ordersys keys create" in refused.complaint
    everything = embedded.run("up", ORDERSYS_API_BIND="0.0.0.0:0", ORDERSYS_LOG_LEVEL="error")
    assert (everything.code, everything.complaint[:23]) == (2, "error: usage: without a")

    _, text = create(embedded, "--scope", "orders:read")
    port = embedded.api_address.rpartition(":")[2]
    api = embedded.start("api", "--bind", f"0.0.0.0:{port}", "--insecure").ready()
    assert "the API is open" not in api.err
    assert "INSECURE" in api.err
    assert status(embedded.api_address) == 401
    # Nothing is behind the gateway: who is let in hears of that.
    assert status(embedded.api_address, X_API_Key=text) == 503


def test_tokens_of_an_identity_provider(embedded: Backend) -> None:
    provider = Provider(jwk(RSA, "1"))
    settings = {"ORDERSYS_API_JWT_ISSUER": ISSUER, "ORDERSYS_API_JWT_AUDIENCE": AUDIENCE}
    port = embedded.api_address.rpartition(":")[2]
    try:
        settings |= {"ORDERSYS_API_JWT_JWKS_URL": provider.url, "ORDERSYS_INSECURE": "true"}
        embedded.start("api", "--bind", f"0.0.0.0:{port}", **settings).ready()
        where = embedded.api_address
        for token, expected in ((signed(), 503), (signed(exp=int(time.time()) - 60), 401), ("a.b.c", 401)):
            assert status(where, Authorization=f"Bearer {token}") == expected
        assert status(where) == 401
        assert status(where, "/api/v1/orders/x/ship", Authorization=f"Bearer {signed()}") == 405
        provider.go_away()
        assert status(where, Authorization=f"Bearer {signed()}") == 503  # the service's: its key is known
        refused, headers, _ = ask(where, "/api/data", Authorization=f"Bearer {signed(kid='2')}")
        assert refused in (401, 503)
        assert ("WWW-Authenticate" in headers) == (refused == 401)
    finally:
        provider.go_away()


def test_tokens_by_a_public_key_file(embedded: Backend) -> None:
    file = embedded.folder / "key.pem"
    settings = {
        "ORDERSYS_API_JWT_ISSUER": ISSUER,
        "ORDERSYS_API_JWT_AUDIENCE": AUDIENCE,
        "ORDERSYS_API_JWT_PUBLIC_KEY_FILE": str(file),
    }
    missing = embedded.run("api", **settings)
    assert (missing.code, missing.complaint) == (
        2,
        f"error: usage: the public key file {file}: No such file or directory",
    )
    file.write_bytes(RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    embedded.start("api", **settings).ready()
    assert status(embedded.api_address) == 401
    assert status(embedded.api_address, Authorization=f"Bearer {signed(kid=None)}") == 503


# --- the command ------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_alone_on_stdout(embedded: Backend) -> None:
    made = embedded.run("keys", "create", "--name", "Prometheus", "--scope", "admin", "--expires", "90d")
    assert made.code == 0
    assert KEY.fullmatch(made.out.rstrip("\n"))
    assert made.err.startswith("Keep it: it is not shown again.")
    (row,) = embedded.run("keys", "list").out.splitlines()
    key_id, name, scopes, customer, created, expires, used, revoked = row.split("\t")
    assert (name, scopes, customer, used, revoked) == ("Prometheus", "admin", "-", "-", "-")
    assert key_id in made.out
    assert expires > created
    (key,) = listed(embedded)
    assert key == {
        "id": key_id,
        "name": "Prometheus",
        "scopes": ["admin"],
        "customer_id": "",
        "created_at": created,
        "expires_at": expires,
        "last_used_at": None,
        "revoked_at": None,
    }


def test_an_expired_key_opens_nothing(embedded: Backend) -> None:
    _, text = create(embedded, "--scope", "admin", "--expires", "8s")
    embedded.start("api").ready()
    assert status(embedded.api_address, X_API_Key=text) == 503  # let in; nothing is behind
    until(lambda: status(embedded.api_address, X_API_Key=text) == 401, "the key expires", 10)
    assert "expired at 20" in ask(embedded.api_address, "/api/data", X_API_Key=text)[2]["detail"]


def test_what_the_command_refuses(embedded: Backend) -> None:
    name = "keys create --name n"
    expected = {
        "keys create --scope admin": (2, "error: usage: "),
        name: (2, "error: usage: "),
        f"{name} --scope orders": (2, "error: usage: there is no scope 'orders'; there are orders:read, orders:write"),
        f"{name} --scope admin --expires 90": (2, "error: usage: Invalid value: --expires '90': expected RFC 3339"),
        f"{name} --scope admin --expires 0d": (2, "error: usage: a key that expires at"),
        f"{name} --scope admin --expires 99999d": (
            2,
            "error: usage: Invalid value: --expires '99999d': at most 36500d",
        ),
        f"{name} --scope admin --expires 2020-01-01T00:00:00Z": (2, "error: usage: a key that expires at 2020-01-01"),
        "keys create --name '' --scope admin": (1, "error: invalid_argument: name: must not be empty"),
        "keys revoke": (2, "error: usage: "),
        "keys revoke 0123456789ab": (1, "error: key_not_found: there is no API key '0123456789ab'"),
        f"keys revoke osk_0123456789ab_{'s' * 43}": (1, "error: key_not_found: there is no API key '0123456789ab'"),
        "keys list --database-url mysql://x": (2, "error: usage: ORDERSYS_API_DATABASE_URL: expected sqlite:///FILE"),
    }
    for command, done in embedded.run_all(expected).items():
        code, complaint = expected[command]
        assert (done.code, done.complaint[: len(complaint)]) == (code, complaint), command
    assert listed(embedded) == []
