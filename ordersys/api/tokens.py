"""Bearer tokens: JSON Web Tokens (RFC 7519) of somebody else's identity provider, checked as RFC 8725 asks.

The algorithms are fixed by configuration, a key serves only the algorithms it was made for, and issuer, audience and
expiry are required. The provider is asked seldom: its key set is remembered, and a key that is not in it is looked for
at most once in a few seconds, whatever anybody sends.
"""

import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ordersys import __version__
from ordersys.api.keys import Scope
from ordersys.api.remembered import Patience, Remembered
from ordersys.core import display, errors, fields

logger = logging.getLogger(__name__)

LEEWAY = 10.0  # seconds that the clocks of the provider and this machine may differ
PATIENCE = Patience(fresh=300.0, stale=86_400.0, impatient=0.5, patient=5.0, pause=5.0)
LOOK_AGAIN = 5.0  # seconds between two looks for keys that are not there
_FETCH_SECONDS = 4.0
_MAX_BYTES = 1024 * 1024
_MAX_KEYS = 100
_MIN_RSA_BITS = 2048  # RFC 7518 section 3.3
_MAX_NAME = 200
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_OF_CURVE = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """What a token says of who sends it."""

    subject: str
    scopes: frozenset[Scope]
    customer_id: str = ""


class KeySource(Protocol):
    """Whose signatures are believed."""

    def keys(self, key_id: str | None, algorithm: str) -> Sequence[PublicKey]:
        """Those that may have signed with this algorithm; none = nobody may. Raises Unavailable when it cannot tell."""

    def close(self) -> None: ...


class Tokens:
    """Checks tokens; safe from any thread."""

    def __init__(
        self, source: KeySource, *, issuer: str, audience: str, algorithms: Sequence[str], customer_claim: str
    ) -> None:
        self._source = source
        self._issuer = issuer
        self._audience = audience
        self._algorithms = tuple(algorithms)
        self._customer_claim = customer_claim

    def check(self, token: str) -> Bearer:
        """Who sends this token; raises Unauthenticated, and Unavailable when its key cannot be had now."""
        # Nothing of the token or of what PyJWT says about it gets into our errors, nor their causes into a log.
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise errors.Unauthenticated("the bearer token is neither an API key nor a JSON Web Token") from None
        algorithm = header.get("alg")
        if algorithm not in self._algorithms:
            raise errors.Unauthenticated(f"the token must be signed with {' or '.join(self._algorithms)}")
        return self._bearer(self._claims(token, self._source.keys(header.get("kid"), algorithm), algorithm))

    def close(self) -> None:
        self._source.close()

    def _claims(self, token: str, keys: Sequence[PublicKey], algorithm: str) -> dict[str, Any]:
        complaint = "the token is signed with a key that is not known here"
        for key in keys:
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    audience=self._audience,
                    issuer=self._issuer,
                    leeway=LEEWAY,
                    options={"require": ["exp", "iss", "aud"]},
                )
            except jwt.InvalidSignatureError:
                complaint = "the token's signature is wrong"
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
                raise errors.Unauthenticated(_complaint(error)) from None
        raise errors.Unauthenticated(complaint)

    def _bearer(self, claims: dict[str, Any]) -> Bearer:
        # RFC 9068 wants a subject; some providers name only the client of a machine's token.
        named = (claims.get(claim) for claim in ("sub", "client_id", "azp"))
        subject = next((each for each in named if isinstance(each, str) and each), "")
        if not subject:
            raise errors.Unauthenticated("the token does not say whose it is: it has no claim sub")
        customer_id = ""
        if self._customer_claim in claims:
            customer_id = claims[self._customer_claim]
            # A tie that cannot be read must not become no tie.
            if not isinstance(customer_id, str) or fields.text(self._customer_claim, customer_id):
                raise errors.Unauthenticated(f"the token's claim {self._customer_claim} is not a customer id")
        return Bearer(subject=display.printable(subject)[:_MAX_NAME], scopes=_scopes(claims), customer_id=customer_id)


def tokens_of(
    *,
    jwks_url: str,
    public_key_file: str,
    issuer: str,
    audience: str,
    algorithms: Sequence[str],
    customer_claim: str,
) -> Tokens | None:
    """The tokens that the ORDERSYS_API_JWT_* settings of these names ask for; None when they ask for none.

    Raises UsageError when they ask for half of it.
    """
    names = {"ISSUER": issuer, "AUDIENCE": audience}
    if not jwks_url and not public_key_file:
        if given := [f"ORDERSYS_API_JWT_{name}" for name, value in names.items() if value]:
            raise errors.UsageError(
                f"{given[0]} alone takes no tokens: set ORDERSYS_API_JWT_JWKS_URL or ORDERSYS_API_JWT_PUBLIC_KEY_FILE"
            )
        return None
    if jwks_url and public_key_file:
        raise errors.UsageError("set ORDERSYS_API_JWT_JWKS_URL or ORDERSYS_API_JWT_PUBLIC_KEY_FILE, not both")
    for name, value in names.items():
        if not value:
            raise errors.UsageError(
                f"ORDERSYS_API_JWT_{name} must be set, too: without it a token that was made for another service or by"
                " another issuer would do here"
            )
    if jwks_url.startswith("http:"):
        logger.warning("%s is not https: who can change what comes from it can make tokens", display.masked(jwks_url))
    source = KeySet(jwks_url) if jwks_url else PublicKeyFile(Path(public_key_file).expanduser(), algorithms)
    return Tokens(source, issuer=issuer, audience=audience, algorithms=algorithms, customer_claim=customer_claim)


def _complaint(error: Exception) -> str:
    match error:
        case jwt.ExpiredSignatureError():
            return "the token has expired"
        case jwt.ImmatureSignatureError():
            return "the token is not valid yet (nbf or iat)"
        case jwt.InvalidAudienceError():
            return "the token is for somebody else (aud)"
        case jwt.InvalidIssuerError():
            return "the token is of another issuer (iss)"
        case jwt.MissingRequiredClaimError():
            return f"the token has no claim {error.claim}"
    return "the token is not valid"


def _scopes(claims: dict[str, Any]) -> frozenset[Scope]:
    """`scope` (RFC 8693 section 4.2: text separated by spaces) and `scp` (a list, or such text); only those we know."""
    found: set[str] = set()
    for claim in ("scope", "scp"):
        value = claims.get(claim)
        if isinstance(value, str):
            value = value.split()
        found |= {each for each in value if isinstance(each, str)} if isinstance(value, list) else set()
    return frozenset(scope for scope in Scope if scope.value in found)


def _fits(key: object, algorithm: str) -> bool:
    """May this key verify this algorithm?"""
    if isinstance(key, RSAPublicKey):
        return algorithm[:2] in ("RS", "PS") and key.key_size >= _MIN_RSA_BITS
    if isinstance(key, EllipticCurvePublicKey):
        return key.curve.name == _CURVES.get(algorithm)
    return isinstance(key, Ed25519PublicKey) and algorithm == "EdDSA"


class PublicKeyFile:
    """One public key in PEM; raises UsageError when the file holds none, or none for these algorithms."""

    def __init__(self, file: Path, algorithms: Sequence[str]) -> None:
        try:
            self._key = load_pem_public_key(file.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            reason = (
                error.strerror if isinstance(error, OSError) else "it is not a public key in PEM (BEGIN PUBLIC KEY)"
            )
            raise errors.UsageError(f"the public key file {file}: {reason}") from None
        if not any(_fits(self._key, algorithm) for algorithm in algorithms):
            raise errors.UsageError(
                f"the public key file {file}: its key serves none of {', '.join(algorithms)};"
                f" an RSA key needs {_MIN_RSA_BITS} bits, an EC key the curve of its algorithm (ES256: P-256)"
            )

    def keys(self, _key_id: str | None, algorithm: str) -> Sequence[PublicKey]:
        return [self._key] if _fits(self._key, algorithm) else []  # type: ignore[list-item]

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class _SetKey:
    id: str | None
    algorithm: str | None  # None = any that fits
    key: PublicKey


class KeySet:
    """A JSON Web Key Set (RFC 7517) at a URL of the identity provider."""

    def __init__(self, url: str, patience: Patience = PATIENCE, look_again: float = LOOK_AGAIN) -> None:
        self._url = url
        self._look_again = look_again
        self._set: Remembered[str, Sequence[_SetKey]] = Remembered("token keys", _fetch, patience)

    def keys(self, key_id: str | None, algorithm: str) -> Sequence[PublicKey]:
        found = _matching(self._set.get(self._url), key_id, algorithm)
        return found or _matching(self._set.get(self._url, self._look_again), key_id, algorithm)

    def close(self) -> None:
        self._set.close()


def _matching(known: Sequence[_SetKey], key_id: str | None, algorithm: str) -> Sequence[PublicKey]:
    return [
        each.key
        for each in known
        if key_id in (None, each.id) and each.algorithm in (None, algorithm) and _fits(each.key, algorithm)
    ]


def _fetch(url: str) -> Sequence[_SetKey]:
    """The usable keys of the set; raises Unavailable when it cannot be had or holds none."""
    where = f"the key set at {display.masked(url)}"
    try:
        found = _usable(json.loads(_read(url)))
    except urllib.error.HTTPError as error:
        error.close()
        raise errors.Unavailable(f"{where}: {error}", metadata={"dependency": "identity provider"}) from None
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        raise errors.Unavailable(f"{where}: {error}", metadata={"dependency": "identity provider"}) from error
    if not found:
        raise errors.Unavailable(f"{where} holds no key that can be used", metadata={"dependency": "identity provider"})
    return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What was configured is asked and nobody else: a redirect could lead away from https."""

    def redirect_request(self, *_: object) -> None:
        return None


def _read(url: str) -> bytes:
    request = urllib.request.Request(  # noqa: S310 - the settings allow https and http only
        url, headers={"Accept": "application/json", "User-Agent": f"ordersys/{__version__}"}
    )
    deadline = time.monotonic() + _FETCH_SECONDS
    body = b""
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=_FETCH_SECONDS) as response:
        while chunk := response.read1(64 * 1024):
            body += chunk
            if len(body) > _MAX_BYTES:
                raise ValueError(f"more than {_MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError("it takes too long to arrive")
    return body


def _usable(document: Any) -> Sequence[_SetKey]:
    """The signing keys of the document; others are passed over, for a set may hold what this version does not know."""
    listed = document.get("keys") if isinstance(document, dict) else None
    found = []
    for each in listed if isinstance(listed, list) else ():
        if not isinstance(each, dict) or each.get("use", "sig") != "sig":
            continue
        made_for = "RS256" if each.get("kty") == "RSA" else _OF_CURVE.get(str(each.get("crv")))
        if made_for is None:
            continue
        try:
            key = jwt.PyJWK(each, made_for).key
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
            continue
        if isinstance(key, PublicKey):
            found.append(_SetKey(each.get("kid"), each.get("alg"), key))
    return found[:_MAX_KEYS]
