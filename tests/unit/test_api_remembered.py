"""Answers that are remembered: seldom asked for, given from memory while the source is away, never for ever."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from ordersys.api.remembered import Patience, Remembered
from ordersys.core import errors

PATIENCE = Patience(fresh=60, stale=600, impatient=0.05, patient=5, pause=0)


class Source:
    """Answers with how often it was asked; may be told to fail or to hang."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failure: Exception | None = None
        self.flows = threading.Event()
        self.flows.set()

    def ask(self, name: str) -> str:
        self.asked.append(name)
        assert self.flows.wait(20)
        if self.failure is not None:
            raise self.failure
        return f"{name}{len(self.asked)}"


@pytest.fixture
def source() -> Iterator[Source]:
    source = Source()
    yield source
    source.flows.set()


@contextmanager
def remembering(source: Source, *, most: int = 10, **changes: float) -> Iterator[Callable[..., str]]:
    remembered = Remembered("things", source.ask, replace(PATIENCE, **changes), most=most, workers=2)
    try:
        yield remembered.get
    finally:
        remembered.close()


def test_a_fresh_answer_is_not_asked_for_again(source: Source) -> None:
    with remembering(source) as get:
        assert [get("a"), get("a"), get("b"), get("a")] == ["a1", "a1", "b2", "a1"]


def test_an_answer_that_is_not_fresh_is_asked_for_again(source: Source) -> None:
    with remembering(source, fresh=0, impatient=5) as get:
        assert [get("a"), get("a")] == ["a1", "a2"]


def test_many_who_want_the_same_ask_once(source: Source) -> None:
    source.flows.clear()
    with remembering(source) as get, ThreadPoolExecutor(20) as callers:
        answers = [callers.submit(get, "a") for _ in range(20)]
        time.sleep(0.1)
        source.flows.set()
        assert {answer.result(10) for answer in answers} == {"a1"}
    assert source.asked == ["a"]


@pytest.mark.parametrize("failure", [errors.Unavailable("away"), RuntimeError("a bug")])
def test_while_the_source_fails_the_old_answer_is_given(source: Source, failure: Exception) -> None:
    with remembering(source, fresh=0, impatient=5) as get:
        assert get("a") == "a1"
        source.failure = failure
        assert get("a") == "a1"
        with pytest.raises(type(failure)):
            get("b")
        source.failure = None
        assert get("a") == "a4"


def test_an_old_answer_is_given_for_so_long_and_no_longer(source: Source) -> None:
    with remembering(source, fresh=0, stale=0.3, impatient=5) as get:
        assert get("a") == "a1"
        source.failure = errors.Unavailable("away")
        assert get("a") == "a1"
        time.sleep(0.3)
        with pytest.raises(errors.Unavailable, match="away"):
            get("a")


def test_a_source_that_hangs_delays_those_who_have_an_old_answer_once_and_shortly(source: Source) -> None:
    with remembering(source, fresh=0) as get:
        get("a")
        source.flows.clear()
        began = time.monotonic()
        assert [get("a") for _ in range(50)] == ["a1"] * 50
        assert time.monotonic() - began < 1
        assert source.asked == ["a", "a"]


def test_a_source_that_hangs_is_not_waited_for_without_end(source: Source) -> None:
    source.flows.clear()
    with remembering(source, patient=0.1) as get, pytest.raises(errors.Unavailable, match=r"things: no answer within"):
        get("a")


def test_after_a_failure_nothing_is_asked_for_a_while(source: Source) -> None:
    source.failure = errors.Unavailable("away")
    with remembering(source, pause=0.4) as get:
        for name in "abc":
            with pytest.raises(errors.Unavailable, match="away"):
                get(name)
        assert source.asked == ["a"]
        source.failure = None
        time.sleep(0.4)
        assert get("a") == "a2"


def test_an_answer_may_be_wanted_younger_than_usual(source: Source) -> None:
    with remembering(source) as get:
        assert get("a") == "a1"
        assert get("a", 60) == "a1"
        assert get("a", 0) == "a2"
        source.failure = errors.Unavailable("away")
        assert get("a") == "a2"
        with pytest.raises(errors.Unavailable, match="away"):
            get("a", 0)


def test_no_more_are_kept_than_was_said_and_those_not_wanted_go_first(source: Source) -> None:
    with remembering(source, most=2) as get:
        assert [get("a"), get("b"), get("a"), get("c"), get("a")] == ["a1", "b2", "a1", "c3", "a1"]
        assert get("b") == "b4"


def test_there_is_a_bound_to_what_is_asked_at_once(source: Source) -> None:
    source.flows.clear()
    with remembering(source, patient=0) as get:
        complaints = []
        for number in range(400):
            with pytest.raises(errors.Unavailable) as raised:
                get(str(number))
            complaints.append(raised.value.message)
        assert complaints[0] == "things: no answer within 0 s"
        assert complaints[-1] == "things: too many questions at once"


def test_once_closed_it_gives_what_it_has_and_asks_nothing_more(source: Source) -> None:
    remembered = Remembered("things", source.ask, replace(PATIENCE, fresh=0))
    assert remembered.get("a") == "a1"
    remembered.close()
    assert remembered.get("a") == "a1"
    with pytest.raises(errors.Unavailable, match="things: closed"):
        remembered.get("b")
    assert source.asked == ["a"]
