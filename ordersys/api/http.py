"""HTTP as its documents have it: request ids, traces, caching, conditional requests, compression, CORS."""

import gzip
import hashlib
import json
import re
import time
from collections import Counter
from typing import Any

from flask import Flask, Response, current_app, g, has_request_context, request
from flask.json.provider import DefaultJSONProvider

from ordersys.core import errors, ids

MAX_REQUEST_ID = 128
COMPRESSED_FROM = 1024  # bytes; what is smaller fits into one packet anyhow
PREFLIGHT_SECONDS = 600
CORS_HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, traceparent, X-API-Key, "
    "X-Request-Id"
)
EXPOSED_HEADERS = "ETag, Idempotent-Replayed, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id"

_TEXTS = (
    "application/json",
    "application/problem+json",
    "text/html",
    "text/css",
    "text/javascript",
    "application/javascript",
)
_SECURITY = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_STRICT = "max-age=31536000"  # a year
_KEPT = {"/openapi.json": "public, max-age=300"}
QUIET = ("/healthz", "/readyz", "/metrics")  # asked every few seconds by machines
_ETAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


def register(app: Flask, cors_origins: tuple[str, ...]) -> None:
    """From here on every request belongs to a trace, and every answer says how it may be kept."""
    app.url_map.merge_slashes = False  # `//api/data` is no resource: 404, no redirect
    app.json = _Json(app)

    def finish(response: Response) -> Response:
        headers = response.headers
        headers["X-Request-Id"] = g.request_id
        for name, value in _SECURITY.items():
            headers.setdefault(name, value)
        # Never in the clear (RFC 6797 section 7.2). A browser would want TLS on every port of localhost from then on.
        if request.is_secure and request.host.partition(":")[0] != "localhost":
            headers["Strict-Transport-Security"] = _STRICT
        headers.setdefault("Cache-Control", _cache_control(response))
        _share(response, cors_origins)
        if not response.is_streamed and not response.direct_passthrough:
            _tag(response)
            _compress(response)
        return response

    app.before_request(_begin)
    app.after_request(finish)


def _begin() -> Response | None:
    g.began = time.perf_counter()
    given = request.headers.get("X-Request-Id", "")
    fits = given.isascii() and given.isprintable() and 0 < len(given) <= MAX_REQUEST_ID
    g.request_id = given if fits else ids.uuid7()
    given = request.headers.get("traceparent", "")
    # A span may have begun for it.
    g.setdefault("traceparent", given if ids.is_traceparent(given) else ids.new_traceparent())
    if request.method != "OPTIONS" or request.url_rule is None:
        return None
    # Answered here, before anybody asks for credentials: a browser's preflight has none.
    response: Response = current_app.make_default_options_response()
    response.status_code = 204
    response.headers.remove("Content-Type")
    return response


def _cache_control(response: Response) -> str:
    if request.method not in ("GET", "HEAD") or response.status_code >= 400:
        return "no-store"
    return _KEPT.get(request.path, "private, no-cache")


def _share(response: Response, origins: tuple[str, ...]) -> None:
    """Cross-origin resource sharing (https://fetch.spec.whatwg.org/#http-cors-protocol); no origins = not at all."""
    if not origins:
        return
    anybody = "*" in origins
    if not anybody:
        response.vary.add("Origin")
    origin = request.headers.get("Origin", "")
    if not origin or not (anybody or origin in origins):
        return
    response.headers["Access-Control-Allow-Origin"] = "*" if anybody else origin
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        response.headers["Access-Control-Allow-Methods"] = response.headers.get("Allow", "")
        response.headers["Access-Control-Allow-Headers"] = CORS_HEADERS
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    else:
        response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS


def _tag(response: Response) -> None:
    """Give JSON that has none a weak ETag of its content, and answer 304 to who has it already (RFC 9110, 13.1.2)."""
    if request.method not in ("GET", "HEAD") or response.status_code != 200:
        return
    if "ETag" not in response.headers:
        if response.mimetype != "application/json" or "no-store" in response.headers["Cache-Control"]:
            return
        response.set_etag(hashlib.blake2b(response.get_data(), digest_size=12).hexdigest(), weak=True)
    etag, _ = response.get_etag()
    if etag is not None and request.if_none_match.contains_weak(etag):
        response.status_code = 304


def _compress(response: Response) -> None:
    """gzip what is worth it for who takes it.

    What has a strong ETag goes out as it is: compressed it would be another representation, whose ETag had to be
    weak (RFC 9110, 8.8.3), and with a weak one nobody could change an order.
    """
    _, weak = response.get_etag()
    if response.mimetype not in _TEXTS or "Content-Encoding" in response.headers or weak is False:
        return
    response.vary.add("Accept-Encoding")
    if response.status_code == 304 or not request.accept_encodings.quality("gzip"):
        return
    data = response.get_data()
    if len(data) >= COMPRESSED_FROM:
        response.set_data(gzip.compress(data, 5, mtime=0))
        response.headers["Content-Encoding"] = "gzip"


def trace_id() -> str:
    """The trace that the present request belongs to, 32 hex digits; a new one for what is not yet a request."""
    traceparent: str = g.traceparent if has_request_context() else ids.new_traceparent()
    return traceparent.split("-")[1]


def expected_version(if_match: str | None) -> int | None:
    """The version that an `If-Match` asks for: 0 = any, None = one that no order ever has; raises InvalidArgument.

    Versions are compared strongly (RFC 9110, 13.1.1): a weak ETag matches none.
    """
    if if_match is None or if_match.strip() == "*":
        return 0
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        raise errors.InvalidArgument.of("If-Match", 'must be one ETag as an answer carried it, for example "3", or *')
    weak, tag = found.groups()
    return int(tag) if not weak and _VERSION.fullmatch(tag) else None


class _Json(DefaultJSONProvider):
    """JSON as RFC 8259 has it; what it leaves open and Python decides in silence is refused."""

    sort_keys = False

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        text = s.decode("utf-8-sig") if isinstance(s, bytes) else s  # json would guess UTF-16 and UTF-32, too
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer, **kwargs)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        twice = [name for name, count in names.items() if count > 1]
        raise errors.InvalidArgument(
            [errors.FieldViolation(name or "body", "must stand only once in its object") for name in twice]
        )
    return found


def _integer(digits: str) -> int:
    """Python refuses to read more than some thousand digits; no field takes more than 19."""
    return int(digits) if len(digits) < 40 else int(digits[:40])
