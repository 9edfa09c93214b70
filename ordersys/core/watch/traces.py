"""The traces of one process: made and exported when the setting `traces` says so, otherwise nothing at all."""

import asyncio
from typing import TYPE_CHECKING, Literal

from ordersys.core import errors
from ordersys.core.watch.tracing import Tracing

if TYPE_CHECKING:
    from ordersys.core.watch.otlp import Export

FLUSH_SECONDS = 2.0
"""The most that the end of a process waits for whoever takes its spans."""
_LEAST_SECONDS = 0.5  # of the same, when the grace time is over


class Traces:
    """For all services of the process together; a part that starts before those who trace and stops after them."""

    name = "Traces"

    def __init__(self, kind: Literal["off", "otlp"]) -> None:
        self._kind = kind
        self._export: Export | None = None

    def open(self) -> None:
        """Nothing is connected yet. Raises UsageError without the SDK, or when it cannot use its OTEL_* variables."""
        if self._kind == "off":
            return
        try:
            from ordersys.core.watch import otlp
        except ImportError as error:
            needed = "traces=otlp needs the OpenTelemetry SDK: pip install 'ordersys[otel]'"
            raise errors.UsageError(f"{needed} ({error})") from error
        self._export = otlp.Export()

    def of(self, service: str) -> Tracing:
        """What begins the spans of this service."""
        return Tracing() if self._export is None else self._export.tracing(service)

    def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Send what is left, for so long."""
        if self._export is not None:
            self._export.close(seconds)

    async def start(self) -> None:
        await asyncio.to_thread(self.open)

    async def stop(self, grace: float) -> None:
        await asyncio.to_thread(self.close, max(_LEAST_SECONDS, min(grace, FLUSH_SECONDS)))

    def ended(self) -> bool:
        return False
