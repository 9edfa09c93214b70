"""Who calls, and what they may do: API keys, bearer tokens, and the customer whose orders alone they touch."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar, cast

from flask import Flask, g, request

from ordersys.core import errors

View = TypeVar("View", bound=Callable[..., Any])


class Scope(StrEnum):
    """What a key or token may be good for."""

    ORDERS_READ = "orders:read"
    ORDERS_WRITE = "orders:write"
    STOCK_WRITE = "stock:write"
    ADMIN = "admin"  # includes all others


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
        """The caller of a request with these headers from this address; raises Unauthenticated."""


class Open:
    """Nobody has to say who they are: for a loopback address only."""

    def identify(self, headers: Any, address: str) -> Caller:
        return Caller(f"address {address}", frozenset(Scope))


def caller() -> Caller:
    """Who sent the present request."""
    found: Caller = g.caller
    return found


def register(app: Flask, access: Access) -> None:
    """From here on every request says who sends it, but those for a view that is `public`."""

    def identify() -> None:
        view = app.view_functions.get(request.endpoint or "")
        if view is None or getattr(view, "is_public", False):  # an unknown path is a 404 for everybody
            return
        g.caller = access.identify(request.headers, request.remote_addr or "")

    app.before_request(identify)


def public(view: View) -> View:
    """Anybody may call this view, without credentials."""
    view.is_public = True  # type: ignore[attr-defined]
    return view


def needs(scope: Scope) -> Callable[[View], View]:
    """Let only callers with this scope into the view; raises PermissionDenied. Stands below the route's decorator."""

    def wrap(view: View) -> View:
        @functools.wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if not caller().may(scope):
                raise errors.PermissionDenied(f"this needs the scope {scope}", {"scope": scope})
            return view(*args, **kwargs)

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
