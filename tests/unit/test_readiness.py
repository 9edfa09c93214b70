"""How a role looks at what it needs: in the background, all at once, and never for longer than the bound."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ordersys.core import errors
from ordersys.core.watch.readiness import Check, Readiness, State


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Probe:
    """A dependency that can be away, hang, or break, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.ready: bool | None = True
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()

    def __call__(self) -> bool | None:
        self.asked += 1
        self.free.wait(20)
        if self.error is not None:
            raise self.error
        return self.ready


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


# --- what is found --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needed", "good_to_have", "status", "ready"),
    [
        (True, True, "ready", True),
        (True, False, "degraded", True),
        (True, None, "degraded", True),
        (False, True, "not_ready", False),
        (None, True, "not_ready", False),
        (False, False, "not_ready", False),
    ],
)
def test_what_is_needed_decides_and_the_rest_is_shown(
    needed: bool | None, good_to_have: bool | None, status: str, ready: bool
) -> None:
    checks = [Check("a", lambda: needed), Check("b", lambda: good_to_have, needed=False)]
    state = Readiness(checks, seconds=20).state()
    words = {True: "ready", False: "unavailable", None: "unknown"}
    found = {"a": {"status": words[needed]}, "b": {"status": words[good_to_have]}}
    assert (state.ready, state.document()) == (ready, {"status": status, "checks": found})
    assert state.missing == (() if ready else ("a",))


def test_one_that_breaks_is_not_ready_and_the_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    probe, clock = Probe(), Clock()
    probe.error = errors.Unavailable("database /secret/place: locked")
    readiness = Readiness([Check("keys", probe)], clock=clock)
    caplog.set_level("INFO")
    for _ in range(3):
        assert readiness.state().found == {"keys": False}
        clock.now += 1
    assert caplog.messages == ["keys is not ready: database /secret/place: locked"]
    probe.error = None
    assert readiness.state().ready
    assert caplog.messages[1:] == ["keys is ready again"]


# --- who asks without the background --------------------------------------------------------------------------------


def test_what_was_found_is_good_for_a_second() -> None:
    probe, clock = Probe(), Clock()
    readiness = Readiness([Check("a", probe)], clock=clock)
    for _ in range(100):
        assert readiness.state().found == {"a": True}
    assert probe.asked == 1
    probe.ready = False
    clock.now += 0.9
    assert readiness.state().found == {"a": True}
    clock.now += 0.1
    assert readiness.state().found == {"a": False}
    assert probe.asked == 2


def test_all_are_asked_at_once_and_none_is_waited_for_longer_than_the_bound() -> None:
    probes = {name: Probe() for name in "abc"}
    probes["a"].free.clear()
    probes["b"].free.clear()
    begun = time.monotonic()
    found = Readiness([Check(*each) for each in probes.items()], seconds=0.3).state().found
    assert found == {"a": False, "b": False, "c": True}
    assert 0.3 <= time.monotonic() - begun < 0.5 + 1  # not 0.6; the second is for a busy machine
    assert [each.asked for each in probes.values()] == [1, 1, 1]
    for each in probes.values():
        each.free.set()


def test_one_that_hangs_is_not_asked_again_until_it_has_answered() -> None:
    probe, clock = Probe(), Clock()
    probe.free.clear()
    readiness = Readiness([Check("a", probe)], seconds=0.05, clock=clock)
    for _ in range(5):
        assert readiness.state().found == {"a": False}
        clock.now += 1
    assert probe.asked == 1
    probe.free.set()
    readiness._running["a"].result(10)
    assert readiness.state().found == {"a": True}


def test_who_comes_while_another_asks_is_answered_at_once_with_what_is_known() -> None:
    probe, clock = Probe(), Clock()
    readiness = Readiness([Check("a", probe)], seconds=10, clock=clock)
    readiness.state()
    probe.free.clear()
    probe.ready = False
    clock.now += 2
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(readiness.state)
        until(lambda: probe.asked == 2)
        assert readiness.state().found == {"a": True}
        assert not asking.done()
        probe.free.set()
        assert asking.result(10).found == {"a": False}
    assert readiness.state().found == {"a": False}


# --- in the background ----------------------------------------------------------------------------------------------


def test_it_is_looked_at_again_and_again_and_whoever_listens_hears_of_each_look() -> None:
    probe, heard = Probe(), list[State]()
    readiness = Readiness([Check("a", probe)])
    readiness.tell(heard.append)
    readiness.start()
    try:
        assert [each.ready for each in heard] == [True]  # it starts with what is true
        probe.ready = False
        until(lambda: not heard[-1].ready)
        assert not readiness.state().ready
        probe.ready = True
        until(lambda: heard[-1].ready)
    finally:
        readiness.stop()


def test_who_asks_does_not_wait_for_a_look_that_hangs() -> None:
    probe = Probe()
    readiness = Readiness([Check("a", probe)], seconds=10)
    readiness.start()
    try:
        probe.free.clear()
        until(lambda: probe.asked == 2)
        begun = time.monotonic()
        for _ in range(1000):
            assert readiness.state().ready
        assert time.monotonic() - begun < 5
        assert probe.asked == 2
    finally:
        readiness.stop()
        probe.free.set()


def test_after_the_stop_nobody_hears_of_a_look_that_went_on() -> None:
    probe, heard = Probe(), list[State]()
    readiness = Readiness([Check("a", probe)], seconds=10)
    readiness.tell(heard.append)
    readiness.start()
    probe.free.clear()
    until(lambda: probe.asked == 2)
    readiness.stop()
    probe.free.set()
    thread = readiness._thread
    assert thread is not None
    thread.join(10)
    assert len(heard) == 1
