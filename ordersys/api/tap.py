"""The events of the Order Service as they come in: one call for the whole gateway, and the newest in memory."""

import bisect
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from ordersys.core import errors, events, pages
from ordersys.core.backoff import Backoff
from ordersys.core.rpc.channel import ROUTINE_SECONDS, Channel
from ordersys.core.v1 import order_pb2, order_pb2_grpc

logger = logging.getLogger(__name__)

_PROBE = 100
_FIRST_STRIDE = 1000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How streams behave; in seconds where nothing else is said."""

    heartbeat: float = 15.0
    pace: float = 0.05  # a stream writes at most so often: what comes between goes out in one piece
    look: float = 1.0  # how soon a client that has left is noticed
    slow: float = 8.0  # a client that has not taken a piece in this time is dropped; the socket's own limit is 10
    age: float = 900.0  # a stream ends after this: whoever reads on has to show again who they are
    linger: float = 5.0  # how long the Order Service is watched after the last reader has left
    deadline: float = 5.0  # of each call to the Order Service
    memory_bytes: int = 8 * 1024 * 1024  # of encoded events kept for all readers
    piece_bytes: int = 128 * 1024  # written at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which events a reader gets; "" = any."""

    order_id: str = ""
    customer_id: str = ""
    type: str = ""


class Item(NamedTuple):
    """One event as it is sent."""

    sequence: int
    order_id: str
    customer_id: str
    type: str
    text: bytes

    def fits(self, wanted: Wanted) -> bool:
        return (
            wanted.order_id in ("", self.order_id)
            and wanted.customer_id in ("", self.customer_id)
            and wanted.type in ("", self.type)
        )


def item(message: order_pb2.OrderEvent) -> Item:
    """The event with the CloudEvent as data, exactly as it is on the broker, and its sequence as id."""
    event = events.from_proto(message)
    # JSON has no line breaks inside: one data field is enough.
    text = f"id: {event.sequence}\nevent: {event.type}\ndata: {events.encode(event)}\n\n".encode()
    return Item(event.sequence, event.order.id, event.order.customer_id, event.type, text)


class Ring:
    """The newest events in sequence: all there are after `floor`, up to `last`. Not thread-safe."""

    def __init__(self, at: int, most_bytes: int) -> None:
        self.floor = self.last = at
        self._most = most_bytes
        self._items: list[Item] = []
        self._first = 0  # those before it are forgotten, and cut off now and then
        self._bytes = 0

    def add(self, new: Item) -> None:
        self._items.append(new)
        self.last = new.sequence
        self._bytes += len(new.text)
        while self._bytes > self._most:
            oldest = self._items[self._first]
            self._bytes -= len(oldest.text)
            self.floor = oldest.sequence
            self._first += 1
        if self._first > len(self._items) // 2:
            del self._items[: self._first]
            self._first = 0

    def after(self, position: int, most: int) -> list[Item]:
        """At most so many events after a position, oldest first."""
        start = bisect.bisect_right(self._items, position, lo=self._first, key=lambda each: each.sequence)
        return self._items[start : start + most]


class Log:
    """The event log of the Order Service, in pages."""

    def __init__(self, channel: Channel, deadline: float) -> None:
        self._channel = channel
        self._service = order_pb2_grpc.OrderServiceStub(channel.raw)
        self._deadline = deadline

    def page(self, after: int, size: int, order_id: str = "") -> tuple[Sequence[order_pb2.OrderEvent], bool]:
        """The first events after a sequence, and whether there are more; raises what the service answers."""
        # A page of the log ends at a sequence: its token is where the next one starts.
        request = order_pb2.ListEventsRequest(page_size=size, page_token=pages.token(after), order_id=order_id)
        answer = self._channel.call(self._service.ListEvents, request, deadline=self._deadline)
        return [each.event for each in answer.events], bool(answer.next_page_token)

    def newest(self, low: int) -> int:
        """The sequence of the newest event, `low` when there is none after it; some twenty calls for a long log."""
        high: int | None = None  # nothing came after it when it was looked at
        probe = low
        while high is None or low < high:
            found, more = self.page(probe, _PROBE)
            if found:
                low = found[-1].sequence
                if not more:
                    break
            else:
                high = probe
            probe = low * 4 + _FIRST_STRIDE if high is None else (low + high) // 2
        return low


class Tap:
    """Watches the Order Service from its newest event on, whatever becomes of it, until `close`."""

    def __init__(self, channel: Channel, log: Log, limits: Limits, at: int | None, known: int) -> None:
        """`at` is the newest event; None = to be found, and it is not before `known`."""
        self._channel = channel
        self._service = order_pb2_grpc.OrderServiceStub(channel.raw)
        self._log = log
        self._limits = limits
        self._known = known
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._call: Any = None
        self.ring = None if at is None else Ring(at, limits.memory_bytes)
        threading.Thread(target=self._run, name="api-feed", daemon=True).start()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def floor(self) -> int:
        """What came after it is kept here."""
        return self._known if self.ring is None else self.ring.floor

    @property
    def known(self) -> int:
        """The newest sequence that was ever seen."""
        return self._known if self.ring is None else self.ring.last

    def close(self) -> None:
        """End the call, and every wait, at once."""
        self._closed.set()
        with self._changed:
            if self._call is not None:
                self._call.cancel()
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait so long, or until it is closed."""
        self._closed.wait(seconds)

    def after(self, position: int, most: int, timeout: float) -> list[Item] | None:
        """The events that came after a position, waiting for the first; None = they are not here any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed.is_set() or self._news(position), timeout)
            if self.ring is None:
                return []
            return None if position < self.ring.floor else self.ring.after(position, most)

    def _news(self, position: int) -> bool:
        return self.ring is not None and position < self.ring.last

    def _run(self) -> None:
        backoff = Backoff(0.1, 2.0)
        while not self.closed:
            reason = "the stream ended"
            began = time.monotonic()
            try:
                self._watch(backoff)
            except errors.OrdersysError as error:
                reason = error.message
            except Exception as error:  # a fault of ours must not leave every stream silent for good
                logger.exception("watching orders failed")
                reason = type(error).__name__
            if self.closed:
                return
            routine = time.monotonic() - began > ROUTINE_SECONDS
            if routine:
                backoff.reset()
            pause = backoff.pause()
            level = logging.DEBUG if routine else logging.WARNING
            logger.log(level, "watching orders again after sequence %d in %.1f s: %s", self.known, pause, reason)
            self._closed.wait(pause)

    def _watch(self, backoff: Backoff) -> None:
        if self.ring is None:
            ring = Ring(self._log.newest(self._known), self._limits.memory_bytes)
            with self._changed:
                self.ring = ring
                self._changed.notify_all()
        ring = self.ring
        request = order_pb2.WatchOrdersRequest(after_sequence=ring.last)
        begin: Any = self._begin
        with closing(self._channel.stream(begin, request)) as messages:
            for message in messages:
                backoff.reset()
                if self.closed:
                    return
                if message.sequence > ring.last:
                    new = item(message)
                    with self._changed:
                        ring.add(new)
                        self._changed.notify_all()

    def _begin(self, request: order_pb2.WatchOrdersRequest) -> Any:
        """The call itself is kept: only it can be ended by another thread than the one that reads from it."""
        with self._changed:
            self._call = self._service.WatchOrders(request)
            if self.closed:
                self._call.cancel()
            return self._call
