"""The Flask app: what every resource shares. Nothing is connected here; the channels are handed in."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from flask import Flask, Request, current_app, request
from flask_openapi3 import Info, OpenAPI
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge, UnsupportedMediaType

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
    request_log,
    schemas,
    traces,
)
from ordersys.api.access import Access
from ordersys.api.feed import Feed
from ordersys.api.metrics import Metrics
from ordersys.api.rates import Rates
from ordersys.api.upstream import Upstream
from ordersys.core import errors
from ordersys.core.rpc.channel import Channel
from ordersys.core.watch.metrics import Registry
from ordersys.core.watch.readiness import Check, Readiness
from ordersys.core.watch.tracing import Tracing

MAX_BODY_BYTES = 256 * 1024
"""The largest order as JSON: 100 lines with ids of 128 characters that are all escaped, some 160 KiB."""


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
    tracing: Tracing = field(default_factory=Tracing)
    checks: Sequence[Check] = ()  # what /readyz looks at beside the services
    registry: Registry = field(default_factory=Registry)


def create_app(
    product_channel: Channel, order_channel: Channel, *, deadline: float = 5.0, options: Options | None = None
) -> Flask:
    """The gateway in front of these two services, each call to them bounded by `deadline` seconds.

    `app.extensions["ordersys.feed"].close()` ends the event streams; `app.extensions["ordersys.readiness"]` may be
    started, and then stopped.
    """
    options = options or Options()
    measured = Metrics(options.registry)
    product_service = Upstream("product-service", product_channel, deadline=deadline, metrics=measured)
    order_service = Upstream("order-service", order_channel, deadline=deadline, metrics=measured)
    readiness = Readiness([*health.checks_of(product_service, order_service), *options.checks])
    dependencies = options.registry.dependencies("api")
    readiness.tell(lambda state: dependencies(state.found))
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
    app.extensions["ordersys.feed"] = feed
    app.extensions["ordersys.readiness"] = readiness
    # In this order: in which trace, who asks for what, may they, how often, and is it readable at all.
    request_log.register(app)
    traces.register(app, options.tracing)
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
    app.register_api(health.resource(readiness, (product_service, order_service)))
    dashboard.register(app, order_service)
    docs.register(app)
    return app


def _refuse_large_chunks() -> None:
    """Werkzeug cuts a body that comes in chunks off at the limit, and takes a chunk too large for a lost client."""
    try:
        content = request.get_data()
    except ClientDisconnected as error:
        if "Too Large" in str(error.__cause__ or error.__context__):
            raise RequestEntityTooLarge from error
        raise
    if len(content) >= MAX_BODY_BYTES:
        raise RequestEntityTooLarge


def _require_json_object() -> None:
    if request.method not in ("POST", "PUT", "PATCH") or request.url_rule is None:
        return
    if request.content_length is None:
        _refuse_large_chunks()
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
