"""The keys that somebody presses while a screen is shown, without Enter and without an echo."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def listening() -> Iterator["Keys"]:
    """The terminal as it was comes back at the end."""
    if not sys.stdin.isatty():
        yield Keys(None)
    elif sys.platform == "win32":
        yield Keys(0)
    else:
        import termios
        import tty

        number = sys.stdin.fileno()
        before = termios.tcgetattr(number)
        try:
            tty.setcbreak(number, termios.TCSANOW)  # what was pressed before it counts, too
            yield Keys(number)
        finally:
            termios.tcsetattr(number, termios.TCSADRAIN, before)


class Keys:
    def __init__(self, number: int | None) -> None:
        self._number = number

    def pressed(self, key: str, seconds: float) -> bool:
        """True as soon as this key is pressed, False when it has not been within so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._next(left).lower() == key:
                return True
        return False

    def _next(self, seconds: float) -> str:
        """The next key, or what was pressed of several; "" when there was none in time."""
        if self._number is None:
            time.sleep(seconds)
            return ""
        if sys.platform == "win32":
            import msvcrt

            time.sleep(min(seconds, 0.05))
            return msvcrt.getwch() if msvcrt.kbhit() else ""
        import os
        import select

        ready, _, _ = select.select([self._number], [], [], seconds)
        if not ready:
            return ""
        read = os.read(self._number, 1)
        if not read:  # the terminal has gone
            raise KeyboardInterrupt
        return read.decode("latin-1")
