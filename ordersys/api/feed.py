"""Streams of events for the readers of the gateway, all from one call to the Order Service.

A stream reads the newest events that the `Tap` holds at its own pace and keeps nothing itself: one that asks for
something older reads the event log in pages until it has come up to them; one that takes too little is ended, to come
back with its last sequence.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ordersys.api.metrics import Metrics
from ordersys.api.tap import Item, Limits, Log, Tap, Wanted, item
from ordersys.core import errors
from ordersys.core.backoff import Backoff
from ordersys.core.rpc.channel import Channel

logger = logging.getLogger(__name__)

RETRY_MS = 1000
"""How soon a reader whose stream has ended comes back."""
FULL_SECONDS = 5.0
"""How soon a reader who found every stream taken may ask again."""
_PAGE = 500


class Stream:
    """What one reader is sent; iterate once, and `close` whatever happens. `gone` tells whether its client has left."""

    def __init__(self, feed: "Feed", tap: Tap, position: int, wanted: Wanted, gone: Callable[[], bool]) -> None:
        self._feed = feed
        self._limits = feed.limits
        self._tap = tap
        self._wanted = wanted
        self._gone = gone
        self._position = position
        self._told = position  # the last id that was sent
        self._live = False  # has read from the newest events
        self._backoff = Backoff(0.1, 2.0)
        self._writing_since: float | None = None
        self._dropped = False
        self._closed = False

    def close(self) -> None:
        """Give the slot back; may be called again."""
        if not self._closed:
            self._closed = True
            self._feed.left(dropped=self._dropped or self._too_slow())

    def __iter__(self) -> Iterator[bytes]:
        limits = self._limits
        opened = said = time.monotonic()
        # The id is where a client goes on that comes back before it saw an event.
        yield from self._write(f"retry: {RETRY_MS}\n: subscribed\nid: {self._position}\n\n".encode())
        while not (self._tap.closed or self._too_slow() or self._gone()):
            now = time.monotonic()
            if now > opened + limits.age:
                return
            if now > said + limits.heartbeat:
                said = now
                yield from self._write(self._heartbeat())
            before = self._position
            found = self._next(min(limits.look, limits.heartbeat))
            if self._dropped:
                return
            for piece in self._pieces(found):
                said = time.monotonic()
                yield from self._write(piece)
                if self._too_slow():
                    return
            if self._position != before:
                time.sleep(limits.pace)

    def _next(self, timeout: float) -> list[Item]:
        """What came after the position, as far as it is wanted; the position moves on."""
        found = self._tap.after(self._position, _PAGE, timeout)
        if found is None:
            if self._live:
                self._dropped = True
                return []
            found = self._older()
        elif found:
            self._live = True
        if found:
            self._position = max(self._position, found[-1].sequence)
        return [each for each in found if each.fits(self._wanted)]

    def _older(self) -> list[Item]:
        """A page of the log, to come up to the newest events."""
        floor = self._tap.floor
        try:
            messages, more = self._feed.log.page(self._position, _PAGE, self._wanted.order_id)
        except errors.OrdersysError as error:
            pause = self._backoff.pause()
            logger.warning("reading events after %d again in %.1f s: %s", self._position, pause, error.message)
            self._tap.wait(pause)
            return []
        self._backoff.reset()
        found = [item(message) for message in messages]
        if not more:  # all there was up to the floor is in it
            self._position = max(self._position, floor)
        return found

    def _pieces(self, found: Sequence[Item]) -> Iterator[bytes]:
        """The events in few pieces of a bounded size."""
        waiting: list[bytes] = []
        size = 0
        for each in found:
            waiting.append(each.text)
            size += len(each.text)
            self._told = each.sequence
            if size > self._limits.piece_bytes:
                yield b"".join(waiting)
                waiting.clear()
                size = 0
        if waiting:
            yield b"".join(waiting)

    def _heartbeat(self) -> bytes:
        """A comment; with an id when events were passed over since the last one, so that they are not read again."""
        if self._told == self._position:
            return b": heartbeat\n\n"
        self._told = self._position
        return f": heartbeat\nid: {self._position}\n\n".encode()

    def _write(self, piece: bytes) -> Iterator[bytes]:
        self._writing_since = time.monotonic()
        yield piece
        if not self._too_slow():
            self._writing_since = None

    def _too_slow(self) -> bool:
        since = self._writing_since
        return since is not None and time.monotonic() > since + self._limits.slow


class Feed:
    """Gives out streams, `max_streams` at a time, and holds the tap that they share."""

    def __init__(self, channel: Channel, *, max_streams: int, metrics: Metrics, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.log = Log(channel, self.limits.deadline)
        self._channel = channel
        self._max_streams = max_streams
        self._metrics = metrics
        self._lock = threading.Lock()
        self._tap: Tap | None = None
        self._known = 0
        self._open = 0
        self._left_at = 0.0
        self._leaving = False
        self._closed = False

    @property
    def streams(self) -> int:
        """How many are open."""
        return self._open

    @property
    def watches(self) -> bool:
        """Whether the Order Service is watched now."""
        return self._tap is not None

    def open(self, after: int | None, wanted: Wanted, gone: Callable[[], bool] = lambda: False) -> Stream:
        """A stream of what comes after this sequence; None = after the newest event there is now.

        Raises `Unavailable` when there are too many, when the gateway stops, and when nobody can tell the newest event.
        """
        self._enter()
        try:
            if after is None:
                now = self._now()
                return Stream(self, self._tapped(now), now, wanted, gone)
            return Stream(self, self._tapped(None), after, wanted, gone)
        except BaseException:
            self.left()
            raise

    def left(self, *, dropped: bool = False) -> None:
        """A stream has ended; the last one lets go of the Order Service, after a while."""
        with self._lock:
            self._open -= 1
            self._metrics.streams.dec()
            if dropped:
                self._metrics.dropped_streams.inc()
            self._left_at = time.monotonic()
            if self._open == 0 and self._tap is not None and not self._leaving:
                self._leaving = True
                self._let_go_in(self.limits.linger)

    def close(self) -> None:
        """End every stream, and open none any more."""
        with self._lock:
            self._closed = True
            tap, self._tap = self._tap, None
        if tap is not None:
            tap.close()

    def _enter(self) -> None:
        with self._lock:
            if self._closed:
                raise errors.Unavailable("the gateway is stopping", RETRY_MS / 1000)
            if self._open >= self._max_streams:
                raise errors.Unavailable(f"all {self._max_streams} event streams are taken", FULL_SECONDS)
            self._open += 1
            self._metrics.streams.inc()

    def _now(self) -> int:
        """The newest event; the newest that was seen when the Order Service is away."""
        tap = self._tap
        known = self._known if tap is None else tap.known
        try:
            return self.log.newest(known)
        except errors.Unavailable:
            if tap is None or tap.ring is None:
                raise
            return known

    def _tapped(self, position: int | None) -> Tap:
        """The tap that runs, or one that starts from the newest event, where `position` is that."""
        with self._lock:
            if self._closed:
                raise errors.Unavailable("the gateway is stopping", RETRY_MS / 1000)
            if self._tap is None:
                self._tap = Tap(self._channel, self.log, self.limits, position, self._known)
            return self._tap

    def _let_go_in(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._let_go)
        timer.daemon = True
        timer.start()

    def _let_go(self) -> None:
        with self._lock:
            rest = self._left_at + self.limits.linger - time.monotonic()
            if self._open == 0 and rest > 0:  # somebody came and went meanwhile
                self._let_go_in(rest)
                return
            self._leaving = False
            if self._open or self._tap is None:
                return
            tap, self._tap = self._tap, None
            self._known = tap.known
        tap.close()
