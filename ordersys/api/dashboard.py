"""/: a page for people, on the API's own endpoints.

The page and its files are for everybody and hold no data; what they show is asked for with the visitor's own key.
"""

import hashlib
from html import escape
from importlib import resources

from flask import Flask, Response
from flask_openapi3 import OpenAPI
from werkzeug.exceptions import NotFound

from ordersys import __version__
from ordersys.api import access, flow
from ordersys.api.upstream import Upstream

CONTENT_TYPES = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
HEADERS = {
    # https://www.w3.org/TR/CSP3/: a name or an id that smuggles in markup has nothing it could run or call.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_FOR_EVER = "public, max-age=31536000, immutable"


def register(app: Flask, order_service: Upstream) -> None:
    """Serve the page and what belongs to it."""
    assert isinstance(app, OpenAPI)  # noqa: S101 - for the type checker
    app.register_api(flow.resource(order_service))
    folder = resources.files("ordersys.api") / "static"
    files = {name: (folder / name).read_bytes() for name in CONTENT_TYPES}
    version = hashlib.sha256(b"".join(files.values())).hexdigest()[:12]
    page = (folder / "dashboard.html").read_text(encoding="utf-8")
    page = page.replace("{assets}", f"assets/{version}").replace("{version}", escape(__version__))

    @access.public
    def dashboard() -> Response:
        response = Response(page, content_type="text/html; charset=utf-8", headers=HEADERS)
        response.headers["Cache-Control"] = "no-cache"
        response.add_etag(weak=True)
        return response

    @access.public
    def asset(wanted: str, name: str) -> Response:
        if name not in files:
            raise NotFound(f"there is no {name!r} here")
        response = Response(files[name], content_type=CONTENT_TYPES[name], headers=HEADERS)
        # A page that another version of the gateway served gets what there is, and does not keep it.
        response.headers["Cache-Control"] = _FOR_EVER if wanted == version else "no-store"
        return response

    app.add_url_rule("/", "dashboard", dashboard)
    app.add_url_rule("/assets/<wanted>/<name>", "asset", asset)
