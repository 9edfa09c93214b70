"""Every figure of RESULTS.md, by one command.

    python benchmarks/run.py [--rounds 5] [--seconds 4] [--only NAME]... [--write]

Needs `pip install -e '.[dev]' fastapi 'faststream[rabbit]' asyncpg uvicorn httptools`, h2load (nghttp2-client), a RabbitMQ
at 127.0.0.1:5672 (guest) with rabbitmqctl, and a PostgreSQL at 127.0.0.1:5432 (postgres, trust).

All systems run from the beginning; each round measures one after the other, and a ratio is taken within its round, so
that a noisy moment of the machine meets both of its sides. Shown are the medians.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import costs
import growth
import h2load
import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ordersys.bench.system import System
from ordersys.client.calls import Orders
from ordersys.core.rpc.channel import Channel
from ordersys.core.v1 import order_pb2, order_pb2_grpc, product_pb2

HERE = Path(__file__).parent
AMQP = "amqp://guest:guest@127.0.0.1:5672"
POSTGRES = "postgres@127.0.0.1:5432"
PLACE = "/ordersys.core.v1.ProductService/PlaceOrder"
PLENTY = 1_000_000_000

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A line of the table: a ratio of two measurements of one round."""

    name: str
    what: str
    goal: str
    needs: tuple[str, ...]
    ratio: Callable[[Figures], float]

    @property
    def reached(self) -> Callable[[float], bool]:
        bound = float(self.goal.split()[-1])
        return (lambda ratio: ratio >= bound) if "least" in self.goal else (lambda ratio: ratio <= bound)


ROWS = [
    Row("one-hop", "PlaceOrder/s at 128 callers : echo over one hop", "at least 0.5", ("ours-128", "echo1-128"), lambda f: f["ours-128"].per_second / f["echo1-128"].per_second),
    Row("two-hop-32", "PlaceOrder/s at 32 callers : echo over two hops", "at least 0.9", ("ours-32", "echo2-32"), lambda f: f["ours-32"].per_second / f["echo2-32"].per_second),
    Row("two-hop-128", "PlaceOrder/s at 128 callers : echo over two hops", "at least 1.3", ("ours-128", "echo2-128"), lambda f: f["ours-128"].per_second / f["echo2-128"].per_second),
    Row("straightforward", "PlaceOrder/s at 128 callers : the straightforward build, SQLite", "at least 12", ("ours-128", "plain-128"), lambda f: f["ours-128"].per_second / f["plain-128"].per_second),
    Row("postgres", "PlaceOrder/s of one hot product at 32 callers : the straightforward build, PostgreSQL", "at least 10", ("ours-pg-32", "plain-pg-32"), lambda f: f["ours-pg-32"].per_second / f["plain-pg-32"].per_second),
    Row("tail", "PlaceOrder p99 : p50 at 32 callers", "at most 2.5", ("ours-32",), lambda f: f["ours-32"].p99 / f["ours-32"].p50),
    Row("alone", "PlaceOrder p50 of one caller : the straightforward build", "at most 0.5", ("ours-1", "plain-1"), lambda f: f["ours-1"].p50 / f["plain-1"].p50),
    Row("notified", "call to notification p99 : PlaceOrder p99, 32 callers", "at most 1.5", ("bench",), lambda f: max(each["p99"] for each in f["bench"]["notified_ms"].values()) / f["bench"]["latency_ms"]["p99"]),
    Row("relay", "event relay : pika pipelined publish", "at least 0.7", ("relay",), lambda f: f["relay"]["relay"] / f["relay"]["raw"]),
    Row("rest-hello", "POST /orders per second : Flask hello under the same server", "at least 0.3", ("rest", "hello"), lambda f: f["rest"].per_second / f["hello"].per_second),
    Row("rest-fastapi", "POST /orders per second : FastAPI + FastStream + asyncpg, PostgreSQL", "at least 2", ("rest-pg", "fastapi"), lambda f: f["rest-pg"].per_second / f["fastapi"].per_second),
    Row("observed", "PlaceOrder/s at 128 callers with metrics and a log line per call : without", "at least 0.9", ("observed-128", "unobserved-128"), lambda f: f["observed-128"].per_second / f["unobserved-128"].per_second),
    Row("growth", "PlaceOrder/s at 1,000,000 stored orders : at 1,000", "at least 0.9", ("ours-past-1000000", "ours-past-1000"), lambda f: f["ours-past-1000000"].per_second / f["ours-past-1000"].per_second),
    Row("help", "ordersys --help : python -c 'import typer, rich'", "at most 1.3", ("help",), lambda f: f["help"]["ours"] / f["help"]["floor"]),
]  # fmt: skip


COSTS = {
    "costs": "gRPC, SQLite, RabbitMQ",
    "costs-pg": "gRPC, PostgreSQL, RabbitMQ",
    "costs-rest": "REST, SQLite, RabbitMQ",
}


class Site:
    """What is measured, started when it is first asked for, and stopped with the block."""

    def __init__(self, stack: ExitStack, seconds: int) -> None:
        self._stack = stack
        self._seconds = seconds
        self._made: dict[str, Any] = {}
        self._home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ordersys-benchmarks-")))

    def measure(self, name: str) -> Any:
        """One measurement by its name, as ROWS has it."""
        kind, _, callers = name.rpartition("-") if name[-1].isdigit() else (name, "", "0")
        if kind == "ours-past":  # the number is that of the orders
            kind, callers = name, "128"
        match kind:
            case "echo1" | "echo2":
                return h2load.grpc(self._echo(kind), PLACE, _order("1"), int(callers), self._seconds)
            case "ours" | "ours-pg" | "ours-past-1000" | "ours-past-1000000" | "observed" | "unobserved":
                return self._quiet(
                    kind, lambda own: h2load.grpc(own.product, PLACE, _order("1"), int(callers), self._seconds)
                )
            case "plain" | "plain-pg":
                return h2load.grpc(self._plain(kind), PLACE, _order("1"), int(callers), self._seconds)
            case "rest" | "rest-pg":
                ours = "ours-pg" if kind == "rest-pg" else "ours"
                return self._quiet(ours, lambda own: h2load.http(own.api, "/api/v1/orders", _body(), 64, self._seconds))
            case "hello":
                return h2load.http(self._hello(), "/api/v1/orders", _body(), 64, self._seconds)
            case "fastapi":
                return h2load.http(self._fastapi(), "/api/v1/orders", _body(), 64, self._seconds)
            case "bench":
                return self._bench()
            case "relay":
                with _vhost() as url:
                    return _json(sys.executable, str(HERE / "relay.py"), url)
            case "costs" | "costs-pg" | "costs-rest":
                return self._costs(kind)
            case "help":
                return {
                    "ours": _timed(sys.executable, "-m", "ordersys", "--help"),
                    "floor": _timed(sys.executable, "-c", "import typer, rich"),
                }
        raise SystemExit(f"there is no measurement {name}")

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _quiet(self, kind: str, work: Callable[[System], h2load.Load]) -> h2load.Load:
        """Measure ours, and wait until its events are where they belong: the next one is to have the machine for itself."""
        own = self._once(kind, lambda: self._system(kind))
        found = work(own)
        _all_told(own)
        return found

    def _system(self, kind: str) -> System:
        url = self._stack.enter_context(_vhost())
        chosen: dict[str, object] = {"broker_url": url, "api_rate_limit": "off", "log_level": "warning"}
        if kind == "ours-pg":
            url = f"postgresql+psycopg://{self._stack.enter_context(_database())}"
            chosen |= {f"{each}_database_url": url for each in ("product", "order", "notify")}
        if kind.startswith("ours-past"):
            folder = self._home / kind
            folder.mkdir()
            chosen |= growth.fill(folder, int(kind.rpartition("-")[2]))
        if kind == "observed":
            chosen["log_level"] = "info"
        program = (str(HERE / "unobserved.py"),) if kind == "unobserved" else ("-m", "ordersys")
        own = self._stack.enter_context(System(chosen, listens=False, program=program))
        with Orders(own.product, own.order, 30.0) as client:
            client.adjust_stock("1", PLENTY, "stock for a benchmark")
        return own

    def _costs(self, kind: str) -> dict[str, float]:
        system = "ours-pg" if kind == "costs-pg" else "ours"
        own = self._once(system, lambda: self._system(system))

        def place() -> int:
            before = _stock(own)
            if kind == "costs-rest":
                h2load.http(own.api, "/api/v1/orders", _body(), 64, self._seconds)
            else:
                h2load.grpc(own.product, PLACE, _order("1"), 128, self._seconds)
            _all_told(own)
            return before - _stock(own)

        found = costs.per_order(own, place)
        return found | {"all": sum(found.values())}

    def _bench(self) -> Any:
        with _vhost() as url:
            return _json(
                *(sys.executable, "-m", "ordersys", "bench", "--json", "--seconds", str(2 * self._seconds)),
                *("--concurrency", "32", "--broker-url", url),
            )

    def _echo(self, kind: str) -> str:
        def make() -> str:
            hop = self._started("echo.py")
            return hop if kind == "echo1" else self._started("echo.py", hop)

        return str(self._once(kind, make))

    def _plain(self, kind: str) -> str:
        def make() -> str:
            url = self._stack.enter_context(_vhost())
            if kind == "plain-pg":
                databases = [f"postgresql://{self._stack.enter_context(_database())}"] * 2
            else:
                databases = [f"sqlite:///{self._home / name}.db" for name in ("plain-product", "plain-order")]
            for each in ("fanout", "topic"):
                self._process("straightforward.py", "notify", each, url)
            time.sleep(1.0)  # until both queues are bound
            orders = self._started("straightforward.py", databases[1], url, before=("order",))
            return self._started("straightforward.py", databases[0], orders, before=("product",))

        return str(self._once(kind, make))

    def _hello(self) -> str:
        return str(self._once("hello", lambda: self._started("flask_hello.py")))

    def _fastapi(self) -> str:
        def make() -> str:
            url = self._stack.enter_context(_vhost())
            return self._started("fastapi_shop.py", f"postgresql://{self._stack.enter_context(_database())}", url)

        return str(self._once("fastapi", make))

    def _started(self, script: str, *arguments: str, before: tuple[str, ...] = ()) -> str:
        """The address on which a script of this folder answers."""
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        process = self._process(script, *before, address, *arguments)
        host, _, port = address.rpartition(":")
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1.0).close()
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{script} ended with {process.returncode}") from None
                time.sleep(0.05)
            else:
                return address

    def _process(self, script: str, *arguments: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([sys.executable, str(HERE / script), *arguments], stdout=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process


def _all_told(own: System) -> None:
    """Return when every event is where it belongs."""
    with closing(Channel(own.order)) as channel:
        ask = order_pb2_grpc.OrderServiceStub(channel.raw).GetFlow
        while _on_the_way(channel.call(ask, order_pb2.GetFlowRequest(), deadline=30.0)):
            time.sleep(0.1)


def _stock(own: System) -> int:
    with Orders(own.product, own.order, 30.0) as client:
        return client.get_product("1").available


def _on_the_way(flow: order_pb2.GetFlowResponse) -> bool:
    return bool(flow.outbox_depth or any(queue.ready for queue in flow.queues))


def _order(product: str) -> bytes:
    lines = [order_pb2.OrderLine(product_id=product, quantity=1)]
    return product_pb2.PlaceOrderRequest(customer_id="c-1", lines=lines).SerializeToString()


def _body() -> bytes:
    return json.dumps({"customer_id": "c-1", "lines": [{"product_id": "1", "quantity": 1}]}).encode()


def _json(*command: str) -> Any:
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _timed(*command: str) -> float:
    """Seconds, the median of seven."""
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


@contextmanager
def _vhost() -> Iterator[str]:
    name = f"ordersys-benchmarks-{os.getpid()}-{time.monotonic_ns()}"
    subprocess.run(["rabbitmqctl", "-q", "add_vhost", name], check=True)
    try:
        subprocess.run(["rabbitmqctl", "-q", "set_permissions", "-p", name, "guest", ".*", ".*", ".*"], check=True)
        yield f"{AMQP}/{name}"
    finally:
        subprocess.run(["rabbitmqctl", "-q", "delete_vhost", name], check=True)


@contextmanager
def _database() -> Iterator[str]:
    name = f"ordersys_benchmarks_{os.getpid()}_{time.monotonic_ns()}"
    with psycopg.connect(f"postgresql://{POSTGRES}/postgres", autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{name}"')
        try:
            yield f"{POSTGRES}/{name}"
        finally:
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def machine() -> str:
    """Where the figures are from, in one line."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    parts = [f"{name} {version(name)}" for name in ("ordersys", "grpcio", "pika", "flask", "sqlalchemy")]
    return f"{os.cpu_count()} x {cpu}, {platform.system()}, Python {platform.python_version()}, {', '.join(parts)}"


def shown(value: Any) -> str:
    """A measurement in short, so that a ratio can be traced to its sides."""
    if isinstance(value, h2load.Load):
        return f"{value.per_second:.0f}/s, p50 {value.p50:.1f} ms, p99 {value.p99:.1f} ms"
    if "latency_ms" in value:
        times = {"answered": value["latency_ms"], **value["notified_ms"]}
        return ", ".join(f"{name} p99 {each['p99']:.0f} ms" for name, each in times.items())
    return ", ".join(f"{name} {each:.3g}" for name, each in value.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS], help="one row; repeatable")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    given = parser.parse_args()
    for tool in ("h2load", "rabbitmqctl"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is missing")
    rows = [row for row in ROWS if given.only is None or row.name in given.only]
    names = sorted({name for row in rows for name in row.needs} | (set() if given.only else set(COSTS)))
    rounds: list[Figures] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ExitStack() as stack, Progress(*columns, console=console) as progress:
        site = Site(stack, given.seconds)
        task = progress.add_task("", total=given.rounds * len(names))
        for number in range(given.rounds):
            figures: Figures = {}
            for name in names[number % len(names) :] + names[: number % len(names)]:
                progress.update(task, description=name)
                figures[name] = site.measure(name)
                progress.advance(task)
            rounds.append(figures)
    report = _report(rows, names, rounds)
    print(report)
    if given.write:
        (HERE / "RESULTS.md").write_text(report, encoding="utf-8")
    table = Table("measure", "goal", "median", "")
    for row in rows:
        ratio = statistics.median(row.ratio(each) for each in rounds)
        table.add_row(row.what, row.goal, f"{ratio:.2f}", "[green]reached" if row.reached(ratio) else "[red]missed")
    console.print(table)


def _report(rows: list[Row], names: list[str], rounds: list[Figures]) -> str:
    lines = [
        "# Results",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}; medians of {len(rounds)} rounds, smallest and largest in brackets.",
        "Made by `python benchmarks/run.py --write`; one row by `--only NAME`.",
        "",
        "| row | measure | goal | ratio | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = sorted(row.ratio(each) for each in rounds)
        middle = statistics.median(ratios)
        verdict = "reached" if row.reached(middle) else "missed"
        lines.append(
            f"| {row.name} | {row.what} | {row.goal} | **{middle:.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {verdict} |"
        )
    if "costs" in names:
        lines += _budget(rounds)
    lines += ["", "The sides, from the round in the middle of the run:", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {shown(rounds[len(rounds) // 2][name])} |" for name in names if name not in COSTS]
    return "\n".join(lines) + "\n"


def _budget(rounds: list[Figures]) -> list[str]:
    middle = {
        kind: {name: statistics.median(each[kind][name] for each in rounds) for name in rounds[0][kind]}
        for kind in COSTS
    }
    what = (
        f"What an order costs in CPU, in microseconds, by process (benchmarks/costs.py). {os.cpu_count()} cores that do"
        " nothing else end at cores / all; what the load generator takes comes on top:"
    )
    lines = ["", what, "", f"| | {' | '.join(COSTS.values())} |", f"|---|{'---|' * len(COSTS)}"]
    lines += [f"| {name} | {' | '.join(f'{each[name]:.0f}' for each in middle.values())} |" for name in middle["costs"]]
    most = (f"{(os.cpu_count() or 1) / each['all'] * 1e6:.0f}/s" for each in middle.values())
    return [*lines, f"| the most | {' | '.join(most)} |"]


if __name__ == "__main__":
    main()
