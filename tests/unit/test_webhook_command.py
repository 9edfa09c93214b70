"""`ordersys webhook`: what it signs it finds good, and it says why not."""

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ordersys.core import errors
from ordersys.operate.webhook import signing

BODY = b'{"a": 1}\r\n\xff'
SECRET = f"whsec_{'A' * 32}"


@pytest.fixture
def body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ORDERSYS_WEBHOOK_SECRET", SECRET)
    (tmp_path / "body").write_bytes(BODY)
    return str(tmp_path / "body")


def webhook(*arguments: str, given: bytes = b"") -> str:
    """What the command printed; raises what it raised."""
    done = CliRunner().invoke(signing, arguments, input=given)
    if isinstance(done.exception, errors.OrdersysError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def options(headers: str) -> list[str]:
    """The three headers as options."""
    named = (line.partition(": ") for line in headers.splitlines())
    return [part for name, _, value in named for part in (f"--{name.removeprefix('webhook-')}", value)]


def test_what_it_signs_it_finds_good(body: str) -> None:
    headers = webhook("sign", "--id", "event-1", body)
    assert [line.partition(":")[0] for line in headers.splitlines()] == [
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ]
    assert webhook("verify", *options(headers), body) == "the signature is good\n"
    assert webhook("verify", *options(headers), given=BODY) == "the signature is good\n"
    assert webhook("verify", *options(webhook("sign", given=BODY)), "-", given=BODY) == "the signature is good\n"


def test_it_says_why_a_request_is_not_good(body: str) -> None:
    headers = options(webhook("sign", body))
    with pytest.raises(errors.PermissionDenied, match="a changed body"):
        webhook("verify", *headers, given=BODY + b"x")
    old = options(webhook("sign", "--timestamp", str(int(time.time()) - 10_000), body))
    with pytest.raises(errors.PermissionDenied, match="s old, more than 300 s"):
        webhook("verify", *old, body)
    assert webhook("verify", *old, "--tolerance", "20000", body) == "the signature is good\n"


def test_the_secret_may_stand_in_a_file_and_is_needed(
    body: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    headers = options(webhook("sign", body))
    monkeypatch.delenv("ORDERSYS_WEBHOOK_SECRET")
    (tmp_path / "secret").write_text(SECRET + "\n")
    monkeypatch.setenv("ORDERSYS_WEBHOOK_SECRET_FILE", str(tmp_path / "secret"))
    webhook("verify", *headers, body)
    monkeypatch.delenv("ORDERSYS_WEBHOOK_SECRET_FILE")
    with pytest.raises(errors.UsageError, match="Set ORDERSYS_WEBHOOK_SECRET, or"):
        webhook("verify", *headers, body)


def test_a_body_that_is_not_there_is_named(body: str) -> None:
    with pytest.raises(errors.UsageError, match="nothing cannot be read: No such file"):
        webhook("sign", f"{body}-nothing")
