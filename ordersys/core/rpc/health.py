"""grpc.health.v1 of one server (https://grpc.io/docs/guides/health-checking/): what it says follows its readiness."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any, TypeAlias

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ordersys.core.watch.readiness import State

Context: TypeAlias = "aio.ServicerContext[Any, Any]"

MISSING = "ordersys-missing"
"""The trailer in which an answer of NOT_SERVING names what is not ready; of the inside it says nothing."""
_DRAINING = ("shutting down",)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """SERVING until something that is needed is missing, or until it drains. Belongs to the event loop of its server.

    The name "" is the server as a whole. Each dependency can be asked for by its own name, also one without which the
    service still serves: `order-service` at the Product Service says whether orders can be placed.
    A watch ends with NOT_SERVING when the server drains: with grpcio's own servicer it goes on, and holds the server
    for its whole grace time.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = ("", *services)
        self._missing: dict[str, Collection[str]] = dict.fromkeys(self._services, ())
        self._drains = False
        self._news = asyncio.Event()

    def report(self, state: State) -> None:
        """What was found; who watches hears of a change."""
        dependencies = {name: () if up else (name,) for name, up in state.found.items()}
        self._missing = {**dependencies, **dict.fromkeys(self._services, state.missing)}
        self._announce()

    def drain(self) -> None:
        """Say NOT_SERVING from now on, and end every watch with it."""
        self._drains = True
        self._announce()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        if request.service not in self._missing:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r}")
        if missing := self._missing_for(request.service):
            context.set_trailing_metadata(((MISSING, ", ".join(missing)),))
        return self._answer(request.service)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told = None
        while True:
            news = self._news  # taken before the look: what changes during it wakes us
            answer = self._answer(request.service)
            if answer.status != told:
                told = answer.status
                yield answer
            elif self._drains:
                return
            else:
                await news.wait()

    def _answer(self, service: str) -> health_pb2.HealthCheckResponse:
        states = health_pb2.HealthCheckResponse
        if service not in self._missing:
            return states(status=states.SERVICE_UNKNOWN)
        return states(status=states.NOT_SERVING if self._missing_for(service) else states.SERVING)

    def _missing_for(self, service: str) -> Collection[str]:
        return _DRAINING if self._drains else self._missing[service]

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def missing_of(answer: health_pb2.HealthCheckResponse, trailers: Iterable[tuple[str, str | bytes]] | None) -> str:
    """What is missing where an answer does not say SERVING; "" where it does."""
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return next((str(value) for name, value in trailers or () if name == MISSING), "it does not say what")
