"""Gauges that somebody has to be asked for: read in the background, so that whoever scrapes waits for nobody."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

_REST = 20
"""After a look comes a pause of so many times what it took: it costs a twentieth of one thread at most."""


async def keep_sampling(what: str, sample: Callable[[], Awaitable[None]], interval: float) -> None:
    """Until cancelled: look every `interval` seconds, or more rarely when a look takes long."""
    troubled = False
    while True:
        begun = time.monotonic()
        try:
            await sample()
        except Exception as error:  # noqa: BLE001 - the next look may succeed, and somebody may hope for it
            if not troubled:
                logger.warning("cannot tell %s now: %s", what, error)
            troubled = True
            await asyncio.sleep(interval)  # whoever is back is soon seen
        else:
            troubled = False
            await asyncio.sleep(max(interval, _REST * (time.monotonic() - begun)))
