"""The last known data, for reads while their service is away."""

import functools
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from flask import Response, make_response, request
from pydantic import BaseModel, Field

from ordersys.api import metrics, request_log
from ordersys.api.request_log import Failure
from ordersys.api.upstream import Upstream, within
from ordersys.core import errors

View = TypeVar("View", bound=Callable[..., Any])

PATIENCE_SECONDS = 1.0
"""How long a caller waits for a service when there is something else to give."""

MAX_ANSWERS = 1000
MAX_BYTES = 8 * 1024 * 1024


class MayBeStale(BaseModel):
    """For the description of what such a view answers."""

    stale: bool = Field(False, description="true for the last known data, given while nobody can say how it is now")


@dataclass(frozen=True, slots=True)
class Answer:
    """The JSON object that was answered, and when by the clock of the process."""

    body: bytes
    at: float


class Known:
    """The last answers by what was asked for, the least used forgotten first; for any number of threads."""

    def __init__(self, most: int = MAX_ANSWERS, most_bytes: int = MAX_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._answers: OrderedDict[object, Answer] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, asked: object, answer: Answer) -> None:
        with self._lock:
            if (old := self._answers.pop(asked, None)) is not None:
                self._bytes -= len(old.body)
            if len(answer.body) > self._most_bytes:  # not worth all the others
                return
            self._answers[asked] = answer
            self._bytes += len(answer.body)
            while len(self._answers) > self._most or self._bytes > self._most_bytes:
                _, forgotten = self._answers.popitem(last=False)
                self._bytes -= len(forgotten.body)

    def find(self, asked: object) -> Answer | None:
        with self._lock:
            if asked in self._answers:
                self._answers.move_to_end(asked)
            return self._answers.get(asked)


def or_last_known(upstream: Upstream, clock: Callable[[], float] = time.monotonic) -> Callable[[View], View]:
    """Let the view answer what it answered last to the same path and query, when nobody answers it now.

    For views whose answer is one JSON object, the same for every caller. A refusal by the service is never replaced.
    Stands below the route's decorator, and below `access.needs`.
    """
    known = Known()

    def wrap(view: View) -> View:
        @functools.wraps(view)
        def asked(*args: Any, **kwargs: Any) -> Response:
            # The query as the view read it: what the view ignores does not make another question.
            question = request.path, repr(kwargs.get("query"))
            # With nothing to fall back to, the whole deadline is worth waiting for.
            hurry = within(PATIENCE_SECONDS) if known.find(question) else nullcontext()
            try:
                with hurry:
                    response = make_response(view(*args, **kwargs))
            except errors.Unavailable as error:
                last = known.find(question)
                if last is None:
                    raise
                request_log.explain(Failure(error.code, f"answered with the last known data: {error}"))
                upstream.metrics.stale_answers.labels(metrics.route_of_request()).inc()
                return _stale(last, clock() - last.at)
            if response.status_code == 200:
                known.keep(question, Answer(response.get_data(), clock()))
            return response

        return cast("View", asked)

    return wrap


def _stale(answer: Answer, age: float) -> Response:
    """Without an ETag: nothing may be decided on what may have changed since."""
    response = make_response({**json.loads(answer.body), "stale": True})
    response.headers["Age"] = str(int(age))
    # RFC 7234 section 5.5.2. RFC 9111 has retired the field; our contract promises it to those who look for it.
    response.headers["Warning"] = '111 ordersys "Revalidation Failed"'
    response.headers["Cache-Control"] = "no-store"  # or a cache would hand it out when the service is back
    return response
