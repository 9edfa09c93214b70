"""Start parts in order, stop them in reverse, and end within a bound whatever they do."""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from ordersys.core import errors
from ordersys.supervisor import READY, STOPPING, Supervisor

logger = logging.getLogger(__name__)

INTERRUPTED = 130
OPEN_FILES = 8192  # three servers with a thousand connections each, databases and files
_START_SECONDS = 60.0
_MARGIN_SECONDS = 1.0
"""What a part is given beyond its grace time to notice that it is over."""


class Part(Protocol):
    """Something that runs: a service, a notifier, the API."""

    @property
    def name(self) -> str: ...

    async def start(self) -> None:
        """Return when it is ready to serve; raises UsageError or `Unavailable` when it cannot be."""

    async def stop(self, grace: float) -> None:
        """Take no new work, finish what is in flight within `grace` seconds, release everything."""

    def ended(self) -> bool:
        """True when it has come to an end by itself, so that there is nothing left to wait for."""


async def start_all(parts: Sequence[Part], grace: float) -> None:
    """Start every part; when one cannot start, those before it are stopped again and its error is raised."""
    for index, part in enumerate(parts):
        try:
            await part.start()
        except BaseException:
            await stop_all(parts[: index + 1], grace)
            raise


async def stop_all(parts: Sequence[Part], grace: float) -> None:
    """Stop in reverse, all of it within `grace` seconds and a little; what does not end in time is left and named."""
    deadline = time.monotonic() + grace
    for part in reversed(parts):
        left = max(0.0, deadline - time.monotonic())
        stopping = asyncio.ensure_future(part.stop(left))
        await asyncio.wait((stopping,), timeout=left + _MARGIN_SECONDS)
        if not stopping.done():
            stopping.cancel()  # and not awaited: it may refuse
            logger.warning("%s did not stop within its grace time", part.name)
        elif not stopping.cancelled() and (error := stopping.exception()) is not None:
            logger.error("%s failed while it stopped", part.name, exc_info=error)


def run(
    parts: Sequence[Part], grace: float, ready: Callable[[], None] = lambda: None, supervisor: Supervisor | None = None
) -> int:
    """Run until SIGTERM (returns 0), Ctrl-C (returns 130) or until a part ends by itself (returns 0).

    The `supervisor` hears when it is ready and when it stops, and between them that the event loop turns.

    The last act of a process: a second signal ends it at once, and the end of the grace time ends it too, with
    the same exit code, whatever still hangs then.
    """
    _allow_open_files()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(parts, grace, ready, supervisor or Supervisor()))


async def _run(parts: Sequence[Part], grace: float, ready: Callable[[], None], supervisor: Supervisor) -> int:
    stopped = asyncio.Event()
    received: list[int] = []
    bound = grace + _MARGIN_SECONDS * (len(parts) + 1)

    def on_signal(number: int) -> None:
        received.append(number)
        _end_after(bound, _exit_code(received))
        for each in (signal.SIGINT, signal.SIGTERM):  # not through the loop: a part may be blocking it
            signal.signal(each, lambda second, _: os._exit(128 + second))
        stopped.set()

    _listen(on_signal)
    starting = asyncio.ensure_future(start_all(parts, grace))
    waiting = asyncio.ensure_future(stopped.wait())
    await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():  # a signal came first
        starting.cancel()
        await asyncio.wait((starting,))
        if not starting.cancelled() and starting.exception() is None:  # it was done in the same moment
            await stop_all(parts, grace)
        return _exit_code(received)
    await starting
    try:
        ready()
        supervisor.tell(READY)
        while not stopped.is_set() and not any(part.ended() for part in parts):
            supervisor.alive()
            await asyncio.wait((waiting,), timeout=0.2)
    finally:
        supervisor.tell(STOPPING)
        if not received:
            _end_after(bound, 0)
        await stop_all(parts, grace)
    return _exit_code(received)


def _allow_open_files() -> None:
    """Take what the system grants on request: the usual 1024 are fewer than the connections that we serve."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _end_after(seconds: float, code: int) -> None:
    """End the process then, if it has not ended: neither a blocked loop nor a stuck thread may keep it."""

    def end() -> None:
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=end, name="end", daemon=True).start()


def _exit_code(received: Sequence[int]) -> int:
    return INTERRUPTED if received and received[0] == signal.SIGINT else 0


def _listen(on_signal: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, on_signal, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda got, _: loop.call_soon_threadsafe(on_signal, got))


def _loop_factory() -> "Callable[[], asyncio.AbstractEventLoop] | None":
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


@contextmanager
def background(parts: Sequence[Part], grace: float) -> Iterator[None]:
    """Run the parts on an event loop in a thread of its own while the block runs; raises what kept one from it."""
    ready = threading.Event()
    failure: list[BaseException] = []
    handle: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        handle.append((asyncio.get_running_loop(), stop))
        try:
            await start_all(parts, grace)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            failure.append(error)
            return
        finally:
            ready.set()
        await stop.wait()
        await stop_all(parts, grace)

    def work() -> None:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve())

    thread = threading.Thread(target=work, name="parts")
    thread.start()
    try:
        if not ready.wait(_START_SECONDS):
            raise errors.Unavailable(f"the parts were not ready within {_START_SECONDS:.0f} s")
        if failure:
            raise failure[0]
        yield
    finally:
        if handle and not failure:
            loop, stop = handle[0]
            loop.call_soon_threadsafe(stop.set)
        thread.join(grace + 10)
