"""The batcher: each caller gets its own result, whatever becomes of its neighbours, and nobody is forgotten."""

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ordersys.core import errors
from ordersys.core.batch import Batcher, Entry
from ordersys.core.watch.measured import BatchMetrics
from ordersys.core.watch.metrics import Registry

Number = Entry[int, int]
T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run with a bound: a lost wakeup is a failure, not a hang."""

    async def bounded() -> T:
        async with asyncio.timeout(20):
            return await main

    return asyncio.run(bounded())


class Work:
    """Doubles each number; writes down its batches, and waits at a gate when there is one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate: asyncio.Event | None = None
        self.running = 0
        self.most_running = 0
        self.fails: Callable[[Sequence[Number]], BaseException | None] = lambda _: None

    async def __call__(self, entries: Sequence[Number]) -> None:
        self.batches.append([entry.item for entry in entries])
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if error := self.fails(entries):
                raise error
        finally:
            self.running -= 1
        for entry in entries:
            entry.resolve(entry.item * 2)


async def turns(number: int = 5) -> None:
    """A few turns of the event loop, and no time."""
    for _ in range(number):
        await asyncio.sleep(0)


async def held(batcher: Batcher[int, int], work: Work, *items: int) -> list["asyncio.Task[int]"]:
    """One batch, made of these items, that waits at the gate."""
    work.gate = work.gate or asyncio.Event()
    tasks = [asyncio.create_task(batcher.submit(item)) for item in items]
    await turns()
    assert work.batches[-1] == list(items)
    return tasks


def test_a_lone_item_leaves_at_once_and_needs_no_timer() -> None:
    async def main() -> None:
        work = Work()
        submitted = asyncio.create_task(Batcher("test", work).submit(21))
        await turns(3)
        assert work.batches == [[21]]
        assert await submitted == 42

    run(main())


def test_what_arrives_while_a_batch_is_at_work_forms_the_next_one_in_order() -> None:
    async def main() -> None:
        work = Work()
        batcher = Batcher("test", work)
        first = await held(batcher, work, 1)
        later = [asyncio.create_task(batcher.submit(item)) for item in (2, 3, 4)]
        await turns()
        assert work.batches == [[1]]
        assert work.gate is not None
        work.gate.set()
        assert await asyncio.gather(*first, *later) == [2, 4, 6, 8]
        assert work.batches == [[1], [2, 3, 4]]

    run(main())


def test_no_batch_is_larger_than_allowed_and_the_rest_follows_in_order() -> None:
    async def main() -> None:
        work = Work()
        assert await Batcher("test", work, max_batch=3).submit_all(range(8)) == [0, 2, 4, 6, 8, 10, 12, 14]
        assert work.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]

    run(main())


def test_never_more_batches_run_at_a_time_than_allowed_and_all_of_those_do() -> None:
    async def main() -> None:
        work = Work()
        work.gate = asyncio.Event()
        batcher = Batcher("test", work, max_batch=1, in_flight=3)
        submitted = asyncio.create_task(batcher.submit_all(range(7)))
        await turns(10)
        assert work.batches == [[0], [1], [2]]
        work.gate.set()
        assert await submitted == [item * 2 for item in range(7)]
        assert work.most_running == 3

    run(main())


def test_nothing_submitted_is_nothing_done() -> None:
    async def main() -> None:
        work = Work()
        assert await Batcher("test", work).submit_all([]) == []
        assert work.batches == []

    run(main())


def test_an_item_whose_caller_left_before_its_batch_began_is_not_started() -> None:
    async def main() -> None:
        work = Work()
        batcher = Batcher("test", work)
        first = await held(batcher, work, 1)
        leaves, stays = (asyncio.create_task(batcher.submit(item)) for item in (2, 3))
        await turns()
        leaves.cancel()
        assert work.gate is not None
        work.gate.set()
        assert await asyncio.gather(*first, stays) == [2, 6]
        assert work.batches == [[1], [3]]
        assert leaves.cancelled()

    run(main())


def test_a_caller_who_leaves_during_its_batch_disturbs_nobody_and_its_item_is_finished() -> None:
    async def main() -> None:
        work = Work()
        batcher = Batcher("test", work)
        one, leaves, three = await held(batcher, work, 1, 2, 3)
        leaves.cancel()
        await turns()
        assert leaves.cancelled()
        assert work.gate is not None
        work.gate.set()
        assert await asyncio.gather(one, three) == [2, 6]
        assert work.batches == [[1, 2, 3]]
        assert await batcher.submit(4) == 8

    run(main())


def test_a_poisoned_item_is_alone_with_its_error() -> None:
    async def main() -> None:
        work = Work()
        work.fails = lambda entries: ZeroDivisionError("poison") if 3 in [entry.item for entry in entries] else None
        results = await Batcher("test", work).submit_all([1, 2, 3, 4])
        assert results[:2] == [2, 4]
        assert isinstance(results[2], ZeroDivisionError)
        assert results[3] == 8
        assert work.batches == [[1, 2, 3, 4], [1], [2], [3], [4]]

    run(main())


def test_what_was_resolved_before_the_poison_is_not_done_again() -> None:
    async def main() -> None:
        started: list[list[int]] = []

        async def work(entries: Sequence[Number]) -> None:
            started.append([entry.item for entry in entries])
            for entry in entries:
                if entry.item == 3:
                    raise ZeroDivisionError
                entry.resolve(entry.item)

        results = await Batcher("test", work).submit_all([1, 2, 3, 4])
        assert [type(each) for each in results] == [int, int, ZeroDivisionError, int]
        assert started == [[1, 2, 3, 4], [3], [4]]

    run(main())


def test_unavailable_fails_all_at_once_and_is_not_tried_one_by_one() -> None:
    async def main() -> None:
        work = Work()
        work.fails = lambda _: errors.Unavailable("the database is away")
        batcher = Batcher("test", work)
        results = await batcher.submit_all([1, 2, 3])
        assert [str(each) for each in results] == ["the database is away"] * 3
        assert work.batches == [[1, 2, 3]]
        work.fails = lambda _: None
        assert await batcher.submit(5) == 10

    run(main())


def test_an_item_may_be_resolved_after_its_work_has_returned() -> None:
    async def main() -> None:
        kept: list[Number] = []

        async def work(entries: Sequence[Number]) -> None:
            kept.extend(entries)

        submitted = asyncio.create_task(Batcher("test", work).submit(1))
        await turns()
        assert not submitted.done()
        kept[0].resolve(99)
        kept[0].fail(ZeroDivisionError())  # too late: it has its result
        assert await submitted == 99

    run(main())


def test_work_that_is_cancelled_leaves_nobody_waiting() -> None:
    async def main() -> None:
        async def work(entries: Sequence[Number]) -> None:
            if entries[0].item == 1:
                raise asyncio.CancelledError

            entries[0].resolve(7)

        batcher = Batcher("test", work, max_batch=2)
        results = await batcher.submit_all([1, 2, 3])
        assert [str(each) for each in results] == ["test was stopped", "test was stopped", "7"]
        assert isinstance(results[0], errors.Unavailable)

    run(main())


def test_what_is_put_back_comes_first_and_in_its_order() -> None:
    async def main() -> None:
        batches: list[list[int]] = []
        gate = asyncio.Event()

        async def work(entries: Sequence[Number]) -> None:
            batches.append([entry.item for entry in entries])
            if len(batches) == 1:
                await gate.wait()
                batcher.requeue(entries[1:])
                entries[0].resolve(0)
            else:
                for entry in entries:
                    entry.resolve(entry.item)

        batcher: Batcher[int, int] = Batcher("test", work, max_batch=3)
        first = asyncio.create_task(batcher.submit_all([1, 2, 3]))
        await turns()
        second = asyncio.create_task(batcher.submit_all([4, 5]))
        await turns()
        gate.set()
        assert await first == [0, 2, 3]
        assert await second == [4, 5]
        assert batches == [[1, 2, 3], [2, 3, 4], [5]]

    run(main())


def test_what_is_put_back_into_an_idle_batcher_is_started() -> None:
    async def main() -> None:
        kept: list[Number] = []

        async def work(entries: Sequence[Number]) -> None:
            if not kept:
                kept.extend(entries)
            else:
                for entry in entries:
                    entry.resolve(entry.item)

        batcher: Batcher[int, int] = Batcher("test", work)
        submitted = asyncio.create_task(batcher.submit(1))
        await turns()
        assert not batcher.busy
        batcher.requeue(kept)
        assert await submitted == 1

    run(main())


def test_too_many_waiting_is_refused_at_once_and_forgotten_when_they_are_done() -> None:
    async def main() -> None:
        work = Work()
        batcher = Batcher("test", work, max_batch=1, max_waiting=2)
        first = await held(batcher, work, 1)
        waiting = [asyncio.create_task(batcher.submit(item)) for item in (2, 3)]
        await turns()
        with pytest.raises(errors.Unavailable, match="test is overloaded: 2 requests are waiting"):
            await batcher.submit(4)
        with pytest.raises(errors.Unavailable):
            await batcher.submit_all([5])
        follow_up = batcher.enqueue(6)  # belongs to what was accepted: never refused
        assert work.gate is not None
        work.gate.set()
        assert await asyncio.gather(*first, *waiting, follow_up) == [2, 4, 6, 12]
        assert await batcher.submit(7) == 14

    run(main())


def test_draining_refuses_what_is_new_and_waits_for_what_was_taken() -> None:
    async def main() -> None:
        work = Work()
        batcher = Batcher("test", work, max_batch=1)
        first = await held(batcher, work, 1)
        second = asyncio.create_task(batcher.submit(2))
        await turns()
        draining = asyncio.create_task(batcher.drain())
        await turns()
        with pytest.raises(errors.Unavailable, match="test is shutting down"):
            await batcher.submit(3)
        assert not draining.done()
        assert work.gate is not None
        work.gate.set()
        await draining
        assert [task.done() for task in (*first, second)] == [True, True]
        assert work.batches == [[1], [2]]
        await batcher.drain()  # again, and at once

    run(main())


def test_an_error_whose_caller_has_left_is_not_complained_about(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        work = Work()
        work.fails = lambda _: errors.Unavailable("away")
        batcher = Batcher("test", work)
        (task,) = await held(batcher, work, 1)
        task.cancel()
        whole = asyncio.create_task(batcher.submit_all([2, 3]))
        await turns()
        whole.cancel()
        assert work.gate is not None
        work.gate.set()
        await batcher.drain()
        gc.collect()

    with caplog.at_level(logging.DEBUG):
        run(main())
        gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_fault_of_the_work_is_logged_with_its_traceback_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        work = Work()
        work.fails = lambda entries: ZeroDivisionError() if 2 in [entry.item for entry in entries] else None
        await Batcher("writer", work).submit_all([1, 2])

    run(main())
    assert [(record.getMessage(), bool(record.exc_info)) for record in caplog.records] == [
        ("writer failed a batch of 2, running it one by one: ZeroDivisionError()", False),
        ("writer failed one entry", True),
    ]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 6)),
        st.tuples(st.just("turns"), st.integers(1, 4)),
        st.tuples(st.just("leave"), st.integers(0, 50)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(
    steps=STEPS,
    max_batch=st.integers(1, 4),
    in_flight=st.integers(1, 3),
    poison=st.sets(st.integers(0, 60), max_size=5),
    away=st.sets(st.integers(0, 60), max_size=3),
    later=st.sets(st.integers(0, 60), max_size=8),
    pauses=st.lists(st.integers(0, 5), min_size=1, max_size=10),
)
def test_nobody_is_forgotten_started_twice_or_given_another_ones_result(
    steps: list[tuple[str, int]],
    max_batch: int,
    in_flight: int,
    poison: set[int],
    away: set[int],
    later: set[int],
    pauses: list[int],
) -> None:
    """Any schedule of arrivals, departures, faults and things put back: everybody is answered, and rightly."""

    async def main() -> None:
        begun: Counter[int] = Counter()
        put_back: set[int] = set()
        left_before_begin: set[int] = set()
        running = 0
        batch_number = 0

        async def work(entries: Sequence[Number]) -> None:
            nonlocal running, batch_number
            running += 1
            batch_number += 1
            try:
                assert 1 <= len(entries) <= max_batch
                assert running <= in_flight
                assert not any(entry.done for entry in entries)
                begun.update(entry.item for entry in entries)
                await turns(pauses[batch_number % len(pauses)])
                items = {entry.item for entry in entries}
                if items & away:
                    raise errors.Unavailable("away")
                if items & poison:
                    raise ZeroDivisionError
                back = [entry for entry in entries if entry.item in later and entry.item not in put_back]
                put_back.update(entry.item for entry in back)
                batcher.requeue(back)
                for entry in entries:
                    if entry not in back:
                        entry.resolve(-entry.item)
            finally:
                running -= 1

        batcher: Batcher[int, int] = Batcher("test", work, max_batch=max_batch, in_flight=in_flight)
        callers: list[asyncio.Task[int]] = []
        for step, number in steps:
            if step == "submit":
                callers += [asyncio.create_task(batcher.submit(len(callers) + each)) for each in range(number)]
            elif step == "turns":
                await turns(number)
            elif callers:
                leaver = number % len(callers)
                if begun[leaver] == 0 and not callers[leaver].done():
                    left_before_begin.add(leaver)
                callers[leaver].cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        await batcher.drain()

        assert not batcher.busy
        for item, result in enumerate(results):
            if item in left_before_begin:
                assert begun[item] == 0
            if isinstance(result, int):
                assert result == -item
                assert item not in poison | away
            elif isinstance(result, ZeroDivisionError):
                assert item in poison
            else:
                assert isinstance(result, errors.Unavailable | asyncio.CancelledError)
            # Once for itself, once in a batch that failed, and both again when it was put back.
            assert begun[item] <= (4 if item in later else 2)

    logging.disable(logging.CRITICAL)
    try:
        run(main())
    finally:
        logging.disable(logging.NOTSET)


def test_an_idle_batcher_is_drained_at_once() -> None:
    async def main() -> None:
        work = Work()
        batcher = Batcher("test", work)
        assert not batcher.busy
        await batcher.drain()
        assert work.batches == []

    run(main())


# --- what is measured -------------------------------------------------------------------------------------------


def measured(registry: Registry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"ordersys_batch_{name}", {"batcher": "b", **labels})


def test_batches_are_counted_and_timed_and_who_waits_is_shown() -> None:
    async def main() -> None:
        registry, work = Registry(), Work()
        work.gate = asyncio.Event()
        batcher = Batcher[int, int]("b", work, max_batch=3, observer=BatchMetrics(registry, "b"))
        first = asyncio.create_task(batcher.submit(1))
        await turns()
        others = [asyncio.create_task(batcher.submit(number)) for number in range(2, 6)]
        await turns()
        assert (measured(registry, "waiting"), measured(registry, "size_count")) == (4, 1)
        await asyncio.sleep(0.06)
        work.gate.set()
        await asyncio.gather(first, *others)
        await turns()
        assert [len(each) for each in work.batches] == [1, 3, 1]
        assert (measured(registry, "size_count"), measured(registry, "size_sum")) == (3, 5)
        assert (measured(registry, "size_bucket", le="2.0"), measured(registry, "size_bucket", le="4.0")) == (2, 3)
        assert (measured(registry, "wait_seconds_count"), measured(registry, "waiting")) == (5, 0)
        assert (measured(registry, "wait_seconds_sum") or 0) > 4 * 0.05  # four waited for the gate
        assert measured(registry, "duration_seconds_count") == 3
        assert (measured(registry, "duration_seconds_sum") or 0) > 0.05

    run(main())


def test_a_batch_that_fails_is_measured_and_what_is_put_back_waits_anew() -> None:
    async def main() -> None:
        registry = Registry()
        since: list[float] = []

        async def work(entries: Sequence[Number]) -> None:
            for entry in entries:
                since.append(entry.since)
                if len(since) == 1:
                    await asyncio.sleep(0.06)
                    batcher.requeue([entry])
                elif entry.item == 2:
                    raise errors.Unavailable("no")
                else:
                    entry.resolve(entry.item)

        batcher = Batcher[int, int]("b", work, observer=BatchMetrics(registry, "b"))
        assert await batcher.submit(1) == 1
        with pytest.raises(errors.Unavailable):
            await batcher.submit(2)
        await turns()
        assert measured(registry, "duration_seconds_count") == 3
        assert since[1] > since[0] + 0.05

    run(main())
