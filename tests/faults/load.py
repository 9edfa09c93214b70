"""Callers who place and change orders while the roles behind them come and go, and who write down every answer.

What gets no answer they repeat with the same key until there is one, as the contract asks of a client. Each caller
changes only orders of its own, so it always knows which answer is right.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, Self, TypeVar

from e2e.processes import Backend, Role, until
from faults import verdict
from faults.books import REFUSALS, Books, Refusal, Write

from ordersys.client.calls import Orders, Wanted
from ordersys.core import errors
from ordersys.core.records import Order, Status

PLENTY = ("1", "2", "4")
SCARCE = "8"
"""A product that soon is sold out: from then on it is refused, and everything in an order with it."""
RESTOCK = 10_000_000
CHANGEABLE = 20
"""How many of its newest orders a caller goes on changing."""
CALL_SECONDS = 5.0
SECONDS_PER_ANSWER = 0.05
"""Of all callers together, on a machine that has much else to do."""

Answered = TypeVar("Answered")


class Caller:
    """One customer, in a thread of its own."""

    def __init__(self, load: "Load", number: int, *, over_http: bool) -> None:
        self._load = load
        self._customer = f"{load.name}-{number}"
        self._random = random.Random(f"{load.seed}-{load.name}-{number}")  # noqa: S311 - to be repeated, not secret
        self._mine: list[str] = []
        self._count = 0
        self._over_http = over_http
        self._door = load.doors[number % len(load.doors)]
        self.books = Books()

    def run(self) -> None:
        with Orders(*self._door, CALL_SECONDS) as orders:
            while not self._load.stopping.wait(self._load.pause * self._random.uniform(0.5, 1.5)):
                self._act(orders)

    def _act(self, orders: Orders) -> None:
        what = self._random.random()
        order = self.books.told[self._random.choice(self._mine)] if self._mine else None
        if order is None or what < 0.6:
            self._write(orders, "place", None)
        elif order.status is Status.PLACED and what < 0.75:
            self._write(orders, "update", order)
        elif order.status is Status.PLACED and what < 0.87:
            self._write(orders, "cancel", order)
        elif order.status in (Status.PLACED, Status.SHIPPED):
            self._advance(orders, order)

    def _write(self, orders: Orders, kind: Literal["place", "update", "cancel"], order: Order | None) -> None:
        self._count += 1
        write = Write(
            kind=kind,
            key=f"{self._customer}-{self._count}",
            customer=self._customer,
            lines=() if kind == "cancel" else self._lines(),
            order_id=order.id if order else "",
            version=order.version if order else 0,
        )
        if kind == "place" and self._over_http:
            answer = self._answered(lambda: self._place_over_http(orders, write))
        else:
            answer = self._answered(lambda: write.ask(orders))
        self.books.answers.append((write, answer))
        if isinstance(answer, Order):
            self._told(answer, write.version + 1)

    def _told(self, order: Order, version: int) -> None:
        assert order.version == version, f"answered with version {order.version}, expected {version}: {order}"
        self.books.told[order.id] = order
        if version == 1:
            self._mine = [*self._mine, order.id][-CHANGEABLE:]

    def _lines(self) -> tuple[Wanted, ...]:
        products = self._random.sample(PLENTY, self._random.randint(1, 2))
        if self._random.random() < 0.02:
            products.append(SCARCE)
        return tuple((product_id, self._random.randint(1, 5)) for product_id in products)

    def _advance(self, orders: Orders, order: Order) -> None:
        step = orders.ship_order if order.status is Status.PLACED else orders.deliver_order
        self._count += 1
        key = f"{self._customer}-{self._count}"
        answer = self._answered(lambda: step(order.id, expected_version=order.version, idempotency_key=key))
        self._told(answer.order, order.version + 1)
        self.books.advanced += 1

    def _answered(self, ask: Callable[[], Answered]) -> Answered:
        """The answer of a call, made again for as long as there is none."""
        began = time.monotonic()
        while True:
            try:
                answer = ask()
            except errors.Unavailable:
                if time.monotonic() > began + self._load.patience or self._load.abandoned.is_set():
                    raise
                self.books.repeats += 1
                time.sleep(self._random.uniform(0.02, 0.1))
            else:
                now = time.monotonic()
                self.books.moments.append(now)
                self.books.slowest = max(self.books.slowest, now - began)
                return answer

    def _place_over_http(self, orders: Orders, write: Write) -> Order | Refusal:
        try:
            return orders.get_order(write.place_over_http(self._load.backend.api_address))
        except errors.OrdersysError as error:
            if error.code in REFUSALS:
                return error.code
            raise


class Load:
    """Callers at work between `with` and `stop`; `seed` makes them do the same again, as far as the clock lets them.

    `over_http` of the callers place their orders through the REST API. A caller that gets no answer within `patience`
    seconds, or one that cannot be right, fails the test. `doors` are the addresses of product-service and order-service
    that the callers come to, in turn; those of the backend if none are given.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        seed: int,
        callers: int = 8,
        over_http: int = 0,
        name: str = "load",
        pause: float = 0.02,
        patience: float = 60.0,
        doors: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.backend = backend
        self.doors = doors or [(backend.product_address, backend.order_address)]
        self.seed = seed
        self.name = name
        self.pause = pause
        self.patience = patience
        self.stopping = threading.Event()
        self.abandoned = threading.Event()
        self._callers = [Caller(self, number, over_http=number < over_http) for number in range(callers)]
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(caller,)) for caller in self._callers]
        self._books: Books | None = None

    def __enter__(self) -> Self:
        with Orders(self.backend.product_address, self.backend.order_address) as orders:
            for product_id in PLENTY:
                orders.adjust_stock(product_id, RESTOCK, "for the load", f"restock-{self.name}-{product_id}")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stopping.set()
        if kind is None:
            self.stop()
            return
        self.abandoned.set()  # nobody may be there to answer any more
        for thread in self._threads:
            thread.join(2 * CALL_SECONDS)

    @property
    def answered(self) -> int:
        """How many calls have been answered so far, refusals included."""
        return sum(len(caller.books.moments) for caller in self._callers)

    def goes_on(self, more: int = 40) -> None:
        """Wait until so many more calls are answered."""
        wanted = self.answered + more
        patience = self.patience + more * SECONDS_PER_ANSWER
        until(lambda: self.answered >= wanted or bool(self._failures), f"{more} more answers", patience)
        self._check()

    def stop(self) -> Books:
        """Let every call that was begun be answered, and end; what the callers were told, all of them together."""
        self.stopping.set()
        if self._books is None:
            for thread in self._threads:
                thread.join(self.patience + 2 * CALL_SECONDS)
            self._check()
            assert not any(thread.is_alive() for thread in self._threads), "a caller hangs"
            self._books = Books()
            for caller in self._callers:
                self._books.add(caller.books)
        return self._books

    def verdict(self, fanout: Sequence[Role], topic: Sequence[Role], *, in_order: bool = False) -> dict[str, int]:
        """Hold what the callers were told against everything on record, see `verdict.judge`."""
        return verdict.judge(self.backend, self.name, self.stop(), fanout, topic, in_order=in_order)

    def _run(self, caller: Caller) -> None:
        try:
            caller.run()
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self._failures.append(error)
            self.stopping.set()

    def _check(self) -> None:
        if self._failures:
            raise AssertionError(f"a caller failed: {self._failures[0]!r}") from self._failures[0]
