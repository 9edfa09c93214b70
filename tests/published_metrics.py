"""What every role shows at /metrics, and its table in docs/observability.md.

`python tests/published_metrics.py` renews the table.
"""

import sys
from dataclasses import dataclass

import published_api

from ordersys.api.metrics import Metrics
from ordersys.core.watch.measured import CallMetrics
from ordersys.core.watch.metrics import Registry
from ordersys.notify.metrics import NotifierMetrics
from ordersys.order.metrics import OrderMetrics
from ordersys.order.relay import RelayMetrics
from ordersys.product.metrics import ProductMetrics

PAGE = published_api.PROJECT / "docs" / "observability.md"
RENEW = "python tests/published_metrics.py"


@dataclass(frozen=True)
class Family:
    """One metric: `name` as it is written in a query, a histogram's without `_bucket`, `_sum` and `_count`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    says: str


def families() -> list[Family]:
    """The metrics of our own, in the order of their names."""
    registry = Registry()
    registry.dependencies("api")
    registry.show_certificates({})
    Metrics(registry)
    CallMetrics(registry, "order-service")
    ProductMetrics(registry)
    OrderMetrics(registry)
    RelayMetrics(registry)
    NotifierMetrics(registry, "notify.topic")
    found = []
    for metric in registry._made.values():
        suffix = {"counter": "_total", "info": "_info"}.get(metric._type, "")
        labels = tuple(metric._labelnames) + (("version", "python") if suffix == "_info" else ())
        found.append(Family(metric._name + suffix, metric._type, labels, metric._documentation))
    return sorted(found, key=lambda each: each.name)


def table() -> str:
    rows = ["| metric | | labels | what it says |", "|---|---|---|---|"]
    for each in families():
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.kind} | {labels} | {each.says} |")
    return "\n".join(rows)


def main() -> int:
    PAGE.write_text(published_api.with_table(PAGE.read_text(encoding="utf-8"), table(), "metrics"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
