"""The machine: its clock, the space where the embedded files are, and who may read and write what."""

import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ordersys.operate.doctor.findings import Check, Finding, ok, problem, warning

if TYPE_CHECKING:
    from ordersys.settings import Settings

_MEGABYTE = 1_000_000
_LITTLE_BYTES, _NO_BYTES = 1_000 * _MEGABYTE, 100 * _MEGABYTE
_LITTLE_SHARE = 0.05
_FEW_INODES = 1_000
_LISTEN_SECONDS = 0.3
_JUMP_SECONDS = 0.1
_PROJECT_BEGAN = 1_760_000_000  # seconds since the epoch: no machine that runs this can be earlier


class Space(NamedTuple):
    """Of a file system; `inodes` None where there is no such number."""

    total: int
    free: int
    inodes: int | None


def checks(settings: "Settings") -> list[Check]:
    return [
        Check("clock", clock, "timedatectl status"),
        Check("disk", lambda: disk(folders(settings)), "df -h"),
        Check("permissions", lambda: permissions(settings), "ls -la"),
    ]


# --- the clock --------------------------------------------------------------------------------------------------


def clock(
    wall: Callable[[], float] = time.time,
    steady: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Finding]:
    """Does the wall clock make sense, and go as fast as the one that nobody sets?"""
    before = wall() - steady()
    sleep(_LISTEN_SECONDS)
    drift = wall() - steady() - before
    if wall() < _PROJECT_BEGAN:
        now = time.strftime("%Y-%m-%d", time.gmtime(wall()))
        yield problem("clock", f"it says {now}, before this ordersys was made", "timedatectl set-ntp true")
    elif abs(drift) > _JUMP_SECONDS:
        found = f"it jumped by {drift:+.1f} s within {_LISTEN_SECONDS:g} s: something sets it"
        yield problem("clock", found, "timedatectl status")
    else:
        yield ok("clock", "goes evenly")


# --- the disk ---------------------------------------------------------------------------------------------------


def folders(settings: "Settings") -> list[Path]:
    """The home, and where else SQLite files are."""
    return list(dict.fromkeys([settings.home, *(file.parent for file in files(settings))]))


def files(settings: "Settings") -> list[Path]:
    """The SQLite files that the settings name, there or not."""
    urls = (
        settings.broker_url,
        settings.product_database_url,
        settings.order_database_url,
        settings.notify_database_url,
        settings.api_database_url,
    )
    named = (url.removeprefix("sqlite:///") for url in urls if url.startswith("sqlite:///"))
    return list(dict.fromkeys(Path(name).absolute() for name in named if name))


def space(folder: Path) -> Space:
    usage = shutil.disk_usage(folder)
    if sys.platform == "win32":
        return Space(usage.total, usage.free, None)
    found = os.statvfs(folder)
    return Space(usage.total, usage.free, found.f_favail if found.f_files else None)


def disk(wanted: list[Path], measure: Callable[[Path], Space] = space) -> Iterator[Finding]:
    """One finding per file system that holds one of these folders, or will."""
    seen = set()
    for folder in wanted:
        there = _nearest(folder)
        device = there.stat().st_dev
        if device not in seen:
            seen.add(device)
            yield _room(folder, measure(there))


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _room(folder: Path, found: Space) -> Finding:
    said = f"{folder}: {found.free / 1e9:.1f} GB of {found.total / 1e9:.1f} GB free"
    if found.free < _NO_BYTES:
        return problem("disk", said, f"du -xh {folder} | sort -h | tail")
    if found.inodes is not None and found.inodes < _FEW_INODES:
        return problem(
            "disk", f"{folder}: room for {found.inodes} more files", f"du -x --inodes {folder} | sort -n | tail"
        )
    if found.free < _LITTLE_BYTES or found.free < _LITTLE_SHARE * found.total:
        return warning("disk", said, f"du -xh {folder} | sort -h | tail")
    return ok("disk", said)


# --- who may read and write ---------------------------------------------------------------------------------------


def permissions(settings: "Settings", may: Callable[[Path, int], bool] = os.access) -> Iterator[Finding]:
    """What this user may not write and has to, and what others may read or write and must not."""
    found = [*_not_ours(settings, may), *_too_open(settings)]
    yield from found or [ok("permissions", "what has to be written can be, and keys are nobody else's to read")]


def _not_ours(settings: "Settings", may: Callable[[Path, int], bool]) -> Iterator[Finding]:
    for folder in folders(settings):
        there = _nearest(folder)
        if not may(there, os.W_OK | os.X_OK):
            whose = f"{there} cannot be written by this user"
            yield problem("permissions", whose, f"sudo chown -R {_user()} {there}")
    for file in files(settings):
        # The two files of the write-ahead log: made by another user they lock everybody else out.
        for each in (file, Path(f"{file}-wal"), Path(f"{file}-shm")):
            if each.exists() and not may(each, os.R_OK | os.W_OK):
                yield problem("permissions", f"{each} cannot be written by this user", f"sudo chown {_user()} {each}")


def _too_open(settings: "Settings") -> Iterator[Finding]:
    if sys.platform == "win32":  # its modes tell nothing
        return
    for each in (*folders(settings), *files(settings)):
        if each.exists() and each.stat().st_mode & stat.S_IWOTH and not each.stat().st_mode & stat.S_ISVTX:
            yield problem("permissions", f"{each} can be written by everybody on this machine", f"chmod o-w {each}")
    for name, secret in secrets(settings):
        if secret.exists() and secret.stat().st_mode & stat.S_IROTH:
            found = f"{secret} ({name}) can be read by everybody on this machine"
            yield problem("permissions", found, f"chmod o-rwx {secret}")


def secrets(settings: "Settings") -> list[tuple[str, Path]]:
    """(variable, file) of every private key that the settings name, and of every password in a file of its own."""
    from ordersys.settings import secret_files

    names = ("tls_key_file", "api_tls_key_file", "broker_key_file")
    keys = [(f"ORDERSYS_{name.upper()}", Path(value)) for name in names if (value := getattr(settings, name))]
    return [*keys, *((f"ORDERSYS_{name.upper()}_FILE", file) for name, file in secret_files().items())]


def _user() -> str:
    import getpass

    return getpass.getuser()
