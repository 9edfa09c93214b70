"""The OpenAPI document and the page that shows it."""

from typing import Any

from flask import Flask
from flask_openapi3 import OpenAPI

from ordersys.api import access

DESCRIPTION = "Products and orders over REST."
SECURITY_SCHEMES: dict[str, Any] = {}


def register(app: Flask) -> None:
    assert isinstance(app, OpenAPI)  # noqa: S101 - for the type checker

    @access.public
    def openapi() -> Any:
        return app.api_doc

    app.add_url_rule("/openapi.json", "openapi", openapi)
