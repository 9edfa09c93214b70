"""What a gateway holds of the event stream, without sockets."""

import random
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pytest
from api_fakes import FakeChannel, an_order

from ordersys.api.feed import Feed
from ordersys.api.metrics import Metrics
from ordersys.api.tap import Item, Limits, Log, Ring, Wanted, item
from ordersys.core import errors, events, pages
from ordersys.core.events import Change, Event
from ordersys.core.v1 import order_pb2


def an_event(sequence: int, customer_id: str = "c-1", change: Change = Change.CREATED) -> Event:
    order = an_order(sequence, customer_id)
    return Event(id=f"event-{sequence}", sequence=sequence, change=change, time=order.updated_at, order=order)


def an_item(sequence: int, size: int = 10) -> Item:
    return Item(sequence, "order", "c-1", events.CREATED, b"x" * size)


class Events:
    """An event log with these sequences; `asked` counts the calls."""

    def __init__(self, sequences: Sequence[int]) -> None:
        self.sequences = list(sequences)
        self.asked = 0
        self.failure: Exception | None = None

    async def ListEvents(self, request: Any, context: Any) -> order_pb2.ListEventsResponse:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        position = pages.position(request.page_token, (int,))
        after = int(position[0]) if position else 0
        found = [each for each in self.sequences if each > after]
        logged = [order_pb2.LoggedEvent(event=events.to_proto(an_event(each))) for each in found[: request.page_size]]
        more = len(found) > request.page_size
        token = pages.token(logged[-1].event.sequence) if more else ""
        return order_pb2.ListEventsResponse(events=logged, next_page_token=token)


class UnwatchedChannel(FakeChannel):
    """Lists events and cannot be watched: a tap on it only tries."""

    def stream(self, method: Any, request: Any) -> Generator[Any, None, None]:
        raise errors.Unavailable("nobody may watch")


# --- one event ------------------------------------------------------------------------------------------------------


def test_an_event_is_sent_as_it_is_on_the_broker() -> None:
    event = an_event(42, customer_id="Ünïque\u2028 \\n 東京", change=Change.SHIPPED)
    body = events.encode(event)
    assert events.to_json(events.decode(body)) == events.to_json(event)  # what order-service reads before it sends
    sent = item(events.to_proto(event))
    assert sent.text == f"id: 42\nevent: ordersys.order.updated.v1\ndata: {body}\n\n".encode()
    assert sent[:4] == (42, event.order.id, event.order.customer_id, events.UPDATED)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (Wanted(), True),
        (Wanted(order_id="order", customer_id="c-1", type=events.CREATED), True),
        (Wanted(order_id="other"), False),
        (Wanted(customer_id="c"), False),
        (Wanted(type=events.UPDATED), False),
        (Wanted(order_id="order", customer_id="c-2"), False),
    ],
)
def test_a_filter_is_of_what_is_asked_for_alone(wanted: Wanted, fits: bool) -> None:
    assert an_item(1).fits(wanted) is fits


# --- the newest events in memory ------------------------------------------------------------------------------------


def test_a_ring_holds_the_newest_and_says_from_where_on() -> None:
    ring = Ring(100, 50)
    assert (ring.floor, ring.last, ring.after(100, 10)) == (100, 100, [])
    for sequence in range(101, 2000, 2):  # with gaps
        ring.add(an_item(sequence))
    kept = list(range(1991, 2000, 2))
    assert (ring.floor, ring.last) == (1989, 1999)
    assert [each.sequence for each in ring.after(ring.floor, 100)] == kept
    assert [each.sequence for each in ring.after(1994, 2)] == [1995, 1997]
    assert ring.after(1999, 10) == ring.after(5000, 10) == []
    assert len(ring._items) <= 2 * len(kept) + 2  # what is forgotten is let go


def test_one_event_larger_than_the_whole_ring_is_passed_over() -> None:
    ring = Ring(0, 50)
    ring.add(an_item(1, size=51))
    assert (ring.floor, ring.last, ring.after(0, 10)) == (1, 1, [])


def test_a_ring_agrees_with_a_plain_list() -> None:
    dice = random.Random(7)  # noqa: S311 - the same walk every time
    ring, everything, last = Ring(0, 500), [], 0
    for _ in range(3000):
        last += dice.randint(1, 3)
        everything.append(an_item(last, dice.randint(1, 60)))
        ring.add(everything[-1])
        position = dice.randint(ring.floor, last + 2)
        most = dice.randint(1, 20)
        assert ring.after(position, most) == [each for each in everything if each.sequence > position][:most]
        assert sum(len(each.text) for each in ring.after(ring.floor, 1000)) <= 500


# --- the event log --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sequences",
    [
        [],
        [1],
        range(1, 100),
        range(1, 101),
        range(1, 102),
        range(1, 20_000),
        range(777, 5000),
        [1, 10**6],
        [*range(1, 200), *range(50_000, 50_150)],
        [5, 7, *range(10**9, 10**9 + 500)],
    ],
    ids=lambda sequences: f"{len(sequences)}-{max(sequences, default=0)}",
)
@pytest.mark.parametrize("known", [0, 1, 60])
def test_the_newest_event_is_found_in_few_calls(sequences: Sequence[int], known: int) -> None:
    log = Events(sequences)
    assert Log(FakeChannel(log), 5.0).newest(known) == max(known, max(sequences, default=0))
    assert log.asked < 50


def test_the_search_ends_while_events_come_in() -> None:
    class Growing(Events):
        async def ListEvents(self, request: Any, context: Any) -> order_pb2.ListEventsResponse:
            answer = await super().ListEvents(request, context)
            self.sequences += range(len(self.sequences) + 1, len(self.sequences) + 150)
            return answer

    log = Growing(range(1, 3000))
    found = Log(FakeChannel(log), 5.0).newest(0)
    assert 2999 <= found <= log.sequences[-1]
    assert log.asked < 50


# --- giving out streams ---------------------------------------------------------------------------------------------


@pytest.fixture
def log() -> Events:
    return Events(range(1, 11))


@pytest.fixture
def feed(log: Events) -> Iterator[Feed]:
    feed = Feed(UnwatchedChannel(log), max_streams=2, metrics=Metrics(), limits=Limits(pace=0, linger=60))
    yield feed
    feed.close()


def test_what_cannot_be_opened_takes_no_slot(feed: Feed, log: Events) -> None:
    log.failure = errors.Unavailable("away")
    for _ in range(5):
        with pytest.raises(errors.Unavailable, match="away"):
            feed.open(None, Wanted())
    assert feed.streams == 0


def test_there_are_only_so_many(feed: Feed) -> None:
    first, second = feed.open(0, Wanted()), feed.open(None, Wanted())
    with pytest.raises(errors.Unavailable, match="all 2 event streams are taken") as refused:
        feed.open(None, Wanted())
    assert refused.value.retry_after == 5
    first.close()
    first.close()  # a slot is given back once
    assert feed.streams == 1
    feed.open(None, Wanted()).close()
    second.close()
    assert feed.streams == 0


def test_a_closed_feed_opens_nothing(feed: Feed) -> None:
    feed.close()
    with pytest.raises(errors.Unavailable, match="stopping"):
        feed.open(0, Wanted())
    assert feed.streams == 0
