"""Whether a role can do its work now: its dependencies, looked at in the background.

The one source of grpc.health.v1, of /readyz and of the metric `dependency_up`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

CHECK_SECONDS = 4.0
"""How long a dependency may take to answer until it counts as away: long enough for a busy machine."""
ASK_SECONDS = 3.0
"""How long a probe itself waits for an answer, to say in its own words that there was none."""
KEPT_SECONDS = 1.0
"""How long one look is good for."""

Probe = Callable[[], bool | None]
"""Whether the dependency is ready; None when nobody can tell. What it raises is logged, and means that it is not."""
Found = Mapping[str, bool | None]
_WORDS = {True: "ready", False: "unavailable", None: "unknown"}


@dataclass(frozen=True, slots=True)
class Check:
    """One dependency. Without one that is not `needed` the role is degraded, and does what it still can."""

    name: str
    probe: Probe
    needed: bool = True


@dataclass(frozen=True, slots=True)
class State:
    """What one look has found."""

    found: Found
    missing: tuple[str, ...]  # what is needed and not ready

    @property
    def ready(self) -> bool:
        return not self.missing

    def document(self) -> dict[str, Any]:
        """As /readyz answers it."""
        status = "ready" if all(self.found.values()) else "degraded"
        return {
            "status": status if self.ready else "not_ready",
            "checks": {name: {"status": _WORDS[up]} for name, up in self.found.items()},
        }


NOT_YET = State({}, ("start",))
"""Of a role that has not come so far as to look."""
DRAINING = State({}, ("shutting down",))


class Readiness:
    """All dependencies are asked at once, and none is waited for longer than `seconds`.

    From `start` to `stop` they are looked at every KEPT_SECONDS, and who asks never waits. Without that, who asks
    looks, unless somebody has within KEPT_SECONDS.
    """

    def __init__(
        self,
        checks: Iterable[Check],
        *,
        seconds: float = CHECK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checks = tuple(checks)
        self._seconds = seconds
        self._clock = clock
        self._running: dict[str, Future[bool | None]] = {}
        self._asking = threading.Lock()
        self._listeners: list[Callable[[State], None]] = []
        self._last: tuple[float, State] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def tell(self, listener: Callable[[State], None]) -> None:
        """Call this after each look, on a thread of ours; it must be quick and never raise."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Look once, and from now on again and again."""
        self._look()
        self._thread = threading.Thread(target=self._run, name="readiness", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a look that goes on is left behind, and nobody hears of it."""
        self._stopping.set()

    def state(self) -> State:
        """As it was at most a little while ago."""
        last = self._last
        if last is not None and (self._thread is not None or self._clock() - last[0] < KEPT_SECONDS):
            return last[1]
        # Who comes while another asks takes what is known: a dependency that hangs must not bind one thread per probe.
        if not self._asking.acquire(blocking=last is None):
            assert last is not None  # noqa: S101 - for the type checker
            return last[1]
        try:
            if self._last is None or self._clock() - self._last[0] >= KEPT_SECONDS:
                self._look()
            assert self._last is not None  # noqa: S101 - for the type checker
            return self._last[1]
        finally:
            self._asking.release()

    def _run(self) -> None:
        while not self._stopping.wait(KEPT_SECONDS):
            self._look()

    def _look(self) -> None:
        for check in self._checks:
            running = self._running.get(check.name)
            if running is None or running.done():  # one that hangs is not asked a second time
                self._running[check.name] = _asked(check)
        wait(self._running.values(), self._seconds)
        found = {check.name: self._found(check.name) for check in self._checks}
        state = State(found, tuple(each.name for each in self._checks if each.needed and not found[each.name]))
        self._last = self._clock(), state
        for listener in () if self._stopping.is_set() else self._listeners:
            listener(state)

    def _found(self, name: str) -> bool | None:
        before = self._last[1].found[name] if self._last else True
        asked = self._running[name]
        problem: object = ""
        if not asked.done():
            problem = f"no answer within {self._seconds:g} s"
        elif (error := asked.exception()) is not None:
            problem = error
        found = False if problem else asked.result()
        if found is False and before is not False:
            logger.warning("%s is not ready: %s", name, problem or "it says so itself")
        elif found and before is False:
            logger.info("%s is ready again", name)
        return found


def _asked(check: Check) -> "Future[bool | None]":
    """Ask on a thread that nobody has to wait for at the end: a dependency that hangs must not hold up the exit."""
    answer: Future[bool | None] = Future()

    def ask() -> None:
        try:
            answer.set_result(check.probe())
        except BaseException as error:  # noqa: BLE001 - whoever looks at the answer logs it
            answer.set_exception(error)

    threading.Thread(target=ask, name=f"check {check.name}", daemon=True).start()
    return answer
