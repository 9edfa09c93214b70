"""The parent of workers, with small programs in their place."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from e2e.processes import SECONDS, free_port, until

from ordersys import workers
from ordersys.core import errors
from ordersys.role import admin_bind
from ordersys.workers import Workers

SERVES = "import os, sys, time; os.write(1, b'ready\\n'); time.sleep(60)"
DIES = "import os, sys, time; os.write(1, b'ready\\n')"


def parent(program: str, count: int = 2, bind: str = "127.0.0.1:0") -> Workers:
    return Workers("A service", bind, count, [sys.executable, "-c", program])


@asynccontextmanager
async def started(part: Workers) -> AsyncIterator[Workers]:
    try:
        await part.start()
        yield part
    finally:
        await part.stop(SECONDS)


def test_port_0_is_one_port_and_nobody_else_has_it() -> None:
    async def main() -> None:
        async with started(parent(SERVES)) as part:
            host, _, port = part.address.rpartition(":")
            assert (host, int(port) > 0) == ("127.0.0.1", True)
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind((host, int(port)))
        with socket.socket() as other:
            other.bind((host, int(port)))

    asyncio.run(main())


def test_an_address_that_is_taken_is_refused() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            part = parent(SERVES, bind=f"127.0.0.1:{taken.getsockname()[1]}")
            with pytest.raises(errors.UsageError, match="cannot listen on"):
                await part.start()
            await part.stop(SECONDS)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "kind"), [(1, errors.Internal), (2, errors.UsageError), (3, errors.Unavailable), (0, errors.Internal)]
)
def test_a_worker_that_ends_before_it_serves_ends_the_start(code: int, kind: type[errors.OrdersysError]) -> None:
    async def main() -> None:
        with pytest.raises(kind, match=f"worker 0 could not start: exit code {code}"):
            async with started(parent(f"import sys; sys.exit({code})")):
                pass

    asyncio.run(main())


def test_a_worker_that_keeps_dying_is_replaced_with_growing_pauses(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with started(parent(DIES, count=1)):
            await asyncio.to_thread(until, lambda: caplog.text.count("has ended") >= 4, "it has died four times")
        pauses = [float(each.args[-1]) for each in caplog.records if "has ended" in each.getMessage()]
        assert pauses[3] > pauses[0]

    asyncio.run(main())


def test_who_does_not_stop_in_time_is_killed() -> None:
    async def main() -> None:
        deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SERVES}"
        part = parent(deaf)
        await part.start()
        running = list(part._running.values())
        await part.stop(0.1)
        assert [await each.wait() for each in running] == [-9, -9]

    asyncio.run(main())


def test_the_admin_ports_of_workers_are_apart() -> None:
    assert [admin_bind("127.0.0.1:9101", worker) for worker in (0, 1, 2)] == [
        "127.0.0.1:9101",
        "127.0.0.1:9111",
        "127.0.0.1:9121",
    ]
    assert admin_bind("[::1]:0", 3) == "[::1]:0"
    with pytest.raises(errors.UsageError, match="leaves no room for worker 4: 65540"):
        admin_bind("127.0.0.1:65500", 4)


def test_an_address_in_words_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="HOST:PORT"):
        workers.listening.keep("nowhere")
    kept, address = workers.listening.keep(f"127.0.0.1:{free_port()}")
    kept.close()
    assert address.startswith("127.0.0.1:")
