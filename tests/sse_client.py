"""An EventSource in Python: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream"""

import http.client
import json
import socket
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Self

PATH = "/api/v1/events"


@dataclass(frozen=True)
class Received:
    """One event as it was dispatched."""

    id: str
    type: str
    data: str

    @property
    def sequence(self) -> int:
        return int(self.id)

    @property
    def document(self) -> Any:
        return json.loads(self.data)


class Refused(Exception):
    """The answer was no stream."""

    def __init__(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        super().__init__(status, body)
        self.status = status
        self.headers = headers
        self.problem = json.loads(body)


class EventStream:
    """One connection, read by a thread of its own; `events` and `comments` grow until `ended`."""

    def __init__(self, address: str, query: str = "", last_event_id: str = "", **headers: str) -> None:
        """Raises Refused, or OSError when nobody is there; returns when the first byte is here."""
        self.events: list[Received] = []
        self.comments: list[str] = []
        self.last_event_id = last_event_id
        self.retry = 0
        self._connection = http.client.HTTPConnection(address, timeout=60)
        sent = {**headers, **({"Last-Event-ID": last_event_id} if last_event_id else {})}
        self._connection.request("GET", PATH + query, headers=sent)
        self._socket = self._connection.sock
        self.response = self._connection.getresponse()
        if self.response.status != 200:
            with closing(self._connection):
                raise Refused(self.response.status, self.response.headers, self.response.read())
        self._first = self.response.readline()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    @property
    def sequences(self) -> list[int]:
        return [event.sequence for event in self.events]

    def close(self) -> None:
        """Leave, as a client that closes its page does."""
        with suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        assert self.ended
        self.response.close()
        self._connection.close()

    def _read(self) -> None:
        kind, data, identity = "", [], self.last_event_id
        line = self._first
        try:
            while line:
                text = line.decode().rstrip("\n")
                name, _, value = text.partition(": ")
                if not text:
                    self.last_event_id = identity
                    if data:
                        self.events.append(Received(identity, kind, "\n".join(data)))
                    kind, data = "", []
                elif text.startswith(":"):
                    self.comments.append(text)
                elif name == "id":
                    identity = value
                elif name == "event":
                    kind = value
                elif name == "data":
                    data.append(value)
                elif name == "retry":
                    self.retry = int(value)
                line = self.response.readline()
        except (OSError, http.client.HTTPException):
            return  # the connection broke
