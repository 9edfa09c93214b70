"""One client process of the load generator: so many callers on one event loop, over gRPC or HTTP."""

import asyncio
import itertools
import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Protocol

from ordersys.bench.plan import Placed, Plan, Seen, Via
from ordersys.core import errors, ids
from ordersys.core.rpc.channel import AsyncChannel
from ordersys.core.tls import kept
from ordersys.core.v1 import order_pb2, product_pb2, product_pb2_grpc

TELL_SECONDS = 0.25
_FIRST_PAUSE = 0.05


class Door(Protocol):
    async def place(self, customer_id: str, product_id: str, key: str) -> str:
        """The id of the new order of one unit; raises the refusal, or `Unavailable` for an unknown outcome."""

    async def close(self) -> None: ...


class GrpcDoor:
    def __init__(self, plan: Plan) -> None:
        self._channel = AsyncChannel(plan.address, tls=kept(plan.tls))
        self._place = product_pb2_grpc.ProductServiceStub(self._channel.raw).PlaceOrder
        self._deadline = plan.deadline

    async def place(self, customer_id: str, product_id: str, key: str) -> str:
        lines = [order_pb2.OrderLine(product_id=product_id, quantity=1)]
        request = product_pb2.PlaceOrderRequest(idempotency_key=key, customer_id=customer_id, lines=lines)
        answer: product_pb2.PlaceOrderResponse = await self._channel.call(self._place, request, deadline=self._deadline)
        return answer.order.id

    async def close(self) -> None:
        await self._channel.close()


class RestDoor:
    """As much HTTP/1.1 as our own gateway needs: one kept connection per caller that is at work."""

    def __init__(self, plan: Plan) -> None:
        self._host, _, port = plan.address.rpartition(":")
        self._port = int(port)
        self._deadline = plan.deadline
        key = f"X-API-Key: {plan.api_key}\r\n" if plan.api_key else ""
        self._head = (
            f"POST /api/v1/orders HTTP/1.1\r\nHost: {plan.address}\r\nContent-Type: application/json\r\n{key}"
            "Idempotency-Key: {key}\r\nContent-Length: {length}\r\n\r\n"
        )
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def place(self, customer_id: str, product_id: str, key: str) -> str:
        body = json.dumps({"customer_id": customer_id, "lines": [{"product_id": product_id, "quantity": 1}]})
        head = self._head.replace("{key}", key).replace("{length}", str(len(body)))
        try:
            async with asyncio.timeout(self._deadline):
                status, answer = await self._exchange((head + body).encode())
        except (OSError, EOFError, TimeoutError) as error:
            raise errors.Unavailable(f"{self._host}:{self._port}: {error or type(error).__name__}") from error
        if status in (200, 201):
            return str(answer["id"])
        raise errors.refusal(str(answer.get("code", "internal")), str(answer.get("detail", status)), {})

    async def _exchange(self, request: bytes) -> tuple[int, dict[str, object]]:
        reader, writer = self._idle.pop() if self._idle else await self._connected()
        kept = False
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            _, _, rest = head.partition("content-length:")
            content = json.loads(await reader.readexactly(int(rest.partition("\r\n")[0])))
            kept = "connection: close" not in head
            return int(head[9:12]), content
        finally:
            if kept:
                self._idle.append((reader, writer))
            else:
                writer.close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host.strip("[]"), self._port)

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


class Client:
    """Carries out a plan; what it saw is told every TELL_SECONDS and at the end, then an empty message."""

    def __init__(self, plan: Plan, parent: "Connection[Seen | None, object]") -> None:
        self._plan = plan
        self._parent = parent
        self._seen = Seen()
        self._random = random.Random(plan.seed)  # noqa: S311 - which product is ordered next

    async def run(self) -> None:
        plan = self._plan
        door: Door = GrpcDoor(plan) if plan.via is Via.GRPC else RestDoor(plan)
        self._end = time.monotonic() + plan.seconds
        moments = self._moments()
        telling = asyncio.create_task(self._tell())
        try:
            await asyncio.gather(*[self._call(door, moments) for _ in range(plan.callers)])
        finally:
            telling.cancel()
            await asyncio.wait((telling,))
            await door.close()
        self._parent.send(self._seen)
        self._parent.send(None)

    def _moments(self) -> Iterator[float]:
        """When each order is to be placed; without a rate that is at once, which 0.0 says."""
        begun = time.monotonic()
        numbers = range(self._plan.orders) if self._plan.orders else itertools.count()
        for number in numbers:
            moment = begun + number / self._plan.rate if self._plan.rate else 0.0
            if (moment or time.monotonic()) >= self._end and not self._plan.orders:
                return
            yield moment

    async def _call(self, door: Door, moments: Iterator[float]) -> None:
        for moment in moments:
            wait = moment - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            await self._place(door, moment or time.monotonic())

    async def _place(self, door: Door, begun: float) -> None:
        plan, key = self._plan, ids.uuid7()
        first = self._random.random() < plan.hot
        product = plan.products[0] if first else self._random.choice(plan.products)
        pause = _FIRST_PAUSE
        while True:
            try:
                order_id = await door.place(plan.customer_id, product, key)
            except errors.Unavailable as error:
                if time.monotonic() - begun > plan.patience:
                    self._seen.unknown += 1
                    return
                self._seen.repeated += 1
                await asyncio.sleep(max(pause, min(error.retry_after, 1.0)))
                pause = min(2 * pause, 1.0)
            except errors.OrdersysError as error:
                self._seen.refused[error.code] += 1
                return
            else:
                self._seen.placed.append(Placed(order_id, begun, time.monotonic()))
                return

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            seen, self._seen = self._seen, Seen()
            self._parent.send(seen)


def work(plan: Plan, parent: "Connection[Seen | None, object]") -> None:
    """The whole life of a client process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends us
    if sys.platform == "win32":
        asyncio.run(Client(plan, parent).run())
    else:
        import uvloop

        uvloop.run(Client(plan, parent).run())
