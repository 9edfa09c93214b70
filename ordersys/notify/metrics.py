"""What a notifier counts and times."""

import time

from ordersys.core.watch.metrics import LAG_SECONDS, SIZES, Registry


class NotifierMetrics:
    """Of one queue; belongs to the thread of its notifier."""

    def __init__(self, registry: Registry, queue: str) -> None:
        outcomes = registry.counter(
            "ordersys_notifications",
            "Messages by what became of them: a failure that is tried again counts as retried each time",
            ["queue", "outcome"],
        )
        self.handled, self.duplicates, self.retried, self.dead = (
            outcomes.labels(queue, outcome) for outcome in ("handled", "duplicate", "retried", "dead")
        )
        label = ["queue"]
        self._lag = registry.histogram(
            "ordersys_notification_lag_seconds", "From the event to the end of its notification", label, LAG_SECONDS
        ).labels(queue)
        self.duration = registry.histogram(
            "ordersys_notification_duration_seconds", "How long one notification took, failed or not", label
        ).labels(queue)
        self.batch = registry.histogram(
            "ordersys_notification_batch_size", "Messages that were taken from the queue together", label, SIZES
        ).labels(queue)

    def done(self, event_us: int) -> None:
        """An event of this time (microseconds since the epoch) was handled."""
        self._lag.observe(max(0.0, time.time() - event_us / 1e6))
