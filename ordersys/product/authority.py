"""Order-service as the Product Service sees it: it alone decides whether an order exists, and in which version."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ordersys.core import errors, records
from ordersys.core.rpc.channel import AsyncChannel
from ordersys.core.tls import Kept
from ordersys.core.v1 import order_pb2, order_pb2_grpc
from ordersys.core.watch import spans
from ordersys.core.watch.readiness import ASK_SECONDS
from ordersys.core.watch.tracing import Tracing
from ordersys.product import model
from ordersys.product.book import Answer

logger = logging.getLogger(__name__)

_SERVICE = order_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name
CALL_BYTES = 128 * 1024
"""How much goes into one call: hundreds of usual orders; order-service bounds what it takes at once."""


class Authority(Protocol):
    """Both raise `Unavailable` when no answer came: then the outcome of each command is unknown, not failed."""

    async def process(self, commands: Sequence[order_pb2.OrderCommand]) -> Sequence[order_pb2.OrderResult]:
        """Ask for the commands: one result each, in order."""

    async def settle(self, command_ids: Sequence[str]) -> Sequence[order_pb2.OrderResult]:
        """Ask what became of them; whatever was not executed by now never will be."""


class GrpcAuthority:
    """The Authority over gRPC, made on the event loop that uses it. `deadline` is in seconds per call."""

    def __init__(self, address: str, deadline: float, tls: Kept | None = None, tracing: Tracing | None = None) -> None:
        self._tracing = tracing or Tracing()
        # The commands are idempotent by id, but a repetition belongs to recovery: one layer retries.
        self._channel = AsyncChannel(address, retry=False, tls=tls, tracing=self._tracing)
        self._stub = order_pb2_grpc.OrderServiceStub(self._channel.raw)
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._silent = False

    def reachable(self) -> bool:
        """Raises `Unavailable` unless order-service says that it serves; on any thread but that of the event loop."""
        asked = self._channel.missing(_SERVICE, deadline=ASK_SECONDS)
        if missing := asyncio.run_coroutine_threadsafe(asked, self._loop).result():
            raise errors.Unavailable(f"it misses {missing}")
        return True

    async def process(self, commands: Sequence[order_pb2.OrderCommand]) -> Sequence[order_pb2.OrderResult]:
        calls = [self._process(part) for part in parts(commands)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        results: list[order_pb2.OrderResult] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            results.extend(answer)
        return results

    async def _process(self, commands: Sequence[order_pb2.OrderCommand]) -> Sequence[order_pb2.OrderResult]:
        request = order_pb2.ProcessOrdersRequest(commands=commands)
        with spans.Commands(self._tracing, "ask order-service", request.commands) as asked:
            response: order_pb2.ProcessOrdersResponse = await self._ask(
                self._stub.ProcessOrders, request, batch=asked.contexts
            )
            asked.answered(response.results)
        return response.results

    async def settle(self, command_ids: Sequence[str]) -> Sequence[order_pb2.OrderResult]:
        request = order_pb2.SettleCommandsRequest(command_ids=command_ids)
        response: order_pb2.SettleCommandsResponse = await self._ask(self._stub.SettleCommands, request)
        return response.results

    async def _ask(self, method: Any, request: Any, **more: Any) -> Any:
        """The answer; that none comes is logged when it begins and when it is over, not for every batch."""
        try:
            answer = await self._channel.call(method, request, deadline=self._deadline, **more)
        except errors.OrdersysError as error:
            if not self._silent:
                logger.warning("order-service gave no answer, recovery will ask what came of the commands: %s", error)
            self._silent = True
            raise
        if self._silent:
            logger.info("order-service answers again")
        self._silent = False
        return answer

    async def close(self) -> None:
        await self._channel.close()


def parts(commands: Sequence[order_pb2.OrderCommand]) -> Iterator[Sequence[order_pb2.OrderCommand]]:
    """The commands in order, in as few parts as `CALL_BYTES` allows; each has at least one."""
    part: list[order_pb2.OrderCommand] = []
    size = 0
    for command in commands:
        more = command.ByteSize()
        if part and size + more > CALL_BYTES:
            yield part
            part, size = [], 0
        part.append(command)
        size += more
    if part:
        yield part


def command_of(taken: model.Taken) -> order_pb2.OrderCommand:
    """What to ask for, now that the stock is taken."""
    command = taken.command
    message = order_pb2.OrderCommand(
        command_id=command.command_id, order_id=command.order_id, traceparent=command.traceparent
    )
    match command:
        case model.PlaceOrder():
            message.place.customer_id = command.customer_id
            message.place.lines.extend(records.lines_to_proto(taken.lines, taken.currency))
        case model.UpdateOrder():
            message.expected_version = command.expected_version
            message.update.lines.extend(records.lines_to_proto(taken.lines, taken.currency))
        case model.CancelOrder():
            message.expected_version = command.expected_version
            message.cancel.reason = command.reason
    return message


def settlement_of(order_id: str, result: order_pb2.OrderResult) -> model.Settlement:
    """What order-service's answer means for the stock and for repetitions of the key."""
    fate, answer = _fate(result)
    return model.Settlement(order_id=order_id, command_id=result.command_id, fate=fate, answer=answer)


def _fate(result: order_pb2.OrderResult) -> tuple[model.Fate, Answer | None]:
    match result.WhichOneof("outcome"):
        case "accepted":
            return model.Fate.ACCEPTED, result.accepted.SerializeToString()
        case "refused":
            return model.Fate.REFUSED, records.refusal_from_proto(result.refused)
        case _:
            return model.Fate.VOID, None
