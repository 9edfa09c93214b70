"""Where the figures come from: the metrics of the roles, and the two services themselves; each may be away."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from ordersys.core import errors
from ordersys.core.events import Change, Event
from ordersys.core.records import Product
from ordersys.operate import web
from ordersys.operate.side_by_side import Asked
from ordersys.operate.top.readings import Rates, Reading, rates, read

if TYPE_CHECKING:
    import ssl

    from ordersys.client.calls import Flow, Orders

Kind = TypeVar("Kind")

_PAGE = 500  # events read at a time
_KEPT = 50


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look has found; None where nobody answered, and `away` says who did not, and why."""

    at: int  # microseconds since the epoch
    rates: Rates
    measured: tuple[str, ...] = ()  # whose metrics were read
    flow: "Flow | None" = None
    products: Sequence[Product] | None = None
    events: Sequence[Event] = ()  # newest last
    events_per_second: Mapping[str, float] | None = None  # by change, from the event log
    away: Mapping[str, str] = field(default_factory=dict)


class Log:
    """The newest events, read on where the last look ended; how fast they come is told by their own times."""

    def __init__(self, orders: "Orders") -> None:
        self._orders = orders
        self._last = 0  # the sequence that was read last
        self._looked: float | None = None  # when, by the monotonic clock
        self.events: deque[Event] = deque(maxlen=_KEPT)
        self.per_second: Mapping[str, float] | None = None

    def look(self, at: float | None = None) -> None:
        """Raises what the Order Service answers."""
        now = time.monotonic() if at is None else at
        if self._looked is None:
            self._skip()
        new, more = self._orders.events_after(self._last, _PAGE)
        if self._looked is not None:
            covered = (new[-1].time - new[0].time) / 1e6 if more else now - self._looked
            self._rate(new, covered)
        self._looked = now
        self._take(new)
        if more:  # it grows faster than we read: the newest is shown, not all
            self._skip()
            self._take(self._orders.events_after(self._last, _PAGE)[0])

    def _take(self, new: Sequence[Event]) -> None:
        self.events.extend(new)
        if new:
            self._last = new[-1].sequence

    def _skip(self) -> None:
        """Go on less than a page before the newest event; some twenty calls for a long log."""
        low, stride = self._last, _PAGE
        while self._orders.events_after(low + stride, 1)[0]:
            low, stride = low + stride, 2 * stride
        high = low + stride  # nothing came after it when it was looked at
        while high - low > _PAGE:
            middle = (low + high) // 2
            if self._orders.events_after(middle, 1)[0]:
                low = middle
            else:
                high = middle
        self._last = low

    def _rate(self, new: Sequence[Event], covered: float) -> None:
        counts = Counter(event.change.value for event in new)
        self.per_second = {change.value: counts[change.value] / covered for change in Change} if covered > 0 else None


class Sources:
    """Asks everybody at once; rates are those of the last `window` seconds, as far as it has looked so long."""

    def __init__(
        self, urls: Sequence[str], orders: "Orders", *, api_key: str = "", tls: "ssl.SSLContext | None" = None
    ) -> None:
        self._urls = urls
        self._orders = orders
        self._api_key = api_key
        self._tls = tls
        self._log = Log(orders)
        self._asked = Asked()
        self._readings: dict[str, deque[Reading]] = {url: deque() for url in urls}

    def look(self, seconds: float, window: float, now_us: int) -> Seen:
        """Who has not answered within so many seconds is away this time."""
        questions: dict[str, Callable[[], Any]] = {url: partial(self._metrics, url, seconds) for url in self._urls}
        questions |= {
            "order-service": self._orders.flow,
            "product-service": self._orders.list_products,
            "events": self._log.look,
        }
        answers = self._asked.ask(questions, seconds)
        away = {name: _why(name, answer) for name, answer in answers.items() if isinstance(answer, Exception)}
        if "order-service" in away:
            away.pop("events", None)  # it is the same service
        pairs = [pair for url in self._urls if (pair := self._pair(url, answers[url], window))]
        return Seen(
            at=now_us,
            rates=rates(pairs),
            measured=tuple(url for url in self._urls if url not in away),
            flow=_unless_failed(answers["order-service"]),
            products=_unless_failed(answers["product-service"]),
            events=tuple(self._log.events),
            events_per_second=None if isinstance(answers["events"], Exception) else self._log.per_second,
            away=away,
        )

    def _metrics(self, url: str, seconds: float) -> Reading:
        at = time.monotonic()
        answer = web.get(url, seconds, api_key=self._api_key, tls=self._tls)
        if answer.status in (401, 403):
            raise errors.Unauthenticated("it wants an API key with the scope admin: set ORDERSYS_API_KEY")
        if answer.status != 200:
            raise errors.NoAnswer(f"it answers {answer.status}")
        try:
            return read(answer.body.decode(), at)
        except ValueError:
            raise errors.NoAnswer("what it answers are no metrics") from None

    def _pair(self, url: str, answer: Reading | Exception, window: float) -> tuple[Reading, Reading] | None:
        kept = self._readings[url]
        if isinstance(answer, Exception):
            kept.clear()  # who comes back may be another process
            return None
        kept.append(answer)
        while len(kept) > 2 and kept[1].at <= answer.at - window:
            kept.popleft()
        return kept[0], answer


def _why(name: str, error: Exception) -> str:
    why = error.message if isinstance(error, errors.OrdersysError) else f"{type(error).__name__}: {error}"
    return why.removeprefix(f"{urlsplit(name).netloc}: ")


def _unless_failed(answer: Kind | Exception) -> Kind | None:
    return None if isinstance(answer, Exception) else answer
