"""What every role is made of: it starts things, undoes them in reverse, and shows how it is."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from ordersys.core import errors, tls
from ordersys.core.rpc.health import Health
from ordersys.core.storage import migrations, retention
from ordersys.core.storage.database import Database
from ordersys.core.watch import sampling
from ordersys.core.watch.admin import AdminServer
from ordersys.core.watch.metrics import Registry
from ordersys.core.watch.readiness import DRAINING, Check, Readiness, State
from ordersys.core.watch.traces import Traces
from ordersys.core.watch.tracing import Tracing
from ordersys.settings import Settings

CERTIFICATES_SECONDS = 30.0
WORKER_STEP = 10
"""From the admin port of one worker to that of the next: the defaults of the roles are neighbours."""


class Closable(Protocol):
    def close(self) -> None: ...


Closed = TypeVar("Closed", bound=Closable)


class Role:
    """What has been started so far is undone in reverse when the role stops, also when it could not start wholly.

    Without a `registry` it has one of its own, and shows it on its admin port. `worker` is its number among several
    processes that share its address, None for one that has it alone.
    """

    def __init__(self, service: str, traces: Traces, registry: Registry | None, worker: int | None = None) -> None:
        self._undo = AsyncExitStack()
        self._grace = 0.0
        self._service = service
        self._traces = traces
        self._alone = registry is None
        self.worker = worker
        self._admin: AdminServer | None = None
        self.registry = registry or Registry()

    def undo(self, step: Callable[[float], Awaitable[object]]) -> None:
        """Do this when the role stops, before what was noted earlier; `step` is given the seconds it may take."""
        self._undo.push_async_callback(lambda: step(self._grace))

    async def stop(self, grace: float) -> None:
        self._grace = grace
        if self._admin is not None:
            self._admin.state = lambda: DRAINING
        await self._undo.aclose()

    def ended(self) -> bool:
        return False

    def closing(self, opened: Closed) -> Closed:
        """The same, to be closed when the role stops."""
        self.undo(lambda _: asyncio.to_thread(opened.close))
        return opened

    async def open_database(self, url: str, chain: migrations.Chain) -> Database:
        database = self.closing(Database(url))
        await asyncio.to_thread(migrations.upgrade, database, chain)
        return database

    def keep_pruning(self, what: str, prune: retention.Prune, days: float) -> None:
        self._keep(retention.keep_pruning(what, prune, days * 86_400), f"prune {what}")

    @property
    def tracing(self) -> Tracing:
        """What begins its spans, from the start on."""
        return self._traces.of(self._service)

    # --- what it shows ------------------------------------------------------------------------------------------

    async def show(self, settings: Settings, admin: str = "") -> None:
        """Show its build and its certificates, and serve /metrics, /healthz and /readyz where the setting `admin` says.

        Before all else, for the start may take long. Raises UsageError when somebody has set an address that cannot be
        had; where the default one is taken any other will do.
        """
        self.registry.show_build(self._service)
        parties = (settings.tls_files, settings.api_tls_files, settings.broker_tls_files)
        if any(parties):
            self.keep_sampling("the certificates", partial(self._look_at_certificates, parties), CERTIFICATES_SECONDS)
        bind = getattr(settings, admin, "off")
        if not self._alone or bind == "off":
            return
        bind = admin_bind(bind, self.worker or 0)
        server = AdminServer(bind, self.registry, elsewhere=admin not in settings.model_fields_set)
        await asyncio.to_thread(server.start)
        self.undo(lambda _: asyncio.to_thread(server.stop))
        self._admin = server

    @property
    def watched(self) -> str:
        """Where the admin port is, for the line that says that the role has started; "" without one."""
        return f" (metrics at http://{self._admin.address}/metrics)" if self._admin else ""

    async def look_after(self, checks: Iterable[Check], health: Health | None = None) -> None:
        """Look at these dependencies from now on; `health` and /readyz answer what was found."""
        readiness = Readiness(checks)
        show, loop = self.registry.dependencies(self._service), asyncio.get_running_loop()

        def report(state: State) -> None:
            show(state.found)
            if health is not None:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(health.report, state)

        readiness.tell(report)
        if self._admin is not None:
            self._admin.state = readiness.state
        await asyncio.to_thread(readiness.start)
        self.undo(lambda _: asyncio.to_thread(readiness.stop))

    def keep_sampling(self, what: str, sample: Callable[[], Awaitable[None]], interval: float) -> None:
        self._keep(sampling.keep_sampling(what, sample, interval), f"sample {what}")

    async def _look_at_certificates(self, parties: Sequence[tls.Files]) -> None:
        self.registry.show_certificates(await asyncio.to_thread(tls.expiries, *parties))

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self.undo(lambda _: cancel(task))


def admin_bind(bind: str, worker: int) -> str:
    """Where a worker's admin port is: WORKER_STEP above that of the one before; any port stays any port."""
    host, _, port = bind.rpartition(":")
    moved = int(port) + WORKER_STEP * worker
    if moved > 65535:
        raise errors.UsageError(f"the admin port {bind} leaves no room for worker {worker}: {moved} is no port")
    return f"{host}:{moved}" if int(port) else bind


async def cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait((task,))


def checks_of(database: Database, chain: migrations.Chain) -> list[Check]:
    """That the database answers and can be written, and that its schema is one we know."""

    def schema() -> bool | None:
        try:
            return migrations.is_current(database, chain)
        except errors.Unavailable:  # the other check says so
            return None

    return [Check("database", database.ready), Check("schema", schema)]
