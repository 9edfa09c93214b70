"""What open event streams cost ordinary requests of the REST gateway.

    python benchmarks/sse.py [--streams 30] [--seconds 10] [--rounds 3] [--orders 50]

Starts `ordersys up` on a throw-away home, places orders at a steady rate, and times `GET /api/v1/orders/{id}` from
four clients: with no stream and with some, in turns, so that a noisy moment of the machine meets both. Prints the
percentiles of both and the ratio of their p99.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BODY = json.dumps({"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 1}]})
JSON = {"Content-Type": "application/json"}
CLIENTS = 4
PAUSE = 0.02  # between two requests of a client


class Readers:
    """Open streams, drained by one thread; `events` counts what arrived."""

    def __init__(self, port: int, count: int) -> None:
        self.events = 0
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        self._ended = threading.Event()
        for each in self._sockets:
            each.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = each.recv(4096)
            expect(head.startswith(b"HTTP/1.1 200"), head)
            each.setblocking(False)
        self._thread = threading.Thread(target=self._drain)
        self._thread.start()

    def _drain(self) -> None:
        while not self._ended.wait(0.02):
            for each in self._sockets:
                try:
                    self.events += each.recv(1 << 20).count(b"event: ")
                except BlockingIOError:
                    continue

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        for each in self._sockets:
            each.close()


def expect(holds: bool, otherwise: object) -> None:
    if not holds:
        raise SystemExit(f"the figures would mean nothing: {otherwise}")


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> Any:
    connection.request(method, path, body, JSON if body else {})
    answer = connection.getresponse()
    document = json.loads(answer.read())
    expect(answer.status < 300, document)
    return document


def load(port: int, rate: float, ended: threading.Event) -> int:
    """Place so many orders a second until told to end; how many."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    placed, begun = 0, time.monotonic()
    while not ended.wait(max(0.0, begun + placed / rate - time.monotonic())):
        ask(connection, "POST", "/api/v1/orders", BODY)
        placed += 1
    return placed


def reads(port: int, path: str, seconds: float) -> list[float]:
    """How long each request took, in milliseconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    took, end = [], time.monotonic() + seconds
    while (begun := time.perf_counter()) and time.monotonic() < end:
        ask(connection, "GET", path)
        took.append(1000 * (time.perf_counter() - begun))
        time.sleep(PAUSE)
    return took


def measure(port: int, path: str, streams: int, seconds: float, rate: float) -> tuple[list[float], int, int]:
    """The times of reads beside this many streams, the orders that were placed, and the events that were read."""
    readers = Readers(port, streams)
    ended = threading.Event()
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        orders = pool.submit(load, port, rate, ended)
        clients = [pool.submit(reads, port, path, seconds) for _ in range(CLIENTS)]
        took = [each for client in clients for each in client.result()]
        ended.set()
    time.sleep(1)  # what is on its way
    readers.close()
    return took, orders.result(), readers.events


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--streams", type=int, default=30)
    options.add_argument("--seconds", type=float, default=10, help="of each turn")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--orders", type=float, default=50, help="placed per second")
    chosen = options.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        seed(Path(home))
        environment = {
            **os.environ,
            "ORDERSYS_DATA": home,
            "ORDERSYS_HOME": home,
            "ORDERSYS_API_BIND": f"127.0.0.1:{port}",
            "ORDERSYS_PRODUCT_BIND": "127.0.0.1:0",
            "ORDERSYS_ORDER_BIND": "127.0.0.1:0",
            "ORDERSYS_API_RATE_LIMIT": "off",
        }
        command = [str(Path(sys.executable).with_name("ordersys")), "up"]
        with (Path(home) / "log").open("wb") as log:
            server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            compare(port, chosen)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def seed(folder: Path) -> None:
    """One product, of which there is enough for any number of orders."""
    mug = {"id": "1", "name": "Mug", "description": "A mug", "attributes": {}, "price": "9.99", "currency": "EUR"}
    stock = {"product_id": "1", "quantity": 10_000_000}
    for name, entries in (("products", [mug]), ("inventory", [stock]), ("orders", [])):
        (folder / f"{name}.json").write_text(json.dumps(entries))


def compare(port: int, chosen: argparse.Namespace) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    deadline = time.monotonic() + 60
    while True:
        try:
            ask(connection, "GET", "/healthz")
            break
        except ConnectionError:
            connection.close()
            expect(time.monotonic() < deadline, "the gateway did not start")
            time.sleep(0.1)
    order = ask(connection, "POST", "/api/v1/orders", BODY)
    path = f"/api/v1/orders/{order['id']}"
    took: dict[int, list[float]] = {0: [], chosen.streams: []}
    for _ in range(chosen.rounds):
        for streams, all_times in took.items():
            times, orders, events = measure(port, path, streams, chosen.seconds, chosen.orders)
            expect(events == orders * streams, f"{streams} streams: {events} events of {orders} orders")
            all_times += times
    for streams, times in took.items():
        figures = "  ".join(f"p{100 * share:g} {percentile(times, share):7.2f} ms" for share in (0.5, 0.9, 0.99))
        print(f"{streams:3} streams: {len(times):6} requests  {figures}")
    ratio = percentile(took[chosen.streams], 0.99) / percentile(took[0], 0.99)
    print(f"p99 with {chosen.streams} streams / p99 without, at {chosen.orders:g} orders/s: {ratio:.2f}")


if __name__ == "__main__":
    main()
