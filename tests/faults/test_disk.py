"""The disk is full, a file may not grow, the database is read-only: row 13 of the guarantees.

Every time: `unavailable` with its reason, reading goes on, nobody ends, nothing is half-written, and when there is
space again all goes on by itself.
"""

import re
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from e2e.processes import Backend, until
from faults import figures, nodes
from faults.disks import small_disk
from faults.fleet import DEADLINE_SECONDS, SERVICES, Fleet
from faults.load import PLENTY, Load
from faults.once import asking, placings

from ordersys.client.calls import Orders
from ordersys.core import errors

DATABASES = [f"ORDERSYS_{name}_DATABASE_URL" for name in ("PRODUCT", "ORDER", "NOTIFY")]
DEADLINE = {"ORDERSYS_DEADLINE_SECONDS": str(DEADLINE_SECONDS)}
MEGABYTES = 24


def megabytes(rounds: int) -> int:
    """A disk that what the load writes in so many rounds does not fill by itself."""
    return MEGABYTES + 4 * rounds


Hurt = Callable[[Fleet], AbstractContextManager[str]]
"""Hurts while the block runs, and gives the reason that callers must be told."""


def hurt_and_heal(backend: Backend, rounds: int, seed: int, hurts: Sequence[Hurt]) -> dict[str, int]:
    """The figures of a load on a deployment that is hurt in each way, healed, and hurt again."""
    fleet = Fleet(backend)
    refused = 0
    turns = list(hurts) * max(1, rounds // 4)
    with Load(backend, seed=seed) as load:
        for number, hurt in enumerate(turns):
            load.goes_on(60)
            with hurt(fleet) as reason:
                refused += ask_until_unavailable(backend, f"sure-{number}", reason)
                with Orders(backend.product_address, backend.order_address) as orders:
                    assert orders.get_product(PLENTY[0]).available
                    assert orders.list_orders().orders
            ended = [fleet[name].name for name in SERVICES if not fleet[name].running]
            assert not ended, f"ended by themselves: {ended}"
            load.goes_on()
    found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"), in_order=True)
    return {"hurts": len(turns), "told_unavailable": refused + found["repeats"], **found}


def ask_until_unavailable(backend: Backend, customer: str, reason: str) -> int:
    """Place orders until one is refused for this reason: a write that needs no new space may still go through."""
    writes = iter(placings(customer, 10_000, PLENTY[0]))
    refused: list[str] = []

    def told() -> bool:
        with asking(backend, [next(writes)], 5) as asked:
            answer = asked[0].result().answer
        if isinstance(answer, errors.OrdersysError):
            assert isinstance(answer, errors.Unavailable), answer
            refused.append(answer.message)
        return any(re.search(reason, message) for message in refused)

    until(told, f"somebody is told {reason!r}, not {refused[-3:]}")
    return len(refused)


UNANSWERED = "order-service did not answer"
UNWRITTEN = "the database cannot be reached or written now"  # why, only the log of the role says


def test_row_13_disk_full_and_quota_on_the_embedded_engine(tmp_path: Path, rounds: int, seed: int) -> None:
    """The disk with all databases and the broker is full; or one service's files may not grow (EFBIG)."""
    with small_disk(tmp_path / "home", megabytes(rounds)) as disk, Backend(tmp_path, DEADLINE) as backend:

        @contextmanager
        def full(_fleet: Fleet) -> Iterator[str]:
            disk.fill()
            yield f"({UNWRITTEN}|{UNANSWERED})"
            disk.free()

        @contextmanager
        def product_limited(fleet: Fleet) -> Iterator[str]:
            with limited(fleet["product"].pid):
                yield UNWRITTEN

        @contextmanager
        def order_limited(fleet: Fleet) -> Iterator[str]:
            with limited(fleet["order"].pid):
                yield UNANSWERED

        found = hurt_and_heal(backend, rounds, seed, (full, product_limited, order_limited))
    figures.record(13, "embedded", **found)


@contextmanager
def limited(pid: int) -> Iterator[None]:
    """No file that this process writes may grow, nor may it be written at all."""
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def test_row_13_disk_full_and_read_only_on_postgresql(tmp_path: Path, rounds: int, seed: int) -> None:
    """Read-only as when it fails over: the old primary takes no writes any more, then there is one that does."""
    with (
        nodes.postgres_cluster() as cluster,
        small_disk(cluster.folder / "small", megabytes(rounds), "postgres") as disk,
    ):
        url = cluster.database(tablespace=cluster.folder / "small")

        @contextmanager
        def full(_fleet: Fleet) -> Iterator[str]:
            disk.fill()
            yield f"({UNWRITTEN}|{UNANSWERED})"
            disk.free()

        @contextmanager
        def read_only(_fleet: Fleet) -> Iterator[str]:
            name = urlsplit(url).path.removeprefix("/")
            cluster.ask(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            cluster.ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            yield UNWRITTEN
            # New sessions may write; those that there are may not, and have to be given up.
            cluster.ask(f"ALTER DATABASE {name} SET default_transaction_read_only = off")

        with Backend(tmp_path, {**DEADLINE, **dict.fromkeys(DATABASES, url)}) as backend:
            found = hurt_and_heal(backend, rounds, seed, (full, read_only))
    figures.record(13, "postgresql", **found)


@pytest.mark.parametrize("full", [True, False], ids=["full", "read-only"])
@pytest.mark.parametrize("command", ["serve-product", "serve-order", "notify --mode topic"])
def test_a_role_that_cannot_write_at_its_start_says_so_and_ends(tmp_path: Path, command: str, full: bool) -> None:
    with small_disk(tmp_path / "home", MEGABYTES) as disk, Backend(tmp_path, {}) as backend:
        if full:
            disk.fill()
        else:
            disk.make_read_only()
        told = backend.run(*command.split())
    assert told.code == 3
    assert re.search(
        rf"^error: unavailable: database sqlite:///{re.escape(str(backend.home))}/\w+.db: ", told.complaint
    )
