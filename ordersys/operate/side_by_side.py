"""Questions that are asked side by side, within a bound, whatever becomes of those who are asked."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from ordersys.core import errors

Answer = TypeVar("Answer")


class Asked:
    """Each question is asked on a thread of its own, for which nobody waits at the end.

    One that hangs is not asked a second time: it is waited for again.
    """

    def __init__(self) -> None:
        self._running: dict[str, Future[Any]] = {}

    def ask(
        self,
        questions: Mapping[str, Callable[[], Answer]],
        seconds: float,
        waiting: Callable[[list[str]], None] = lambda _names: None,
    ) -> dict[str, Answer | Exception]:
        """What each answered or raised; `NoAnswer` for one that has not within so many seconds.

        `waiting` is told whenever one has answered which ones have not.
        """
        for name, question in questions.items():
            if name not in self._running:
                self._running[name] = _begun(name, question)
        running = {name: self._running[name] for name in questions}
        deadline = time.monotonic() + seconds
        while late := [name for name, answer in running.items() if not answer.done()]:
            waiting(late)
            left = deadline - time.monotonic()
            if left <= 0:
                break
            wait([running[name] for name in late], left, FIRST_COMPLETED)
        return {name: self._outcome(name, seconds) for name in questions}

    def _outcome(self, name: str, seconds: float) -> Any:
        if not self._running[name].done():
            return errors.NoAnswer(f"no answer within {seconds:g} s")
        answer = self._running.pop(name)
        return answer.exception() or answer.result()


def _begun(name: str, question: Callable[[], object]) -> "Future[Any]":
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except Exception as error:  # noqa: BLE001 - whoever looks at the answer gets it
            answer.set_exception(error)

    threading.Thread(target=ask, name=name, daemon=True).start()
    return answer
