"""/healthz and /readyz."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Literal

from flask import Response, jsonify
from flask_openapi3 import APIBlueprint, Tag
from pydantic import BaseModel, Field

from ordersys.api import access
from ordersys.api.breaker import State
from ordersys.api.upstream import Upstream

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
KEPT_SECONDS = 1.0
"""How long one look is good for: whoever asks more often does not make us ask more often."""

Probe = Callable[[], bool]
"""True when the dependency is ready; what it raises is logged, and means that it is not."""


class Health(BaseModel):
    status: Literal["ok"]


class Check(BaseModel):
    status: Literal["ready", "unavailable"]
    breaker: Literal["half-open", "open"] | None = Field(None, description="absent while calls go through")


class Ready(BaseModel):
    status: Literal["ready", "not_ready"]
    checks: dict[str, Check] = Field(
        examples=[{"product-service": {"status": "ready"}, "order-service": {"status": "unavailable"}}]
    )


class Readiness:
    """The state of every dependency; all are asked at once, and none is waited for longer than CHECK_SECONDS."""

    def __init__(
        self,
        probes: Mapping[str, Probe],
        *,
        seconds: float = CHECK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probes = probes
        self._seconds = seconds
        self._clock = clock
        self._pool = ThreadPoolExecutor(max(1, len(probes)), thread_name_prefix="readyz")
        self._running: dict[str, Future[bool]] = {}
        self._asking = threading.Lock()
        self._last: tuple[float, dict[str, bool]] | None = None

    def look(self) -> dict[str, bool]:
        """Whether each dependency is ready, as it was at most KEPT_SECONDS ago or as the latest look found it."""
        # Who comes while another asks takes what is known: a dependency that hangs must not bind one thread per probe.
        if not self._asking.acquire(blocking=self._last is None):
            assert self._last is not None  # noqa: S101 - for the type checker
            return self._last[1]
        try:
            if self._last is None or self._clock() - self._last[0] >= KEPT_SECONDS:
                found = self._ask()
                self._last = self._clock(), found
            return self._last[1]
        finally:
            self._asking.release()

    def _ask(self) -> dict[str, bool]:
        for name, probe in self._probes.items():
            if name not in self._running or self._running[name].done():  # one that hangs is not asked a second time
                self._running[name] = self._pool.submit(probe)
        wait(self._running.values(), self._seconds)
        return {name: self._found(name) for name in self._probes}

    def _found(self, name: str) -> bool:
        asked = self._running[name]
        if not asked.done():
            return False
        if (error := asked.exception()) is not None:
            logger.warning("the check of %s failed: %s", name, error)
            return False
        return asked.result()


def resource(upstreams: Sequence[Upstream], others: Mapping[str, Probe] | None = None) -> APIBlueprint:
    """Readiness of these services and of `others`, by the names that it is to show them under."""
    blueprint = APIBlueprint("health", __name__, abp_tags=[Tag(name="health")])
    breakers = {each.name: each.breaker for each in upstreams}
    readiness = Readiness({**{each.name: partial(_ready, each) for each in upstreams}, **(others or {})})

    @blueprint.get("/healthz", operation_id="healthz", responses={"200": Health})
    @access.public
    def healthz() -> dict[str, str]:
        """Alive: says nothing of the services behind, so that their failure does not restart the gateway."""
        return {"status": "ok"}

    @blueprint.get("/readyz", operation_id="readyz", responses={"200": Ready, "503": Ready})
    @access.public
    def readyz() -> Response:
        """Whether every dependency answers now, at most a second old; 503 when one does not."""
        found = readiness.look()
        checks: dict[str, dict[str, str]] = {}
        for name, ready in found.items():
            checks[name] = {"status": "ready" if ready else "unavailable"}
            if name in breakers and (state := breakers[name].state) is not State.CLOSED:
                checks[name]["breaker"] = str(state)
        everything = all(found.values())
        response = jsonify({"status": "ready" if everything else "not_ready", "checks": checks})
        response.status_code = 200 if everything else 503
        return response

    return blueprint


def _ready(upstream: Upstream) -> bool:
    """Also lets the next call try a service that is back: who is not ready may get no call that could find out."""
    healthy = upstream.healthy(CHECK_SECONDS)
    if healthy:
        upstream.breaker.hasten()
    return healthy
