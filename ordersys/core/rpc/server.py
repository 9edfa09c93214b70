"""The gRPC server factory: error mapping, health, reflection, limits."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError
from grpc import aio
from grpc_health.v1 import health as health_names
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ordersys.core import errors, ids
from ordersys.core.rpc import callers, credentials, status
from ordersys.core.rpc.call_log import CallLog
from ordersys.core.rpc.health import Health
from ordersys.core.rpc.limits import Gate, Limits, Metadata, Ticket
from ordersys.core.rpc.listening import refuse_taken
from ordersys.core.tls import Kept

AddServicers = Callable[[aio.Server], None]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "aio.ServicerContext[Any, Any]"


@dataclass(slots=True)
class Call:
    """One call that is being answered."""

    method: str  # as on the wire: /package.Service/Method
    streams: bool  # the answer is a stream
    peer: str
    traceparent: str  # W3C Trace Context of what the call belongs to; what the call causes belongs to it, too
    begun: float = field(default_factory=time.perf_counter)
    code: str = "OK"  # the gRPC status it was answered with
    error: Exception | None = None
    fault: bool = False  # the error is none that we know: its caller hears nothing of it
    request: Any = None  # None when it could not be read
    response: Any = None  # None for a stream
    metadata: Metadata = ()


class Observer(Protocol):
    """Sees every call to one of our own services; both run on the event loop, and must be quick and never raise."""

    def began(self, call: Call, metadata: Iterable[tuple[str, str | bytes]]) -> None: ...
    def ended(self, call: Call) -> None: ...


class GrpcServer:
    """One listening gRPC server with its health service; `address` is known once it has started."""

    def __init__(
        self,
        bind: str,
        services: Sequence[str],
        add_servicers: AddServicers,
        *,
        observers: Sequence[Observer] = (),
        tls: Kept | None = None,
        rules: Mapping[str, callers.Rule] | None = None,
        limits: Limits | None = None,
        shared: bool = False,
    ) -> None:
        """With `rules` callers must show a certificate from our CA, whose name decides over the methods in there.

        `shared` is for one of several processes that take the connections to the address together (SO_REUSEPORT).
        """
        self._bind = bind
        self._services = services
        self._add_servicers = add_servicers
        self._observers = tuple(observers)
        self._credentials = credentials.of_server(tls, client_cert=rules is not None) if tls else None
        self._rules = rules or {}
        self._limits = limits or Limits()
        self._shared = shared
        self.health = Health(services)
        self.address = bind

    async def start(self) -> None:
        """Listen and report SERVING; raises UsageError when the address is taken or is not this machine's."""
        if not self._shared:
            refuse_taken(self._bind)
        # Two servers on one port share the connections, and silently: only those may that are meant to.
        options = [("grpc.so_reuseport", int(self._shared)), *self._limits.options()]
        interceptor = CallInterceptor(self._observers, self._rules, Gate(self._limits))
        self._server = aio.server(interceptors=[interceptor], options=options)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self._add_servicers(self._server)
        names = (*self._services, health_names.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        try:
            if self._credentials:
                port = self._server.add_secure_port(self._bind, self._credentials)
            else:
                port = self._server.add_insecure_port(self._bind)
        except RuntimeError as error:
            raise errors.UsageError(f"cannot listen on {self._bind}: {error}") from error
        host = self._bind.rpartition(":")[0]
        self.address = f"{host}:{port}"
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Report NOT_SERVING, take no new calls, and give those in flight `grace` seconds."""
        self.health.drain()
        await self._server.stop(grace)


class CallInterceptor(aio.ServerInterceptor):
    """Turns our errors into a status with details, and anything else into `internal` without a word of the inside.

    Every call is logged; the observers see every call but those of health and reflection. A method with a rule is
    answered to those alone whom the rule names.
    """

    def __init__(self, observers: Sequence[Observer], rules: Mapping[str, callers.Rule], gate: Gate) -> None:
        self._log = CallLog()
        self._observers = observers
        self._rules = rules
        self._gate = gate
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:  # an unknown method: gRPC answers UNIMPLEMENTED
                return handler
            observers = () if method.startswith("/grpc.") else self._observers
            seen_by = (self._log, *observers)
            self._wrapped[method] = _wrap(method, handler, seen_by, self._rules.get(method), self._gate)
        return self._wrapped[method]


def _wrap(
    method: str, handler: Handler, observers: Sequence[Observer], rule: callers.Rule | None, gate: Gate
) -> Handler:
    """The same as a method whose request is a stream: then it is for us to say whether and how long it is read."""
    # The stubs type a handler as the blocking kind; on a grpc.aio server it is a coroutine or an async generator.
    if handler.unary_unary:
        unary = cast("Callable[[Any, Context], Awaitable[Any]]", handler.unary_unary)

        async def answer(_: Any, context: Context) -> bytes:
            with _observed(method, context, observers, streams=False) as call:
                try:
                    ticket = gate.enter(method, call.metadata)
                    if rule:
                        callers.check(method, rule, context.auth_context())
                    call.request = await _request(handler, context, ticket)
                    call.response = await unary(call.request, context)
                    response: bytes = handler.response_serializer(call.response)  # type: ignore[misc]
                    ticket.answered(len(response))
                except Exception as error:  # noqa: BLE001 - the seam where every error becomes a status
                    await context.abort_with_status(_status_of(call, error))
                return response

        return grpc.stream_unary_rpc_method_handler(answer)
    if handler.unary_stream:
        stream = cast("Callable[[Any, Context], AsyncGenerator[Any, None]]", handler.unary_stream)

        async def answers(_: Any, context: Context) -> None:
            with _observed(method, context, observers, streams=True) as call:
                try:
                    ticket = gate.enter(method, call.metadata, streams=True)
                    if rule:
                        callers.check(method, rule, context.auth_context())
                    call.request = await _request(handler, context, ticket)
                    async with aclosing(stream(call.request, context)) as responses:
                        async for response in responses:
                            with ticket.taking(responses.aclose):
                                await context.write(response)
                except Exception as error:  # noqa: BLE001 - the seam where every error becomes a status
                    await context.abort_with_status(_status_of(call, error))

        return grpc.stream_stream_rpc_method_handler(answers, None, handler.response_serializer)
    talk = cast("Callable[[Any, Context], AsyncGenerator[Any, None]]", handler.stream_stream)  # reflection

    async def talks(requests: Any, context: Context) -> Any:
        with _observed(method, context, observers, streams=True) as call:
            try:
                gate.enter(method, call.metadata, streams=True).arrived(0)
                async for response in talk(requests, context):
                    yield response
            except Exception as error:  # noqa: BLE001 - the seam where every error becomes a status
                await context.abort_with_status(_status_of(call, error))

    return grpc.stream_stream_rpc_method_handler(talks, handler.request_deserializer, handler.response_serializer)


async def _request(handler: Handler, context: Context, ticket: Ticket) -> Any:
    """The message of the caller; raises `Unavailable` when it does not arrive in time, InvalidArgument for none."""
    try:
        async with asyncio.timeout(ticket.patience):
            request = await context.read()
    except TimeoutError:
        raise errors.Unavailable(f"the request did not arrive within {ticket.patience:g} s") from None
    if request is aio.EOF:
        raise errors.InvalidArgument.of("request", "is missing")
    ticket.arrived(len(request))
    return _read(handler, request)


_call: ContextVar[Call] = ContextVar("call")


@contextmanager
def _observed(method: str, context: Context, observers: Sequence[Observer], *, streams: bool) -> Iterator[Call]:
    metadata = context.invocation_metadata() or ()
    call = Call(method, streams, context.peer(), _traceparent(metadata), metadata=metadata)
    _call.set(call)
    for observer in observers:
        observer.began(call, metadata)
    try:
        yield call
    except (asyncio.CancelledError, GeneratorExit):  # the caller has left
        call.code = grpc.StatusCode.CANCELLED.name
        raise
    finally:
        for observer in observers:
            observer.ended(call)


def _read(handler: Handler, request: bytes) -> Any:
    """The message in these bytes, read where we can still say what is wrong: gRPC alone would answer UNKNOWN."""
    try:
        return handler.request_deserializer(request) if handler.request_deserializer else request
    except DecodeError as error:
        raise errors.InvalidArgument.of("request", f"is not the message that this method takes: {error}") from error


def _status_of(call: Call, error: Exception) -> grpc.Status:
    call.error = error
    if isinstance(error, aio.AbortError):  # a servicer aborted by itself (health does): leave its status alone
        call.code = grpc.StatusCode.UNKNOWN.name
        raise error
    if isinstance(error, errors.OrdersysError) and not isinstance(error, errors.Internal | errors.UsageError):
        answer = status.abort_status(error)
    else:
        call.fault = True
        answer = status.abort_status(errors.Internal())
    call.code = answer.code.name
    return answer


def traceparent() -> str:
    """W3C Trace Context of the call that is being answered: what it causes belongs to the same trace."""
    return _call.get().traceparent


def _traceparent(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """What the caller sent, or a new trace when it sent none or a broken one."""
    for name, value in metadata:
        if name == "traceparent" and isinstance(value, str) and ids.is_traceparent(value):
            return value
    return ids.new_traceparent()
