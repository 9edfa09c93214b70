"""gRPC client channels: deadlines, retry policy, and errors raised again as our own classes.

One layer retries, and it is gRPC's own (https://grpc.io/docs/guides/retry/): UNAVAILABLE, and CANCELLED, with which a
server that stops answers what it had not begun; with growing jittered waits, throttled when most calls fail. Our writes
carry an idempotency key, so a repetition is applied once.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Generator
from typing import Any, TypeAlias, TypeVar

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ordersys.core import errors, status

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
    if retry:
        options.append(("grpc.service_config", json.dumps(SERVICE_CONFIG)))
    else:
        options.append(("grpc.enable_retries", 0))
    return options


class Channel:
    """A blocking channel; `address` is kept for the message when nobody answers."""

    def __init__(self, address: str, *, retry: bool = True) -> None:
        self.address = address
        self.raw = grpc.insecure_channel(address, options=_options(retry))

    def call(
        self, method: "Method[Request, Response]", request: Request, *, deadline: float, traceparent: str = ""
    ) -> Response:
        """One call within `deadline` seconds; raises what the service refused it with, or `Unavailable`."""
        metadata = (("traceparent", traceparent),) if traceparent else None
        try:
            return method(request, timeout=deadline, metadata=metadata)
        except grpc.RpcError as error:
            raise status.from_call(error, self.address) from error

    def healthy(self, service: str, *, deadline: float) -> bool:
        """True when the server says within `deadline` seconds that it serves this (grpc.health.v1); "" = as a whole."""
        check = health_pb2_grpc.HealthStub(self.raw).Check
        try:
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=deadline)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def stream(
        self, method: "grpc.UnaryStreamMultiCallable[Request, Response]", request: Request
    ) -> Generator[Response, None, None]:
        """The responses of a server stream, without a deadline; raises as `call` does."""
        answers = method(request)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise status.from_call(error, self.address) from error
        finally:
            answers.cancel()

    def close(self) -> None:
        self.raw.close()


class AsyncChannel:
    """The same on an event loop; made on the loop that uses it, after any fork."""

    def __init__(self, address: str, *, retry: bool = True) -> None:
        self.address = address
        self.raw = aio.insecure_channel(address, options=_options(retry))

    async def call(
        self, method: "aio.UnaryUnaryMultiCallable[Request, Response]", request: Request, *, deadline: float
    ) -> Response:
        """One call within `deadline` seconds; raises what the service refused it with, or `Unavailable`."""
        try:
            return await method(request, timeout=deadline)
        except grpc.RpcError as error:
            raise status.from_call(error, self.address) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise errors.Unavailable(f"{self.address}: the channel was closed during the call") from None

    async def stream(
        self, method: "aio.UnaryStreamMultiCallable[Request, Response]", request: Request
    ) -> AsyncIterator[Response]:
        """The responses of a server stream, without a deadline; raises as `call` does."""
        answers = method(request)
        try:
            async for answer in answers:
                yield answer
        except grpc.RpcError as error:
            raise status.from_call(error, self.address) from error
        finally:
            answers.cancel()

    async def close(self) -> None:
        await self.raw.close()
