"""Spans on opentelemetry-api: what takes time, in which trace (https://opentelemetry.io/docs/specs/otel/trace/api/).

A parent is always said, as the text of a W3C `traceparent` (https://www.w3.org/TR/trace-context/), never looked up in a
context variable: a batch does the work of many traces, and a task that serves one goes on for the next. `tracestate`
is not passed on: what carries our commands and events has one field, and the standard lets who has no use for the
other drop it.
"""

from collections.abc import Iterable, Mapping
from typing import Self

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace import Span as Recording

from ordersys.core import errors, ids

Attributes = Mapping[str, str | int]
Metadata = tuple[tuple[str, str], ...] | None

ERROR_CODE = "ordersys.error.code"
"""The stable code of what was refused (see core/errors.py), whether that makes the span an error or not."""

_MOST_DESCRIPTION = 200  # characters


class Span:
    """A piece of work in a trace; `traceparent` is the context that its effects belong to, "" for none.

    One that is not recorded passes on the context of its parent as it came. Use it in a `with` block, which an error
    leaves with the status of an error, or call `end`; a span that is never ended is never exported.
    """

    __slots__ = ("_recording", "traceparent")

    def __init__(self, traceparent: str, recording: Recording | None = None) -> None:
        self.traceparent = traceparent
        self._recording = recording

    @property
    def recorded(self) -> bool:
        return self._recording is not None

    @property
    def metadata(self) -> Metadata:
        """What a gRPC call carries, so that its other side belongs to this."""
        return (("traceparent", self.traceparent),) if self.traceparent else None

    def set(self, attributes: Attributes) -> None:
        if self._recording is not None:
            self._recording.set_attributes(attributes)

    def fail(self, kind: str, description: str = "") -> None:
        """Its status is that of an error; `kind` is one of few names: https://opentelemetry.io/docs/specs/semconv/general/recording-errors/."""
        if self._recording is not None:
            self._recording.set_attribute("error.type", kind)
            self._recording.set_status(Status(StatusCode.ERROR, description[:_MOST_DESCRIPTION] or None))

    def end(self, error: BaseException | None = None) -> None:
        """It is over, with this error. Of an error that is not ours only its class is told: it may quote anything."""
        if self._recording is None:
            return
        if isinstance(error, errors.OrdersysError):
            self.set({ERROR_CODE: error.code})
            self.fail(error.code, error.message)
        elif error is not None:
            self.fail(type(error).__name__)
        self._recording.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self.end(error)


class Tracing:
    """Begins the spans of one service; without a tracer it makes none, and every trace context passes on as it came.

    What is begun without a parent belongs to `within`, or begins a trace of its own.
    """

    def __init__(self, tracer: Tracer | None = None, within: str = "") -> None:
        self._tracer = tracer
        self._within = within

    @property
    def on(self) -> bool:
        return self._tracer is not None

    def under(self, span: Span) -> "Tracing":
        """The same, for all that happens within this span."""
        return Tracing(self._tracer, span.traceparent)

    def passing(self, parent: str = "") -> Span:
        """No span: its context passes on."""
        return Span(parent or self._within)

    def begin(
        self,
        name: str,
        kind: SpanKind = SpanKind.INTERNAL,
        *,
        parent: str = "",
        attributes: Attributes | None = None,
        batch: Iterable[str] | None = None,
        links: Iterable[str] = (),
    ) -> Span:
        """A span that has begun now, if the sampler wants it: as OTEL_TRACES_SAMPLER says, by default as the parent.

        `batch` are the contexts that the work is done for together: it is linked to each of them that is sampled, and
        is not recorded when none is. `links` are others that it has to do with.
        """
        if self._tracer is None:
            return self.passing(parent)
        above = _context_of(parent or self._within)
        linked = [Link(each) for each in map(_context_of, batch or ()) if each and each.trace_flags.sampled]
        if batch is not None and not linked:
            return Span(parent or ids.new_traceparent())  # nobody has asked for it, nor for what it causes
        linked += [Link(each) for each in map(_context_of, links) if each and each.trace_flags.sampled]
        context = set_span_in_context(NonRecordingSpan(above), Context()) if above else Context()
        recording = self._tracer.start_span(name, context, kind, attributes, linked)
        if recording.is_recording():
            return Span(_traceparent_of(recording.get_span_context()), recording)
        # Unsampled: a context that came passes on as it is; a trace that would begin here is not wanted below either.
        return self.passing(parent) if above else Span(_traceparent_of(recording.get_span_context()))


def _context_of(traceparent: str) -> SpanContext | None:
    """None for text that is no traceparent: it comes from outside."""
    if not ids.is_traceparent(traceparent):
        return None
    _, trace, span, flags = traceparent.split("-")
    return SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _traceparent_of(context: SpanContext) -> str:
    if not context.is_valid:  # OTEL_SDK_DISABLED=true
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
