"""What systemd hears of a process: that it is ready, that it lives, that it stops. Anywhere else it says nothing.

The protocol is a datagram of lines to a socket (https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html).
"""

import logging
import socket
import time

logger = logging.getLogger(__name__)

READY, ALIVE, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"
_PER_INTERVAL = 3
"""How often it is told within the time in which it must hear; half of it is what systemd recommends at least."""


class Supervisor:
    """`address` is the socket to tell ("" = nobody), `within` the seconds between two signs of life (0 = none)."""

    def __init__(self, address: str = "", within: float = 0.0) -> None:
        # A name that begins with @ is one in the abstract namespace, which is written with a zero byte (unix(7)).
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._interval = within / _PER_INTERVAL
        self._told = 0.0

    def alive(self) -> None:
        """To be called often; it is passed on as often as it has to be."""
        if self._interval and time.monotonic() - self._told >= self._interval:
            self.tell(ALIVE)
            self._told = time.monotonic()

    def tell(self, what: str) -> None:
        """Never raises: a service manager that does not listen is no reason not to serve."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.connect(self._address)
                sender.send(what.encode())
        except OSError as error:
            logger.warning("the service manager at %s was not told %s: %s", self._address, what, error)
