"""What callers may take of a gRPC server: of its memory, its connections and its time. Each number with its reason.

Nothing here knows gRPC: the options are data, and a call is the task that answers it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ordersys.core import errors

logger = logging.getLogger(__name__)

Metadata = Iterable[tuple[str, str | bytes]]

KIB = 1024
MIB = 1024 * KIB

CALL_BYTES = 20 * KIB  # measured: what a call takes that waits, with a request of a few bytes
COPIES = 4  # measured: a request as bytes, as message and as our own objects takes up to so many times its length
METADATA_COPIES = 3  # measured: in gRPC, and as Python's own

SMALL_ANSWER = 64 * KIB  # what is not larger is covered by what its call takes
STALLED_PER_STREAM = 10  # a stream that is closed takes about a tenth of one that is not


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one server; times in seconds."""

    request_bytes: int = 256 * KIB  # more than the largest request that any rule allows
    memory_bytes: int = 256 * MIB  # of all calls in flight: some 12,000 small ones, or a thousand of the largest orders
    answers_bytes: int = 128 * MIB  # of all large answers that are not taken yet: a page may have 54 MiB
    streams: int = 200  # of each method: every one holds a page of events, and looks for new ones twice a second
    arrive: float = 10.0  # a request that is still not here is refused
    take: float = 30.0  # a stream of which nothing is taken for so long is closed
    connections: int = 1000  # replicas, gateways and people are a few dozen; each holds a descriptor
    streams_per_connection: int = 1000  # one caller cannot take everybody's share
    metadata_bytes: int = 8 * KIB  # what gRPC recommends; a token and a trace fit several times
    handshake: float = 10.0  # a connection that is not a gRPC connection by then is closed
    idle: float = 300.0  # a connection without a call is closed; clients come back by themselves
    age: float = 600.0  # so that callers find new replicas, and nobody holds what is not taken for good
    grace: float = 60.0  # how long calls may go on at that age: much more than the deadline of any; a watch is resumed
    alive: float = 60.0  # how often a quiet connection is asked whether it is still there: half-open ones hold streams

    def options(self) -> tuple[tuple[str, int], ...]:
        """The same as the channel arguments of gRPC (grpc/impl/channel_arg_names.h)."""
        return (
            ("grpc.max_receive_message_length", self.request_bytes),
            ("grpc.max_metadata_size", self.metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.metadata_bytes),  # between the two gRPC refuses at random
            ("grpc.max_concurrent_streams", self.streams_per_connection),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake)),
            ("grpc.http2.settings_timeout", _ms(self.handshake)),
            ("grpc.max_connection_idle_ms", _ms(self.idle)),
            ("grpc.max_connection_age_ms", _ms(self.age)),
            ("grpc.max_connection_age_grace_ms", _ms(self.grace)),
            ("grpc.keepalive_time_ms", _ms(self.alive)),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Our clients ask every 15 s; who asks more often than every 10 s is sent away (gRFC A8).
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 2),
            # Windows that grow with the line let one connection fill them all with requests that never end.
            ("grpc.http2.bdp_probe", 0),
        )


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


class Ticket:
    """What one call takes, until its task is done."""

    def __init__(self, gate: "Gate", method: str, head: int, *, streams: bool) -> None:
        self._gate = gate
        self._head = head  # what it takes without its request
        self._stream = method if streams else ""
        self._weight = self._answer = 0
        self._stalled = False

    @property
    def patience(self) -> float:
        """How many seconds the request may take to arrive."""
        return self._gate.limits.arrive

    def weigh(self, weight: int) -> None:
        """The call takes so many bytes from now on."""
        self._gate.memory += weight - self._weight
        self._weight = weight

    def arrived(self, size: int) -> None:
        """The request is here, and has so many bytes."""
        self.weigh(self._head + COPIES * size)

    def answered(self, size: int) -> None:
        """The answer has so many bytes, which wait here until the caller takes them; raises `Unavailable`."""
        if size > SMALL_ANSWER:
            self._gate.admit_answer(size)
            self._answer = size

    @contextmanager
    def taking(self, close: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
        """While a message of a stream is on its way; raises `Unavailable` at the end when that took too long.

        A caller who takes nothing cannot be told so: a status would wait behind the message. So what makes the messages
        is closed meanwhile, and only that one message is kept.
        """
        closing: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()

        def stall() -> None:
            self._stalled = True
            self._gate.stall(self._stream)
            closing.append(loop.create_task(close()))

        timer = loop.call_later(self._gate.limits.take, stall)
        try:
            yield
        finally:
            timer.cancel()
        if self._stalled:
            raise errors.Unavailable(f"nothing was taken of the stream for {self._gate.limits.take:g} s")

    def left(self, _: object) -> None:
        self.weigh(0)
        self._gate.answers -= self._answer
        if self._stalled:
            self._gate.stalled -= 1
        elif self._stream:
            self._gate.streams[self._stream] -= 1


class Gate:
    """Counts what the calls in flight take, and refuses those for which nothing is left. On the event loop only."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.memory = 0  # bytes
        self.answers = 0  # bytes
        self.streams: Counter[str] = Counter()
        self.stalled = 0

    def enter(self, method: str, metadata: Metadata, *, streams: bool = False) -> Ticket:
        """The present task answers a call, whose request is still to come; raises `Unavailable`."""
        most = self.limits.streams
        if streams and (self.streams[method] >= most or self.stalled >= STALLED_PER_STREAM * most):
            raise errors.Unavailable(f"{most} streams of {method} are open, and more are not served")
        head = CALL_BYTES + METADATA_COPIES * sum(len(name) + len(value) for name, value in metadata)
        weight = head + self.limits.request_bytes  # until we know better it may become as large as it may
        if self.memory + weight > self.limits.memory_bytes:
            raise errors.Unavailable("overloaded: the calls in flight take all the memory that they may")
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC answers each call in a task of its own
        ticket = Ticket(self, method, head, streams=streams)
        ticket.weigh(weight)
        self.streams[method] += streams
        task.add_done_callback(ticket.left)
        return ticket

    def admit_answer(self, size: int) -> None:
        if self.answers + size > self.limits.answers_bytes:
            raise errors.Unavailable("overloaded: large answers that nobody takes fill the memory they may")
        self.answers += size

    def stall(self, method: str) -> None:
        """A stream of this method makes no more messages, and waits for its caller to go."""
        self.streams[method] -= 1
        self.stalled += 1
        logger.warning("a caller of %s takes nothing of its stream, which is closed", method)
