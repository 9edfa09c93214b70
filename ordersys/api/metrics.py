"""What the gateway counts and times, for Prometheus at /metrics.

Names as https://prometheus.io/docs/practices/naming/ has them; what is measured, and the bounds of the histograms, as
https://opentelemetry.io/docs/specs/semconv/http/http-metrics/ has them.
"""

import platform
import time
from collections.abc import Callable

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder

from ordersys import __version__
from ordersys.api import access
from ordersys.api.access import Scope

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_OTHER = "_OTHER"  # a caller may invent methods, and must not invent time series
_NO_ROUTE = "none"


class Metrics:
    """The counters of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        build = Info("ordersys_build", "What runs here", registry=own)
        build.info({"version": __version__, "python": platform.python_version()})
        self.requests = Counter(
            "ordersys_http_requests", "Requests that were answered", ["method", "route", "status"], registry=own
        )
        self.seconds = Histogram(
            "ordersys_http_request_duration_seconds",
            "How long answers took; event streams are not among them",
            ["method", "route"],
            buckets=_SECONDS,
            registry=own,
        )
        self.in_flight = Gauge(
            "ordersys_http_requests_in_flight", "Requests that wait for their answer now", registry=own
        )
        self.streams = Gauge("ordersys_http_streams", "Event streams that are open now", registry=own)
        self.dropped_streams = Counter(
            "ordersys_http_streams_dropped", "Event streams ended because their reader was too slow", registry=own
        )
        self.stale_answers = Counter(
            "ordersys_stale_answers", "Reads answered from the last known data", ["route"], registry=own
        )
        self.rate_limited = Counter("ordersys_rate_limited", "Requests refused as too many", registry=own)
        self.calls = Counter(
            "ordersys_upstream_calls",
            "Calls to a service, its retries within one call counted as one; code is ok, no_answer, breaker_open or"
            " that of the refusal",
            ["service", "method", "code"],
            registry=own,
        )
        self.call_seconds = Histogram(
            "ordersys_upstream_call_duration_seconds",
            "How long calls to a service took with their retries",
            ["service", "method"],
            buckets=_SECONDS,
            registry=own,
        )
        self._breakers = Gauge(
            "ordersys_upstream_breaker_state",
            "0 = closed: calls go through, 1 = half-open: one does, 2 = open: none",
            ["service"],
            registry=own,
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
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(metrics.registry), content_type=content_type)

    app.before_request(begin)
    app.after_request(end)
    app.teardown_request(give_up)
    app.add_url_rule("/metrics", "metrics", show)


def route_of_request() -> str:
    """The pattern that the present request's path fits: there are few, while paths are without number."""
    return request.url_rule.rule if request.url_rule else _NO_ROUTE
