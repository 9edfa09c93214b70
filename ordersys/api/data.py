"""GET /api/data: one line about what the Product Service holds."""

from flask_openapi3 import APIBlueprint, Tag
from pydantic import BaseModel

from ordersys.api import problems
from ordersys.core.channel import Channel
from ordersys.core.v1 import product_pb2, product_pb2_grpc


class Data(BaseModel):
    message: str


def resource(channel: Channel, deadline: float) -> APIBlueprint:
    service = product_pb2_grpc.ProductServiceStub(channel.raw)
    blueprint = APIBlueprint("data", __name__, url_prefix="/api", abp_tags=[Tag(name="data")])

    @blueprint.get("/data", operation_id="get_data", responses={"200": Data, **problems.documented()})
    def get_data() -> dict[str, str]:
        """A one-line human summary of what the Product Service holds."""
        response = channel.call(service.GetData, product_pb2.GetDataRequest(), deadline=deadline)
        return {"message": response.message}

    return blueprint
