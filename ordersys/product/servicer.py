"""The Product Service's gRPC door: reads a request, refuses what it cannot mean, answers in protobuf."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from grpc import aio

from ordersys.core import fields, ids
from ordersys.core.records import product_to_proto, timestamp
from ordersys.core.rpc.server import traceparent
from ordersys.core.v1 import order_pb2, product_pb2, product_pb2_grpc
from ordersys.product import model
from ordersys.product.service import ProductService

MAX_REQUEST_BYTES = 64 * 1024
"""The largest order has 100 lines whose ids have 128 characters of 4 bytes: 54 KiB (test_limits.py makes it)."""
SERVICE = product_pb2.DESCRIPTOR.services_by_name["ProductService"].full_name


class ProductServicer(product_pb2_grpc.ProductServiceServicer):
    def __init__(self, service: ProductService) -> None:
        self._service = service

    def add_to(self, server: aio.Server) -> None:
        product_pb2_grpc.add_ProductServiceServicer_to_server(self, server)

    async def GetData(
        self, request: product_pb2.GetDataRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> product_pb2.GetDataResponse:
        return product_pb2.GetDataResponse(message=await self._service.get_data())

    async def ListProducts(
        self, request: product_pb2.ListProductsRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> product_pb2.ListProductsResponse:
        page, next_page_token = await self._service.list_products(request.page_size, request.page_token)
        return product_pb2.ListProductsResponse(
            products=[product_to_proto(product) for product in page], next_page_token=next_page_token
        )

    async def GetProduct(
        self, request: product_pb2.GetProductRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> product_pb2.GetProductResponse:
        return product_pb2.GetProductResponse(product=product_to_proto(await self._service.product(request.product_id)))

    async def AdjustStock(
        self, request: product_pb2.AdjustStockRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> product_pb2.AdjustStockResponse:
        fields.refuse(
            [
                *fields.key(request.idempotency_key),
                *fields.text("product_id", request.product_id),
                *fields.text("reason", request.reason, most=fields.MAX_REASON, required=False),
                *model.check_delta(request.delta),
            ]
        )
        answer, replayed = await self._service.execute(
            model.AdjustStock(
                command_id=ids.uuid7(),
                key=request.idempotency_key,
                fingerprint=model.fingerprint("AdjustStock", request.product_id, request.delta, request.reason),
                product_id=request.product_id,
                delta=request.delta,
                reason=request.reason,
            )
        )
        return product_pb2.AdjustStockResponse(product=product_pb2.Product.FromString(answer), replayed=replayed)

    async def PlaceOrder(
        self, request: product_pb2.PlaceOrderRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> product_pb2.PlaceOrderResponse:
        lines = _wanted(request.lines)
        fields.refuse(
            [
                *fields.key(request.idempotency_key),
                *fields.text("customer_id", request.customer_id),
                *model.check_lines(lines),
            ]
        )
        answer, replayed = await self._service.execute(
            model.PlaceOrder(
                command_id=ids.uuid7(),
                key=request.idempotency_key,
                fingerprint=model.fingerprint("PlaceOrder", request.customer_id, _parts(lines)),
                order_id=ids.uuid7(),
                customer_id=request.customer_id,
                lines=lines,
                traceparent=traceparent(),
            )
        )
        return product_pb2.PlaceOrderResponse(order=order_pb2.Order.FromString(answer), replayed=replayed)

    async def UpdateOrder(
        self, request: product_pb2.UpdateOrderRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> product_pb2.UpdateOrderResponse:
        lines = _wanted(request.lines)
        fields.refuse(
            [
                *fields.key(request.idempotency_key),
                *fields.text("order_id", request.order_id),
                *model.check_lines(lines),
                *fields.version("expected_version", request.expected_version),
            ]
        )
        answer, replayed = await self._service.execute(
            model.UpdateOrder(
                command_id=ids.uuid7(),
                key=request.idempotency_key,
                fingerprint=model.fingerprint("UpdateOrder", request.order_id, _parts(lines), request.expected_version),
                order_id=request.order_id,
                lines=lines,
                expected_version=request.expected_version,
                traceparent=traceparent(),
            )
        )
        return product_pb2.UpdateOrderResponse(order=order_pb2.Order.FromString(answer), replayed=replayed)

    async def CancelOrder(
        self, request: product_pb2.CancelOrderRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> product_pb2.CancelOrderResponse:
        fields.refuse(
            [
                *fields.key(request.idempotency_key),
                *fields.text("order_id", request.order_id),
                *fields.text("reason", request.reason, most=fields.MAX_REASON, required=False),
                *fields.version("expected_version", request.expected_version),
            ]
        )
        answer, replayed = await self._service.execute(
            model.CancelOrder(
                command_id=ids.uuid7(),
                key=request.idempotency_key,
                fingerprint=model.fingerprint(
                    "CancelOrder", request.order_id, request.reason, request.expected_version
                ),
                order_id=request.order_id,
                reason=request.reason,
                expected_version=request.expected_version,
                traceparent=traceparent(),
            )
        )
        return product_pb2.CancelOrderResponse(order=order_pb2.Order.FromString(answer), replayed=replayed)

    async def AuditStock(
        self, request: product_pb2.AuditStockRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> product_pb2.AuditStockResponse:
        audits, pending = await self._service.audit()
        return product_pb2.AuditStockResponse(
            products=[product_pb2.StockAudit(**asdict(each)) for each in audits], pending=pending
        )

    async def ListStockMoves(
        self, request: product_pb2.ListStockMovesRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> product_pb2.ListStockMovesResponse:
        moves = await self._service.moves(request.order_id)
        return product_pb2.ListStockMovesResponse(
            moves=[product_pb2.StockMove(**{**asdict(each), "at": timestamp(each.at)}) for each in moves]
        )


def _wanted(lines: Iterable[order_pb2.OrderLine]) -> tuple[model.Wanted, ...]:
    return tuple(model.Wanted(line.product_id, line.quantity) for line in lines)


def _parts(lines: Iterable[model.Wanted]) -> list[tuple[str, int]]:
    return [(line.product_id, line.quantity) for line in lines]
