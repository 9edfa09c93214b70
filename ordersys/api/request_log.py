"""One line per request that was answered, its facts under the names of ECS and of OpenTelemetry's conventions.

https://www.elastic.co/docs/reference/ecs, https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

import logging
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, g, has_request_context, request

from ordersys.api import http

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request was answered with a problem."""

    code: str
    reason: str = ""  # what only the log is told; of a refusal nothing: its words may quote the request
    fault: Exception | None = None  # one of ours


def explain(failure: Failure) -> None:
    """Let the line of the present request say this."""
    if has_request_context():
        g.failure = failure


def register(app: Flask) -> None:
    """From here on every answer leaves a line; what is registered later has its say before."""
    app.after_request(_log)


def _log(response: Response) -> Response:
    """Nothing of the query, the headers or the body is in it: secrets may be there, and what is a customer's own."""
    failure: Failure | None = g.get("failure")
    level = _level(response, failure)
    if not logger.isEnabledFor(level):
        return response
    method, path, status, began = plain(request.method), plain(quote(request.path)), response.status_code, g.began
    caller = g.get("caller")
    name = plain(caller.name) if caller else "nobody"
    fields = _fields(response, failure)
    fields |= {"http.request.method": method, "url.path": path, "ordersys.caller": name}
    why = f": {plain(failure.reason or failure.code)}" if failure else ""
    fault = failure.fault if failure else None

    def write() -> None:
        seconds = time.perf_counter() - began
        fields["event.duration"] = int(seconds * 1e9)
        said = f"{method} {path}: {status} in {seconds * 1000:.1f} ms, by {name}{why}"
        logger.log(level, "%s", said, exc_info=fault, extra={"ecs": fields})

    if response.is_streamed:
        response.call_on_close(write)
    else:
        write()
    return response


def _level(response: Response, failure: Failure | None) -> int:
    if failure and failure.fault:
        return logging.ERROR
    if failure and failure.reason:
        return logging.WARNING
    return logging.DEBUG if request.path in http.QUIET and response.status_code < 400 else logging.INFO


def _fields(response: Response, failure: Failure | None) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "http.request.id": g.request_id,
        "http.response.status_code": response.status_code,
        "client.address": request.remote_addr or "",
        "event.outcome": "success" if response.status_code < 400 else "failure",
        "trace.id": g.traceparent[3:35],
        "span.id": g.traceparent[36:52],
    }
    if request.url_rule:
        fields["http.route"] = request.url_rule.rule
    if request.blueprint == "orders" and (order_id := _order_id(response)):
        fields["ordersys.order.id"] = order_id
    if failure:
        fields["error.code"] = failure.code
        if failure.reason:
            fields["error.message"] = failure.reason
    return fields


def _order_id(response: Response) -> str:
    """The order that was asked for or made."""
    asked_for: str = (request.view_args or {}).get("id", "")
    return plain(asked_for or (response.location or "").rpartition("/")[2])


def plain(text: str) -> str:
    """What a caller says, in a form that fits into a log line: short, and nothing in it ends the line."""
    return (text if text.isprintable() else ascii(text))[:200]
