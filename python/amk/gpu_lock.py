"""Who times a GPU: an advisory lock per device, so that two runs of one user never time each other.

In: a device's UUID, or another name. Out: a context in which no other process of this user holds that name. It is a
flock on a small file, so it ends with its holder however that ends. A process counts as the holder too if one of its
ancestors is: a loop holds the device, and its workers time on it.
It does not keep out other users, or programs that do not ask.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import DeviceBusy, InputError, StoreError, show

__all__ = ["gpu_lock", "lock_directory", "name_lock"]

_POLL_S = 0.1
_BEAT_S = 1.0
_MAX_ANCESTORS = 64
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


def gpu_lock(
    uuid: str, *, wait_s: float = 0.0, beat: Callable[[], None] = lambda: None
) -> contextlib.AbstractContextManager[None]:
    """Holds a device for timing. DeviceBusy, naming the holder's pid, if another still has it after `wait_s`."""
    return name_lock(f"gpu-{uuid}", f"GPU {uuid}: it is being timed", wait_s=wait_s, beat=beat)


@contextlib.contextmanager
def name_lock(name: str, busy: str, *, wait_s: float = 0.0, beat: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds `name`; `busy` begins the sentence of DeviceBusy. `beat` is called while waiting."""
    if not _NAME.fullmatch(name):
        raise InputError(f"lock: expected a name of letters, digits, '.', '_' and '-', got {show(name)}")
    path = lock_directory() / f"{name}.lock"
    handle, is_ours = _acquire(path, busy, wait_s, beat)
    try:
        if is_ours:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        if is_ours:
            with contextlib.suppress(OSError):
                path.unlink()  # whoever waits for this file finds out that it is no longer the one
        os.close(handle)


def lock_directory() -> Path:
    """Of this user alone: in the system's runtime directory where there is one, else in the user's cache, or, where
    that cannot be written, among the temporary files. StoreError if it can be nowhere."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    places = [
        Path(f"/run/user/{os.getuid()}") / "amk",
        (Path(cache) if os.path.isabs(cache) else Path("~/.cache").expanduser()) / "amk",
        Path(tempfile.gettempdir()) / f"amk-{os.getuid()}",
    ]
    if not _is_ours(places[0].parent):
        del places[0]
    why = ""
    for place in places:
        directory = place / "locks"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            why = str(error)
            continue
        if _is_ours(directory):
            return directory
    raise StoreError(f"lock: no directory of this user's to put it in, among {', '.join(map(str, places))} {why}")


def _is_ours(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and os.access(path, os.W_OK | os.X_OK)


def _acquire(path: Path, busy: str, wait_s: float, beat: Callable[[], None]) -> tuple[int, bool]:
    """(open file, True) once it is ours, (open file, False) where an ancestor has it."""
    end = time.monotonic() + wait_s
    next_beat = 0.0
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(f"lock: {error}") from error
        try:
            taken = _take(handle, path)
            if taken:
                return handle, True
            holder = _holder(handle)
            if holder in _ancestors():
                return handle, False
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if taken is None:
            continue
        now = time.monotonic()
        if now >= end:
            who = f"process {holder}" if holder else "another process"
            raise DeviceBusy(f"{busy} by {who} ({path})")
        if now >= next_beat:
            next_beat = now + _BEAT_S
            beat()
        time.sleep(_POLL_S)


def _take(handle: int, path: Path) -> bool | None:
    """Whether the lock is ours; None where the path no longer names this file, which its last holder has removed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(f"lock: {path}: {error}") from error
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False)) or None
    except FileNotFoundError:
        return None


def _holder(handle: int) -> int:
    text = os.pread(handle, 32, 0).split(b"\n")[0]
    return int(text) if text.isdigit() else 0


def _ancestors() -> set[int]:
    """Parents of this process, from /proc; on a system without it, the nearest."""
    found: set[int] = set()
    pid = os.getppid()
    while pid > 0 and len(found) < _MAX_ANCESTORS:
        found.add(pid)
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                pid = int(file.read().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found
