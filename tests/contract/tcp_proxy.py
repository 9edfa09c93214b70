"""A TCP proxy that behaves as badly as a network can: slow, silent in one direction or both, cut, unreachable, gone."""

import contextlib
import socket
import threading
import time
from enum import Enum
from types import TracebackType
from typing import Self


class Towards(Enum):
    """Which way bytes go."""

    SERVER = "server"
    CLIENT = "client"


class TcpProxy:
    """Listens on a free port of 127.0.0.1; `port` is known at once. `flow` ends whatever was done to it."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flowing = {towards: threading.Event() for towards in Towards}
        self._delay = 0.0
        self._refusing = False
        self._pairs: list[_Pair] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.flow()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        _shut(self._listener)
        self._threads[0].join(5)  # from here on nobody comes in any more
        self.cut()
        self.flow()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()
        for pair in self._pairs:
            pair.near.close()
            pair.far.close()

    @property
    def connections(self) -> int:
        """How many it has carried so far."""
        return len(self._pairs)

    def flow(self) -> None:
        """Everything gets through from now on; what was held on its way arrives."""
        self._delay = 0.0
        self._refusing = False
        for event in self._flowing.values():
            event.set()

    def delay(self, seconds: float) -> None:
        """What passes takes this much longer, each way."""
        self._delay = seconds

    def fall_silent(self, *towards: Towards) -> None:
        """Connections stay up, and nothing comes through any more: both ways, or one."""
        for each in towards or Towards:
            self._flowing[each].clear()

    def cut(self) -> None:
        """Break the connections there are; what is on its way is lost, and both sides hear of it."""
        for pair in list(self._pairs):
            pair.shut()

    def refuse(self) -> None:
        """Nobody can be reached: what there is breaks, and new connections end at once."""
        self._refusing = True
        self.cut()

    def vanish(self) -> None:
        """The server forgets the connections there are and their clients are not told (half-open); new ones work."""
        for pair in list(self._pairs):
            pair.vanished = True
            _shut(pair.far)

    def _accept(self) -> None:
        while True:
            try:
                near, _address = self._listener.accept()
            except OSError:  # closed
                return
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                far = socket.create_connection(self._target)
            except OSError:  # the client hears of it as of a server that is down
                near.close()
                continue
            pair = _Pair(near, far)
            self._pairs.append(pair)
            for towards in Towards:
                self._threads.append(threading.Thread(target=self._pump, args=(pair, towards)))
                self._threads[-1].start()

    def _pump(self, pair: "_Pair", towards: Towards) -> None:
        source, sink = (pair.near, pair.far) if towards is Towards.SERVER else (pair.far, pair.near)
        try:
            while data := source.recv(65_536):
                self._flowing[towards].wait()
                time.sleep(self._delay)
                if not pair.vanished:
                    sink.sendall(data)
            if not pair.vanished:
                sink.shutdown(socket.SHUT_WR)
        except OSError:  # one side was reset, as by a kill -9: the other side hears of it
            if not pair.vanished:
                pair.shut()


class _Pair:
    """One connection: the client's end, and ours to the server."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near = near
        self.far = far
        self.vanished = False

    def shut(self) -> None:
        _shut(self.near)
        _shut(self.far)


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was quicker
        each.shutdown(socket.SHUT_RDWR)
