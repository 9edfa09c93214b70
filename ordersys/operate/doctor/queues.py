"""The broker: is it there, has it the topology of this code, and what has come to rest in its queues?"""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ordersys.core.display import counted
from ordersys.operate.doctor.findings import Check, Finding, ok, problem, warning

if TYPE_CHECKING:
    from ordersys.broker.broker import Broker, Depth
    from ordersys.core.topology import Topology
    from ordersys.settings import Settings

_LOOK_SECONDS = 0.5
_COUNT_SECONDS = 2.0
_SHOWN = 4


def checks(settings: "Settings") -> list[Check]:
    return [Check("broker", lambda: _look(settings), "ordersys config  # ORDERSYS_BROKER_URL")]


def _look(settings: "Settings") -> Iterator[Finding]:
    from ordersys import wiring
    from ordersys.core import topology
    from ordersys.core.display import masked

    if settings.broker_url.startswith("sqlite:"):
        file = Path(settings.broker_url.removeprefix("sqlite:///")).absolute()
        if not file.exists():
            yield ok("broker", f"not made yet: {file}")
            return
        yield from _file(file)
    standard = topology.standard(settings.retry_waits)
    with closing(wiring.broker(settings)) as broker:
        found = list(_topology(broker, standard))
        if not settings.broker_url.startswith("sqlite:"):
            yield ok("broker", f"{masked(settings.broker_url)} answers")
        yield from found
        yield from _depths(broker, standard)


def _file(file: Path) -> Iterator[Finding]:
    from ordersys.core.storage import looked_into

    with closing(looked_into.LookedInto(f"sqlite:///{file}")) as database:
        facts = looked_into.sqlite_facts(database, _COUNT_SECONDS)
    said = f"{file}, embedded, {facts.bytes / 1e6:.1f} MB"
    if facts.damage:
        yield problem("broker", f"{said}, is damaged: {facts.damage}", f"sqlite3 {file} .recover | sqlite3 NEW.db")
    else:
        yield ok("broker", said)


def _topology(broker: "Broker", standard: "Topology") -> Iterator[Finding]:
    found = broker.inspect(standard)
    if found.missing:
        yield problem("topology", f"missing: {_some(found.missing)}", "ordersys topology declare")
    if found.differing:
        which = f"not as this code declares it: {_some(found.differing)}"
        yield problem(
            "topology", which, "ordersys topology show  # delete what differs once it is empty, and declare it"
        )
    if not (found.missing or found.differing):
        yield ok("topology", "every exchange and queue is there as this code declares it")


def _depths(broker: "Broker", standard: "Topology") -> Iterator[Finding]:
    before = broker.depths(standard.queues, _COUNT_SECONDS)
    if any(depth.ready for depth in before.values()):
        time.sleep(_LOOK_SECONDS)
    after = broker.depths(standard.queues, _COUNT_SECONDS)
    yield from dead_letters(after)
    yield from waiting(before, after)


def dead_letters(depths: "dict[str, Depth]") -> Iterator[Finding]:
    dead = {name: depth.dead for name, depth in depths.items() if depth.dead}
    if not dead:
        yield ok("dead letters", "none")
        return
    told = ", ".join(f"{name} {number}" for name, number in dead.items())
    found = f"{counted(sum(dead.values()), 'notification')} that nobody will try again by itself: {told}"
    yield problem("dead letters", found, "ordersys dlq list  # then dlq replay --all, or dlq discard")


def waiting(before: "dict[str, Depth]", after: "dict[str, Depth]") -> Iterator[Finding]:
    """A queue that holds messages and does not get shorter: does anybody consume it?"""
    stuck = {name: depth.ready for name, depth in after.items() if depth.ready >= before[name].ready > 0}
    for name, number in stuck.items():
        mode = "fanout" if name.endswith("fanout") else "topic"
        found = f"{counted(number, 'message')} in {name}, and no fewer after {_LOOK_SECONDS:g} s"
        yield warning("queues", found, f"ordersys notify --mode {mode}")
    if not stuck:
        resting = sum(depth.retrying for depth in after.values())
        yield ok("queues", f"none is stuck, {counted(resting, 'message')} rest before another try")


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
