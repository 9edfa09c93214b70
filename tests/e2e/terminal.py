"""A command on a terminal: what a person would see."""

import os
import pty
import re
import subprocess
import threading
from typing import Self

from e2e.processes import ORDERSYS, SECONDS, Backend, until

COLOUR = re.compile(r"\x1b\[[0-9;]*[34][0-9]m")
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """One `ordersys ...` with a terminal of its own, 120 columns wide; `shown` is all it has written so far."""

    def __init__(self, backend: Backend, *arguments: str, **environment: str) -> None:
        self._reader, writer = pty.openpty()
        self._pieces: list[bytes] = []
        self.process = subprocess.Popen(
            [ORDERSYS, *arguments],
            env={**backend.environment, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "50", **environment},
            cwd=backend.folder,
            stdin=writer,
            stdout=writer,
            stderr=writer,
        )
        os.close(writer)
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(SECONDS)
        os.close(self._reader)
        print(f"--- terminal\n{self.text[-8_000:]}")

    @property
    def shown(self) -> str:
        return b"".join(self._pieces).decode()

    @property
    def text(self) -> str:
        """Without colours and cursor movements."""
        return _ESCAPE.sub("", self.shown)

    def press(self, keys: str) -> None:
        """As a person at its keyboard."""
        os.write(self._reader, keys.encode())

    def shows(self, text: str) -> None:
        until(lambda: text in self.text or self.process.poll() is not None, f"{text!r} on the terminal")
        assert text in self.text

    def ends(self, seconds: float = SECONDS) -> int:
        code = self.process.wait(seconds)
        self._thread.join(SECONDS)
        return code

    def _read(self) -> None:
        try:
            while piece := os.read(self._reader, 65_536):
                self._pieces.append(piece)
        except OSError:  # Linux: nobody has the other end any more
            return
