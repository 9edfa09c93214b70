"""How often one caller may ask: a token bucket each."""

import hashlib
import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from flask import Flask, Response, current_app, g, request

from ordersys.api import access
from ordersys.api.metrics import Metrics
from ordersys.core import errors

MAX_CALLERS = 10_000


class RateLimited(errors.OrdersysError):
    """The caller's bucket is empty; `retry_after` is in seconds."""

    code = "rate_limited"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Turn:
    """One request's share: may it pass, how many more may follow at once, and when the next may, in seconds."""

    allowed: bool
    left: int
    wait: float


class Rates:
    """`limit` requests in `window` seconds for every key, token or address, for any number of threads.

    Each has a bucket of `limit` tokens that fills evenly in `window` seconds. Of more than MAX_CALLERS the one that has
    been quiet longest is forgotten, which means that its bucket is full.
    """

    def __init__(self, limit: int, window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.window = window
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by caller: tokens, and at what time

    def take(self, name: str) -> Turn:
        """Take a token of this caller's, if there is one."""
        with self._lock:
            now = self._clock()
            tokens = self._tokens(name, now)
            if allowed := tokens >= 1:
                tokens -= 1
                self._buckets[name] = tokens, now
            self._buckets.move_to_end(name)
            self._forget(now)
        return self._turn(allowed, tokens)

    def peek(self, name: str) -> Turn:
        """What `take` would answer, without taking."""
        with self._lock:
            tokens = self._tokens(name, self._clock())
        return self._turn(tokens >= 1, tokens)

    @property
    def callers(self) -> int:
        """How many are remembered."""
        return len(self._buckets)

    def _tokens(self, name: str, now: float) -> float:
        tokens, at = self._buckets.get(name, (float(self.limit), now))
        return min(self.limit, tokens + (now - at) * self.limit / self.window)

    def _turn(self, allowed: bool, tokens: float) -> Turn:
        return Turn(allowed, int(tokens), max(0.0, 1 - tokens) * self.window / self.limit)

    def _forget(self, now: float) -> None:
        while len(self._buckets) > 1:
            oldest = next(iter(self._buckets))
            if len(self._buckets) <= MAX_CALLERS and now - self._buckets[oldest][1] < self.window:
                return
            del self._buckets[oldest]


class _Accepted:
    """Digests of the credentials that were accepted of late, the least used forgotten first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    def add(self, digest: bytes) -> None:
        with self._lock:
            self._digests[digest] = None
            self._digests.move_to_end(digest)
            if len(self._digests) > MAX_CALLERS:
                self._digests.popitem(last=False)

    def discard(self, digest: bytes) -> None:
        with self._lock:
            self._digests.pop(digest, None)


def rates_of(setting: str) -> Rates | None:
    """The rates that `REQUESTS/SECONDS` stands for; None for "off"."""
    if setting == "off":
        return None
    limit, _, window = setting.partition("/")
    return Rates(int(limit), float(window))


def register(app: Flask, rates: Rates | None, metrics: Metrics) -> None:
    """Refuse what comes too often; None = nobody is limited. Stands behind `access.register`.

    Each request counts for its caller; one without valid credentials, or for a path that does not exist, for its
    address. Public pages are not limited, nor is the developer on the gateway's own machine, unless he has a key.
    """
    if rates is None:
        return
    accepted = _Accepted()

    def refuse_early() -> None:
        """Do not look at further credentials from an address that has sent too many wrong ones.

        Those that were right before pass: others may share the address.
        """
        shown = _credentials()
        if _is_public() or shown in accepted or (not shown and _is_own_machine()):
            return
        if not (turn := rates.peek(_address())).allowed:
            answer_with(turn)

    def count() -> None:
        name = _limited_as()
        if name is not None:
            answer_with(rates.take(name))
        if _is_known() and (shown := _credentials()):
            accepted.add(shown)

    def answer_with(turn: Turn) -> None:
        g.turn = turn
        if not turn.allowed:
            metrics.rate_limited.inc()
            limit, window = rates.limit, rates.window
            raise RateLimited(f"more than {limit} requests in {window:g} s; wait before the next", turn.wait)

    def say(response: Response) -> Response:
        if response.status_code == 401 and g.get("turn") is None:
            accepted.discard(_credentials())
            g.turn = rates.take(_address())
        turn: Turn | None = g.get("turn")
        if turn is not None:
            # draft-ietf-httpapi-ratelimit-headers-10: `r` requests, spread over the `t` seconds ahead, will pass.
            window = math.ceil(rates.window)
            response.headers["RateLimit-Policy"] = f'"default";q={rates.limit};w={window}'
            response.headers["RateLimit"] = f'"default";r={turn.left};t={window}'
        return response

    hooks = app.before_request_funcs[None]
    who = next(place for place, hook in enumerate(hooks) if hook.__module__ == access.__name__)
    hooks.insert(who, refuse_early)  # behind those that begin the trace and the clock
    app.before_request(count)
    app.after_request(say)


def _is_public() -> bool:
    return access.is_public(current_app.view_functions.get(request.endpoint or ""))


def _is_known() -> bool:
    """True for the holder of a key or token; anybody else is called by his address."""
    return access.caller().name != f"address {request.remote_addr}"


def _limited_as() -> str | None:
    """Whose bucket this request takes from; None for nobody's."""
    if _is_known():
        return access.caller().name
    return None if _is_public() or _is_own_machine() else _address()


def _is_own_machine() -> bool:
    try:
        return ipaddress.ip_address(request.remote_addr or "").is_loopback
    except ValueError:
        return False


def _address() -> str:
    """The bucket of the address that the request comes from; a /64 of IPv6 is one subscriber (RFC 6177)."""
    given = request.remote_addr or ""
    try:
        address = ipaddress.ip_address(given)
    except ValueError:  # a test client's
        return f"address {given}"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return f"address {address.ipv4_mapped}"
        return f"address {ipaddress.IPv6Network((int(address), 64), strict=False)}"
    return f"address {address}"


def _credentials() -> bytes:
    """A digest of what the caller shows to be let in, which must not be kept itself; empty when there is nothing."""
    shown = request.headers.get(access.KEY_HEADER, ""), request.headers.get("Authorization", "")
    return hashlib.sha256("\n".join(shown).encode()).digest() if any(shown) else b""
