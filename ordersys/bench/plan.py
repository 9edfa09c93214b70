"""What a run of the load generator is to do, and what its clients saw."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ordersys.core.tls import Files

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


class Via(StrEnum):
    GRPC = "grpc"
    REST = "rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One client process's part of a run; times are in seconds."""

    via: Via
    address: str  # of the Product Service, or of the API
    customer_id: str  # of every order of the run: by it the verdict finds them again
    products: tuple[str, ...]
    hot: float  # share of the orders that ask for the first product, 0 to 1
    callers: int
    orders: int  # 0 = until the time is over
    seconds: float
    rate: float  # orders per second at fixed moments (open loop); 0 = as soon as the last is answered
    deadline: float
    patience: float  # how long a call without an answer is repeated, with its key
    seed: int
    api_key: str = field(default="", repr=False)
    tls: Files = field(default_factory=Files)  # for gRPC


@dataclass(slots=True)
class Placed:
    """One order that was answered; moments of the machine's monotonic clock."""

    order_id: str
    begun: float  # when it was to be placed: with a rate the wait for a free caller counts, too
    ended: float


@dataclass(slots=True)
class Seen:
    """What a client saw since it last told."""

    placed: list[Placed] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)  # by error code
    repeated: int = 0  # calls without an answer that were made again
    unknown: int = 0  # orders given up: they may exist or not

    def add(self, other: "Seen") -> None:
        self.placed += other.placed
        self.refused += other.refused
        self.repeated += other.repeated
        self.unknown += other.unknown

    @property
    def tried(self) -> int:
        return len(self.placed) + self.refused.total() + self.unknown


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` percent of the ordered values do not exceed (nearest rank); 0.0 of none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Percentiles and the maximum of times in seconds, in milliseconds."""
    ordered = sorted(values)
    shown = {f"p{share:g}": percentile(ordered, share) for share in PERCENTILES}
    shown["max"] = ordered[-1] if ordered else 0.0
    return {name: round(value * 1000, 2) for name, value in shown.items()}
