"""What gRPC's core writes to descriptor 2, as it wrote it, and the log lines that come of it."""

import logging

import pytest

from ordersys.core.rpc.grpc_log import Hearing

HEAD = "I1122 03:47:43.637716   10165 handshaker.cc:155] "
ARGS = (
    "shutdown=false index=2, args={endpoint=0x7f, args={grpc.internal.endpoint_local_address=ipv4:127.0.0.1:7,"
    " grpc.internal.endpoint_peer_address=%s, grpc.use_v3_stack=0}, read_buffer.Length()=0, exit_early=0}"
)
EXPIRED = (
    "CallNextHandshakerLocked: error=UNKNOWN: Ssl handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL:"
    " error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired: OK"
)
TRACE = ["=== Source Location Trace: === ", "src/core/util/status_helper.cc:68", " "]


class Heard:
    def __init__(self) -> None:
        self.passed_on: list[str] = []
        self.now = 0.0
        self.hearing = Hearing(self.passed_on.append, lambda: self.now)

    def __call__(self, *lines: str) -> None:
        for line in lines:
            self.hearing.line(line)

    def failed(self, peer: str, error: str = EXPIRED) -> None:
        self(HEAD + error, *TRACE[:2], f" {ARGS % peer}")


@pytest.fixture
def heard() -> Heard:
    return Heard()


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(each.levelname, each.getMessage()) for each in caplog.records]


def test_a_failed_handshake_is_a_warning_with_the_address_and_the_reason(
    heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    heard.failed("ipv4:10.1.2.3:59042")
    heard(f"{HEAD}{EXPIRED} {ARGS % 'ipv6:%5B::1%5D:4711'}")  # a version that writes it in one line
    assert said(caplog) == [
        ("WARNING", "TLS handshake with ipv4:10.1.2.3:59042 failed: its certificate has expired"),
        ("WARNING", "TLS handshake with ipv6:[::1]:4711 failed: its certificate has expired"),
    ]
    assert heard.passed_on == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate: OK", "unknown CA: its certificate is not"),
        ("CERTIFICATE_VERIFY_FAILED: self-signed certificate: OK", "unknown CA: its certificate is not from"),
        ("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid: OK", "its certificate is not valid yet"),
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE: Invalid certificate verification context", "it showed no certificate"),
        ("WRONG_VERSION_NUMBER: Invalid certificate verification context", "it does not speak TLS"),
        ("UNSUPPORTED_PROTOCOL: OK", "it does not speak TLS 1.2 or newer"),
        ("TLSV1_ALERT_UNKNOWN_CA: OK", "unknown CA: it does not trust the CA of our certificate"),
        ("SOMETHING_ELSE: of later: OK", "SOMETHING_ELSE: of later"),
    ],
)
def test_the_reason_is_told_in_words(error: str, reason: str, heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    failed = f"error=UNKNOWN: Ssl handshake failed (TSI_PROTOCOL_FAILURE): SSL routines:OPENSSL_internal:{error}"
    heard.failed("ipv4:10.1.2.3:1", failed)
    [(level, message)] = said(caplog)
    assert (level, message.startswith(f"TLS handshake with ipv4:10.1.2.3:1 failed: {reason}")) == ("WARNING", True)


def test_who_is_refused_again_and_again_is_named_once_a_minute(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    for port in range(100):
        heard.failed(f"ipv4:10.1.2.3:{port}")
    assert len(caplog.records) == 1
    heard.failed("ipv4:10.9.9.9:1")
    heard.now = 61
    heard.failed("ipv4:10.1.2.3:1")
    assert len(caplog.records) == 3


def test_addresses_without_number_take_no_memory_without_end(heard: Heard) -> None:
    for number in range(5_000):
        heard.failed(f"ipv6:%5B2001:db8::{number:x}%5D:1")
    assert len(heard.hearing._told) <= 1_000


def test_who_only_looks_whether_the_port_is_open_is_no_news(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    heard.failed("ipv4:10.1.2.3:1", "CallNextHandshakerLocked: error=UNAVAILABLE: Handshake read failed")
    heard(HEAD + f"CallNextHandshakerLocked: error=OK {ARGS % 'ipv4:10.1.2.3:1'}")
    heard("I1122 03:47:43.637663   10165 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL")
    assert said(caplog) == []
    assert heard.passed_on == []


def test_what_grpc_complains_of_is_logged_at_its_level(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    heard("E1122 03:47:43.637663   10165 chttp2_transport.cc:1199] too many pings")
    heard("W0000 00:00:1729329127.989514   87338 log.cc:102] careful")
    assert said(caplog) == [
        ("ERROR", "gRPC: too many pings (chttp2_transport.cc:1199)"),
        ("WARNING", "gRPC: careful (log.cc:102)"),
    ]


def test_everything_else_is_passed_on_as_it_came(heard: Heard) -> None:
    heard(HEAD + EXPIRED, "terminate called after throwing an instance of 'x'", "  what(): y")
    assert heard.passed_on == ["terminate called after throwing an instance of 'x'", "  what(): y"]
