"""GET /api/data: one line about what the Product Service holds."""

from flask_openapi3 import APIBlueprint, Tag
from pydantic import Field

from ordersys.api import problems, stale
from ordersys.api.schemas import NoQuery
from ordersys.api.stale import MayBeStale
from ordersys.api.upstream import Upstream
from ordersys.core.v1 import product_pb2, product_pb2_grpc


class Data(MayBeStale):
    message: str = Field(examples=["6 products, 535 units available"])


def resource(upstream: Upstream) -> APIBlueprint:
    service = product_pb2_grpc.ProductServiceStub(upstream.channel.raw)
    blueprint = APIBlueprint("data", __name__, url_prefix="/api", abp_tags=[Tag(name="data")])

    @blueprint.get("/data", operation_id="get_data", responses={"200": Data, **problems.documented()})
    @stale.or_last_known(upstream)
    def get_data(query: NoQuery) -> dict[str, str]:
        """A one-line human summary of what the Product Service holds."""
        response = upstream.call(service.GetData, product_pb2.GetDataRequest())
        return {"message": response.message}

    return blueprint
