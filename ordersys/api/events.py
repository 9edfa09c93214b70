"""/api/v1/events: the event log as Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from typing import Literal

from flask import Response, request
from flask_openapi3 import APIBlueprint, Tag
from pydantic import Field

from ordersys.api import access, problems
from ordersys.api.access import Scope
from ordersys.api.feed import Feed
from ordersys.api.schemas import Parameters, Query
from ordersys.api.server import GONE
from ordersys.api.tap import Wanted
from ordersys.core import fields

PATH = "/api/v1/events"
CONTENT_TYPE = "text/event-stream"

_SEQUENCE = r"^[0-9]{0,18}$"
_EXAMPLE = """retry: 1000
: subscribed
id: 41

id: 42
event: ordersys.order.created.v1
data: {"specversion":"1.0","id":"01981f6e-...","type":"ordersys.order.created.v1","sequence":"42","data":{...}}

"""
_STREAM = {
    "description": "A stream that does not end by itself: per event its sequence as `id`, its type as `event`, and the "
    "CloudEvent as `data`; a comment line every 15 seconds when there is none. A client that comes back with the last "
    "`id` goes on exactly there, as EventSource does by itself.",
    "content": {CONTENT_TYPE: {"schema": {"type": "string"}, "example": _EXAMPLE}},
}


class EventsQuery(Query):
    order_id: str = Field("", max_length=fields.MAX_ID, description="only the events of this order")
    customer_id: str = Field("", max_length=fields.MAX_ID, description="only those of this customer's orders")
    type: Literal["", "ordersys.order.created.v1", "ordersys.order.updated.v1"] = Field(
        "", description="only those of this type"
    )
    after: str = Field(
        "",
        pattern=_SEQUENCE,
        description="start after this sequence, 0 = with the first event that is kept; without it the stream starts "
        "with the next event. The header Last-Event-ID comes first.",
    )


class EventsHeader(Parameters):
    last_event_id: str = Field(
        "", alias="Last-Event-ID", pattern=_SEQUENCE, description="the `id` of the last event that was received"
    )


def resource(feed: Feed) -> APIBlueprint:
    blueprint = APIBlueprint("events", __name__, url_prefix=PATH, abp_tags=[Tag(name="events")])

    @blueprint.get("", operation_id="watch_events", responses={"200": _STREAM, **problems.documented(403)})
    @access.needs(Scope.ORDERS_READ)
    def watch_events(header: EventsHeader, query: EventsQuery) -> Response:
        """Every change to an order as it happens, each once and in order."""
        for name in ("order_id", "customer_id"):
            fields.refuse(fields.text(name, getattr(query, name), required=False))
        wanted = Wanted(order_id=query.order_id, customer_id=access.customer(query.customer_id), type=query.type)
        after = header.last_event_id or query.after
        response = Response(iter(()), content_type=CONTENT_TYPE)
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Accel-Buffering"] = "no"  # nginx would hold events back
        if request.method != "HEAD":
            gone = request.environ.get(GONE, lambda: False)
            stream = feed.open(int(after) if after else None, wanted, gone)
            response.response = stream
            response.call_on_close(stream.close)
        return response

    return blueprint
