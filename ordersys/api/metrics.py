"""What the gateway counts and times, for Prometheus at /metrics.

Names as https://prometheus.io/docs/practices/naming/ has them; what is measured, and the bounds of the histograms, as
https://opentelemetry.io/docs/specs/semconv/http/http-metrics/ has them.
"""

import time
from collections.abc import Callable

from flask import Flask, Response, g, request

from ordersys.api import access
from ordersys.api.access import Scope
from ordersys.core.watch.metrics import Registry

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_OTHER = "_OTHER"  # a caller may invent methods, and must not invent time series
_NO_ROUTE = "none"


class Metrics:
    """The counters of one gateway."""

    def __init__(self, registry: Registry | None = None) -> None:
        own = self.registry = registry or Registry()
        own.show_build("api")
        self.requests = own.counter(
            "ordersys_http_requests", "Requests that were answered", ["method", "route", "status"]
        )
        self.seconds = own.histogram(
            "ordersys_http_request_duration_seconds",
            "How long answers took; event streams are not among them",
            ["method", "route"],
            _SECONDS,
        )
        self.in_flight = own.gauge("ordersys_http_requests_in_flight", "Requests that wait for their answer now")
        self.streams = own.gauge("ordersys_http_streams", "Event streams that are open now")
        self.dropped_streams = own.counter(
            "ordersys_http_streams_dropped", "Event streams ended because their reader was too slow"
        )
        self.stale_answers = own.counter("ordersys_stale_answers", "Reads answered from the last known data", ["route"])
        self.rate_limited = own.counter("ordersys_rate_limited", "Requests refused as too many")
        self.calls = own.counter(
            "ordersys_upstream_calls",
            "Calls to a service, its retries within one call counted as one; code is ok, no_answer, breaker_open or"
            " that of the refusal",
            ["service", "method", "code"],
        )
        self.call_seconds = own.histogram(
            "ordersys_upstream_call_duration_seconds",
            "How long calls to a service took with their retries",
            ["service", "method"],
            _SECONDS,
        )
        self._breakers = own.gauge(
            "ordersys_upstream_breaker_state",
            "0 = closed: calls go through, 1 = half-open: one does, 2 = open: none",
            ["service"],
        )

    def show_breaker(self, service: str, state: Callable[[], float]) -> None:
        """Report what `state` says whenever somebody asks."""
        self._breakers.labels(service).set_function(state)


def register(app: Flask, metrics: Metrics) -> None:
    """Count and time every request, and answer /metrics."""

    def begin() -> None:
        g.begun = time.perf_counter()
        metrics.in_flight.inc()

    def end(response: Response) -> Response:
        method = request.method if request.method in _METHODS else _OTHER
        route = route_of_request()
        metrics.requests.labels(method, route, str(response.status_code)).inc()
        begun = g.pop("begun", None)  # None when an earlier hook answered, for example a CORS preflight
        if begun is not None:
            metrics.in_flight.dec()
            if not response.is_streamed:
                metrics.seconds.labels(method, route).observe(time.perf_counter() - begun)
        return response

    def give_up(_error: BaseException | None) -> None:
        if g.pop("begun", None) is not None:  # another hook failed before `end` had its turn
            metrics.in_flight.dec()

    @access.needs(Scope.ADMIN)
    def show() -> Response:
        body, content_type = metrics.registry.exposition(request.headers.get("Accept", ""))
        return Response(body, content_type=content_type)

    app.before_request(begin)
    app.after_request(end)
    app.teardown_request(give_up)
    app.add_url_rule("/metrics", "metrics", show)


def route_of_request() -> str:
    """The pattern that the present request's path fits: there are few, while paths are without number."""
    return request.url_rule.rule if request.url_rule else _NO_ROUTE
