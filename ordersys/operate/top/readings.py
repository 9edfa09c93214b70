"""Metrics as they are read from /metrics, and how fast their counters grow between two readings.

As Prometheus does it: a counter that is smaller than before began anew, and of a histogram a quantile is found by
interpolation within a bucket (https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Labels = Mapping[str, str]
Series = tuple[str, frozenset[tuple[str, str]]]
Values = Mapping[Series, float]

_START = ("process_start_time_seconds", frozenset[tuple[str, str]]())
_GROW = ("counter", "histogram", "summary")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one process said at a moment, in seconds of the monotonic clock."""

    at: float
    counters: Values
    gauges: Values


def read(text: str, at: float) -> Reading:
    """Raises ValueError for what is not in the Prometheus text format."""
    counters: dict[Series, float] = {}
    gauges: dict[Series, float] = {}
    for family in text_string_to_metric_families(text):
        into = counters if family.type in _GROW else gauges
        into.update({(each.name, frozenset(each.labels.items())): each.value for each in family.samples})
    return Reading(at, counters, gauges)


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast counters grow, per second and all processes together, and the gauges of all of them."""

    growing: Values = field(default_factory=dict)
    gauges: tuple[tuple[Series, float], ...] = ()
    seconds: float = 0.0  # between the readings; 0 = there was only one

    def per_second(self, name: str, **labels: str) -> float | None:
        """The sum over all series of this name with these labels; None when there is none."""
        found = [value for _, value in self.all(name, **labels)]
        return sum(found) if found else None

    def all(self, name: str, **labels: str) -> Iterator[tuple[Labels, float]]:
        """The rate of every series of this name with these labels."""
        return _chosen(self.growing.items(), name, labels)

    def values(self, name: str, **labels: str) -> Iterator[tuple[Labels, float]]:
        """Every gauge of this name with these labels."""
        return _chosen(self.gauges, name, labels)

    def groups(self, name: str, *keys: str) -> list[tuple[str, ...]]:
        """The different values of these labels among the series of this name, sorted."""
        return sorted({tuple(labels.get(key, "") for key in keys) for labels, _ in self.all(name)})

    def mean(self, histogram: str, **labels: str) -> float | None:
        """Of what was observed between the readings; None when nothing was."""
        count = self.per_second(f"{histogram}_count", **labels)
        total = self.per_second(f"{histogram}_sum", **labels)
        return total / count if count and total is not None else None

    def quantile(self, share: float, histogram: str, **labels: str) -> float | None:
        """Of what was observed between the readings; None when nothing was."""
        buckets: dict[float, float] = {}
        for found, value in self.all(f"{histogram}_bucket", **labels):
            bound = float(found["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
        return quantile(share, buckets)


def rates(pairs: Iterable[tuple[Reading, Reading]]) -> Rates:
    """From the earlier and the later reading of each process; of one with a single reading both are the same."""
    growing: dict[Series, float] = {}
    gauges: list[tuple[Series, float]] = []
    longest = 0.0
    for before, after in pairs:
        gauges += after.gauges.items()
        seconds = after.at - before.at
        longest = max(longest, seconds)
        if seconds > 0:
            for series, grown in increase(before, after).items():
                growing[series] = growing.get(series, 0.0) + grown / seconds
    return Rates(growing, tuple(gauges), longest)


def increase(before: Reading, after: Reading) -> Values:
    """How much each counter has grown; one that is new, or began anew, from nothing."""
    same = before.gauges.get(_START) == after.gauges.get(_START)
    known = before.counters if same else {}
    grown = {}
    for series, value in after.counters.items():
        was = known.get(series, 0.0)
        grown[series] = value - was if value >= was else value
    return grown


def quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """From the cumulative counts by upper bound; None when they are all 0 or there are none."""
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    rank = share * buckets[bounds[-1]]
    low, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank and buckets[bound] > below:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (rank - below) / (buckets[bound] - below)
        low, below = bound, max(below, buckets[bound])
    return low


def _chosen(values: Iterable[tuple[Series, float]], name: str, wanted: Labels) -> Iterator[tuple[Labels, float]]:
    for (found, labels), value in values:
        if found == name and wanted.items() <= set(labels):
            yield dict(labels), value
