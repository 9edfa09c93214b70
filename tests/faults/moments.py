"""How to hit one moment surely, without a hook in what is tested: hold what the next step needs, and wait for the last.

A lock on a database holds its writers and lets readers through. A gate holds whatever goes to the broker: a lock on the
embedded one's file, a proxy that has fallen silent before RabbitMQ.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from contract.tcp_proxy import TcpProxy
from e2e.processes import Backend

_WRITTEN = {"order": "order_outbox", "notify": "notify_inbox"}
"""A table of each service that all its transactions in question write."""


@contextmanager
def locked(backend: Backend, service: str) -> Iterator[None]:
    """Nobody else can write that service's database meanwhile."""
    url = backend.environment.get(f"ORDERSYS_{service.upper()}_DATABASE_URL")
    if url is None:
        with _sqlite_lock(backend, service):
            yield
        return
    import psycopg

    with psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://")) as connection:
        connection.execute(f"LOCK TABLE {_WRITTEN[service]} IN EXCLUSIVE MODE")
        yield
        connection.rollback()


@contextmanager
def _sqlite_lock(backend: Backend, name: str) -> Iterator[None]:
    connection = sqlite3.connect(backend.home / f"{name}.db", timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@contextmanager
def gate(backend: Backend) -> "Iterator[Gate]":
    """A gate before the broker, open."""
    url = urlsplit(backend.environment.get("ORDERSYS_BROKER_URL", ""))
    if not url.hostname:
        yield Gate(backend, None, {})
        return
    with TcpProxy(url.hostname, url.port or 5672) as proxy:
        user = url.netloc.rpartition("@")[0]
        through = url._replace(netloc=f"{user}@127.0.0.1:{proxy.port}")
        yield Gate(backend, proxy, {"ORDERSYS_BROKER_URL": through.geturl()})


class Gate:
    """Between roles and the broker; `settings` lead a role through it."""

    def __init__(self, backend: Backend, proxy: TcpProxy | None, settings: dict[str, str]) -> None:
        self._backend = backend
        self._proxy = proxy
        self.settings = settings

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Nothing gets through, and nobody is told."""
        if self._proxy is None:
            with _sqlite_lock(self._backend, "broker"):
                yield
            return
        self._proxy.fall_silent()
        try:
            yield
        finally:
            self._proxy.flow()

    def cut(self) -> None:
        """What was sent into the shut gate by a role that is dead never arrives."""
        if self._proxy is not None:
            self._proxy.cut()
