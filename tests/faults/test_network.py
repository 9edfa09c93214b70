"""The network between the roles is slow, silent, cut, or lets nobody through: nothing is lost, nothing is done twice.

Between client and Product Service, between the two services, and between relay, notifiers and RabbitMQ.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from contract.tcp_proxy import TcpProxy, Towards
from e2e import processes
from e2e.processes import Backend, until
from faults import figures
from faults.fleet import DEADLINE_SECONDS, SERVICES, Fleet
from faults.load import PLENTY, Load
from faults.once import asking, placings

from ordersys.client.calls import Orders
from ordersys.core import errors
from ordersys.core.records import Order

DEADLINE = {"ORDERSYS_DEADLINE_SECONDS": str(DEADLINE_SECONDS)}


@contextmanager
def proxy_to(address: str) -> Iterator[TcpProxy]:
    host, _, port = address.rpartition(":")
    with TcpProxy(host, int(port)) as proxy:
        yield proxy


@contextmanager
def proxied(url: str) -> Iterator[tuple[TcpProxy, str]]:
    """A proxy before a server, and the server's URL through it."""
    parts = urlsplit(url)
    with proxy_to(f"{parts.hostname}:{parts.port}") as proxy:
        user, at, _ = parts.netloc.rpartition("@")
        yield proxy, parts._replace(netloc=f"{user}{at}127.0.0.1:{proxy.port}").geturl()


class Weather:
    """What networks do to their users, a little of each in turn; `delay` is in seconds each way."""

    def __init__(self, networks: Sequence[TcpProxy], load: Load, seed: int, delay: float = 0.1) -> None:
        self._networks = networks
        self._load = load
        self._delay = delay
        self._dice = random.Random(seed)  # noqa: S311 - to be repeated, not secret

    def pass_by(self, rounds: int) -> int:
        """Each kind on each network at least once, in any order; how many bad times there were."""
        kinds = (self._slow, self._cut, self._silent, self._questions_lost, self._answers_lost, self._nobody_there)
        times = list(itertools.product(kinds, self._networks)) * max(1, rounds // 4)
        self._dice.shuffle(times)
        for bad_time, network in times:
            self._load.goes_on(self._dice.randint(5, 30))
            bad_time(network)
            network.flow()
        self._load.goes_on()
        return len(times)

    def _slow(self, network: TcpProxy) -> None:
        network.delay(self._delay)
        self._load.goes_on(20)

    def _cut(self, network: TcpProxy) -> None:
        for _ in range(5):
            network.cut()
            self._pause()

    def _silent(self, network: TcpProxy) -> None:
        """For a while, and then all of it arrives: some of it too late."""
        network.fall_silent()
        time.sleep(DEADLINE_SECONDS * self._dice.uniform(0.5, 1.2))

    def _questions_lost(self, network: TcpProxy) -> None:
        network.fall_silent(Towards.SERVER)
        self._pause()
        network.cut()

    def _answers_lost(self, network: TcpProxy) -> None:
        """What was asked is done, and nobody hears of it."""
        network.fall_silent(Towards.CLIENT)
        self._pause()
        network.cut()

    def _nobody_there(self, network: TcpProxy) -> None:
        network.refuse()
        self._pause()

    def _pause(self) -> None:
        time.sleep(self._dice.uniform(0.05, 0.5))


def test_bad_weather_between_client_and_services(tmp_path: Path, rounds: int, seed: int) -> None:
    """Between client and Product Service, and between both services."""
    with (
        Backend(tmp_path, DEADLINE) as backend,
        proxy_to(backend.product_address) as product,
        proxy_to(backend.order_address) as order,
    ):
        fleet = Fleet(backend, settings={"product": {"ORDERSYS_ORDER_ADDRESS": f"127.0.0.1:{order.port}"}})
        direct, backend.product_address = backend.product_address, f"127.0.0.1:{product.port}"
        with Load(backend, seed=seed) as load:
            bad_times = Weather([product, order], load, seed).pass_by(rounds)
        backend.product_address = direct
        found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"), in_order=True)
        unheard = fleet["product"].err.count("order-service gave no answer")
    assert unheard > 0
    connections = product.connections + order.connections
    figures.record(
        "network", "gRPC", bad_times=bad_times, connections=connections, unheard_by_product_service=unheard, **found
    )


def test_bad_weather_before_rabbitmq(tmp_path: Path, rounds: int, seed: int) -> None:
    """Nobody who places an order notices."""
    with processes.engine("servers") as settings, Backend(tmp_path, {**DEADLINE, **settings}) as backend:
        broker = "ORDERSYS_BROKER_URL"
        with proxied(settings[broker] + "?heartbeat=2") as (proxy, url):
            fleet = Fleet(backend, settings={name: {broker: url} for name in SERVICES})
            with Load(backend, seed=seed) as load:
                bad_times = Weather([proxy], load, seed).pass_by(rounds)
            found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"), in_order=True)
    assert found["repeats"] == 0, "somebody was told `unavailable`"
    figures.record(
        "network", "relay, notifiers to RabbitMQ", bad_times=bad_times, connections=proxy.connections, **found
    )


def test_bad_weather_before_postgresql(tmp_path: Path, rounds: int, seed: int) -> None:
    """A commit that nobody heard of is a commit."""
    with processes.engine("servers") as settings, Backend(tmp_path, {**DEADLINE, **settings}) as backend:
        databases = {name: url for name, url in settings.items() if name.endswith("_DATABASE_URL")}
        with proxied(next(iter(databases.values()))) as (proxy, url):
            fleet = Fleet(backend, settings={name: dict.fromkeys(databases, url) for name in SERVICES})
            with Load(backend, seed=seed) as load:
                bad_times = Weather([proxy], load, seed, delay=0.003).pass_by(rounds)  # a transaction goes there often
            found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"), in_order=True)
    figures.record("network", "all roles to PostgreSQL", bad_times=bad_times, connections=proxy.connections, **found)


def test_what_was_done_and_not_heard_of_between_the_services_is_settled_as_it_was(tmp_path: Path) -> None:
    """Callers are told `unavailable` within the deadline; what order-service did stands, what it did not is undone."""
    callers = 8
    with Backend(tmp_path, DEADLINE) as backend, proxy_to(backend.order_address) as proxy:
        through = {"ORDERSYS_ORDER_ADDRESS": f"127.0.0.1:{proxy.port}"}
        Fleet(backend, "product", "order", settings={"product": through})
        backend.place("1:1")  # the connection is there
        done: dict[Towards, list[Order]] = {}
        slowest = 0.0
        for lost in Towards:
            proxy.fall_silent(lost)
            with asking(backend, placings(lost.value, callers, PLENTY[0], 2), 30) as calls:
                asked = [call.result() for call in calls]
            assert all(isinstance(each.answer, errors.Unavailable) for each in asked), asked
            slowest = max([slowest, *(each.seconds for each in asked)])
            assert slowest < DEADLINE_SECONDS + 2
            assert backend.pending() == callers, "unknown is not failed"
            proxy.cut()
            proxy.flow()
            backend.settled()
            with Orders(backend.product_address, backend.order_address) as orders:
                done[lost] = orders.list_orders(customer_id=lost.value, page_size=100).orders
        backend.balances()
    assert {lost: len(orders) for lost, orders in done.items()} == {Towards.SERVER: 0, Towards.CLIENT: callers}
    figures.record(
        "network",
        "product to order-service",
        never_arrived=callers,
        undone=callers,
        done_unheard=callers,
        kept=callers,
        slowest_answer=slowest,
    )


NOTICED_SECONDS = 15 + 10 + 35
"""How long a connection may look alive: after 15 s without a word gRPC asks, and waits 10 s for the answer."""


def test_connections_that_the_server_has_forgotten_are_given_up(tmp_path: Path) -> None:
    """Half-open: no reset ever comes, so only a ping can tell that nobody is there."""
    with (
        Backend(tmp_path, DEADLINE) as backend,
        proxy_to(backend.product_address) as product,
        proxy_to(backend.order_address) as order,
    ):
        Fleet(backend, "product", "order", settings={"product": {"ORDERSYS_ORDER_ADDRESS": f"127.0.0.1:{order.port}"}})
        with (
            Orders(f"127.0.0.1:{product.port}", backend.order_address, DEADLINE_SECONDS) as through,
            Orders(backend.product_address, backend.order_address, DEADLINE_SECONDS) as direct,
        ):
            calls: dict[str, Callable[[], object]] = {
                "client": lambda: through.get_product(PLENTY[0]),
                "product_service": lambda: direct.place_order("ann", [(PLENTY[0], 1)], "the same all the time"),
            }
            through.get_product(PLENTY[0])
            direct.place_order("ann", [(PLENTY[0], 1)])
            product.vanish()
            order.vanish()
            with ThreadPoolExecutor(len(calls)) as pool:
                waiting = {name: pool.submit(seconds_until_answered, call) for name, call in calls.items()}
            noticed = {f"noticed_by_{name}_after_seconds": each.result() for name, each in waiting.items()}
            assert len(direct.list_orders(customer_id="ann").orders) == 2
        backend.settled()
        backend.balances()
    figures.record("network", "half-open", **noticed)


def seconds_until_answered(call: Callable[[], object]) -> float:
    def answered() -> bool:
        try:
            call()
        except errors.Unavailable:
            return False
        return True

    began = time.monotonic()
    until(answered, "it is answered over a new connection", NOTICED_SECONDS)
    return time.monotonic() - began
