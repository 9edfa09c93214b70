"""A small program beside these tests, in a process of its own, where the real command cannot be hurt from outside."""

import subprocess
import sys
from pathlib import Path
from typing import Self

from e2e.processes import Backend, Role


class Program(Role):
    """`python FILE ARGUMENT...` in the environment of a deployment; killed when the block ends. It says `ready`."""

    def __init__(self, backend: Backend, file: str, *arguments: str, ready: str = "ready", **settings: str) -> None:
        stem = f"program-{Path(file).stem}-{len(list(backend.folder.glob('program-*.err')))}"
        self.name = f"{stem} {' '.join(arguments)}"
        self._ready = ready
        self._out, self._err = backend.folder / f"{stem}.out", backend.folder / f"{stem}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name(file)), *arguments],
                env={**backend.environment, **settings},
                cwd=backend.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        print(f"--- {self.name}\n{self.err[-8_000:]}")
