"""What our spans are called and what they say: the names of OpenTelemetry's semantic conventions, version 1.37.0.

RPC: https://github.com/open-telemetry/semantic-conventions/blob/v1.37.0/docs/rpc/grpc.md
HTTP: https://github.com/open-telemetry/semantic-conventions/blob/v1.37.0/docs/http/http-spans.md
Messaging: https://github.com/open-telemetry/semantic-conventions/blob/v1.37.0/docs/messaging/messaging-spans.md;
an exchange or a queue stands alone in `messaging.destination.name`, as people know it, and the routing key beside it.
What the conventions have no name for begins with `ordersys.`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

import grpc
from google.protobuf.message import Message
from opentelemetry.trace import SpanKind

from ordersys.core import errors
from ordersys.core.v1 import order_pb2
from ordersys.core.watch.tracing import ERROR_CODE, Metadata, Span, Tracing

if TYPE_CHECKING:
    from ordersys.core.rpc.server import Call

SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
TRACEPARENT = "traceparent"
"""The header of a message that names the span of its sending; the event in it names that of its creation."""

_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""The answers that are a server's failure; with any other it did what it is there for."""

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
_MOST_METHOD = 32  # characters: a caller may invent methods
_ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"


# --- gRPC -------------------------------------------------------------------------------------------------------


@contextmanager
def client_call(
    tracing: Tracing, request: object, address: str, parent: str = "", batch: Iterable[str] | None = None
) -> Iterator[Metadata]:
    """The metadata that a call of this service carries; from here to the end of the block is its span.

    One span for the call with all its retries. For a caller whatever is not OK is an error.
    """
    if not tracing.on or not isinstance(request, Message):
        yield tracing.passing(parent).metadata
        return
    service, method = _asked(request)
    host, _, port = address.rpartition(":")
    attributes = {**_rpc(service, method), "server.address": host.strip("[]"), "server.port": int(port)}
    begun = tracing.begin(f"{service}/{method}", SpanKind.CLIENT, parent=parent, attributes=attributes, batch=batch)
    with begun as span:
        code = grpc.StatusCode.CANCELLED  # unless somebody answers
        try:
            yield span.metadata
            code = grpc.StatusCode.OK
        except errors.OrdersysError as error:
            code = getattr(error.__cause__, "code", lambda: code)()
            raise
        finally:
            span.set({"rpc.grpc.status_code": code.value[0]})


class ServerCalls:
    """Observes a gRPC server: a span for every call but the streams, which last as long as somebody looks."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._open: dict[int, Span] = {}

    def began(self, call: "Call", metadata: Iterable[tuple[str, str | bytes]]) -> None:
        if call.streams:
            return
        came = (TRACEPARENT, call.traceparent) in metadata  # else it was made up: there is no such parent
        service, _, method = call.method.strip("/").partition("/")
        span = self._tracing.begin(
            f"{service}/{method}",
            SpanKind.SERVER,
            parent=call.traceparent if came else "",
            attributes=_rpc(service, method),
        )
        call.traceparent = span.traceparent or call.traceparent
        self._open[id(call)] = span

    def ended(self, call: "Call") -> None:
        span = self._open.pop(id(call), None)
        if span is None:
            return
        span.set({"rpc.grpc.status_code": grpc.StatusCode[call.code].value[0]})
        if isinstance(call.error, errors.OrdersysError):
            span.set({ERROR_CODE: call.error.code})
        if call.code in _FAULTS:
            span.fail(call.code)
        span.end()


def observers(tracing: Tracing) -> Sequence[ServerCalls]:
    """Before all others: they are to see the context of the span."""
    return (ServerCalls(tracing),) if tracing.on else ()


def _rpc(service: str, method: str) -> dict[str, str | int]:
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


def _asked(request: Message) -> tuple[str, str]:
    """Service and method of a request: each method of ours has a request type of its own."""
    kind = request.DESCRIPTOR
    for service in kind.file.services_by_name.values():
        for method in service.methods:
            if method.input_type.full_name == kind.full_name:
                return service.full_name, method.name
    return kind.file.package, kind.name


# --- HTTP -------------------------------------------------------------------------------------------------------


def request(tracing: Tracing, method: str, route: str, *, path: str, scheme: str, parent: str = "") -> Span:
    """A request that the gateway answers; `route` is the pattern that its path fits, "" for none."""
    known = method if method in _METHODS else "_OTHER"
    attributes: dict[str, str | int] = {"http.request.method": known, "url.path": path, "url.scheme": scheme}
    if known != method:
        attributes["http.request.method_original"] = method[:_MOST_METHOD]
    if route:
        attributes["http.route"] = route
    name = known if known == method else "HTTP"
    return tracing.begin(f"{name} {route}".strip(), SpanKind.SERVER, parent=parent, attributes=attributes)


def answered(span: Span, status: int, code: str = "") -> None:
    """The end of such a request; `code` is that of its refusal. Only what is our fault is an error."""
    span.set({"http.response.status_code": status, **({ERROR_CODE: code} if code else {})})
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        span.fail(code or str(status))
    span.end()


# --- the commands of a batch ------------------------------------------------------------------------------------


class Commands:
    """Spans for the commands of a batch, in a `with` block: each command carries its own from here on.

    So each belongs to the trace of whoever gave it, and so does what comes of it. `links` is what the whole batch has
    to do with.
    """

    def __init__(
        self, tracing: Tracing, name: str, commands: Iterable[order_pb2.OrderCommand], links: Sequence[str] = ()
    ) -> None:
        self._spans: list[Span] = []
        for command in commands if tracing.on else ():
            attributes = {
                "ordersys.command.id": command.command_id,
                "ordersys.command.action": command.WhichOneof("action") or "",
                "ordersys.order.id": command.order_id,
            }
            span = tracing.begin(name, parent=command.traceparent, attributes=attributes, links=links)
            command.traceparent = span.traceparent
            self._spans.append(span)

    @property
    def contexts(self) -> list[str]:
        return [span.traceparent for span in self._spans]

    def answered(self, results: Iterable[order_pb2.OrderResult]) -> None:
        """What became of each; a refusal by a rule is no error."""
        for span, result in zip(self._spans, results, strict=False):
            match result.WhichOneof("outcome"):
                case "refused":
                    span.set({ERROR_CODE: result.refused.code})
                case None:
                    span.fail(errors.Internal.code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        for span in self._spans:
            span.end(error)


# --- messages ---------------------------------------------------------------------------------------------------


def send(
    tracing: Tracing, system: str, *, exchange: str, routing_key: str, message_id: str, order_id: str, parent: str
) -> Span:
    """One message on its way to the broker, until that confirms it."""
    if not tracing.on:
        return tracing.passing()
    attributes = {**_message(system, "send", exchange, message_id, order_id), _ROUTING_KEY: routing_key}
    return tracing.begin(f"send {exchange}", SpanKind.PRODUCER, parent=parent, attributes=attributes)


def process(
    tracing: Tracing,
    system: str,
    *,
    queue: str,
    routing_key: str,
    message_id: str,
    order_id: str,
    tries: int,
    parent: str,
) -> Span:
    """One notification; `tries` counts this one, too."""
    if not tracing.on:
        return tracing.passing(parent)
    attributes = {
        **_message(system, "process", queue, message_id, order_id),
        _ROUTING_KEY: routing_key,
        "ordersys.notification.try": tries,
    }
    return tracing.begin(f"process {queue}", SpanKind.CONSUMER, parent=parent, attributes=attributes)


def _message(system: str, operation: str, destination: str, message_id: str, order_id: str) -> dict[str, str | int]:
    return {
        "messaging.system": system,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
        "messaging.message.id": message_id,
        "ordersys.order.id": order_id,
    }
