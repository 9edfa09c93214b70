"""One stream of events from the Order Service, shared by every reader of the gateway."""

from ordersys.api.metrics import Metrics
from ordersys.core.channel import Channel


class Feed:
    """The newest events in memory, filled by one WatchOrders call while somebody reads."""

    def __init__(self, channel: Channel, *, max_streams: int, metrics: Metrics) -> None:
        self._channel = channel
        self._max_streams = max_streams

    def close(self) -> None:
        """End every stream."""
