"""The gRPC server factory: error mapping, health, reflection, limits."""

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ordersys.core import errors, ids, status

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 4 * 1024 * 1024
OPTIONS = (
    ("grpc.so_reuseport", 0),  # two servers on one port would silently share the connections
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

AddServicers = Callable[[aio.Server], None]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "aio.ServicerContext[Any, Any]"


class GrpcServer:
    """One listening gRPC server with its health service; `address` is known once it has started."""

    def __init__(self, bind: str, services: Sequence[str], add_servicers: AddServicers) -> None:
        self._bind = bind
        self._services = services
        self._add_servicers = add_servicers
        self._health = Health(services)
        self.address = bind

    async def start(self) -> None:
        """Listen and report SERVING; raises UsageError when the address is taken or is not this machine's."""
        _refuse_taken(self._bind)
        self._server = aio.server(interceptors=[ErrorInterceptor()], options=OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._add_servicers(self._server)
        names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        try:
            port = self._server.add_insecure_port(self._bind)
        except RuntimeError as error:
            raise errors.UsageError(f"cannot listen on {self._bind}: {error}") from error
        host = self._bind.rpartition(":")[0]
        self.address = f"{host}:{port}"
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Report NOT_SERVING, take no new calls, and give those in flight `grace` seconds."""
        self._health.drain()
        await self._server.stop(grace)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1 for one server (https://grpc.io/docs/guides/health-checking/): SERVING until it drains.

    A watch ends with NOT_SERVING. With grpcio's own servicer it goes on, and holds the server for its whole grace time.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._known = {*services, ""}  # "" is the server as a whole
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Say NOT_SERVING from now on, and end every watch with it."""
        self._draining.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        if request.service not in self._known:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r}")
        return self._answer(request.service)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        if not self._draining.is_set():
            yield self._answer(request.service)
        await self._draining.wait()
        yield self._answer(request.service)

    def _answer(self, service: str) -> health_pb2.HealthCheckResponse:
        states = health_pb2.HealthCheckResponse
        if service not in self._known:
            return states(status=states.SERVICE_UNKNOWN)
        return states(status=states.NOT_SERVING if self._draining.is_set() else states.SERVING)


def _refuse_taken(bind: str) -> None:
    """Raise UsageError with the system's reason, which gRPC only logs."""
    host, _, port = bind.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise errors.UsageError(f"cannot listen on {bind!r}: expected HOST:PORT, for example 127.0.0.1:50051")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise errors.UsageError(f"cannot listen on {bind}: {error.strerror}") from error
    problems = [_problem(family, address) for family, _, _, _, address in found]
    if all(problems):
        raise errors.UsageError(f"cannot listen on {bind}: {problems[0]}")


def _problem(family: socket.AddressFamily, address: Any) -> str:
    """Why nobody could listen there, "" when somebody can."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if sys.platform != "win32":  # there it would share a taken address
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return ""


class ErrorInterceptor(aio.ServerInterceptor):
    """Turns our errors into a status with details, and anything else into `internal` without a word of the inside."""

    def __init__(self) -> None:
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
            self._wrapped[method] = _wrap(method, handler)
        return self._wrapped[method]


def _wrap(method: str, handler: Handler) -> Handler:
    # The stubs type a handler as the blocking kind; on a grpc.aio server it is a coroutine or an async generator.
    if handler.unary_unary:
        unary = cast("Callable[[Any, Context], Awaitable[Any]]", handler.unary_unary)

        async def answer(request: Any, context: Context) -> Any:
            try:
                return await unary(_read(handler, request), context)
            except Exception as error:  # noqa: BLE001 - the seam where every error becomes a status
                await context.abort_with_status(_status_of(method, error))

        return grpc.unary_unary_rpc_method_handler(answer, None, handler.response_serializer)
    if handler.unary_stream:
        stream = cast("Callable[[Any, Context], AsyncIterator[Any]]", handler.unary_stream)

        async def answers(request: Any, context: Context) -> Any:
            try:
                async for response in stream(_read(handler, request), context):
                    yield response
            except Exception as error:  # noqa: BLE001 - the seam where every error becomes a status
                await context.abort_with_status(_status_of(method, error))

        return grpc.unary_stream_rpc_method_handler(answers, None, handler.response_serializer)
    return handler


def _read(handler: Handler, request: bytes) -> Any:
    """The message in these bytes, read where we can still say what is wrong: gRPC alone would answer UNKNOWN."""
    try:
        return handler.request_deserializer(request) if handler.request_deserializer else request
    except DecodeError as error:
        raise errors.InvalidArgument.of("request", f"is not the message that this method takes: {error}") from error


def _status_of(method: str, error: Exception) -> grpc.Status:
    if isinstance(error, aio.AbortError):  # a servicer aborted by itself (health does): leave its status alone
        raise error
    if isinstance(error, errors.OrdersysError) and not isinstance(error, errors.Internal | errors.UsageError):
        return status.abort_status(error)
    logger.error("%s failed: %s: %s", method, type(error).__name__, error, exc_info=error)
    return status.abort_status(errors.Internal())


def traceparent(context: Context) -> str:
    """The caller's W3C Trace Context from the metadata, or that of a new trace when it sent none or a broken one."""
    for name, value in context.invocation_metadata() or ():
        if name == "traceparent" and isinstance(value, str) and ids.is_traceparent(value):
            return value
    return ids.new_traceparent()
