"""The Flask app: what every resource shares. Nothing is connected here; the channels are handed in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from flask import Flask, Request, current_app, request
from flask_openapi3 import Info, OpenAPI
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from ordersys import __version__
from ordersys.api import (
    access,
    dashboard,
    data,
    docs,
    events,
    health,
    http,
    metrics,
    orders,
    problems,
    products,
    rates,
    schemas,
)
from ordersys.api.access import Access
from ordersys.api.feed import Feed
from ordersys.api.health import Probe
from ordersys.api.metrics import Metrics
from ordersys.api.rates import Rates
from ordersys.api.upstream import Upstream
from ordersys.core import errors
from ordersys.core.channel import Channel

MAX_BODY_BYTES = 1024 * 1024


class JsonRequest(Request):
    """A request whose body is a JSON object or a clear complaint."""

    def on_json_loading_failed(self, e: ValueError | None) -> NoReturn:
        if e is None:
            raise UnsupportedMediaType("expected a JSON body with Content-Type: application/json")
        raise errors.InvalidArgument.of("body", f"is not JSON: {e}") from e


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the gateway may be told; the defaults suit one machine."""

    access: Access = field(default_factory=access.Open)
    rates: Rates | None = None
    cors_origins: tuple[str, ...] = ()  # "*" = any
    max_streams: int = 100
    checks: Mapping[str, Probe] = field(default_factory=dict)  # what /readyz looks at beside the two services


def create_app(
    product_channel: Channel, order_channel: Channel, *, deadline: float = 5.0, options: Options | None = None
) -> Flask:
    """The gateway in front of these two services, each call to them bounded by `deadline` seconds.

    `app.extensions["ordersys.feed"].close()` ends the event streams.
    """
    options = options or Options()
    measured = Metrics()
    product_service = Upstream("product-service", product_channel, deadline=deadline, metrics=measured)
    order_service = Upstream("order-service", order_channel, deadline=deadline, metrics=measured)
    feed = Feed(order_channel, max_streams=options.max_streams, metrics=measured)
    app = OpenAPI(
        "ordersys.api",
        info=Info(title="ordersys", version=__version__, description=docs.DESCRIPTION),
        security_schemes=docs.SECURITY_SCHEMES,
        validation_error_status=400,
        validation_error_model=problems.Problem,
        validation_error_callback=problems.refuse,
        doc_ui=False,
        static_folder=None,
    )
    app.request_class = JsonRequest
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions["ordersys.feed"] = feed
    # In this order: who asks for what, may they, how often, and is it readable at all.
    http.register(app, options.cors_origins)
    metrics.register(app, measured)
    access.register(app, options.access)
    rates.register(app, options.rates, measured)
    app.before_request(_require_json_object)
    problems.register(app)
    app.register_api(data.resource(product_service))
    app.register_api(products.resource(product_service))
    app.register_api(orders.resource(product_service, order_service))
    app.register_api(events.resource(feed))
    app.register_api(health.resource((product_service, order_service), options.checks))
    dashboard.register(app, order_service)
    docs.register(app)
    return app


def _require_json_object() -> None:
    if request.method not in ("POST", "PUT", "PATCH") or request.url_rule is None:
        return
    # Werkzeug cuts a body that comes in chunks off at the limit instead of refusing it.
    if request.content_length is None and len(request.get_data()) >= MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    view = current_app.view_functions[request.endpoint or ""]
    if schemas.may_be_missing(view) and not request.get_data():
        return
    try:
        body = request.get_json()
    except RecursionError as error:
        raise errors.InvalidArgument.of("body", "is nested too deeply") from error
    if not isinstance(body, dict):
        raise errors.InvalidArgument.of("body", "must be a JSON object")
    if body and not schemas.takes_body(view):
        raise errors.InvalidArgument.of("body", "must be empty here")
