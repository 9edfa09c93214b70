"""/: a page for people, on the API's own endpoints."""

from flask import Flask

from ordersys.api.upstream import Upstream


def register(app: Flask, order_service: Upstream) -> None:
    """Serve the page and what belongs to it."""
