"""HTTP/2 by hand (RFC 9113), for what no client library does: floods, drips, and windows that stay shut."""

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple, Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS = 1, 4
_INITIAL_WINDOW = 4


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    body: bytes

    def encode(self) -> bytes:
        return (
            struct.pack(">I", len(self.body))[1:] + struct.pack(">BBI", self.kind, self.flags, self.stream) + self.body
        )


def window(size: int) -> Frame:
    """The setting how much the other side may send on each stream before we have taken it."""
    return Frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW, size))


def call(stream: int, path: str, headers: int = 0) -> Frame:
    """The beginning of a gRPC call, with so many more headers; literal fields without an index (RFC 7541)."""
    fields = [(":path", path), (":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc")]
    fields += [(f"x-{number}", "y" * 100) for number in range(headers)]
    block = b"\x83\x86"  # :method POST, :scheme http
    for name, value in fields:
        block += b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return Frame(HEADERS, END_HEADERS, stream, block)


def message(size: int, of: int = 0) -> bytes:
    """The first bytes of a gRPC message of `of` bytes, all of it by default."""
    return b"\0" + struct.pack(">I", of or size) + bytes(size)


class Connection:
    """One connection that has said its preface; closed at the end of the block."""

    def __init__(self, address: str, *settings: Frame) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.socket.sendall(PREFACE)
        self.send(*(settings or [Frame(SETTINGS, 0, 0, b"")]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *frames: Frame) -> None:
        self.socket.sendall(b"".join(frame.encode() for frame in frames))

    def data(self, stream: int, body: bytes) -> None:
        self.send(*(Frame(DATA, 0, stream, body[at : at + 16_384]) for at in range(0, len(body), 16_384)))

    def frames(self) -> Iterator[Frame]:
        """What comes, until the other side closes; raises TimeoutError, or ConnectionError when it hung up on us."""
        while head := self._exactly(9):
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            yield Frame(kind, flags, stream, self._exactly(int.from_bytes(head[:3], "big")))

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            more = self.socket.recv(size - len(found))
            if not more:
                return b""
            found += more
        return found
