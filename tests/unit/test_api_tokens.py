"""Bearer tokens: who signed them, for whom, until when; and an identity provider that is asked seldom or is away."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from identity_provider import AUDIENCE, ISSUER, RSA, Provider, claims, jwk, signed

from ordersys import settings
from ordersys.api import tokens
from ordersys.api.keys import Scope
from ordersys.api.tokens import KeySet, PublicKeyFile, Tokens, tokens_of
from ordersys.core import errors

OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - to be refused
EC = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()


def raw(header: Any, payload: Any, signature: bytes = b"x") -> str:
    """A token that no library would make."""
    parts = (each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, payload))
    return ".".join(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in (*parts, signature))


def pem(key: Any) -> bytes:
    found: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return found


def key_file(folder: Path, content: bytes) -> Path:
    file = folder / "key.pem"
    file.write_bytes(content)
    return file


def checker(source: tokens.KeySource, *algorithms: str) -> Tokens:
    wanted = algorithms or ("RS256", "ES256")
    return Tokens(source, issuer=ISSUER, audience=AUDIENCE, algorithms=wanted, customer_claim="customer_id")


@pytest.fixture
def rsa_only(tmp_path: Path) -> Tokens:
    return checker(PublicKeyFile(key_file(tmp_path, pem(RSA)), ["RS256"]), "RS256")


def refusal(checks: Tokens, token: str) -> str:
    """Why it is refused; nothing of the token is in the error, nor in what caused it."""
    with pytest.raises(errors.Unauthenticated) as raised:
        checks.check(token)
    assert raised.value.__cause__ is None
    assert raised.value.metadata == {}
    assert all(part not in raised.value.message for part in token.split(".") if len(part) > 8)
    return raised.value.message


# --- what a token says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA, "RS256"), (RSA, "PS512"), (EC, "ES256"), (P384, "ES384"), (ED, "EdDSA")]
)
def test_a_good_token_says_who_sends_it(tmp_path: Path, key: Any, algorithm: str) -> None:
    checks = checker(PublicKeyFile(key_file(tmp_path, pem(key)), [algorithm]), algorithm)
    said = checks.check(signed(key, algorithm))
    assert (said.subject, said.scopes, said.customer_id) == ("ann", {Scope.ORDERS_READ}, "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"scope": "orders:read orders:write"}, {"orders:read", "orders:write"}),
        ({"scope": "openid profile stock:write email"}, {"stock:write"}),
        ({"scope": None, "scp": ["orders:read", "admin", "more"]}, {"orders:read", "admin"}),
        ({"scope": None, "scp": "orders:write"}, {"orders:write"}),
        ({"scope": "orders:read", "scp": ["admin"]}, {"orders:read", "admin"}),
        ({"scope": None}, set()),
        ({"scope": ""}, set()),
        ({"scope": "orders:reader ORDERS:READ orders"}, set()),
        ({"scope": ["orders:read", 1, None, ["admin"]]}, {"orders:read"}),
        ({"scope": 7}, set()),
        ({"scope": {"admin": True}}, set()),
        ({"scope": True, "scp": 1.5}, set()),
    ],
)
def test_scopes(rsa_only: Tokens, given: dict[str, Any], expected: set[str]) -> None:
    assert rsa_only.check(signed(**given)).scopes == expected


def test_a_token_may_be_tied_to_a_customer(rsa_only: Tokens) -> None:
    assert rsa_only.check(signed(customer_id="c-1")).customer_id == "c-1"


@pytest.mark.parametrize("wrong", ["", " ", 7, ["c-1"], {}, True, "c\n1", "c" * 129])
def test_a_tie_that_cannot_be_read_does_not_become_a_token_for_everybody(rsa_only: Tokens, wrong: Any) -> None:
    assert refusal(rsa_only, signed(customer_id=wrong)) == "the token's claim customer_id is not a customer id"


def test_a_tie_to_null_is_no_tie_that_can_be_read(rsa_only: Tokens) -> None:
    token = jwt.encode({**claims(), "customer_id": None}, RSA, "RS256")
    assert "customer_id" in refusal(rsa_only, token)


def test_a_machine_may_be_named_by_its_client_id(rsa_only: Tokens) -> None:
    assert rsa_only.check(signed(sub=None, client_id="robot")).subject == "robot"
    assert "no claim sub" in refusal(rsa_only, signed(sub=None))
    assert "no claim sub" in refusal(rsa_only, signed(sub=""))


def test_a_name_fits_into_a_log_line(rsa_only: Tokens) -> None:
    name = rsa_only.check(signed(sub="a\nb\x1b[31m" + "c" * 1000)).subject
    assert name.startswith(r"a\nb\x1b[31mc")
    assert len(name) == 200


# --- what makes a token bad -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"exp": int(time.time()) - 60}, "the token has expired"),
        ({"exp": None}, "the token has no claim exp"),
        ({"exp": "soon"}, "the token is not valid"),
        ({"nbf": int(time.time()) + 600}, "the token is not valid yet (nbf or iat)"),
        ({"iat": int(time.time()) + 600}, "the token is not valid yet (nbf or iat)"),
        ({"aud": "somebody-else"}, "the token is for somebody else (aud)"),
        ({"aud": ["a", "b"]}, "the token is for somebody else (aud)"),
        ({"aud": None}, "the token has no claim aud"),
        ({"iss": "https://evil.example/"}, "the token is of another issuer (iss)"),
        ({"iss": ISSUER.rstrip("/")}, "the token is of another issuer (iss)"),
        ({"iss": None}, "the token has no claim iss"),
    ],
)
def test_claims_that_do_not_hold(rsa_only: Tokens, changes: dict[str, Any], complaint: str) -> None:
    assert refusal(rsa_only, signed(**changes)) == complaint


def test_one_of_several_audiences_is_enough_and_clocks_may_differ_a_little(rsa_only: Tokens) -> None:
    now = int(time.time())
    rsa_only.check(signed(aud=["other", AUDIENCE], exp=now - 3, nbf=now + 3))


def test_another_ones_signature_is_wrong(rsa_only: Tokens) -> None:
    assert refusal(rsa_only, signed(OTHER_RSA)) == "the token's signature is wrong"


def test_a_changed_token_is_wrong(rsa_only: Tokens) -> None:
    header, _, signature = signed().split(".")
    better = base64.urlsafe_b64encode(json.dumps(claims(scope="admin")).encode()).rstrip(b"=").decode()
    assert refusal(rsa_only, f"{header}.{better}.{signature}") == "the token's signature is wrong"


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "", None, ["RS256"], {}, 7])
def test_a_token_that_nobody_signed(rsa_only: Tokens, algorithm: Any) -> None:
    for signature in (b"", b"x"):
        assert refusal(rsa_only, raw({"alg": algorithm}, claims(), signature)) == "the token must be signed with RS256"


@pytest.mark.parametrize("form", [pem(RSA), pem(RSA).strip(), RSA.public_key().public_bytes(
    Encoding.DER, PublicFormat.SubjectPublicKeyInfo)])  # fmt: skip
def test_the_public_key_is_no_secret_to_sign_with(rsa_only: Tokens, form: bytes) -> None:
    unsigned = raw({"alg": "HS256", "typ": "JWT"}, claims(scope="admin")).rpartition(".")[0]
    mac = base64.urlsafe_b64encode(hmac.digest(form, unsigned.encode(), hashlib.sha256)).rstrip(b"=").decode()
    assert refusal(rsa_only, f"{unsigned}.{mac}") == "the token must be signed with RS256"


def test_an_algorithm_that_was_not_configured_is_not_taken(tmp_path: Path, rsa_only: Tokens) -> None:
    assert refusal(rsa_only, signed(algorithm="RS512")) == "the token must be signed with RS256"
    both = checker(PublicKeyFile(key_file(tmp_path, pem(RSA)), ["RS256", "ES256"]))
    assert refusal(both, signed(EC, "ES256")) == "the token is signed with a key that is not known here"


@pytest.mark.parametrize(
    "rubbish",
    [
        *("x", "a.b", "a.b.c", "....", ".", "a.b.c.d.e", "ä.ö.ü", "eyJhbGciOiJSUzI1NiJ9..", "A" * 60_000),
        raw(b"[" * 40_000, {}),
        raw(b'{"alg": "RS256", "n": ' + b"9" * 40_000 + b"}", {}),
        raw(b"\xff\xfe", {}),
        raw([], {}),
        raw({"alg": "RS256", "kid": 7}, {}),
        raw({"alg": "RS256", "crit": ["exp"]}, {}),
        raw({"alg": "RS256", "b64": False, "crit": ["b64"]}, b""),
    ],
)
def test_rubbish(rsa_only: Tokens, rubbish: str) -> None:
    refusal(rsa_only, rubbish)


def test_a_token_with_a_condition_that_nobody_here_knows_is_refused(rsa_only: Tokens) -> None:
    """RFC 7515 section 4.1.11."""
    token = jwt.encode(claims(), RSA, "RS256", headers={"x-only-on": "sunday", "crit": ["x-only-on"]})
    refusal(rsa_only, token)


@pytest.mark.parametrize("payload", [b"[]", b"x", b"[" * 100_000, b'"text"', b'{"exp": NaN}', b'{"exp": 1e999}'])
def test_a_signed_payload_that_is_no_set_of_claims(rsa_only: Tokens, payload: bytes) -> None:
    refusal(rsa_only, jwt.PyJWS().encode(payload, RSA, "RS256"))


# --- the public key file ----------------------------------------------------------------------------------------


def private(key: Any) -> bytes:
    found: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return found


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a public key in PEM"),
        (b"ssh-rsa AAAA", "not a public key in PEM"),
        (private(RSA), "not a public key in PEM"),
        (pem(P384), "its key serves none of RS256, ES256"),
        (pem(WEAK_RSA), "an RSA key needs 2048 bits"),
    ],
)
def test_a_file_that_holds_no_key_that_would_do(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(errors.UsageError, match=complaint) as raised:
        PublicKeyFile(key_file(tmp_path, content), ["RS256", "ES256"])
    assert "PRIVATE" not in raised.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match=r"nowhere\.pem: No such file"):
        PublicKeyFile(tmp_path / "nowhere.pem", ["RS256"])


# --- the key set of an identity provider ------------------------------------------------------------------------


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider(jwk(RSA, "1"))
    yield provider
    provider.go_away()


Build = Callable[..., Tokens]


@pytest.fixture
def checking(provider: Provider) -> Iterator[Build]:
    """Checks with the provider's keys; some patience may be changed."""
    made = []

    def build(*, look_again: float = 60, algorithms: tuple[str, ...] = (), **patience: float) -> Tokens:
        made.append(KeySet(provider.url, replace(tokens.PATIENCE, **patience), look_again))
        return checker(made[-1], *algorithms)

    yield build
    provider.flows.set()
    for each in made:
        each.close()


def test_the_set_is_fetched_once_for_many(provider: Provider, checking: Build) -> None:
    checks = checking()
    with ThreadPoolExecutor(20) as callers:
        said = list(callers.map(checks.check, [signed()] * 100))
    assert {each.subject for each in said} == {"ann"}
    assert provider.asked == 1


def test_every_kind_of_key_in_one_set(provider: Provider, checking: Build) -> None:
    provider.document = {"keys": [
        {"kty": "oct", "kid": "s", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kty": "RSA", "kid": "empty"},
        {"kty": "future", "kid": "f"},
        "text", None, 7,
        jwk(OTHER_RSA, "enc", use="enc"),
        jwk(RSA, "1", use="sig"), jwk(EC, "2"), jwk(P384, "3"), jwk(ED, "4"), jwk(OTHER_RSA, "5", alg="RS512"),
    ]}  # fmt: skip
    checks = checking(algorithms=("RS256", "RS512", "ES256", "ES384", "EdDSA", "HS256"))
    for key, algorithm, kid in [
        (RSA, "RS256", "1"), (EC, "ES256", "2"), (P384, "ES384", "3"), (ED, "EdDSA", "4"), (OTHER_RSA, "RS512", "5"),
    ]:  # fmt: skip
        assert checks.check(signed(key, algorithm, kid)).subject == "ann"
    unknown = "the token is signed with a key that is not known here"
    assert refusal(checks, signed(OTHER_RSA, "RS256", "5")) == unknown  # made for RS512
    assert refusal(checks, signed(OTHER_RSA, "RS256", "enc")) == unknown  # made for encryption
    assert refusal(checks, signed(EC, "ES256", "1")) == unknown
    assert refusal(checks, signed(b"secret" * 8, "HS256", "s")) == unknown
    assert refusal(checks, signed(EC, "ES256", "3")) == unknown  # a key of another curve


def test_a_token_that_names_no_key_may_be_signed_with_any(provider: Provider, checking: Build) -> None:
    provider.document = {"keys": [jwk(OTHER_RSA, "1"), jwk(RSA, None)]}
    checks = checking()
    assert checks.check(signed(RSA, kid=None)).subject == "ann"
    assert checks.check(signed(OTHER_RSA, kid=None)).subject == "ann"
    third = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert refusal(checks, signed(third, kid=None)) == "the token's signature is wrong"


def test_a_storm_of_unknown_keys_does_not_reach_the_provider(provider: Provider, checking: Build) -> None:
    checks = checking(look_again=60)
    checks.check(signed())
    with ThreadPoolExecutor(20) as callers:
        storm = [callers.submit(refusal, checks, signed(OTHER_RSA, kid=str(number))) for number in range(2, 202)]
        assert {each.result(20) for each in storm} == {"the token is signed with a key that is not known here"}
    assert provider.asked == 1


def test_in_a_long_storm_the_provider_is_asked_now_and_then(provider: Provider, checking: Build) -> None:
    checks = checking(look_again=0.5)
    began = time.monotonic()
    while time.monotonic() - began < 1.2:
        refusal(checks, signed(OTHER_RSA, kid="unknown"))
    assert 2 <= provider.asked <= 4


def test_a_new_key_is_found_when_it_is_first_used(provider: Provider, checking: Build) -> None:
    checks = checking(look_again=0)
    checks.check(signed())
    provider.document = {"keys": [jwk(RSA, "1"), jwk(OTHER_RSA, "2")]}
    assert checks.check(signed(OTHER_RSA, kid="2")).subject == "ann"
    assert checks.check(signed()).subject == "ann"
    assert provider.asked == 2


def test_a_key_that_was_withdrawn_is_of_no_use_any_more(provider: Provider, checking: Build) -> None:
    checks = checking(fresh=0, look_again=0)
    checks.check(signed())
    provider.document = {"keys": [jwk(OTHER_RSA, "2")]}
    assert refusal(checks, signed()) == "the token is signed with a key that is not known here"


def test_without_the_provider_known_keys_go_on_and_unknown_ones_are_not_refused(
    provider: Provider, checking: Build
) -> None:
    checks = checking(fresh=0, look_again=0, pause=0)
    checks.check(signed())
    provider.go_away()
    assert checks.check(signed()).subject == "ann"
    with pytest.raises(errors.Unavailable, match="the key set at http://127"):
        checks.check(signed(OTHER_RSA, kid="2"))


def test_a_provider_that_never_answered_is_unavailable_and_not_asked_by_every_token(
    provider: Provider, checking: Build
) -> None:
    provider.status = 500
    checks = checking(pause=60)
    for _ in range(20):
        with pytest.raises(errors.Unavailable, match="HTTP Error 500"):
            checks.check(signed())
    assert provider.asked == 1


def test_a_provider_that_hangs_holds_nobody_for_long(provider: Provider, checking: Build) -> None:
    checks = checking(fresh=0, impatient=0.1, patient=0.3)
    checks.check(signed())
    provider.flows.clear()
    began = time.monotonic()
    assert [checks.check(signed()).subject for _ in range(20)] == ["ann"] * 20
    assert time.monotonic() - began < 1
    fresh = checking(patient=0.3)
    with pytest.raises(errors.Unavailable, match=r"no answer within 0\.3 s"):
        fresh.check(signed())


@pytest.mark.parametrize(
    "document",
    [
        *(b"", b"not json", b"[" * 50_000, b"\xff", b'{"keys": [' + b" " * 1_100_000 + b"]}"),
        *([], {}, {"keys": {}}, {"keys": []}, {"keys": None}, {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}),
    ],
)
def test_a_document_that_is_no_key_set_is_the_providers_failure(
    provider: Provider, checking: Build, document: Any
) -> None:
    provider.document = document
    with pytest.raises(errors.Unavailable, match="the key set at"):
        checking().check(signed())


def test_the_provider_cannot_send_us_elsewhere(provider: Provider, checking: Build) -> None:
    provider.status = 302
    with pytest.raises(errors.Unavailable, match="302"):
        checking().check(signed())
    assert provider.asked == 1


def test_the_real_patience_looks_for_unknown_keys_seldom() -> None:
    assert tokens.LOOK_AGAIN >= 5
    assert tokens.PATIENCE.pause >= 5


# --- the settings -----------------------------------------------------------------------------------------------

GIVEN = {
    "jwks_url": "https://id.example/jwks",
    "public_key_file": "",
    "issuer": ISSUER,
    "audience": AUDIENCE,
    "algorithms": ("RS256",),
    "customer_claim": "customer_id",
}


def build(**changes: Any) -> Tokens | None:
    return tokens_of(**{**GIVEN, **changes})


def test_without_settings_no_tokens_are_taken() -> None:
    assert build(jwks_url="", issuer="", audience="") is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"jwks_url": ""}, "ORDERSYS_API_JWT_ISSUER alone takes no tokens"),
        ({"jwks_url": "", "issuer": ""}, "ORDERSYS_API_JWT_AUDIENCE alone takes no tokens"),
        ({"issuer": ""}, "ORDERSYS_API_JWT_ISSUER must be set, too"),
        ({"audience": ""}, "ORDERSYS_API_JWT_AUDIENCE must be set, too"),
        ({"public_key_file": "key.pem"}, "not both"),
        ({"jwks_url": "", "public_key_file": "/nowhere.pem"}, "/nowhere.pem: No such file"),
    ],
)
def test_half_of_the_settings_is_a_mistake(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(errors.UsageError, match=complaint):
        build(**changes)


def test_keys_that_come_without_tls_are_warned_of_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    made = build(jwks_url="http://user:s3cret@id.example/jwks")
    assert made is not None
    made.close()
    assert "http://user:***@id.example/jwks is not https" in caplog.text
    caplog.clear()
    secure = build()
    assert secure is not None
    secure.close()
    assert caplog.text == ""


@pytest.mark.parametrize("wrong", ["none", "HS256", "RS256,HS512", "rs256", "RS257", "", ","])
def test_algorithms_that_would_let_anybody_in(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("ORDERSYS_API_JWT_ALGORITHMS", wrong)
    with pytest.raises(errors.UsageError, match=r"ORDERSYS_API_JWT_ALGORITHMS: .*there are RS256, "):
        settings.load()


def test_algorithms_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load().api_jwt_algorithms == ("RS256", "ES256")
    monkeypatch.setenv("ORDERSYS_API_JWT_ALGORITHMS", "PS256, EdDSA")
    assert settings.load().api_jwt_algorithms == ("PS256", "EdDSA")


@pytest.mark.parametrize(
    "wrong", ["id.example/jwks", "file:///etc/passwd", "ftp://id.example/", "https://", "https:///x"]
)
def test_a_url_that_is_not_one_of_the_web(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("ORDERSYS_API_JWT_JWKS_URL", wrong)
    with pytest.raises(errors.UsageError, match="ORDERSYS_API_JWT_JWKS_URL: expected https://"):
        settings.load()


def test_the_url_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSYS_API_JWT_JWKS_URL", "https://user:s3cret@id.example/jwks")
    chosen = settings.load()
    shown = {name: value for name, value, _ in settings.table(chosen)}
    assert shown["ORDERSYS_API_JWT_JWKS_URL"] == "https://user:***@id.example/jwks"
    assert "s3cret" not in repr(chosen)
