"""The floors: a gRPC server that does nothing but answer, and one that first asks another.

    python benchmarks/echo.py HOST:PORT [NEXT_HOST:PORT]

grpc.aio on uvloop, a message as large as that of PlaceOrder: what the wire and the library alone take.
"""

import asyncio
import sys

import uvloop
from grpc import aio

from ordersys.core.v1 import order_pb2, product_pb2, product_pb2_grpc

ANSWER = product_pb2.PlaceOrderResponse(
    order=order_pb2.Order(
        id="0190f3b8-6f3a-7cc2-98c4-dc0c0c07398f",
        customer_id="c-1",
        status=order_pb2.ORDER_STATUS_PLACED,
        lines=[
            order_pb2.OrderLine(product_id="1", quantity=1, unit_price=order_pb2.Money(currency="EUR", amount=1999))
        ],
        total=order_pb2.Money(currency="EUR", amount=1999),
        version=1,
    )
)


class Echo(product_pb2_grpc.ProductServiceServicer):
    def __init__(self, further: "product_pb2_grpc.ProductServiceAsyncStub | None") -> None:
        self._further = further

    async def PlaceOrder(self, request, context):  # type: ignore[no-untyped-def]
        return ANSWER if self._further is None else await self._further.PlaceOrder(request)


async def main(bind: str, further: str = "") -> None:
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    stub = product_pb2_grpc.ProductServiceStub(aio.insecure_channel(further)) if further else None
    product_pb2_grpc.add_ProductServiceServicer_to_server(Echo(stub), server)  # type: ignore[arg-type]
    server.add_insecure_port(bind)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
