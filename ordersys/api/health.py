"""/healthz and /readyz."""

from collections.abc import Sequence

from flask_openapi3 import APIBlueprint, Tag
from pydantic import BaseModel

from ordersys.api import access
from ordersys.api.upstream import Upstream


class Health(BaseModel):
    status: str


def resource(upstreams: Sequence[Upstream]) -> APIBlueprint:
    blueprint = APIBlueprint("health", __name__, abp_tags=[Tag(name="health")])

    @blueprint.get("/healthz", operation_id="healthz", responses={"200": Health})
    @access.public
    def healthz() -> dict[str, str]:
        """Alive: says nothing of the services behind, so that their failure does not restart the gateway."""
        return {"status": "ok"}

    return blueprint
