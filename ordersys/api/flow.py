"""/api/v1/flow: how far the events are on their way to their consumers."""

import time
from typing import Any

from flask_openapi3 import APIBlueprint, Tag
from pydantic import BaseModel, Field

from ordersys.api import access, problems
from ordersys.api.access import Scope
from ordersys.api.upstream import Upstream
from ordersys.core import records
from ordersys.core.v1 import order_pb2, order_pb2_grpc


class Outbox(BaseModel):
    depth: int = Field(description="events that the broker has not confirmed")
    oldest_seconds: float = Field(description="how long the oldest of them has waited; 0 when there is none")


class QueueDepth(BaseModel):
    name: str = Field(examples=["notify.fanout"])
    ready: int = Field(description="messages that wait for a consumer")
    retrying: int = Field(description="messages that rest before another try")
    dead: int = Field(description="dead letters")


class Flow(BaseModel):
    outbox: Outbox
    queues: list[QueueDepth] = Field(description="empty while the broker does not answer")
    broker: str = Field(description='"ok", or why there are no queues', examples=["ok"])


def resource(upstream: Upstream) -> APIBlueprint:
    service = order_pb2_grpc.OrderServiceStub(upstream.channel.raw)
    blueprint = APIBlueprint("flow", __name__, url_prefix="/api/v1/flow", abp_tags=[Tag(name="flow")])

    @blueprint.get("", operation_id="get_flow", responses={"200": Flow, **problems.documented(403)})
    @access.needs(Scope.ADMIN)
    def get_flow() -> dict[str, Any]:
        """The outbox and every standard queue, at most a second old."""
        flow = upstream.call(service.GetFlow, order_pb2.GetFlowRequest())
        waited = time.time() - records.microseconds(flow.outbox_oldest) / 1e6 if flow.HasField("outbox_oldest") else 0.0
        return {
            "outbox": {"depth": flow.outbox_depth, "oldest_seconds": max(0.0, round(waited, 3))},
            "queues": [
                {"name": queue.name, "ready": queue.ready, "retrying": queue.retrying, "dead": queue.dead}
                for queue in flow.queues
            ],
            "broker": flow.broker_problem or "ok",
        }

    return blueprint
