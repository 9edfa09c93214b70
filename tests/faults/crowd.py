"""Many callers at the same moment, and one who watches a product from outside meanwhile."""

import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from itertools import cycle, islice
from pathlib import Path
from typing import Self, TypeVar

from e2e import processes
from e2e.processes import SECONDS, Backend, Role, free_port, until

from ordersys.broker.dead_letters import DeadLetter
from ordersys.client.calls import Orders
from ordersys.core import errors
from ordersys.core.events import Change, Event
from ordersys.operate import books, messages

Answer = TypeVar("Answer")

CHANNELS = 4
"""Connections per Product Service: the callers share them."""


def at_once(calls: Sequence[Callable[[], Answer]]) -> list[Answer | errors.OrdersysError]:
    """What each call was answered or refused, in order; they all begin together."""
    start = threading.Barrier(len(calls))

    def make(call: Callable[[], Answer]) -> Answer | errors.OrdersysError:
        start.wait(SECONDS)
        try:
            return call()
        except errors.OrdersysError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as callers:
        return list(callers.map(make, calls))


class Site:
    """A running deployment with one or more Product Services on the same database."""

    def __init__(self, backend: Backend, addresses: Sequence[str], roles: Sequence[Role] = ()) -> None:
        self.backend = backend
        self.addresses = addresses
        self.roles = roles  # order-service, and the Product Services
        self._open = ExitStack()
        self._clients = [
            self._open.enter_context(Orders(address, backend.order_address, SECONDS))
            for _ in range(CHANNELS)
            for address in addresses
        ]

    def close(self) -> None:
        self._open.close()

    @property
    def broker_url(self) -> str:
        return self.backend.environment.get("ORDERSYS_BROKER_URL", f"sqlite:///{self.backend.home / 'broker.db'}")

    def dead_letters(self, order_id: str = "") -> list[DeadLetter]:
        """Those of the standard queues, of one order or all."""
        with messages.desk(self.broker_url, None) as desk:
            return desk.look(messages.of_order(order_id) if order_id else lambda _: True)

    @property
    def client(self) -> Orders:
        return self._clients[0]

    def clients(self, count: int) -> list[Orders]:
        """So many, in turn at each Product Service."""
        return list(islice(cycle(self._clients), count))

    def available(self, product_id: str) -> int:
        return self.client.get_product(product_id).available

    def stock(self, product_id: str, units: int) -> None:
        """Bring what is available to this."""
        if delta := units - self.available(product_id):
            self.client.adjust_stock(product_id, delta, "a fault test")

    def history(self, order_id: str) -> list[Event]:
        """The order's events, oldest first."""
        return [logged.event for logged in self.client.log(order_id=order_id)]

    def balances(self) -> None:
        """Nothing is pending, and shelf, ledger, reservations and live orders say the same: `inventory audit`, here."""
        until(lambda: self.client.audit_stock()[1] == 0, "every command is settled")
        with redirect_stdout(io.StringIO()) as printed:
            books.audit(
                SECONDS, as_json=True, product_address=self.addresses[0], order_address=self.backend.order_address
            )
        audit = json.loads(printed.getvalue())
        assert (audit["ok"], audit["pending"], audit["orders_compared"], audit["differences"]) == (True, 0, True, [])


@contextmanager
def site(name: str, folder: Path, **more: str) -> Iterator[Site]:
    """ "embedded", "servers", or "pair": two Product Services on one PostgreSQL database; `more` are settings."""
    with (
        processes.engine("servers" if name == "pair" else name) as settings,
        Backend(folder, {**settings, **more}) as backend,
    ):
        addresses = [backend.product_address]
        roles: list[Role] = [backend.start("serve-order"), backend.start("serve-product")]
        if name == "pair":
            addresses.append(f"127.0.0.1:{free_port()}")
            roles.append(backend.start("serve-product", ORDERSYS_PRODUCT_BIND=addresses[1]))
        for role in roles:
            role.ready()
        made = Site(backend, addresses, roles)
        try:
            yield made
        finally:
            made.close()


class Watched:
    """Asks every Product Service for a product, again and again, while the block runs; `seen` is each answer."""

    def __init__(self, site: Site, product_id: str) -> None:
        self.seen: list[int] = []
        self._site = site
        self._product_id = product_id
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: bool(self.seen) or self._failure is not None, "the watcher sees the product")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(2 * SECONDS)
        assert self._failure is None, self._failure
        assert not self._thread.is_alive()

    def _watch(self) -> None:
        try:
            with ExitStack() as opened:
                clients = [
                    opened.enter_context(Orders(address, self._site.backend.order_address, SECONDS))
                    for address in self._site.addresses
                ]
                while not self._stopping.is_set():
                    self.seen += [client.get_product(self._product_id).available for client in clients]
        except BaseException as error:  # shown by the test's thread
            self._failure = error
            raise


CHANGES_STATUS = {
    Change.CREATED: (None, "placed"),
    Change.LINES: ("placed", "placed"),
    Change.CANCELLED: ("placed", "cancelled"),
    Change.SHIPPED: ("placed", "shipped"),
    Change.DELIVERED: ("shipped", "delivered"),
}
"""The contract's status machine: what each change leads from and to."""


def legal(history: Sequence[Event]) -> bool:
    """One order's whole life: versions 1..n, every step allowed, and nothing after the end."""
    status: str | None = None
    for version, event in enumerate(history, 1):
        before, after = CHANGES_STATUS[event.change]
        if (event.order.version, status, event.order.status.value) != (version, before, after):
            return False
        status = after
    return bool(history)
