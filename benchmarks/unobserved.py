"""`ordersys` without its metrics: what counts and times does nothing. The floor of what observing costs.

python benchmarks/unobserved.py serve-product ...
"""

from prometheus_client import Counter, Gauge, Histogram

from ordersys import cli


def nothing(*_: object, **__: object) -> None:
    """As quick as a call can be."""


if __name__ == "__main__":
    Counter.inc = Gauge.inc = Gauge.dec = Gauge.set = Histogram.observe = nothing  # type: ignore[method-assign]
    cli.main()
