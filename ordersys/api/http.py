"""HTTP as its documents have it: request ids, traces, caching, conditional requests, compression, CORS."""

from flask import Flask, g, request

from ordersys.core import ids


def register(app: Flask, cors_origins: tuple[str, ...]) -> None:
    """From here on every request belongs to a trace, and every answer says how it may be kept."""

    def begin() -> None:
        given = request.headers.get("traceparent", "")
        g.traceparent = given if ids.is_traceparent(given) else ids.new_traceparent()

    app.before_request(begin)
