"""Who may: which header opens which door, what a scope and a tie to a customer keep out, and who is let in without."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Flask
from flask_openapi3 import APIBlueprint, OpenAPI
from identity_provider import AUDIENCE, ISSUER, RSA, signed

from ordersys.api import access, http, keyring, problems, request_log
from ordersys.api.access import Caller, Guard, Open, Scope
from ordersys.api.keyring import KeyRing
from ordersys.api.store import CHAIN, KeyStore
from ordersys.api.tables import metadata
from ordersys.api.tokens import PublicKeyFile, Tokens
from ordersys.core import errors, fields
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database

LOOPBACK = "127.0.0.1:8080"
ANYWHERE = "0.0.0.0:8080"


class Fixed:
    """Everybody is this caller."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def identify(self, _headers: Any, _address: str) -> Caller:
        return self.caller


def an_app(guard: access.Access) -> Flask:
    """An app with the gateway's own hooks and views of every kind."""
    app = OpenAPI("test", doc_ui=False)
    request_log.register(app)
    http.register(app, ())
    access.register(app, guard)
    problems.register(app)
    blueprint = APIBlueprint("test", "test")

    @blueprint.get("/public")
    @access.public
    def open_to_all() -> dict[str, str]:
        return {"caller": access.caller().name}

    @blueprint.get("/any")
    def any_caller() -> dict[str, Any]:
        caller = access.caller()
        return {"caller": caller.name, "customer": caller.customer_id, "scopes": sorted(caller.scopes)}

    @blueprint.get("/read")
    @access.needs(Scope.ORDERS_READ)
    def read() -> dict[str, str]:
        return {"caller": access.caller().name}

    @blueprint.post("/write")
    @access.needs(Scope.ORDERS_WRITE)
    def write() -> dict[str, str]:
        return {"caller": access.caller().name}

    app.register_api(blueprint)
    return app


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    with closing(Database(f"sqlite:///{tmp_path / 'api.db'}")) as database:
        migrations.upgrade(database, CHAIN)
        yield KeyStore(database)


@pytest.fixture
def ring(store: KeyStore) -> Iterator[KeyRing]:
    with closing(KeyRing(store, replace(keyring.PATIENCE, fresh=0.0, impatient=5.0))) as ring:
        yield ring


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    file = tmp_path / "key.pem"
    file.write_bytes(RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    source = PublicKeyFile(file, ["RS256"])
    return Tokens(source, issuer=ISSUER, audience=AUDIENCE, algorithms=["RS256"], customer_claim="customer_id")


Ask = Callable[..., Any]


def asking(app: Flask) -> Ask:
    def ask(path: str = "/any", method: str = "GET", **headers: str) -> Any:
        return app.test_client().open(
            path, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    return ask


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- which header opens which door ------------------------------------------------------------------------------


def test_a_key_opens_in_either_header(store: KeyStore, ring: KeyRing) -> None:
    key, text = store.create("n", ["orders:read"], customer_id="c-1")
    ask = asking(an_app(Guard(ANYWHERE, ring, None)))
    expected = {"caller": f"key {key.id}", "customer": "c-1", "scopes": ["orders:read"]}
    for headers in ({"X_API_Key": text}, bearer(text), {"Authorization": f"bearer   {text} "}):
        assert ask(**headers).get_json() == expected


def test_a_token_opens_beside_the_keys(store: KeyStore, ring: KeyRing, tokens: Tokens) -> None:
    store.create("n", ["admin"])
    ask = asking(an_app(Guard(ANYWHERE, ring, tokens)))
    token = signed(RSA, scope="orders:read admin", customer_id="c-2")
    assert ask(**bearer(token)).get_json() == {
        "caller": "token ann",
        "customer": "c-2",
        "scopes": ["admin", "orders:read"],
    }


def test_of_two_credentials_the_key_decides(store: KeyStore, ring: KeyRing, tokens: Tokens) -> None:
    key, text = store.create("n", ["orders:read"])
    ask = asking(an_app(Guard(ANYWHERE, ring, tokens)))
    assert ask(X_API_Key=text, **bearer("rubbish")).get_json()["caller"] == f"key {key.id}"
    assert ask(X_API_Key="rubbish", **bearer(signed(RSA))).status_code == 401


NO_ERROR = 'Bearer realm="ordersys"'
INVALID = 'Bearer realm="ordersys", error="invalid_token"'


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, NO_ERROR),
        ({"X_API_Key": ""}, NO_ERROR),
        ({"X_API_Key": "rubbish"}, NO_ERROR),
        ({"X_API_Key": "ö\xff"}, NO_ERROR),
        ({"Authorization": "Basic YTpi"}, NO_ERROR),
        ({"Authorization": "Bearer"}, NO_ERROR),
        ({"Authorization": "Bearer rubbish"}, INVALID),
        ({"Authorization": "Bearer a.b.c"}, INVALID),
        ({"Authorization": "Bearer osk_rubbish"}, INVALID),
        (bearer(signed(RSA, exp=1)), INVALID),
    ],
)
def test_without_good_credentials_the_answer_says_what_would_do(
    store: KeyStore,
    ring: KeyRing,
    tokens: Tokens,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    challenge: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    store.create("n", ["admin"])
    for taken in (tokens, None):
        answer = asking(an_app(Guard(ANYWHERE, ring, taken)))(**headers)
        assert (answer.status_code, answer.content_type) == (401, "application/problem+json")
        assert answer.headers["WWW-Authenticate"] == challenge
        assert answer.get_json()["code"] == "unauthenticated"
        for value in (part for header in headers.values() for part in header.split() if len(part) > 10):
            assert value not in answer.get_data(as_text=True) + caplog.text


def test_good_credentials_are_in_no_log(
    store: KeyStore, ring: KeyRing, tokens: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, text = store.create("n", ["orders:read"])
    token = signed(RSA)
    ask = asking(an_app(Guard(ANYWHERE, ring, tokens)))
    for headers in ({"X_API_Key": text}, bearer(text), bearer(token)):
        assert ask("/read", **headers).status_code == 200
        assert ask("/write", "POST", **headers).status_code == 403
    assert f"key {key.id}" in caplog.text
    for secret in (text, text.split("_", 2)[2], token, token.rpartition(".")[2]):
        assert secret not in caplog.text


def test_what_is_public_and_what_is_not_there_needs_nothing(store: KeyStore, ring: KeyRing) -> None:
    store.create("n", ["admin"])
    ask = asking(an_app(Guard(ANYWHERE, ring, None)))
    assert ask("/public").get_json() == {"caller": "address 127.0.0.1"}
    assert ask("/public", X_API_Key="rubbish").status_code == 200
    assert ask("/nowhere").status_code == 404
    assert ask("/read", "DELETE").status_code == 405
    assert ask("/read", "HEAD").status_code == 401


def test_when_nobody_can_tell_it_is_not_the_callers_fault(store: KeyStore, ring: KeyRing) -> None:
    _, text = store.create("n", ["admin"])
    ask = asking(an_app(Guard(ANYWHERE, ring, None)))
    store._database.write(metadata.drop_all)
    answer = ask(X_API_Key=text)
    assert (answer.status_code, answer.get_json()["code"]) == (503, "unavailable")
    assert answer.headers["Retry-After"]
    assert "WWW-Authenticate" not in answer.headers
    assert ask("/public").status_code == 200


# --- scopes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "read", "write"),
    [
        ([], 403, 403),
        ([Scope.STOCK_WRITE], 403, 403),
        ([Scope.ORDERS_READ], 200, 403),
        ([Scope.ORDERS_WRITE], 403, 200),
        ([Scope.ADMIN], 200, 200),
    ],
)
def test_a_scope_opens_what_it_names_and_admin_opens_all(scopes: list[Scope], read: int, write: int) -> None:
    ask = asking(an_app(Fixed(Caller("key 1", frozenset(scopes)))))
    assert (ask("/read").status_code, ask("/write", "POST").status_code) == (read, write)
    assert ask("/any").status_code == 200


def test_a_missing_scope_is_named(caplog: pytest.LogCaptureFixture) -> None:
    answer = asking(an_app(Fixed(Caller("key 1", frozenset()))))("/read")
    said = answer.get_json()
    assert (said["code"], said["metadata"]) == ("permission_denied", {"scope": "orders:read"})
    expected = 'Bearer realm="ordersys", error="insufficient_scope", scope="orders:read"'
    assert answer.headers["WWW-Authenticate"] == expected


def test_the_marks_are_on_the_served_views_for_the_documentation() -> None:
    served = an_app(Open()).view_functions
    marks = {
        name.removeprefix("test."): (getattr(view, "scope", None), getattr(view, "is_public", False))
        for name, view in served.items()
        if name.startswith("test.")
    }
    assert marks == {
        "open_to_all": (None, True),
        "any_caller": (None, False),
        "read": (Scope.ORDERS_READ, False),
        "write": (Scope.ORDERS_WRITE, False),
    }


def test_the_marks_survive_in_either_order() -> None:
    def view() -> None:
        """Nothing."""

    above = access.public(access.needs(Scope.ADMIN)(view))
    below = access.needs(Scope.ADMIN)(access.public(view))
    for each in (above, below):
        assert (each.is_public, each.scope) == (True, Scope.ADMIN)  # type: ignore[attr-defined]


def test_a_guard_that_would_guard_nothing_is_not_built() -> None:
    blueprint = APIBlueprint("test", "test")
    with pytest.raises(TypeError, match=r"needs\(admin\) stands above the route of view"):

        @access.needs(Scope.ADMIN)
        @blueprint.get("/x")
        def view() -> dict[str, str]:
            return {}


# --- customers --------------------------------------------------------------------------------------------------


@contextmanager
def calling(customer_id: str) -> Iterator[None]:
    app = an_app(Fixed(Caller("key 1", frozenset(), customer_id)))
    with app.test_request_context("/any"):
        app.preprocess_request()
        yield


def test_who_is_tied_touches_only_his_own() -> None:
    with calling("c-1"):
        assert [access.customer(wanted) for wanted in ("", "c-1")] == ["c-1", "c-1"]
        for wanted in ("c-2", "C-1", "c-1 ", " "):
            with pytest.raises(errors.PermissionDenied) as raised:
                access.customer(wanted)
            assert raised.value.metadata == {"customer_id": "c-1"}
    with calling(""):
        assert [access.customer(wanted) for wanted in ("", "c-1")] == ["", "c-1"]


def own_keys(customer_id: str, *wanted: str) -> list[str]:
    with calling(customer_id):
        return [access.own_key(key) for key in wanted]


def test_who_is_not_tied_keeps_his_keys_and_no_key_stays_none() -> None:
    assert own_keys("", "", "k", "ö" * 255) == ["", "k", "ö" * 255]
    assert own_keys("c-1", "") == [""]


def test_the_keys_of_customers_never_meet() -> None:
    longest = "k" * fields.MAX_KEY
    asked = [("c-1", "k"), ("c-1", "k2"), ("c-2", "k"), ("c", "-1k"), ("c-1k", ""), ("1 c", "k"), ("c-1", longest)]
    made = [own_keys(customer_id, key or "x")[0] for customer_id, key in asked]
    assert len(set(made)) == len(asked)
    assert made == [own_keys(customer_id, key or "x")[0] for customer_id, key in asked]
    for key in made:
        assert fields.key(key) == []
        assert key.startswith("customer-")
    assert own_keys("c-1", made[0]) != [made[0]]


@pytest.mark.parametrize("wrong", [" ", "k\n", "k" * 256, "\x00"])
def test_a_key_that_would_be_refused_is_refused_for_who_is_tied_too(wrong: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="idempotency_key"):
        own_keys("c-1", wrong)


# --- the open door ----------------------------------------------------------------------------------------------

SOMEWHERE = (
    "0.0.0.0:8080",
    "[::]:8080",
    "10.0.0.1:80",
    "example.org:80",
    "localhost.example.org:80",
    "127.1:80",
    "*:80",
)


@pytest.mark.parametrize("bind", ["127.0.0.1:8080", "127.8.8.8:0", "[::1]:8080", "localhost:8080", "LOCALHOST:80"])
def test_without_a_key_this_machine_may_do_everything(
    ring: KeyRing, caplog: pytest.LogCaptureFixture, bind: str
) -> None:
    guard = Guard(bind, ring, None)
    guard.say_if_open()
    assert [(record.levelname, "the API is open" in record.message) for record in caplog.records] == [("WARNING", True)]
    ask = asking(an_app(guard))
    assert "ordersys keys create" in caplog.text
    assert ask().get_json() == {"caller": "address 127.0.0.1", "customer": "", "scopes": sorted(Scope)}
    assert ask("/write", "POST").status_code == 200


@pytest.mark.parametrize("bind", SOMEWHERE)
def test_without_a_key_other_machines_find_no_api(ring: KeyRing, bind: str) -> None:
    with pytest.raises(errors.UsageError, match=r"`ordersys keys create .*ORDERSYS_API_JWT_JWKS_URL") as raised:
        Guard(bind, ring, None)
    assert bind in raised.value.message


@pytest.mark.parametrize("bind", [LOOPBACK, *SOMEWHERE])
def test_with_a_key_or_tokens_the_door_is_closed_everywhere(
    store: KeyStore, ring: KeyRing, tokens: Tokens, caplog: pytest.LogCaptureFixture, bind: str
) -> None:
    assert asking(an_app(Guard(bind, ring, tokens)))().status_code == 401
    store.revoke(store.create("n", ["admin"])[0].id)  # even a revoked one
    assert asking(an_app(Guard(bind, ring, None)))().status_code == 401
    assert "open" not in caplog.text


def test_the_first_key_closes_the_door(store: KeyStore, ring: KeyRing) -> None:
    ask = asking(an_app(Guard(LOOPBACK, ring, None)))
    assert ask().status_code == 200
    key, text = store.create("n", ["orders:read"])
    assert ask().status_code == 401
    assert ask(X_API_Key=text).get_json()["caller"] == f"key {key.id}"


def test_what_is_sent_through_the_open_door_is_checked(ring: KeyRing) -> None:
    ask = asking(an_app(Guard(LOOPBACK, ring, None)))
    assert ask(X_API_Key="rubbish").status_code == 401
    assert ask(**bearer("a.b.c")).status_code == 401
    assert ask(Authorization="Basic YTpi").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((name, 200) for name in ("localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "127.3.2.1", "")),
        *((name, 401) for name in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", "[::2]")),
        ("[", 401),
    ],
)
def test_a_web_page_cannot_come_in_under_its_own_name(ring: KeyRing, host: str, status: int) -> None:
    guard = Guard(LOOPBACK, ring, None)
    headers: Mapping[str, str] = {"Host": host}
    if status == 200:
        assert guard.identify(headers, "127.0.0.1").may(Scope.ADMIN)
    else:
        with pytest.raises(errors.Unauthenticated, match="only this machine's own names are served"):
            guard.identify(headers, "127.0.0.1")
