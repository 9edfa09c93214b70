"""How deep the queues are, on the embedded broker and on a real RabbitMQ."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import servers
from contract.broker_process import connect
from contract.broker_site import Site, eventually, take
from contract.tcp_proxy import TcpProxy

from ordersys.broker.broker import Broker, Depth
from ordersys.core import errors
from ordersys.core.topology import Queue, Topology


@pytest.fixture(scope="module")
def vhost_url() -> Iterator[str]:
    with servers.vhost() as url:
        yield url


@pytest.fixture(params=["sqlite", "rabbitmq"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    url = f"sqlite:///{tmp_path / 'broker.db'}" if request.param == "sqlite" else request.getfixturevalue("vhost_url")
    site = Site(url)
    yield site
    site.close()


def test_a_queue_is_as_deep_as_what_waits_rests_and_died(site: Site) -> None:
    queue = site.queue(waits=(60.0, 600.0))
    site.publish(queue, *(str(number) for number in range(7)))
    consumer = site.subscribe(queue, prefetch=4)
    first, second, third, _held = take(consumer, 4)
    assert consumer.retry(first, "later")
    assert consumer.retry(second, "later")
    consumer.dead_letter(third, "never")
    # Room in the prefetch is filled on RabbitMQ without being asked: three more are held, or taken here.
    take(consumer, 3)
    broker = site.broker()

    assert eventually(lambda: broker.depths([queue]) == {queue.name: Depth(0, 2, 1)}), broker.depths([queue])
    consumer.close()
    assert eventually(lambda: broker.depths([queue]) == {queue.name: Depth(4, 2, 1)}), broker.depths([queue])


def test_the_second_wait_counts_too(site: Site) -> None:
    queue = site.queue(waits=(0.0, 600.0))
    site.publish(queue, "1")
    consumer = site.subscribe(queue)
    for _ in range(2):
        [delivery] = take(consumer, 1)
        assert consumer.retry(delivery, "later")
    broker = site.broker()

    assert eventually(lambda: broker.depths([queue]) == {queue.name: Depth(0, 1, 0)}), broker.depths([queue])


def test_what_has_rested_long_enough_is_ready_with_nobody_there_to_take_it(site: Site) -> None:
    queue = site.queue(waits=(0.5,))
    site.publish(queue, "1")
    consumer = site.subscribe(queue)
    [delivery] = take(consumer, 1)
    assert consumer.retry(delivery, "soon")
    consumer.close()
    broker = site.broker()

    assert eventually(lambda: broker.depths([queue]) == {queue.name: Depth(1, 0, 0)}), broker.depths([queue])


def test_a_queue_that_does_not_exist_holds_nothing_and_hides_no_other(site: Site) -> None:
    there, missing = site.queue(), Queue(site.name("missing"), ())
    site.publish(there, "1", "2")
    broker = site.broker()
    expected = {missing.name: Depth(0, 0, 0), there.name: Depth(2, 0, 0)}

    assert eventually(lambda: broker.depths([missing, there]) == expected), broker.depths([missing, there])
    assert broker.depths([there, missing]) == expected
    site.broker().declare(Topology((), (missing,)))
    site.publish(missing, "3")
    assert eventually(lambda: broker.depths([missing])[missing.name].ready == 1)


def test_of_no_queue_it_says_that_it_answers(site: Site) -> None:
    broker = site.broker()
    site.publish(site.queue(), "1")
    assert [broker.depths(()) for _ in range(3)] == [{}] * 3


def test_nothing_is_taken_or_made_by_looking(site: Site) -> None:
    queue = site.queue()
    site.publish(queue, "1", "2", "3")
    broker = site.broker()
    for _ in range(5):
        broker.depths([queue])

    assert [each.redelivered for each in take(site.subscribe(queue), 3)] == [False] * 3


def test_several_threads_may_ask_at_once(site: Site) -> None:
    queue = site.queue()
    site.publish(queue, "1")
    broker = site.broker()
    assert eventually(lambda: broker.depths([queue])[queue.name].ready == 1)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: broker.depths([queue], timeout=20), range(40)))

    assert answers == [{queue.name: Depth(1, 0, 0)}] * 40


def test_a_broker_that_was_closed_says_so(site: Site) -> None:
    queue = site.queue()
    broker = site.broker()
    broker.depths([queue])
    broker.close()
    if not site.is_sqlite:  # the file is opened anew
        with pytest.raises(errors.Unavailable):
            broker.depths([queue])
    broker.close()


def test_a_rabbitmq_that_does_not_answer_is_unavailable_in_time_and_counted_again_when_it_does(vhost_url: str) -> None:
    site = Site(vhost_url)
    queue = site.queue()
    site.publish(queue, "1")
    server = urlsplit(vhost_url)
    with TcpProxy(str(server.hostname), server.port or 5672) as proxy:
        broker = connect(vhost_url.replace(f"@{server.hostname}:{server.port}", f"@127.0.0.1:{proxy.port}"))
        try:
            assert eventually(lambda: broker.depths([queue])[queue.name].ready == 1)
            proxy.fall_silent()
            began = time.monotonic()
            with pytest.raises(errors.Unavailable, match=r"not counted within 0\.5 s"):
                broker.depths([queue], timeout=0.5)
            with pytest.raises(errors.Unavailable):
                broker.depths((), timeout=0.5)
            assert time.monotonic() - began < 5
            proxy.flow()
            assert broker.depths([queue], timeout=20)[queue.name].ready == 1
            proxy.cut()
            assert eventually(lambda: answered(broker, queue) == 1)
        finally:
            broker.close()
            site.close()


def answered(broker: Broker, queue: Queue) -> int:
    """How many are ready, -1 when the broker does not say."""
    try:
        return broker.depths([queue])[queue.name].ready
    except errors.Unavailable:
        return -1


def test_an_embedded_file_that_cannot_be_read_is_unavailable(tmp_path: Path) -> None:
    folder = tmp_path / "a file where a folder should be"
    folder.write_text("")
    broker = connect(f"sqlite:///{folder / 'broker.db'}")

    for queues in ([Queue("q", ())], []):
        with pytest.raises(errors.Unavailable):
            broker.depths(queues)
    broker.close()
