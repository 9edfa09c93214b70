"""Export: what becomes of spans, and of the process, when whoever takes them is away, slow or back again."""

import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from collector import Recorder, collecting
from fake_services import until

from ordersys.core.watch.otlp import Export


class Moody:
    """A collector that answers with `status`; it listens from the start."""

    def __init__(self) -> None:
        self.status = 500
        self.refused = 0
        self.taken = Recorder()
        moody = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if moody.status == 200:
                    moody.taken.take(body)
                else:
                    moody.refused += 1
                self.send_response(moody.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Not of interest."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


def test_services_of_one_process_share_an_exporter_and_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        export = Export()
        for service in ("product-service", "order-service"):
            export.tracing(service).begin("work").end()
        export.close(20)
        assert {span.service for span in collector.spans} == {"product-service", "order-service"}


def test_an_outage_is_told_once_and_so_is_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    moody = Moody()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", moody.endpoint)
    caplog.set_level(logging.INFO)

    def told(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records if record.levelno >= logging.INFO)

    export = Export()
    tracing = export.tracing("x")
    try:
        for outage in (1, 2):
            moody.status = 500
            wanted = moody.refused + 3

            def refused(wanted: int = wanted) -> bool:
                tracing.begin("lost").end()
                return moody.refused >= wanted

            until(refused)
            assert told("spans are lost") == outage
            moody.status = 200

            def exported(outage: int = outage) -> bool:
                tracing.begin("taken").end()
                return told("spans are exported again") == outage

            until(exported)
        assert told("spans are lost") == 2
        assert {span.name for span in moody.taken.spans} <= {"lost", "taken"}
    finally:
        export.close(20)
        moody.close()


def test_the_end_does_not_wait_for_a_collector_that_takes_and_never_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")
        export = Export()
        export.tracing("x").begin("work").end()
        closing = threading.Thread(target=export.close, args=(0.2,))
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
    assert "nobody took the last ones within 0.2 s" in caplog.text


def test_the_sdk_has_its_logger_back_after_the_end() -> None:
    sdk = logging.getLogger("opentelemetry")
    before = (list(sdk.handlers), sdk.propagate)
    export = Export()
    assert (len(sdk.handlers), sdk.propagate) == (len(before[0]) + 1, False)
    export.close(20)
    assert (list(sdk.handlers), sdk.propagate) == before
