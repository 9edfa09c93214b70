"""Looking again and again: rarely at what takes long, soon again after a failure."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ordersys.core import errors
from ordersys.core.watch.sampling import keep_sampling


def sampled(sample: Callable[[], Awaitable[None]], interval: float, seconds: float) -> None:
    """Sample for so long."""

    async def main() -> None:
        task = asyncio.create_task(keep_sampling("the weather", sample, interval))
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()

    asyncio.run(main())


def test_it_looks_at_once_and_goes_on() -> None:
    looks = []

    async def look() -> None:
        looks.append(1)

    sampled(look, 0.001, 1.0)
    assert len(looks) > 3


def test_what_takes_long_is_looked_at_rarely() -> None:
    looks = []

    async def look() -> None:
        looks.append(1)
        await asyncio.sleep(0.05)

    sampled(look, 0.001, 0.9)  # the pause after the first look is a second
    assert looks == [1]


def test_a_failure_is_said_once_and_looked_at_again_soon(caplog: pytest.LogCaptureFixture) -> None:
    looks = []

    async def look() -> None:
        looks.append(1)
        await asyncio.sleep(0.05)
        raise errors.Unavailable("it is dark")

    sampled(look, 0.001, 1.0)
    assert len(looks) > 2
    assert caplog.messages == ["cannot tell the weather now: it is dark"]
