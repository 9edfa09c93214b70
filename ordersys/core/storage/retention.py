"""Forgetting what is old, in small steps, so that nobody waits behind it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ordersys.core import errors, ids

logger = logging.getLogger(__name__)

STEP = 500
"""Rows per transaction."""

Prune = Callable[[int, int], Awaitable[int]]
"""Forget at most so many rows (second argument) from before a moment (first, microseconds); how many there were."""


async def keep_pruning(what: str, prune: Prune, age: float, *, interval: float = 60.0, rest: float = 0.05) -> None:
    """Until cancelled: every `interval` seconds forget what is older than `age` seconds, resting between steps."""
    while True:
        try:
            total = await prune_once(prune, age, rest=rest)
            if total:
                logger.info("forgot %d %s older than %.0f s", total, what, age)
        except errors.Unavailable as error:
            logger.warning("cannot prune %s now: %s", what, error)
        await asyncio.sleep(interval)


async def prune_once(prune: Prune, age: float, *, rest: float = 0.0) -> int:
    """Forget everything older than `age` seconds now; how many rows."""
    before = ids.now_us() - int(age * 1_000_000)
    total = 0
    while gone := await prune(before, STEP):
        total += gone
        await asyncio.sleep(rest)
    return total
