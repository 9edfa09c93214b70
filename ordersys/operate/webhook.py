"""`ordersys webhook`: sign and check by hand what the sink `webhook` sends, for whoever writes a receiver."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ordersys.core import errors, signatures

signing = typer.Typer(help="Signatures of webhooks, as the sink webhook makes them.", no_args_is_help=True)

Body = Annotated[str, typer.Argument(metavar="FILE", help="The body, byte by byte as it was sent; - = stdin.")]
Id = Annotated[str, typer.Option("--id", help=f"The header {signatures.ID}.")]


@signing.command("verify")
def verify(
    message_id: Id,
    timestamp: Annotated[str, typer.Option("--timestamp", help=f"The header {signatures.TIMESTAMP}.")],
    signature: Annotated[str, typer.Option("--signature", help=f"The header {signatures.SIGNATURE}.")],
    body: Body = "-",
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, metavar="SECONDS", help="How far the timestamp may be from now.")
    ] = signatures.TOLERANCE_SECONDS,
) -> None:
    """Check a request against ORDERSYS_WEBHOOK_SECRET (or its _FILE); exit code 1 and the reason if it is not good."""
    secrets, content = _secrets(), _content(body)
    try:
        signatures.verify(secrets, message_id, timestamp, signature, content, time.time(), tolerance)
    except signatures.BadSignature as error:
        raise errors.PermissionDenied(str(error)) from None
    print("the signature is good")


@signing.command("sign")
def sign(
    body: Body = "-",
    message_id: Id = "msg_test",
    timestamp: Annotated[
        int | None, typer.Option("--timestamp", min=0, metavar="SECONDS", help="Since the epoch; default: now.")
    ] = None,
) -> None:
    """Print the three headers, to try a receiver with: curl -H @FILE takes them."""
    seconds = int(time.time()) if timestamp is None else timestamp
    for name, value in signatures.headers(_secrets(), message_id, seconds, _content(body)).items():
        print(f"{name}: {value}")


def _secrets() -> tuple[bytes, ...]:
    from ordersys import settings

    secret = settings.load().webhook_secret
    if not secret:
        raise errors.UsageError("which secret? Set ORDERSYS_WEBHOOK_SECRET, or ORDERSYS_WEBHOOK_SECRET_FILE")
    return signatures.secrets_of(secret)


def _content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise errors.UsageError(f"{name} cannot be read: {error.strerror}") from error
