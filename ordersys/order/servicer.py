"""The Order Service's gRPC door: reads a request, refuses what it cannot mean, answers in protobuf."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from grpc import aio

from ordersys.core import errors, events, fields, records
from ordersys.core.events import Change
from ordersys.core.rpc.server import traceparent
from ordersys.core.v1 import order_pb2, order_pb2_grpc
from ordersys.core.watch import spans
from ordersys.core.watch.tracing import Tracing
from ordersys.order import model
from ordersys.order.model import Accepted, Outcome, Refused, Settle, Void
from ordersys.order.service import OrderService

SERVICE = order_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name
MAX_COMMANDS = 1000
MAX_REQUEST_BYTES = 256 * 1024
"""The Product Service sends at most 128 KiB at once and one more command of 57 KiB (authority.py)."""
_MOST_TOTAL = 2**63 - 1  # what Money holds


class OrderServicer(order_pb2_grpc.OrderServiceServicer):
    def __init__(self, service: OrderService, tracing: Tracing | None = None) -> None:
        self._service = service
        self._tracing = tracing or Tracing()

    def add_to(self, server: aio.Server) -> None:
        order_pb2_grpc.add_OrderServiceServicer_to_server(self, server)

    async def ProcessOrders(
        self, request: order_pb2.ProcessOrdersRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> order_pb2.ProcessOrdersResponse:
        _check_count("commands", len(request.commands))
        batch = traceparent() if self._tracing.on else ""
        with spans.Commands(self._tracing, "process command", request.commands, links=[batch]) as begun:
            commands = [_command(message, index) for index, message in enumerate(request.commands)]
            outcomes = await self._service.execute(commands)
            results = _results([command.command_id for command in commands], outcomes)
            begun.answered(results)
        return order_pb2.ProcessOrdersResponse(results=results)

    async def SettleCommands(
        self, request: order_pb2.SettleCommandsRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> order_pb2.SettleCommandsResponse:
        _check_count("command_ids", len(request.command_ids))
        for index, command_id in enumerate(request.command_ids):
            fields.refuse(fields.text(f"command_ids[{index}]", command_id))
        outcomes = await self._service.execute([Settle(command_id) for command_id in request.command_ids])
        return order_pb2.SettleCommandsResponse(results=_results(request.command_ids, outcomes))

    async def GetOrder(
        self, request: order_pb2.GetOrderRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> order_pb2.GetOrderResponse:
        fields.refuse(fields.text("order_id", request.order_id))
        return order_pb2.GetOrderResponse(order=records.order_to_proto(await self._service.order(request.order_id)))

    async def ListOrders(
        self, request: order_pb2.ListOrdersRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> order_pb2.ListOrdersResponse:
        status = records.STATUS_FROM_PROTO.get(request.status)
        if status is None and request.status != order_pb2.ORDER_STATUS_UNSPECIFIED:
            raise errors.InvalidArgument.of("status", f"there is no order status {request.status}")
        if request.customer_id:
            fields.refuse(fields.text("customer_id", request.customer_id))
        page, next_page_token = await self._service.list_orders(
            request.page_size, request.page_token, request.customer_id, status
        )
        return order_pb2.ListOrdersResponse(
            orders=[records.order_to_proto(order) for order in page], next_page_token=next_page_token
        )

    async def AdvanceOrder(
        self, request: order_pb2.AdvanceOrderRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> order_pb2.AdvanceOrderResponse:
        fields.refuse(
            [
                *fields.key(request.idempotency_key),
                *fields.text("order_id", request.order_id),
                *fields.version("expected_version", request.expected_version),
            ]
        )
        done = await self._service.advance(
            request.order_id,
            records.STATUS_FROM_PROTO.get(request.to_status),
            request.expected_version,
            key=request.idempotency_key,
            traceparent=traceparent(),
        )
        return order_pb2.AdvanceOrderResponse(order=records.order_to_proto(done.order), replayed=done.replayed)

    async def ListEvents(
        self, request: order_pb2.ListEventsRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> order_pb2.ListEventsResponse:
        if request.order_id:
            fields.refuse(fields.text("order_id", request.order_id))
        if request.change and request.change not in list(Change):
            raise errors.InvalidArgument.of("change", f"is {request.change!r}, must be one of {', '.join(Change)}")
        page, next_page_token = await self._service.list_events(
            request.page_size,
            request.page_token,
            request.order_id,
            Change(request.change) if request.change else None,
            records.microseconds(request.since) if request.HasField("since") else 0,
        )
        logged = [order_pb2.LoggedEvent(event=events.to_proto(each.event), published=each.published) for each in page]
        return order_pb2.ListEventsResponse(events=logged, next_page_token=next_page_token)

    async def WatchOrders(
        self, request: order_pb2.WatchOrdersRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[order_pb2.OrderEvent]:
        for name in ("order_id", "customer_id"):
            if request.HasField(name):
                fields.refuse(fields.text(name, getattr(request, name)))
        if request.after_sequence < 0:
            raise errors.InvalidArgument.of("after_sequence", f"is {request.after_sequence}, must be 0 or more")
        async for event in self._service.watch(request.after_sequence, request.order_id, request.customer_id):
            yield events.to_proto(event)

    async def GetFlow(
        self, request: order_pb2.GetFlowRequest, context: "aio.ServicerContext[Any, Any]"
    ) -> order_pb2.GetFlowResponse:
        flow = await self._service.flow()
        return order_pb2.GetFlowResponse(
            outbox_depth=flow.outbox_depth,
            outbox_oldest=records.timestamp(flow.outbox_oldest) if flow.outbox_oldest else None,
            queues=[
                order_pb2.QueueDepth(name=name, ready=depth.ready, retrying=depth.retrying, dead=depth.dead)
                for name, depth in flow.queues.items()
            ],
            broker_problem=flow.broker_problem,
        )


def _command(message: order_pb2.OrderCommand, index: int) -> model.Command:
    fields.refuse(fields.text(f"commands[{index}].command_id", message.command_id))
    fields.refuse(fields.text(f"commands[{index}].order_id", message.order_id))
    fields.refuse(fields.version(f"commands[{index}].expected_version", message.expected_version))
    match message.WhichOneof("action"):
        case "place":
            change, lines, customer_id = Change.CREATED, message.place.lines, message.place.customer_id
            fields.refuse(fields.text(f"commands[{index}].place.customer_id", customer_id))
        case "update":
            change, lines, customer_id = Change.LINES, message.update.lines, ""
        case "cancel":
            return model.Command(
                command_id=message.command_id,
                order_id=message.order_id,
                change=Change.CANCELLED,
                expected_version=message.expected_version,
                traceparent=message.traceparent,
            )
        case _:
            raise errors.InvalidArgument.of(f"commands[{index}].action", "must be place, update or cancel")
    return model.Command(
        command_id=message.command_id,
        order_id=message.order_id,
        change=change,
        expected_version=message.expected_version,
        customer_id=customer_id,
        lines=records.lines_from_proto(lines),
        currency=_currency(lines, f"commands[{index}].lines"),
        traceparent=message.traceparent,
    )


def _currency(lines: Sequence[order_pb2.OrderLine], field: str) -> str:
    """The one currency of the lines; raises InvalidArgument also for lines that on record would break every reader."""
    currencies = {line.unit_price.currency for line in lines}
    if len(currencies) != 1 or "" in currencies:
        raise errors.InvalidArgument.of(field, "must be priced, and all in one currency")
    total = 0
    for number, line in enumerate(lines):
        fields.refuse(fields.text(f"{field}[{number}].product_id", line.product_id))
        if line.quantity < 1:
            raise errors.InvalidArgument.of(f"{field}[{number}].quantity", f"is {line.quantity}, must be 1 or more")
        if line.unit_price.amount < 0:
            raise errors.InvalidArgument.of(f"{field}[{number}].unit_price", "must not be negative")
        total += line.quantity * line.unit_price.amount
    if total > _MOST_TOTAL:
        raise errors.InvalidArgument.of(field, f"the total must not exceed {_MOST_TOTAL}")
    return currencies.pop()


def _results(command_ids: Sequence[str], outcomes: Sequence[Outcome | None]) -> list[order_pb2.OrderResult]:
    return [_result(*pair) for pair in zip(command_ids, outcomes, strict=True)]


def _result(command_id: str, outcome: Outcome | None) -> order_pb2.OrderResult:
    match outcome:
        case Accepted(order):
            return order_pb2.OrderResult(command_id=command_id, accepted=records.order_to_proto(order))
        case Refused(error):
            return order_pb2.OrderResult(command_id=command_id, refused=records.refusal_to_proto(error))
        case Void():
            return order_pb2.OrderResult(command_id=command_id, void=order_pb2.Void())
        case None:  # a fault of ours: the outcome is not known
            return order_pb2.OrderResult(command_id=command_id)


def _check_count(field: str, count: int) -> None:
    if count > MAX_COMMANDS:
        raise errors.InvalidArgument.of(field, f"has {count} entries, at most {MAX_COMMANDS} are allowed")
