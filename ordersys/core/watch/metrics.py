"""The metrics of one process, for Prometheus (https://prometheus.io/docs/practices/naming/).

All roles of a process share one registry: who asks for a metric that another part has made gets the same, and labels
tell the parts apart. Bind the children once (`labels`), at the start: an increment then costs a third of a microsecond.
"""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase

from ordersys import __version__

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""The bounds of a histogram of what takes a moment."""
LAG_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
"""The bounds of a histogram of what may have waited for somebody who was away."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""The bounds of a histogram of batches."""

AnyMetric = TypeVar("AnyMetric", bound=MetricWrapperBase)


class Registry(CollectorRegistry):
    """The metrics of one process; all names begin with `ordersys_` or `process_`."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, MetricWrapperBase] = {}
        ProcessCollector(registry=self)

    def counter(self, name: str, says: str, labels: Sequence[str] = ()) -> Counter:
        """`name` without its `_total`."""
        return self._one(Counter, name, labels, lambda: Counter(name, says, labels, registry=self))

    def gauge(self, name: str, says: str, labels: Sequence[str] = ()) -> Gauge:
        return self._one(Gauge, name, labels, lambda: Gauge(name, says, labels, registry=self))

    def histogram(
        self, name: str, says: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        return self._one(
            Histogram, name, labels, lambda: Histogram(name, says, labels, registry=self, buckets=tuple(buckets))
        )

    def show_build(self, service: str) -> None:
        """Name the version of this role."""
        info = self._one(Info, "ordersys_build", ["service"], lambda: Info(*_BUILD, ["service"], registry=self))
        info.labels(service).info({"version": __version__, "python": platform.python_version()})

    def dependencies(self, service: str) -> Callable[[Mapping[str, bool | None]], None]:
        """What shows which dependencies of this role are up; one of which nobody can tell (None) is not shown."""
        gauge = self.gauge("ordersys_dependency_up", "Whether what this role needs answers", ["service", "dependency"])

        def show(found: Mapping[str, bool | None]) -> None:
            for name, up in found.items():
                if up is None:
                    with suppress(KeyError):  # it has not been shown
                        gauge.remove(service, name)
                else:
                    gauge.labels(service, name).set(up)

        return show

    def show_certificates(self, found: Mapping[str, float]) -> None:
        """Until when the certificates in these files are good: setting -> seconds since the epoch."""
        gauge = self.gauge(
            "ordersys_certificate_expiry_timestamp_seconds",
            "When the first certificate in the file of this setting expires; absent while the file cannot be read",
            ["file"],
        )
        gauge.clear()
        for name, expiry in found.items():
            gauge.labels(name).set(expiry)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All of it for who sends this Accept header, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self), content_type

    def collect(self) -> Iterator[Metric]:
        """Without the moment at which each series was made: a second series for each, which nobody asks for."""
        for metric in super().collect():
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            yield metric

    def _one(self, kind: type[AnyMetric], name: str, labels: Sequence[str], make: Callable[[], AnyMetric]) -> AnyMetric:
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = make()
        if not isinstance(found, kind) or found._labelnames != tuple(labels):  # noqa: SLF001 - nothing else tells
            raise ValueError(f"{name} exists with another type or other labels")
        return found


_BUILD = ("ordersys_build", "What runs here")
