"""What is counted and timed of the calls to a gRPC server and of a batcher."""

import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import Counter, Histogram

from ordersys.core.rpc.server import Call
from ordersys.core.watch.metrics import SIZES, Registry


class CallMetrics:
    """Observes the calls to one gRPC server; belongs to its event loop."""

    def __init__(self, registry: Registry, service: str) -> None:
        self._service = service
        self._calls = registry.counter(
            "ordersys_grpc_server_calls", "Calls that were answered, by gRPC status", ["service", "method", "code"]
        )
        self._seconds = registry.histogram(
            "ordersys_grpc_server_call_duration_seconds",
            "How long the answers took; streams are not among them",
            ["service", "method"],
        )
        self._in_flight = registry.gauge(
            "ordersys_grpc_server_calls_in_flight", "Calls that wait for their answer now", ["service"]
        ).labels(service)
        self._streams = registry.gauge("ordersys_grpc_server_streams", "Streams that are open now", ["service"]).labels(
            service
        )
        self._counters: dict[tuple[str, str], Counter] = {}
        self._timers: dict[str, Histogram] = {}

    def began(self, call: Call, _metadata: Iterable[tuple[str, str | bytes]]) -> None:
        (self._streams if call.streams else self._in_flight).inc()

    def ended(self, call: Call) -> None:
        (self._streams if call.streams else self._in_flight).dec()
        try:
            counter = self._counters[call.method, call.code]
        except KeyError:
            counter = self._calls.labels(self._service, _short(call.method), call.code)
            self._counters[call.method, call.code] = counter
        counter.inc()
        if not call.streams:
            try:
                timer = self._timers[call.method]
            except KeyError:
                timer = self._timers[call.method] = self._seconds.labels(self._service, _short(call.method))
            timer.observe(time.perf_counter() - call.begun)


def _short(method: str) -> str:
    return method.rpartition("/")[2]


class BatchMetrics:
    """Observes one batcher."""

    def __init__(self, registry: Registry, batcher: str) -> None:
        label = ["batcher"]
        self._size = registry.histogram(
            "ordersys_batch_size", "Entries that were at work together", label, SIZES
        ).labels(batcher)
        self._wait = registry.histogram(
            "ordersys_batch_wait_seconds", "How long an entry waited for its batch to begin", label
        ).labels(batcher)
        self._duration = registry.histogram(
            "ordersys_batch_duration_seconds", "How long a batch was at work", label
        ).labels(batcher)
        self._waiting = registry.gauge("ordersys_batch_waiting", "Entries that wait for their batch now", label).labels(
            batcher
        )

    def watch(self, waiting: Callable[[], int]) -> None:
        self._waiting.set_function(waiting)

    def began(self, waited: Sequence[float]) -> None:
        self._size.observe(len(waited))
        for seconds in waited:
            self._wait.observe(seconds)

    def ended(self, seconds: float) -> None:
        self._duration.observe(seconds)
