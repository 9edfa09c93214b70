"""The verbs of `ordersys client`, and the calls behind them as a small library."""
