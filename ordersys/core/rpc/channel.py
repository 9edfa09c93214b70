"""gRPC client channels: deadlines, retry policy, and errors raised again as our own classes.

One layer retries, and it is gRPC's own (https://grpc.io/docs/guides/retry/): UNAVAILABLE, and CANCELLED, with which a
server that stops answers what it had not begun; with growing jittered waits, throttled when most calls fail. Our writes
carry an idempotency key, so a repetition is applied once.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Generator, Iterable
from typing import Any, TypeAlias, TypeVar, cast

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ordersys.core import errors
from ordersys.core.rpc import status
from ordersys.core.rpc.credentials import Renewed
from ordersys.core.rpc.handshakes import Doubts
from ordersys.core.rpc.health import missing_of
from ordersys.core.tls import Kept
from ordersys.core.watch import spans
from ordersys.core.watch.tracing import Tracing

Request = TypeVar("Request")
Response = TypeVar("Response")
Method: TypeAlias = "grpc.UnaryUnaryMultiCallable[Request, Response]"

RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
SERVICE_CONFIG = {
    "methodConfig": [
        {"name": [{}], "retryPolicy": RETRIES},
        {"name": [{"service": "grpc.health.v1.Health"}]},  # who asks wants to know how it is now
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
}


ROUTINE_SECONDS = 60.0
"""A stream that has lasted so long ends as a matter of course: connections have an age, at which callers come back."""


def _options(retry: bool) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.keepalive_time_ms", 15_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A connection that the other side has forgotten is found by any ping, those that gRPC sends of its own accord
        # too; left alone they are waited for a whole minute, and a quiet stream is asked once a minute.
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # how long one attempt may take, whatever its name says
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),  # a server that is back is found within the retries of one call
    ]
    # Without a policy gRPC repeats only what no service has seen: a call that met a connection which is being closed.
    if retry:
        options.append(("grpc.service_config", json.dumps(SERVICE_CONFIG)))
    return options


class Channel:
    """A blocking channel; `address` is kept for the message when nobody answers. `raw` is what stubs are bound to."""

    def __init__(
        self, address: str, *, retry: bool = True, tls: Kept | None = None, tracing: Tracing | None = None
    ) -> None:
        self.address = address
        self._doubts = Doubts(address, tls)
        self._tracing = tracing or Tracing()
        options = _options(retry)
        if tls:
            self.raw = cast("grpc.Channel", Renewed(tls, lambda own: grpc.secure_channel(address, own, options)))
        else:
            self.raw = grpc.insecure_channel(address, options)

    def call(
        self, method: "Method[Request, Response]", request: Request, *, deadline: float, traceparent: str = ""
    ) -> Response:
        """One call within `deadline` seconds; raises what the service refused it with, or `Unavailable`."""
        with spans.client_call(self._tracing, request, self.address, traceparent) as metadata:
            try:
                return method(request, timeout=deadline, metadata=metadata)
            except grpc.RpcError as error:
                raise self._error(error) from error

    def healthy(self, service: str, *, deadline: float) -> bool:
        """True when the server says within `deadline` seconds that it serves this (grpc.health.v1); "" = as a whole."""
        try:
            return not self.missing(service, deadline=deadline)
        except errors.OrdersysError:
            return False

    def missing(self, service: str, *, deadline: float) -> str:
        """What keeps the server from serving this, "" when it serves; raises `Unavailable` when it cannot be asked."""
        check = health_pb2_grpc.HealthStub(self.raw).Check
        try:
            answer, call = check.with_call(health_pb2.HealthCheckRequest(service=service), timeout=deadline)
        except grpc.RpcError as error:
            raise self._error(error) from error
        return missing_of(answer, call.trailing_metadata())

    def stream(
        self, method: "grpc.UnaryStreamMultiCallable[Request, Response]", request: Request
    ) -> Generator[Response, None, None]:
        """The responses of a server stream, without a deadline; raises as `call` does."""
        answers = method(request)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise self._error(error) from error
        finally:
            answers.cancel()

    def close(self) -> None:
        self.raw.close()

    def _error(self, failed: grpc.RpcError) -> errors.OrdersysError:
        error = status.from_call(failed, self.address)
        return self._doubts.explained(error) if self._doubts.suspect(error) else error


class AsyncChannel:
    """The same on an event loop; made on the loop that uses it, after any fork."""

    def __init__(
        self, address: str, *, retry: bool = True, tls: Kept | None = None, tracing: Tracing | None = None
    ) -> None:
        self.address = address
        self._doubts = Doubts(address, tls)
        self._tracing = tracing or Tracing()
        options = _options(retry)
        self._renewed = Renewed(tls, lambda own: aio.secure_channel(address, own, options)) if tls else None
        self.raw = cast("aio.Channel", self._renewed) if self._renewed else aio.insecure_channel(address, options)

    async def call(
        self,
        method: "aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        deadline: float,
        batch: Iterable[str] | None = None,
    ) -> Response:
        """One call within `deadline` seconds; raises what the service refused it with, or `Unavailable`.

        `batch` are the trace contexts of those for whom it is made together.
        """
        with spans.client_call(self._tracing, request, self.address, batch=batch) as metadata:
            try:
                return await method(request, timeout=deadline, metadata=metadata)
            except grpc.RpcError as error:
                raise await self._error(error) from error
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                raise errors.Unavailable(f"{self.address}: the channel was closed during the call") from None

    async def missing(self, service: str, *, deadline: float) -> str:
        """What keeps the server from serving this, "" when it serves; raises `Unavailable` when it cannot be asked."""
        call = health_pb2_grpc.HealthStub(self.raw).Check(
            health_pb2.HealthCheckRequest(service=service), timeout=deadline
        )
        try:
            return missing_of(await call, await call.trailing_metadata())
        except grpc.RpcError as error:
            raise await self._error(error) from error

    async def stream(
        self, method: "aio.UnaryStreamMultiCallable[Request, Response]", request: Request
    ) -> AsyncIterator[Response]:
        """The responses of a server stream, without a deadline; raises as `call` does."""
        answers = method(request)
        try:
            async for answer in answers:
                yield answer
        except grpc.RpcError as error:
            raise await self._error(error) from error
        finally:
            answers.cancel()

    async def close(self) -> None:
        if self._renewed:
            await asyncio.gather(*self._renewed.close())
        else:
            await self.raw.close()

    async def _error(self, failed: grpc.RpcError) -> errors.OrdersysError:
        error = status.from_call(failed, self.address)
        return await asyncio.to_thread(self._doubts.explained, error) if self._doubts.suspect(error) else error
