"""The roles of one deployment by short names, each of which can be killed and replaced."""

import signal
from collections.abc import Mapping

from e2e.processes import Backend, Role, until

from ordersys.client.calls import Orders

COMMANDS = {
    "product": "serve-product",
    "order": "serve-order",
    "fanout": "notify --mode fanout --json",
    "topic": "notify --mode topic --json",
    "api": "api",
}
DEADLINE_SECONDS = 1
"""Between the services, see conftest: short, so that recovery has not long to wait before it asks."""
SERVICES = ("product", "order", "fanout", "topic")


class Fleet:
    """`fleet["order"]` is the process that plays a role now, `fleet.ever("order")` are all that ever did.

    "order-2" is one more of what "order" is. `settings` are further ORDERSYS_* variables by role. All are started and
    ready, unless `start` says otherwise.
    """

    def __init__(
        self,
        backend: Backend,
        *names: str,
        settings: Mapping[str, Mapping[str, str]] | None = None,
        start: bool = True,
    ) -> None:
        self.backend = backend
        self._settings = settings or {}
        self._ever: dict[str, list[Role]] = {name: [] for name in names or SERVICES}
        self.kills = 0
        if start:
            self.start(*self._ever)

    def __getitem__(self, name: str) -> Role:
        return self._ever[name][-1]

    def ever(self, name: str) -> list[Role]:
        return self._ever[name]

    def start(self, *names: str) -> None:
        """Start roles, at the same time, and wait until they serve."""
        self.launch(*names)
        for name in names:
            self[name].ready()

    def launch(self, *names: str) -> None:
        """Start roles and do not wait."""
        for name in names:
            command = COMMANDS[name.partition("-")[0]].split()
            self._ever[name].append(self.backend.start(*command, **self._settings.get(name, {})))

    def kill(self, *names: str) -> None:
        """kill -9, also of a stopped process."""
        for name in names:
            assert self[name].running, f"{name} had ended by itself:\n{self[name].err[-4_000:]}"
            self[name].kill()
            self.kills += 1

    def stop(self, name: str) -> None:
        """SIGSTOP: it hangs, and keeps its connections."""
        self[name].send(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        self[name].send(signal.SIGCONT)

    def pending(self) -> int:
        """Commands that took stock and are not settled; asks only the Product Service."""
        with Orders(self.backend.product_address, self.backend.order_address) as orders:
            return orders.audit_stock()[1]

    def settled(self) -> None:
        """Wait until nothing is pending."""
        until(lambda: self.pending() == 0, "everything is settled")
