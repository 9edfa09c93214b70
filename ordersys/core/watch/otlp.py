"""Spans go out with OTLP over HTTP, in batches, from a thread of their own; needs the extra `otel`.

The SDK reads the standard OTEL_* variables by itself: where to, how often, which are sampled
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
"""

import logging
import threading
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from ordersys import __version__
from ordersys.core import errors
from ordersys.core.watch.spans import SCHEMA_URL
from ordersys.core.watch.tracing import Tracing

logger = logging.getLogger(__name__)

_SDK = "opentelemetry"  # the logger above all of the SDK's


class Export:
    """One exporter for all services of a process; raises UsageError for OTEL_* variables that cannot be used."""

    def __init__(self) -> None:
        self._complaints = _Complaints()
        try:
            self._processor = BatchSpanProcessor(_Watched(OTLPSpanExporter(), self._complaints))
        except (ValueError, RuntimeError, OSError) as error:
            raise errors.UsageError(f"traces=otlp: the OTEL_* variables: {error}") from error
        sdk = logging.getLogger(_SDK)
        sdk.addHandler(self._complaints)
        sdk.propagate = False

    def tracing(self, service: str) -> Tracing:
        resource = Resource.create({"service.name": service, "service.version": __version__})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        return Tracing(provider.get_tracer("ordersys", __version__, SCHEMA_URL))

    def close(self, seconds: float) -> None:
        """Send what is left; whoever does not take it within `seconds` does not get it."""
        closing = threading.Thread(target=self._processor.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(seconds)
        if closing.is_alive():
            self._complaints.complain(f"nobody took the last ones within {seconds:g} s")
            return  # it goes on in the background as long as the process does, and is still not to complain by itself
        sdk = logging.getLogger(_SDK)
        sdk.removeHandler(self._complaints)
        sdk.propagate = not sdk.handlers


class _Complaints(logging.Handler):
    """What the SDK says goes wrong, once per outage: it would say so with every batch and every try."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._troubled = False

    def emit(self, record: logging.LogRecord) -> None:
        self.complain(record.getMessage())

    def complain(self, reason: str) -> None:
        logger.log(logging.DEBUG if self._troubled else logging.WARNING, "spans are lost: %s", reason)
        self._troubled = True

    def recovered(self) -> None:
        if self._troubled:
            logger.info("spans are exported again")
        self._troubled = False


class _Watched(SpanExporter):
    """Tells when the exporter works again."""

    def __init__(self, exporter: SpanExporter, complaints: _Complaints) -> None:
        self._exporter = exporter
        self._complaints = complaints

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._complaints.recovered()
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
