"""/openapi.json, and /docs that shows it in a browser; every file of the page comes from here, none from elsewhere."""

import functools
import gzip
import hashlib
import json
from collections.abc import Callable
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import flask_openapi3_scalar
from flask import Flask, Response, request
from flask_openapi3 import OpenAPI

from ordersys import __version__
from ordersys.api import access, assets, document
from ordersys.api.keys import Scope

DESCRIPTION = """\
Products, orders and their events over REST and JSON.

**Credentials.** An API key of `ordersys keys create` in the header `X-API-Key`, or an OAuth 2 access token (JWT) as
`Authorization: Bearer`. What one may do is said by scopes; `admin` includes all others. Credentials that are tied to a
customer see and touch the orders of that customer alone. A gateway on a loopback address without any key asks for none.

**Errors** are `application/problem+json` (RFC 9457) with a stable `code` for programs, a `detail` for people and the
`trace_id` under which our log has it.

**Repeating is safe** with an `Idempotency-Key`: the same key with the same body is applied once, and answered with the
first answer and `Idempotent-Replayed`. A request without an answer may have been applied: repeat it with its key.

**Versions.** An order's `ETag` is its version. Sent as `If-Match` it protects a change from overwriting another
(412); sent as `If-None-Match` it saves reading what is still the same (304).

**Limits.** `RateLimit` says what is left; 429 and 503 say with `Retry-After` when to come back. While a service is away
reads answer the last known data, marked `stale`.

**Traces.** `X-Request-Id` and `traceparent` (W3C Trace Context) are taken as they come, or made.
"""
SECURITY_SCHEMES: dict[str, Any] = {
    document.API_KEY: {
        "type": "apiKey",
        "in": "header",
        "name": access.KEY_HEADER,
        "description": "A key of `ordersys keys create`; its scopes: " + ", ".join(f"`{scope}`" for scope in Scope),
    },
    document.BEARER: {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token of the issuer that the gateway trusts; its claim `scope` names the same scopes.",
    },
}
# Whatever the page's code has in mind, it reaches nobody but this gateway.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; font-src 'self' data:; worker-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_JAVASCRIPT = "text/javascript; charset=utf-8"


def register(app: Flask) -> None:
    """Serve both; stands behind everything that is to be described."""

    @functools.cache
    def described() -> str:
        return json.dumps(of(app), ensure_ascii=False)

    @access.public
    def openapi() -> Response:
        return Response(described(), content_type="application/json")

    app.add_url_rule("/openapi.json", "openapi", openapi)
    scalar = resources.files(flask_openapi3_scalar) / "templates" / "scalar" / "js" / "scalar.standalone.js"
    files = {"docs.js": _script(assets.STATIC / "docs.js"), "scalar.js": _script(scalar)}
    # Another version of either is another address.
    version = hashlib.sha256(f"{__version__} {flask_openapi3_scalar.__file__}".encode()).hexdigest()[:12]
    assets.serve(app, "/docs", "docs", below="docs", version=version, policy=POLICY, files=files)


def _script(file: Traversable) -> Callable[[], Response]:
    @functools.cache  # three megabytes of code are compressed once
    def compressed() -> bytes:
        return gzip.compress(file.read_bytes(), 6, mtime=0)

    def answer() -> Response:
        if request.accept_encodings.quality("gzip"):
            response = Response(compressed(), headers={"Content-Encoding": "gzip"}, content_type=_JAVASCRIPT)
        else:
            response = Response(file.read_bytes(), content_type=_JAVASCRIPT)
        response.vary.add("Accept-Encoding")
        return response

    return answer


def of(app: Flask) -> dict[str, Any]:
    """The OpenAPI document of this gateway."""
    assert isinstance(app, OpenAPI)  # noqa: S101 - for the type checker
    return document.complete(app, app.api_doc)


def printed() -> str:
    """The same for a file, without a gateway that runs: nothing is connected."""
    from ordersys.api.app import create_app
    from ordersys.core.rpc.channel import Channel

    products, orders = Channel("127.0.0.1:1"), Channel("127.0.0.1:1")  # nobody is called
    try:
        return json.dumps(of(create_app(products, orders)), ensure_ascii=False, indent=2) + "\n"
    finally:
        products.close()
        orders.close()
