"""/api/v1/events: the event log as Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from flask_openapi3 import APIBlueprint, Tag

from ordersys.api.feed import Feed


def resource(feed: Feed) -> APIBlueprint:
    return APIBlueprint("events", __name__, url_prefix="/api/v1/events", abp_tags=[Tag(name="events")])
