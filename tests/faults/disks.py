"""A disk so small that it can be filled: an in-memory file system that the test mounts, which takes root on Linux."""

import errno
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CHUNK = 65_536


class SmallDisk:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Take every byte that is left."""
        with self._ballast.open("ab", buffering=0) as ballast:
            for size in (_CHUNK, 1):
                try:
                    while ballast.write(bytes(size)):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        self._ballast.unlink()

    def make_read_only(self) -> None:
        """For good; while nobody has a file open for writing."""
        subprocess.run(["mount", "-o", "remount,ro", str(self._folder)], check=True, capture_output=True)


@contextmanager
def small_disk(folder: Path, megabytes: int, owner: str = "root") -> Iterator[SmallDisk]:
    """Mounted at this new folder; skips the test where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small file system can be mounted here (it takes root on Linux): {error}")
    try:
        shutil.chown(folder, owner)
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
