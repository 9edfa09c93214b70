"""Several processes of one service on one address: started, watched, replaced when they die, stopped together.

They are programs of their own and share nothing with the parent, which neither listens nor serves: the system gives
each new connection to one of them (SO_REUSEPORT, https://man7.org/linux/man-pages/man7/socket.7.html).
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence

from ordersys.core import errors
from ordersys.core.backoff import Backoff
from ordersys.core.rpc import listening

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
STEADY_SECONDS = 30.0
"""A worker that dies sooner than this was not well: the next pause before its successor is longer."""
_LAST_SECONDS = 0.5
"""What a worker is given beyond the grace time until it is killed."""
_READY = b"ready\n"


class Workers:
    """A part that is `count` processes; each runs `command` with `--bind ADDRESS --worker NUMBER` after it."""

    def __init__(self, name: str, bind: str, count: int, command: Sequence[str]) -> None:
        self.name = f"{name} ({count} workers)"
        self._service = name
        self._bind = bind
        self._count = count
        self._command = command
        self._running: dict[int, Process] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._place: socket.socket | None = None
        self.address = bind

    async def start(self) -> None:
        """Return when every worker serves; raises what the first that could not has ended with."""
        self._place, self.address = listening.keep(self._bind)
        await self._serving(0)  # alone: what keeps it from it is said once, and the schema is made once
        await asyncio.gather(*[self._serving(number) for number in range(1, self._count)])
        self._watches = [asyncio.create_task(self._keep(number)) for number in range(self._count)]
        logger.info("%s: %d workers listen on %s", self._service, self._count, self.address)

    async def stop(self, grace: float) -> None:
        """All drain at the same time; who has not ended after `grace` seconds is killed."""
        for watch in self._watches:
            watch.cancel()
        running = [process for process in self._running.values() if process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if running:
            waits = [asyncio.create_task(process.wait()) for process in running]
            _, late = await asyncio.wait(waits, timeout=grace + _LAST_SECONDS)
            if late:
                logger.warning("%d of %d workers did not stop within their grace time", len(late), len(running))
            for process in running:
                if process.returncode is None:
                    process.kill()
        if self._place is not None:
            self._place.close()

    def ended(self) -> bool:
        return False

    async def _serving(self, number: int) -> None:
        """Start a worker and wait until it serves; raises by its exit code what kept it from that."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *("--bind", self.address, "--worker", str(number)),
            stdin=PIPE,  # it ends with us: our end is closed whatever becomes of us
            stdout=PIPE,
            start_new_session=True,  # Ctrl-C is for us to pass on
        )
        self._running[number] = process
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            async with asyncio.timeout(START_SECONDS):
                said = await process.stdout.readline()
        except TimeoutError:
            process.kill()
            raise errors.Unavailable(f"worker {number} was not ready within {START_SECONDS:.0f} s") from None
        if said != _READY:
            code = await process.wait()
            problem = f"worker {number} could not start: {_how(code)}; its own message is in the log"
            kinds: dict[int, type[errors.OrdersysError]] = {2: errors.UsageError, 3: errors.Unavailable}
            raise kinds.get(code, errors.Internal)(problem)

    async def _keep(self, number: int) -> None:
        """Until cancelled: when the worker dies, start another."""
        backoff = Backoff(0.2, 10.0)
        while True:
            begun = time.monotonic()
            code = await self._running[number].wait()
            if time.monotonic() - begun > STEADY_SECONDS:
                backoff.reset()
            pause = backoff.pause()
            logger.error(
                "%s: worker %d (process %d) has ended (%s), another one follows in %.1f s",
                *(self._service, number, self._running[number].pid, _how(code), pause),
            )
            await asyncio.sleep(pause)
            try:
                await self._serving(number)
            except errors.OrdersysError as error:
                logger.warning("%s: %s", self._service, error.message)
            else:
                logger.info("%s: worker %d is process %d now", self._service, number, self._running[number].pid)


def of(role: str, bind: str, database_url: str, count: int) -> Workers:
    """As many processes as that of what this process was started with; raises UsageError with SQLite."""
    if database_url.startswith("sqlite:"):
        raise errors.UsageError(
            f"--workers {count} needs PostgreSQL (ORDERSYS_{role.upper()}_DATABASE_URL): SQLite takes one writer at a"
            " time, and a second process would only wait for the first"
        )
    command = [sys.executable, "-P", "-m", "ordersys", *sys.argv[1:]]
    return Workers(f"{role.capitalize()} Service", bind, count, command)


def serves() -> None:
    """Tell the parent that this worker is ready."""
    os.write(1, _READY)


def end_with_parent() -> None:
    """Stop as on SIGTERM when the parent has gone, whatever became of it."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
