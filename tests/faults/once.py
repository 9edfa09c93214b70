"""Callers who ask one time and never again: what they were told, or that nobody answered."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from e2e.processes import Backend
from faults.books import Write

from ordersys.core import errors, records
from ordersys.core.records import Order
from ordersys.core.rpc.channel import Channel
from ordersys.core.v1 import order_pb2, product_pb2, product_pb2_grpc


@dataclass(frozen=True, slots=True)
class Asked:
    """One call, its answer, and how many seconds that took."""

    write: Write
    answer: Order | errors.OrdersysError
    seconds: float


def placings(customer: str, count: int, product_id: str, quantity: int = 1) -> list[Write]:
    """So many different orders of one customer."""
    return [
        Write(kind="place", key=f"{customer}-{number}", customer=customer, lines=((product_id, quantity),))
        for number in range(count)
    ]


@contextmanager
def asking(backend: Backend, writes: Sequence[Write], deadline: float) -> Iterator[list["Future[Asked]"]]:
    """All place their order at the same time, each over a channel of its own that repeats nothing."""
    with ThreadPoolExecutor(len(writes)) as pool:
        yield [pool.submit(_place, backend.product_address, write, deadline) for write in writes]


def _place(address: str, write: Write, deadline: float) -> Asked:
    request = product_pb2.PlaceOrderRequest(
        idempotency_key=write.key,
        customer_id=write.customer,
        lines=[order_pb2.OrderLine(product_id=product_id, quantity=quantity) for product_id, quantity in write.lines],
    )
    channel = Channel(address, retry=False)
    place = product_pb2_grpc.ProductServiceStub(channel.raw).PlaceOrder
    began = time.monotonic()
    try:
        answer: Order | errors.OrdersysError = records.order_from_proto(
            channel.call(place, request, deadline=deadline).order
        )
    except errors.OrdersysError as error:
        answer = error
    finally:
        channel.close()
    return Asked(write, answer, time.monotonic() - began)
