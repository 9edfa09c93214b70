"""Order-service as the Product Service sees it: it alone decides whether an order exists, and in which version."""

from collections.abc import Sequence
from typing import Protocol

from ordersys.core import records
from ordersys.core.channel import AsyncChannel
from ordersys.core.v1 import order_pb2, order_pb2_grpc
from ordersys.product import model
from ordersys.product.book import Answer


class Authority(Protocol):
    """Both raise `Unavailable` when no answer came: then the outcome of each command is unknown, not failed."""

    async def process(self, commands: Sequence[order_pb2.OrderCommand]) -> Sequence[order_pb2.OrderResult]:
        """Ask for the commands: one result each, in order."""

    async def settle(self, command_ids: Sequence[str]) -> Sequence[order_pb2.OrderResult]:
        """Ask what became of them; whatever was not executed by now never will be."""


class GrpcAuthority:
    """The Authority over gRPC, made on the event loop that uses it. `deadline` is in seconds per call."""

    def __init__(self, address: str, deadline: float) -> None:
        # The commands are idempotent by id, but a repetition belongs to recovery: one layer retries.
        self._channel = AsyncChannel(address, retry=False)
        self._stub = order_pb2_grpc.OrderServiceStub(self._channel.raw)
        self._deadline = deadline

    async def process(self, commands: Sequence[order_pb2.OrderCommand]) -> Sequence[order_pb2.OrderResult]:
        request = order_pb2.ProcessOrdersRequest(commands=commands)
        response = await self._channel.call(self._stub.ProcessOrders, request, deadline=self._deadline)
        return response.results

    async def settle(self, command_ids: Sequence[str]) -> Sequence[order_pb2.OrderResult]:
        request = order_pb2.SettleCommandsRequest(command_ids=command_ids)
        response = await self._channel.call(self._stub.SettleCommands, request, deadline=self._deadline)
        return response.results

    async def close(self) -> None:
        await self._channel.close()


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
