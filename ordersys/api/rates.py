"""How often one caller may ask: a token bucket each."""

from flask import Flask

from ordersys.api.metrics import Metrics


class Rates:
    """`limit` requests in `window` seconds for every key, token or address."""

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window


def rates_of(setting: str) -> Rates | None:
    """The rates that `REQUESTS/SECONDS` stands for; None for "off"."""
    if setting == "off":
        return None
    limit, _, window = setting.partition("/")
    return Rates(int(limit), float(window))


def register(app: Flask, rates: Rates | None, metrics: Metrics) -> None:
    """Refuse what comes too often; None = nobody is limited."""
