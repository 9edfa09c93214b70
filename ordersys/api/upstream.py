"""One service behind the gateway: its channel, the deadline of a call, the trace it belongs to, and its breaker."""

from typing import TypeVar

from ordersys.api.metrics import Metrics
from ordersys.core.channel import Channel, Method

Request = TypeVar("Request")
Response = TypeVar("Response")


class Upstream:
    """Calls to one service; `name` is what /readyz, the metrics and the log call it."""

    def __init__(self, name: str, channel: Channel, *, deadline: float, metrics: Metrics) -> None:
        self.name = name
        self.channel = channel
        self._deadline = deadline

    def call(self, method: "Method[Request, Response]", request: Request) -> Response:
        """One call; raises what the service refused it with, or `Unavailable`: at once while the breaker is open."""
        return self.channel.call(method, request, deadline=self._deadline)
