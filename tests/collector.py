"""A small collector (https://opentelemetry.io/docs/specs/otlp/#otlphttp), and spans as the tests look at them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler

from ordersys.core.watch.tracing import Tracing


@dataclass(frozen=True)
class Seen:
    """One span that arrived; ids in hex, `parent` "" for the first of a trace."""

    service: str
    version: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    links: tuple[str, ...]  # the ids of the spans linked to
    error: bool
    description: str
    begun: int
    ended: int

    @property
    def place(self) -> tuple[str, str, str]:
        return self.service, self.kind, self.name


class Spans:
    """Spans that have ended, in the order in which they came here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[Seen] = []

    def take(self, body: bytes) -> None:
        found = [
            _seen(resource, span)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self._seen += found

    @property
    def spans(self) -> list[Seen]:
        with self._lock:
            return list(self._seen)

    def trace_with(self, chosen: Callable[[Seen], bool], count: int) -> list[Seen]:
        """All spans of the trace that a span like this belongs to, when there are at least so many."""
        deadline = time.monotonic() + 30
        while True:
            spans = self.spans
            traces = {span.trace for span in spans if chosen(span)}
            found = [span for span in spans if span.trace in traces]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, "\n".join(tree(found or spans))
            time.sleep(0.02)

    def only(self, name: str, kind: str = "") -> Seen:
        [found] = [span for span in self.spans if span.name == name and kind in ("", span.kind)]
        return found


class Recorder(Spans):
    """Spans of this process, without a network between."""

    def tracing(self, service: str = "test", *, sampler: Sampler | None = None) -> Tracing:
        resource = Resource.create({"service.name": service, "service.version": "0"})
        provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._Exporter(self)))
        return Tracing(provider.get_tracer("tests"))

    class _Exporter(SpanExporter):
        def __init__(self, recorder: "Recorder") -> None:
            self._recorder = recorder

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            self._recorder.take(encode_spans(spans).SerializeToString())
            return SpanExportResult.SUCCESS


class Collector(Spans):
    """What processes send to `endpoint`."""

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self.endpoint = endpoint

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that is to send its traces here, soon."""
        return {
            "ORDERSYS_TRACES": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }


def tree(spans: list[Seen], parent: str = "", depth: int = 0) -> list[str]:
    """One line per span, indented by its depth: service, kind, name; siblings by name."""
    ids = {span.id for span in spans}
    lines = []
    for span in sorted(spans, key=lambda each: (each.name, each.begun)):
        if span.parent == parent or (not parent and span.parent not in ids):
            error = " !" if span.error else ""
            lines.append(f"{'  ' * depth}{span.service} {span.kind} {span.name}{error}")
            lines += tree(spans, span.id, depth + 1)
    return lines


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            collector.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """The tests' output is not for this."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="collector")
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _seen(resource: trace_pb2.ResourceSpans, span: trace_pb2.Span) -> Seen:
    of_resource = {each.key: _value(each.value) for each in resource.resource.attributes}
    return Seen(
        service=of_resource["service.name"],
        version=of_resource["service.version"],
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        attributes={each.key: _value(each.value) for each in span.attributes},
        links=tuple(link.span_id.hex() for link in span.links),
        error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        description=span.status.message,
        begun=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
    )


def _value(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")
