"""What the gateway counts and times, for Prometheus at /metrics."""

from flask import Flask


class Metrics:
    """The counters of one gateway, in a registry of their own."""


def register(app: Flask, metrics: Metrics) -> None:
    """Count and time every request, and answer /metrics."""
