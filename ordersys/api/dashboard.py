"""/: a page for people, on the API's own endpoints.

The page and its files are for everybody and hold no data; what they show is asked for with the visitor's own key.
"""

import hashlib
from functools import partial

from flask import Flask, Response
from flask_openapi3 import OpenAPI

from ordersys.api import assets, flow
from ordersys.api.upstream import Upstream

CONTENT_TYPES = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# A name or an id that smuggles in markup has nothing it could run or call.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def register(app: Flask, order_service: Upstream) -> None:
    """Serve the page and what belongs to it."""
    assert isinstance(app, OpenAPI)  # noqa: S101 - for the type checker
    app.register_api(flow.resource(order_service))
    contents = {name: (assets.STATIC / name).read_bytes() for name in CONTENT_TYPES}
    version = hashlib.sha256(b"".join(contents.values())).hexdigest()[:12]
    files = {name: partial(_file, content, CONTENT_TYPES[name]) for name, content in contents.items()}
    assets.serve(app, "/", "dashboard", below="assets", version=version, policy=POLICY, files=files)


def _file(content: bytes, content_type: str) -> Response:
    return Response(content, content_type=content_type, headers={"Content-Security-Policy": POLICY})
