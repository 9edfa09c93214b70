"""Addresses to listen on, before gRPC has them: it logs what is wrong with one, and does not say it."""

import socket
import sys
from typing import Any

from ordersys.core import errors


def refuse_taken(bind: str) -> None:
    """Raise UsageError with the system's reason, which gRPC only logs."""
    host, _, port = bind.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise errors.UsageError(f"cannot listen on {bind!r}: expected HOST:PORT, for example 127.0.0.1:50051")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise errors.UsageError(f"cannot listen on {bind}: {error.strerror}") from error
    problems = [_problem(family, address) for family, _, _, _, address in found]
    if all(problems):
        raise errors.UsageError(f"cannot listen on {bind}: {problems[0]}")


def _problem(family: socket.AddressFamily, address: Any) -> str:
    """Why nobody could listen there, "" when somebody can."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if sys.platform != "win32":  # there it would share a taken address
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def keep(bind: str) -> tuple[socket.socket, str]:
    """An address that our own processes share (SO_REUSEPORT), kept while the socket is open; port 0 is some port then.

    The socket does not listen, so nobody is connected to it. Raises UsageError when somebody else listens there, or the
    system cannot share an address.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise errors.UsageError("this system has no SO_REUSEPORT: several processes cannot listen on one address")
    refuse_taken(bind)
    host, _, port = bind.rpartition(":")
    family, _, _, _, address = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    kept = socket.socket(family, socket.SOCK_STREAM)
    try:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)
    except OSError as error:
        kept.close()
        raise errors.UsageError(f"cannot listen on {bind}: {error.strerror}") from error
    return kept, f"{host}:{kept.getsockname()[1]}"
