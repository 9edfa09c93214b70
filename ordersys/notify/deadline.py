"""One bound for a whole conversation: the timeout of a socket is for each read alone, and a slow peer has many."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_AGAIN_SECONDS = 0.1


@contextmanager
def cut_off_after(seconds: float, connection: Callable[[], socket.socket | None]) -> Iterator[None]:
    """Shut the connection down after so many seconds, so that nothing waits for the peer any longer; raises
    TimeoutError in place of whatever that led to."""
    done, over = threading.Event(), threading.Event()

    def watch() -> None:
        pause = seconds
        while not done.wait(pause):
            over.set()
            if (opened := connection()) is not None:
                with suppress(OSError):  # closed just now, or handed over to TLS, and then there is a next time
                    opened.shutdown(socket.SHUT_RDWR)
            pause = _AGAIN_SECONDS

    watching = threading.Thread(target=watch, name="deadline", daemon=True)
    watching.start()
    try:
        yield
    except Exception as error:
        if over.is_set():
            raise TimeoutError(f"not done within {seconds:g} s") from error
        raise
    else:
        if over.is_set():  # what was read until then may be half of something
            raise TimeoutError(f"not done within {seconds:g} s")
    finally:
        done.set()
        watching.join()
