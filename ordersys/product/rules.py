"""The shop's own rules: which orders it does not take, whatever is in stock."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ordersys.core import display, errors
from ordersys.core.records import Proposal

logger = logging.getLogger(__name__)

_CODE = re.compile(r"[a-z][a-z0-9_]{0,62}")
_MOST_MESSAGE = 500  # characters


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an order is not taken: `code` for programs, in snake_case, `message` for people."""

    code: str
    message: str


Rule = Callable[[Proposal], Refusal | None]
"""None = nothing against it. It is asked while the batch of orders waits, perhaps more than once for one order, and in
every Product Service: so it looks at nothing but the proposal and what does not change, and is quick."""


class Rules:
    """Asks each rule in the order given until one refuses; a `model.Judge`."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = dict(rules)

    def __call__(self, proposal: Proposal) -> errors.OrdersysError | None:
        """A rule that fails refuses this order, with `internal`: nobody knows what it would have said."""
        for name, rule in self._rules.items():
            try:
                refusal = rule(proposal)
                if refusal is not None:
                    return _refused(name, refusal)
            except Exception:
                logger.exception("the rule %s failed on order %s, which is refused", name, proposal.order_id)
                return errors.Internal()
        return None


def _refused(name: str, refusal: Refusal) -> errors.OrderRefused:
    if not isinstance(refusal, Refusal):
        raise TypeError(f"a rule returns a Refusal or None, not {type(refusal).__name__}")
    if _CODE.fullmatch(refusal.code) is None:
        raise ValueError(f"the code {refusal.code[:80]!r} is not in snake_case, or has more than 63 characters")
    return errors.OrderRefused.of(name, refusal.code, display.printable(refusal.message)[:_MOST_MESSAGE])
