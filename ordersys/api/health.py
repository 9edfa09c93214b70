"""/healthz and /readyz."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from flask import Response, jsonify
from flask_openapi3 import APIBlueprint, Tag
from pydantic import BaseModel, Field

from ordersys.api import access
from ordersys.api.breaker import State
from ordersys.api.upstream import Upstream
from ordersys.core import errors
from ordersys.core.watch.readiness import Check, Readiness


class Health(BaseModel):
    status: Literal["ok"]


class Checked(BaseModel):
    status: Literal["ready", "unavailable", "unknown"]
    breaker: Literal["half-open", "open"] | None = Field(None, description="absent while calls go through")


class Ready(BaseModel):
    status: Literal["ready", "degraded", "not_ready"] = Field(
        description="degraded = without the broker: orders are taken, their events wait"
    )
    checks: dict[str, Checked] = Field(
        examples=[{"product-service": {"status": "ready"}, "order-service": {"status": "unavailable"}}]
    )


def checks_of(product_service: Upstream, order_service: Upstream) -> list[Check]:
    """What the gateway needs behind it, and what is good to know of it."""
    return [
        *(Check(each.name, partial(ready, each)) for each in (product_service, order_service)),
        Check("broker", partial(_broker, order_service), needed=False),
    ]


def resource(readiness: Readiness, upstreams: Sequence[Upstream]) -> APIBlueprint:
    """What `readiness` finds, and the breakers of these services."""
    blueprint = APIBlueprint("health", __name__, abp_tags=[Tag(name="health")])
    breakers = {each.name: each.breaker for each in upstreams}

    @blueprint.get("/healthz", operation_id="healthz", responses={"200": Health})
    @access.public
    def healthz() -> dict[str, str]:
        """Alive: says nothing of the services behind, so that their failure does not restart the gateway."""
        return {"status": "ok"}

    @blueprint.get("/readyz", operation_id="readyz", responses={"200": Ready, "503": Ready})
    @access.public
    def readyz() -> Response:
        """The state of every dependency, a few seconds old at most; 503 while one is away that is needed."""
        state = readiness.state()
        document = state.document()
        for name, check in document["checks"].items():
            if name in breakers and (breaker := breakers[name].state) is not State.CLOSED:
                check["breaker"] = str(breaker)
        response = jsonify(document)
        response.status_code = 200 if state.ready else 503
        return response

    return blueprint


def ready(upstream: Upstream) -> bool:
    """Also lets the next call try a service that is back: who is not ready may get no call that could find out."""
    if missing := upstream.missing():
        raise errors.Unavailable(f"it misses {missing}")
    upstream.breaker.hasten()
    return True


def _broker(order_service: Upstream) -> bool | None:
    """Whether the broker answers the Order Service; None while that does not answer us."""
    try:
        return not order_service.missing("broker")
    except errors.OrdersysError:
        return None
