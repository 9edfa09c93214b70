"""Callers who place orders while the roles behind them come and go."""

import threading
from typing import Self

from e2e.processes import SECONDS, Backend, until

from ordersys.client.calls import Orders
from ordersys.core import errors

CALLERS = 4
PAUSE_SECONDS = 0.02


class Load:
    """A few callers who place orders of one unit each; `placed` holds the order that each key stands for.

    What got no answer they repeat with its key until there is one, as the contract asks of a client.
    """

    def __init__(self, backend: Backend, product_id: str, customer: str) -> None:
        self.placed: dict[str, str] = {}
        self._backend = backend
        self._order = (customer, [(product_id, 1)])
        self._customer = customer
        self._stopping = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * SECONDS)
        assert not self._failures, self._failures
        assert not any(thread.is_alive() for thread in self._threads)

    def goes_on(self) -> None:
        """Wait until it has placed some more orders."""
        wanted = len(self.placed) + 4 * CALLERS
        until(lambda: len(self.placed) >= wanted or bool(self._failures), "more orders are placed")

    def _call(self, number: int) -> None:
        try:
            with Orders(self._backend.product_address, self._backend.order_address) as orders:
                count = 0
                while not self._stopping.wait(PAUSE_SECONDS):
                    key = f"{self._customer}-{number}-{count}"
                    count += 1
                    self.placed[key] = self._place(orders, key)
        except BaseException as error:
            self._failures.append(error)
            raise

    def _place(self, orders: Orders, key: str) -> str:
        answers: list[str] = []
        until(lambda: self._answered(orders, key, answers), f"order {key} is answered", SECONDS)
        return answers[0]

    def _answered(self, orders: Orders, key: str, answers: list[str]) -> bool:
        customer, lines = self._order
        try:
            answers.append(orders.place_order(customer, lines, key).order.id)
        except errors.Unavailable:
            return False
        return True
