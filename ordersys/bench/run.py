"""A run of the load generator: its client processes, what they tell, and what the whole came to."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from ordersys.bench import load
from ordersys.bench.plan import Placed, Plan, Seen, spread
from ordersys.bench.system import Ear
from ordersys.bench.verdict import Verdict
from ordersys.core import errors

_LATE_SECONDS = 10.0
"""What a client is given beyond its time and patience to say its last word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to; moments as in `Placed`."""

    plan: Plan  # of all clients together
    clients: int
    seen: Seen
    heard: dict[str, dict[str, float]]  # by notifier and order id
    verdict: Verdict
    warmup: float  # seconds at the beginning that the figures leave out

    @property
    def counted(self) -> list[Placed]:
        """The orders that the figures are about."""
        if not self.seen.placed:
            return []
        first = min(each.begun for each in self.seen.placed) + self.warmup
        return [each for each in self.seen.placed if each.begun >= first]

    def document(self) -> dict[str, Any]:
        counted = self.counted
        notified = {
            queue: [moments[each.order_id] - each.begun for each in counted if each.order_id in moments]
            for queue, moments in self.heard.items()
        }
        return {
            "ok": self.verdict.right,
            "plan": {
                "via": self.plan.via.value,
                "clients": self.clients,
                "concurrency": self.plan.callers,
                "rate": self.plan.rate,
                "products": len(self.plan.products),
                "hot": self.plan.hot,
            },
            "orders": len(self.seen.placed),
            "orders_per_second": round(throughput(counted), 1),
            "latency_ms": spread([each.ended - each.begun for each in counted]),
            "notified_ms": {queue: spread(times) for queue, times in notified.items()},
            "refused": dict(self.seen.refused),
            "repeated": self.seen.repeated,
            "unknown": self.seen.unknown,
            "verdict": asdict(self.verdict),
        }


def throughput(placed: Sequence[Placed]) -> float:
    """Answered orders per second between the first call and the last answer."""
    if not placed:
        return 0.0
    return len(placed) / (max(each.ended for each in placed) - min(each.begun for each in placed))


def carry_out(plan: Plan, clients: int, told: Callable[[Seen], None]) -> Seen:
    """Divide the plan among client processes and gather what they saw; `told` gets every piece as it comes.

    Raises `Unavailable` when a client dies or falls silent.
    """
    context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
    seen = Seen()
    processes = []
    open_ends: dict[Any, Connection[object, Seen | None]] = {}
    for part in _parts(plan, clients):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=load.work, args=(part, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        open_ends[ours] = ours
    try:
        heard = time.monotonic()
        while open_ends:
            ready = wait(list(open_ends), timeout=1.0)
            for end in ready:
                heard = time.monotonic()
                try:
                    piece = open_ends[end].recv()
                except EOFError:
                    raise errors.Unavailable("a client process of the load generator died") from None
                if piece is None:
                    del open_ends[end]
                else:
                    seen.add(piece)
                    told(piece)
            if time.monotonic() - heard > _LATE_SECONDS:
                raise errors.Unavailable("a client process of the load generator fell silent")
    finally:
        for process in processes:
            process.join(1.0)
            if process.is_alive():
                process.terminate()
    return seen


def heard_by(ears: Sequence[Ear]) -> dict[str, dict[str, float]]:
    return {ear.queue: dict(ear.heard) for ear in ears}


def _parts(plan: Plan, clients: int) -> list[Plan]:
    return [
        replace(
            plan,
            callers=_share(plan.callers, clients, number),
            orders=_share(plan.orders, clients, number),
            rate=plan.rate / clients,
            seed=plan.seed + number,
        )
        for number in range(clients)
    ]


def _share(whole: int, parts: int, number: int) -> int:
    return whole // parts + (number < whole % parts)
