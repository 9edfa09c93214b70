"""Who calls, and what they may do: API keys, bearer tokens, and the customer whose orders alone they touch."""

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from flask import Flask, g, request

from ordersys.api import keys
from ordersys.api.keyring import KeyRing
from ordersys.api.keys import Scope as Scope  # noqa: PLC0414 - the other files of this room know it from here
from ordersys.api.tokens import Tokens
from ordersys.core import errors, fields
from ordersys.core.tls import is_this_machine

View = TypeVar("View", bound=Callable[..., Any])

KEY_HEADER = "X-API-Key"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent this request; `name` is for logs and rate limits, `customer_id` "" sees every customer's orders."""

    name: str
    scopes: frozenset[Scope]
    customer_id: str = ""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


class Access(Protocol):
    """Finds out who calls."""

    def identify(self, headers: Any, address: str) -> Caller:
        """The caller of a request with these headers from this address; raises Unauthenticated or Unavailable."""


class Open:
    """Nobody has to say who they are: for a loopback address only."""

    def identify(self, headers: Any, address: str) -> Caller:
        return Caller(f"address {address}", frozenset(Scope))


class Guard:
    """API keys and tokens; while there has never been a key and no tokens are taken, this machine may do everything.

    `bind` is where the API listens. Raises UsageError when it would be open to other machines, and Unavailable when
    the database of the keys cannot be asked.
    """

    def __init__(self, bind: str, key_ring: KeyRing, tokens: Tokens | None) -> None:
        self._keys = key_ring
        self._tokens = tokens
        self._within = is_this_machine(bind.rpartition(":")[0].strip("[]"))
        self._began_open = self._is_open()
        if self._began_open and not self._within:
            raise errors.UsageError(
                f"without a key the API would be open to everybody on {bind}: make one first with"
                " `ordersys keys create --name NAME --scope SCOPE`, or set ORDERSYS_API_JWT_JWKS_URL or"
                " ORDERSYS_API_JWT_PUBLIC_KEY_FILE, or listen on 127.0.0.1"
            )

    def say_if_open(self) -> None:
        """Warn whoever started the API that it asks nobody who they are."""
        if self._began_open:
            logger.warning(
                "the API is open: there is no API key yet, so that everybody on this machine may do everything;"
                " `ordersys keys create` makes the first one and closes the API within seconds"
            )

    def identify(self, headers: Mapping[str, str], address: str) -> Caller:
        """A key in `X-API-Key` goes first; what was sent is checked even while the API is open."""
        scheme, _, credentials = headers.get("Authorization", "").partition(" ")
        bearer = credentials.strip() if scheme.lower() == "bearer" else ""
        key = headers.get(KEY_HEADER, "") or (bearer if bearer.startswith(keys.PREFIX) else "")
        if key:
            found = self._keys.find(key)
            return Caller(f"key {found.id}", found.scopes, found.customer_id)
        if bearer:
            if self._tokens is None:
                raise errors.Unauthenticated("this API takes no tokens but its own keys")
            said = self._tokens.check(bearer)
            return Caller(f"token {said.subject}", said.scopes, said.customer_id)
        if not self._within or not self._is_open():
            raise errors.Unauthenticated(f"send an API key in {KEY_HEADER}, or a token as Authorization: Bearer")
        # A web page may have its name resolved to this machine (DNS rebinding): only the browser's Host tells.
        host = _host(headers.get("Host", ""))
        if host and not is_this_machine(host):
            raise errors.Unauthenticated(f"without a key only this machine's own names are served, not {host!r:.100}")
        return Caller(f"address {address}", frozenset(Scope))

    def reachable(self) -> bool:
        """True when the database of the keys answers; raises Unavailable when it does not."""
        return self._keys.reachable()

    def _is_open(self) -> bool:
        return self._tokens is None and not self._keys.in_use()


def _host(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return header


def caller() -> Caller:
    """Who sent the present request; for a `public` view, and where nobody could be made out, the bare address."""
    found: Caller = g.caller
    return found


def register(app: Flask, access: Access) -> None:
    """From here on every request says who sends it, but those for a view that is `public`."""

    def identify() -> None:
        g.caller = Caller(f"address {request.remote_addr}", frozenset())
        view = app.view_functions.get(request.endpoint or "")
        if view is None or is_public(view):  # an unknown path is a 404 for everybody
            return
        g.caller = access.identify(request.headers, request.remote_addr or "")

    app.before_request(identify)


def public(view: View) -> View:
    """Anybody may call this view, without credentials."""
    view.is_public = True  # type: ignore[attr-defined]
    return view


def is_public(view: object) -> bool:
    """Whether anybody may call it; None, no view at all, is not for anybody."""
    return getattr(view, "is_public", False)


def needs(scope: Scope) -> Callable[[View], View]:
    """Let only callers with this scope into the view; raises PermissionDenied. Stands below the route's decorator.

    The view tells it as `view.scope`.
    """

    def wrap(view: View) -> View:
        # flask-openapi3 keeps the served function on the one it was given: it would go on serving that one, unguarded.
        if hasattr(view, "view"):
            raise TypeError(f"needs({scope}) stands above the route of {view.__name__}: it guards nothing there")

        @functools.wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if not caller().may(scope):
                raise errors.PermissionDenied(f"this needs the scope {scope}", {"scope": scope})
            return view(*args, **kwargs)

        guarded.scope = scope  # type: ignore[attr-defined]
        return cast("View", guarded)

    return wrap


def customer(wanted: str) -> str:
    """The customer whose orders the caller asks for; one who is tied to a customer gets that one, or PermissionDenied.

    `wanted` "" means everybody's, or the caller's own.
    """
    tied = caller().customer_id
    if tied and wanted not in ("", tied):
        raise errors.PermissionDenied(f"these credentials are for customer {tied!r} only", {"customer_id": tied})
    return tied or wanted


def own_key(key: str) -> str:
    """The idempotency key to use for the one that the caller sent.

    Keys of callers who are tied to a customer are kept apart: two customers who choose the same one do not meet, and
    none can find out which ones another has used. Raises InvalidArgument.
    """
    tied = caller().customer_id
    if not tied or not key:
        return key
    fields.refuse(fields.key(key))
    return "customer-" + hashlib.sha256(f"{len(tied)} {tied}{key}".encode()).hexdigest()
