"""A span for every request, but for those that machines repeat every few seconds."""

from flask import Flask, Response, g, request

from ordersys.api import http
from ordersys.core import ids
from ordersys.core.watch import spans
from ordersys.core.watch.tracing import Tracing


def register(app: Flask, tracing: Tracing) -> None:
    """Stands before all others: what they do belongs to the request, and the last word on the answer is theirs.

    The span of a stream ends when the stream begins: it lasts as long as somebody looks.
    """

    def begin() -> None:
        if request.path in http.QUIET:
            return
        given = request.headers.get("traceparent", "")
        span = g.span = spans.request(
            tracing,
            request.method,
            request.url_rule.rule if request.url_rule else "",
            path=request.path,
            scheme=request.scheme,
            parent=given if ids.is_traceparent(given) else "",
        )
        if span.traceparent:
            g.traceparent = span.traceparent

    def end(response: Response) -> Response:
        if span := g.pop("span", None):
            spans.answered(span, response.status_code, g.get("refusal", ""))
        return response

    def give_up(error: BaseException | None) -> None:
        if span := g.pop("span", None):  # another hook failed before `end` had its turn
            span.end(error)

    if tracing.on:
        app.before_request(begin)
        app.after_request(end)
        app.teardown_request(give_up)
