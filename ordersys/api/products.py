"""/api/v1/products: what can be sold, and how many units of it."""

from typing import Any

from flask import Response, jsonify
from flask_openapi3 import APIBlueprint, Tag
from pydantic import BaseModel, ConfigDict, Field

from ordersys.api import access, problems, stale
from ordersys.api.access import Scope
from ordersys.api.schemas import Id, Money, NoQuery, Page, Reason, Whole, WriteHeader, answered
from ordersys.api.upstream import Upstream
from ordersys.core import records
from ordersys.core.v1 import product_pb2, product_pb2_grpc

MAX_DELTA = 1_000_000_000  # as the Product Service has it


class Product(stale.MayBeStale):
    id: str
    name: str
    description: str
    attributes: dict[str, str]
    price: Money = Field(description="per unit")
    available: int = Field(description="units that can be sold now")


class ProductList(stale.MayBeStale):
    products: list[Product]
    next_page_token: str = Field(description="empty on the last page")


class ProductPath(BaseModel):
    id: Id = Field(description="product id")


class Adjustment(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", json_schema_extra={"example": {"delta": -3, "reason": "broken in transport"}}
    )

    delta: Whole = Field(
        ge=-MAX_DELTA,
        le=MAX_DELTA,
        description="units to add; negative to take away; not 0",
        json_schema_extra={"not": {"const": 0}},
    )
    reason: Reason = Field("", description="why, for the stock ledger")


def resource(upstream: Upstream) -> APIBlueprint:
    service = product_pb2_grpc.ProductServiceStub(upstream.channel.raw)
    blueprint = APIBlueprint("products", __name__, url_prefix="/api/v1/products", abp_tags=[Tag(name="products")])

    @blueprint.get("", operation_id="list_products", responses={"200": ProductList, **problems.documented()})
    @stale.or_last_known(upstream)
    def list_products(query: Page) -> dict[str, Any]:
        """Products by id."""
        request = product_pb2.ListProductsRequest(page_size=query.page_size, page_token=query.page_token)
        response = upstream.call(service.ListProducts, request)
        found = [records.product_json(records.product_from_proto(each)) for each in response.products]
        return {"products": found, "next_page_token": response.next_page_token}

    @blueprint.get("/<id>", operation_id="get_product", responses={"200": Product, **problems.documented(404)})
    @stale.or_last_known(upstream)
    def get_product(path: ProductPath, query: NoQuery) -> dict[str, Any]:
        """One product."""
        request = product_pb2.GetProductRequest(product_id=path.id)
        response = upstream.call(service.GetProduct, request)
        return records.product_json(records.product_from_proto(response.product))

    @blueprint.post(
        "/<id>/adjust-stock",
        operation_id="adjust_stock",
        responses={"200": Product, **problems.documented(403, 404, 409, 413, 415, 422)},
    )
    @access.needs(Scope.STOCK_WRITE)
    def adjust_stock(path: ProductPath, query: NoQuery, header: WriteHeader, body: Adjustment) -> Response:
        """Adds to or takes from what can be sold; never below zero."""
        with header.key() as key:
            request = product_pb2.AdjustStockRequest(
                product_id=path.id, delta=body.delta, reason=body.reason, idempotency_key=key
            )
            response = upstream.call(service.AdjustStock, request)
        product = records.product_json(records.product_from_proto(response.product))
        return answered(jsonify(product), replayed=response.replayed)

    return blueprint
