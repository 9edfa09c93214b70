"""/api/v1/products: what can be sold, and how many units of it."""

from typing import Any

from flask_openapi3 import APIBlueprint, Tag
from pydantic import BaseModel, Field

from ordersys.api import problems
from ordersys.api.schemas import Money, Page
from ordersys.api.upstream import Upstream
from ordersys.core import records
from ordersys.core.v1 import product_pb2, product_pb2_grpc


class Product(BaseModel):
    id: str
    name: str
    description: str
    attributes: dict[str, str]
    price: Money = Field(description="per unit")
    available: int = Field(description="units that can be sold now")


class ProductList(BaseModel):
    products: list[Product]
    next_page_token: str = Field(description="empty on the last page")


class ProductPath(BaseModel):
    id: str = Field(description="product id")


def resource(upstream: Upstream) -> APIBlueprint:
    service = product_pb2_grpc.ProductServiceStub(upstream.channel.raw)
    blueprint = APIBlueprint("products", __name__, url_prefix="/api/v1/products", abp_tags=[Tag(name="products")])

    @blueprint.get("", operation_id="list_products", responses={"200": ProductList, **problems.documented()})
    def list_products(query: Page) -> dict[str, Any]:
        """Products by id."""
        request = product_pb2.ListProductsRequest(page_size=query.page_size, page_token=query.page_token)
        response = upstream.call(service.ListProducts, request)
        found = [records.product_json(records.product_from_proto(each)) for each in response.products]
        return {"products": found, "next_page_token": response.next_page_token}

    @blueprint.get("/<id>", operation_id="get_product", responses={"200": Product, **problems.documented(404)})
    def get_product(path: ProductPath) -> dict[str, Any]:
        """One product."""
        request = product_pb2.GetProductRequest(product_id=path.id)
        response = upstream.call(service.GetProduct, request)
        return records.product_json(records.product_from_proto(response.product))

    return blueprint
