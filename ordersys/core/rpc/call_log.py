"""One line per gRPC call that was answered, its facts under the names of ECS and of OpenTelemetry's conventions.

https://www.elastic.co/docs/reference/ecs, https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
"""

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ordersys.core import errors

if TYPE_CHECKING:
    from ordersys.core.rpc.server import Call

logger = logging.getLogger(__name__)

_OUTCOMES = {"OK": "success", "CANCELLED": "unknown"}  # who cancels has not waited for what comes of it
_MOST_ORDERS = 100  # of a batch: Docker cuts lines of more than 16 KiB
_LONGEST_ID = 128  # what is longer is refused


class CallLog:
    """Sees every call to a server; those of health and reflection are for debugging only.

    What a rule refuses is as little trouble as what succeeds; with a dependency away the line is a warning, and with a
    fault of ours an error with its stack trace. Of request and answer it has nothing but the ids of orders.
    """

    def began(self, call: "Call", metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """There is nothing to say yet."""

    def ended(self, call: "Call") -> None:
        level = _level(call)
        if not logger.isEnabledFor(level):
            return
        seconds = time.perf_counter() - call.begun
        fields: dict[str, Any] = {
            "rpc.system.name": "grpc",
            "rpc.method": call.method[1:],
            "rpc.response.status_code": call.code,
            "event.duration": int(seconds * 1e9),
            "event.outcome": _OUTCOMES.get(call.code, "failure"),
            "client.address": _host(call.peer),
            "trace.id": call.traceparent[3:35],
            "span.id": call.traceparent[36:52],
        }
        if order_ids := _order_ids(call):
            fields["ordersys.order.id"] = order_ids
        said = f"{call.method.rpartition('/')[2]}: {call.code} in {seconds * 1000:.1f} ms"
        if call.error is not None:
            said += _why(call, call.error, fields)
        logger.log(level, "%s", said, exc_info=call.error if call.fault else None, extra={"ecs": fields})


def _level(call: "Call") -> int:
    if call.fault:
        return logging.ERROR
    if isinstance(call.error, errors.Unavailable):
        return logging.WARNING
    return logging.DEBUG if call.method.startswith("/grpc.") else logging.INFO


def _why(call: "Call", error: Exception, fields: dict[str, Any]) -> str:
    """Note why in the fields; the words for the message."""
    if call.fault:
        fields["error.code"] = errors.Internal.code
        return f": {type(error).__name__}: {error}"
    if not isinstance(error, errors.OrdersysError):  # a servicer's own status: it says all
        return ""
    fields["error.code"] = error.code
    if isinstance(error, errors.Unavailable):
        fields["error.message"] = str(error)
        return f": {error}"
    return f": {error.code}"  # the words of a refusal may quote the request


def _order_ids(call: "Call") -> str | list[str]:
    """The order that was asked for or made, or those of a batch."""
    if commands := getattr(call.request, "commands", None):
        return [each.order_id[:_LONGEST_ID] for each in commands[:_MOST_ORDERS]]
    order_id: str = getattr(getattr(call.response, "order", None), "id", "") or getattr(call.request, "order_id", "")
    return order_id[:_LONGEST_ID]


def _host(peer: str) -> str:
    """`ipv4:127.0.0.1:53412` and `ipv6:%5B::1%5D:53412` (https://grpc.github.io/grpc/core/md_doc_naming.html)."""
    kind, _, place = peer.partition(":")
    if kind == "ipv4":
        return place.rpartition(":")[0]
    return unquote(place).rpartition(":")[0].strip("[]") if kind == "ipv6" else peer
