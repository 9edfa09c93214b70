"""Whoever follows README and docs to the letter gets what they say: each page from its beginning to its end."""

import os
import pty
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import servers
from e2e import pages
from e2e.processes import ORDERSYS, Backend, free_port

ROOT = Path(__file__).resolve().parents[2]
BROKER = "amqp://guest:guest@127.0.0.1:5672/%2F"
DATABASE = "postgresql+psycopg://postgres@127.0.0.1:5432/ordersys"
RUNNABLE = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "\n<!-- run" in path.read_text(encoding="utf-8")
]


@contextmanager
def own_places(backend: Backend, page: str) -> Iterator[dict[str, str]]:
    """What pages call -> what the test has for it: ports, and on the servers a vhost and a database of its own."""
    places = {"127.0.0.1:8080": backend.api_address, "127.0.0.1:50051": backend.product_address}
    places["127.0.0.1:50052"] = backend.order_address
    if BROKER in page:
        with servers.vhost() as broker, servers.postgres_database() as database:
            yield places | {BROKER: broker, DATABASE: database}
    else:
        yield places


def followed(backend: Backend, page: str) -> tuple[int, str]:
    """Exit code and output of a terminal in which the page was followed."""
    with own_places(backend, page) as places:
        script = pages.script(pages.blocks(page))
        for usual, own in places.items():
            script = script.replace(usual, own)
        return on_a_terminal(backend, script)


def on_a_terminal(backend: Backend, script: str) -> tuple[int, str]:
    environment = {**backend.environment, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "50"}
    environment["PATH"] = f"{Path(ORDERSYS).parent}{os.pathsep}{environment['PATH']}"
    for name in ("PRODUCT", "ORDER", "NOTIFY"):
        environment[f"ORDERSYS_{name}_ADMIN_BIND"] = f"127.0.0.1:{free_port()}"
    reader, writer = pty.openpty()
    pieces: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(reader, 65_536):
                pieces.append(piece)
        except OSError:  # Linux: nobody has the other end any more
            return

    reading = threading.Thread(target=read)
    try:
        running = subprocess.Popen(
            ["bash", "-c", script],
            cwd=backend.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            start_new_session=True,
        )
        os.close(writer)
        reading.start()
        code = running.wait(100)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, 9)
        reading.join(10)
        os.close(reader)
    return code, b"".join(pieces).decode()


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_page_does_what_it_says(embedded: Backend, path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    code, output = followed(embedded, page)
    print(output)
    assert code == 0
    found = pages.blocks(page)
    for block, lines in zip(found, pages.printed(output, len(found)), strict=True):
        if block.shown is not None:
            assert pages.shows(lines, block.shown), f"expected\n{block.shown}\nsaw\n" + "\n".join(lines)


def test_the_newcomers_pages_are_run() -> None:
    assert {"README.md", "first-order.md", "own-notifier.md"} <= {path.name for path in RUNNABLE}
