"""One service behind the gateway: its channel, the deadline of a call, the trace it belongs to, and its breaker."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from flask import g, has_app_context

from ordersys.api.breaker import Breaker, LeftAlone
from ordersys.api.metrics import Metrics
from ordersys.core import errors
from ordersys.core.rpc.channel import Channel, Method
from ordersys.core.v1 import order_pb2, product_pb2
from ordersys.core.watch.readiness import ASK_SECONDS

Request = TypeVar("Request")
Response = TypeVar("Response")

HEALTH_SECONDS = 1.0
_SERVICES = {
    "product-service": product_pb2.DESCRIPTOR.services_by_name["ProductService"].full_name,
    "order-service": order_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name,
}
_CODES: dict[type, str] = {errors.NoAnswer: "no_answer", LeftAlone: "breaker_open"}
"""What the metrics tell apart although callers need not."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Calls that the present request makes in here wait at most so long."""
    g.patience = seconds
    try:
        yield
    finally:
        g.pop("patience")


class Upstream:
    """Calls to one service; `name` is what /readyz, the metrics and the log call it."""

    def __init__(
        self,
        name: str,
        channel: Channel,
        *,
        deadline: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.channel = channel
        self.metrics = metrics
        self.breaker = Breaker(name, clock)
        self._deadline = deadline
        metrics.show_breaker(name, lambda: self.breaker.state)

    def call(self, method: "Method[Request, Response]", request: Request) -> Response:
        """One call; raises what the service refused it with, or `Unavailable`: at once while the breaker is open."""
        deadline, traceparent = self._deadline, ""
        if has_app_context():
            deadline, traceparent = min(deadline, g.get("patience", math.inf)), g.get("traceparent", "")
        rpc = type(request).__name__.removesuffix("Request")
        begun, code = time.perf_counter(), "internal"
        try:
            with self.breaker.guard() as probe:
                # The probe of a service that is gone must not cost its caller a whole deadline.
                if probe and not self.healthy(min(deadline, HEALTH_SECONDS)):
                    raise errors.NoAnswer(f"{self.name} is still not healthy")
                response = self.channel.call(method, request, deadline=deadline, traceparent=traceparent)
            code = "ok"
            return response
        except errors.OrdersysError as error:
            code = _CODES.get(type(error), error.code)
            raise
        finally:
            self.metrics.calls.labels(self.name, rpc, code).inc()
            if code != _CODES[LeftAlone]:  # nobody was called: it would only drag the times down
                self.metrics.call_seconds.labels(self.name, rpc).observe(time.perf_counter() - begun)

    def healthy(self, deadline: float) -> bool:
        """True when the service says of itself within `deadline` seconds that it serves; the breaker is not asked."""
        return self.channel.healthy(_SERVICES.get(self.name, ""), deadline=deadline)

    def missing(self, dependency: str = "") -> str:
        """What it, or this dependency of it, lacks ("" = nothing); raises `Unavailable` when it cannot be asked."""
        return self.channel.missing(dependency or _SERVICES.get(self.name, ""), deadline=ASK_SECONDS)
