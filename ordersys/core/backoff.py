"""How long to wait before trying again: growing, jittered pauses."""

import random


class Backoff:
    """Pauses in seconds that double from `first` to `most`, each drawn between half of itself and the whole.

    The draw keeps many clients of one restarted server from coming back in step
    (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/).
    """

    def __init__(self, first: float = 0.2, most: float = 10.0) -> None:
        self._first = first
        self._most = most
        self._next = first

    def pause(self) -> float:
        """The next pause; longer than the one before, up to `most`."""
        whole = self._next
        self._next = min(self._most, whole * 2)
        return random.uniform(whole / 2, whole)  # noqa: S311 - spreads load, hides nothing

    def reset(self) -> None:
        """It worked: the next trouble starts with the shortest pause again."""
        self._next = self._first
