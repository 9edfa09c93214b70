"""Pages for people: each a shell for everybody, and its files under an address that changes with them."""

from collections.abc import Callable, Mapping
from html import escape
from importlib import resources

from flask import Flask, Response
from werkzeug.exceptions import NotFound

from ordersys import __version__
from ordersys.api import access

STATIC = resources.files("ordersys.api") / "static"

_FOR_EVER = "public, max-age=31536000, immutable"


def serve(
    app: Flask,
    rule: str,
    endpoint: str,
    *,
    below: str,
    version: str,
    policy: str,
    files: Mapping[str, Callable[[], Response]],
) -> None:
    """Answer `rule` with the page `endpoint` of `static/`, and /`below`/`version`/NAME with each of its files.

    `policy` is the page's Content-Security-Policy (https://www.w3.org/TR/CSP3/).
    """
    page = (STATIC / f"{endpoint}.html").read_text(encoding="utf-8")
    page = page.replace("{assets}", f"{below}/{version}").replace("{version}", escape(__version__))

    @access.public
    def shown() -> Response:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
        response = Response(page, content_type="text/html; charset=utf-8", headers=headers)
        response.add_etag(weak=True)
        return response

    @access.public
    def asset(wanted: str, name: str) -> Response:
        if name not in files:
            raise NotFound(f"there is no {name!r} here")
        response = files[name]()
        # A page that another version of the gateway served gets what there is, and does not keep it.
        response.headers["Cache-Control"] = _FOR_EVER if wanted == version else "no-store"
        return response

    app.add_url_rule(rule, endpoint, shown)
    app.add_url_rule(f"/{below}/<wanted>/<name>", f"{endpoint}_asset", asset)
