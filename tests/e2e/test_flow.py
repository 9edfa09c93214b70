"""How far the events are on their way, as the gateway tells it: through the outbox, into the queues, and out."""

import http.client
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from contract.tcp_proxy import TcpProxy
from e2e import processes
from e2e.processes import Backend, until

EMPTY = {"ready": 0, "retrying": 0, "dead": 0}


def flow(backend: Backend) -> Any:
    connection = http.client.HTTPConnection(backend.api_address, timeout=20)
    try:
        connection.request("GET", "/api/v1/flow")
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        return json.loads(content)
    finally:
        connection.close()


def queues(backend: Backend) -> dict[str, dict[str, int]]:
    return {queue.pop("name"): queue for queue in flow(backend)["queues"]}


def test_what_waits_for_a_notifier_is_counted_until_it_comes(backend: Backend) -> None:
    backend.start_all("serve-order", "serve-product", "api")
    before = flow(backend)
    assert before["outbox"] == {"depth": 0, "oldest_seconds": 0}
    assert before["queues"] == [{"name": name, **EMPTY} for name in ("notify.fanout", "notify.topic")]
    assert before["broker"] == "ok"

    for _ in range(3):
        order = backend.place("1:1")
    backend.client("cancel-order", order["id"])
    expected = {"notify.fanout": {**EMPTY, "ready": 3}, "notify.topic": {**EMPTY, "ready": 4}}
    until(lambda: queues(backend) == expected, f"the queues hold {expected}")
    assert flow(backend)["outbox"]["depth"] == 0

    backend.start_all("notify --mode topic")
    until(lambda: queues(backend)["notify.topic"] == EMPTY, "the notifier has taken everything")
    assert queues(backend)["notify.fanout"]["ready"] == 3


def test_with_the_broker_away_the_outbox_is_counted_and_the_answer_comes_in_time(tmp_path: Path) -> None:
    with processes.engine("servers") as settings:
        url = settings["ORDERSYS_BROKER_URL"]
        server = urlsplit(url)
        with TcpProxy(str(server.hostname), server.port or 5672) as proxy:
            through = url.replace(f"@{server.hostname}:{server.port}", f"@127.0.0.1:{proxy.port}")
            with Backend(tmp_path, {**settings, "ORDERSYS_BROKER_URL": through}) as backend:
                backend.start_all("serve-order", "serve-product", "api")
                backend.place("1:1")
                until(lambda: queues(backend)["notify.topic"]["ready"] == 1, "the first event is in its queue")
                for away in (proxy.refuse, proxy.fall_silent):
                    away()
                    backend.place("1:1")
                    began = time.monotonic()
                    until(lambda: flow(backend)["broker"] != "ok", "the broker is missed")
                    found = flow(backend)
                    assert time.monotonic() - began < 15
                    assert found["queues"] == []
                    assert found["outbox"]["depth"] == 1
                    assert 0 < found["outbox"]["oldest_seconds"] < 60
                    assert found["broker"] == "the broker does not answer"
                    proxy.flow()
                    until(lambda: flow(backend)["outbox"]["depth"] == 0, "the outbox is empty", 60)
                    until(lambda: flow(backend)["broker"] == "ok", "the broker answers again", 60)
                assert queues(backend)["notify.topic"]["ready"] == 3
