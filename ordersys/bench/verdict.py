"""Is everything right? Every order is asked for again, the stock's books and the notifiers are held against them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ordersys.bench.plan import Seen
from ordersys.bench.system import Ear
from ordersys.client.calls import MAX_PAGE, Orders
from ordersys.core.records import StockAudit

SETTLE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How many of each there are; 0 is right."""

    lost: int  # answered, and not on record
    doubled: int  # on record more than once for one call, or one order answered to two calls
    oversold: int  # units that the books do not account for, or that were sold below zero
    unsettled: int  # commands whose stock is still held for nobody knows what
    unheard: int  # on record, and not told by every notifier
    told_twice: int  # told again by a notifier

    @property
    def right(self) -> bool:
        return not any(asdict(self).values())


def judge(
    orders: Orders,
    customer_id: str,
    seen: Seen,
    ears: Sequence[Ear],
    say: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Waits until nothing is pending and the notifiers have heard of everything, or for SETTLE_SECONDS."""
    answered = [each.order_id for each in seen.placed]
    say("waiting for what is unsettled")
    audits, pending = _when_settled(orders)
    say("asking for every order again")
    recorded = _recorded(orders, customer_id)
    lost = set(answered) - recorded
    # A call that was given up may have placed its order, and only one.
    surplus = len(recorded - set(answered)) - seen.unknown
    say("waiting for the notifications")
    unheard = _unheard(recorded, ears)
    return Verdict(
        lost=len(lost),
        doubled=max(0, surplus) + len(answered) - len(set(answered)),
        oversold=sum(map(_unaccounted, audits)),
        unsettled=pending,
        unheard=unheard,
        told_twice=sum(ear.again for ear in ears),
    )


def _when_settled(orders: Orders) -> tuple[list[StockAudit], int]:
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        audits, pending = orders.audit_stock()
        if not pending or time.monotonic() > deadline:
            return audits, pending
        time.sleep(0.1)


def _recorded(orders: Orders, customer_id: str) -> set[str]:
    found: set[str] = set()
    token = ""
    while True:
        page = orders.list_orders(page_size=MAX_PAGE, page_token=token, customer_id=customer_id)
        found.update(order.id for order in page.orders)
        token = page.next_page_token
        if not token:
            return found


def _unaccounted(audit: StockAudit) -> int:
    booked = audit.seeded + audit.adjusted - audit.reserved
    return abs(audit.available - audit.ledger) + abs(audit.available - booked) + max(0, -audit.available)


def _unheard(recorded: set[str], ears: Sequence[Ear]) -> int:
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        missing = sum(len(recorded - ear.heard.keys()) for ear in ears)
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.05)
