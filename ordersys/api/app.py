"""The Flask app: what every resource shares. Nothing is connected here; the channels are handed in."""

from typing import Any, NoReturn

from flask import Flask, Request, request
from flask_openapi3 import Info, OpenAPI
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from ordersys import __version__
from ordersys.api import data, orders, problems, products
from ordersys.core import errors
from ordersys.core.channel import Channel

MAX_BODY_BYTES = 1024 * 1024


class JsonRequest(Request):
    """A request whose body is a JSON object or a clear complaint."""

    def on_json_loading_failed(self, e: ValueError | None) -> NoReturn:
        if e is None:
            raise UnsupportedMediaType("expected a JSON body with Content-Type: application/json")
        raise errors.InvalidArgument.of("body", f"is not JSON: {e}") from e


def create_app(product_channel: Channel, order_channel: Channel, *, deadline: float = 5.0) -> Flask:
    """The gateway in front of these two services, each call to them bounded by `deadline` seconds."""
    app = OpenAPI(
        "ordersys.api",
        info=Info(title="ordersys", version=__version__, description="Products and orders over REST."),
        validation_error_status=400,
        validation_error_model=problems.Problem,
        validation_error_callback=problems.refuse,
        doc_ui=False,
        static_folder=None,
    )
    app.request_class = JsonRequest
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.before_request(_require_json_object)
    problems.register(app)
    app.register_api(data.resource(product_channel, deadline))
    app.register_api(products.resource(product_channel, deadline))
    app.register_api(orders.resource(product_channel, order_channel, deadline))
    app.add_url_rule("/openapi.json", "openapi", lambda: app.api_doc)
    app.add_url_rule("/healthz", "healthz", _healthz)
    return app


def _healthz() -> dict[str, Any]:
    """Alive: says nothing of the services behind, so that their failure does not restart the gateway."""
    return {"status": "ok"}


def _require_json_object() -> None:
    if request.method not in ("POST", "PUT", "PATCH") or request.url_rule is None:
        return
    # Werkzeug cuts a body that comes in chunks off at the limit instead of refusing it.
    if request.content_length is None and len(request.get_data()) >= MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    try:
        body = request.get_json()
    except RecursionError as error:
        raise errors.InvalidArgument.of("body", "is nested too deeply") from error
    if not isinstance(body, dict):
        raise errors.InvalidArgument.of("body", "must be a JSON object")
