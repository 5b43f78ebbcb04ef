"""Is this process still the one that was started? A pid alone cannot tell: the kernel gives it out again.

In: a pid. Out: an `Identity` (pid, start time in clock ticks since the boot, the boot, the host) that is compared with
what the kernel says now. Reads /proc only; never signals by a pid that it has not just recognised.
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["MARK", "Identity", "identify", "kill_group"]

MARK = "AMK_JOB"  # in the environment of a job and of all that it starts


@dataclass(frozen=True)
class Identity:
    pid: int
    start_ticks: int
    boot_id: str
    host: str

    @classmethod
    def from_dict(cls, given: Any) -> Identity | None:
        """None unless it is exactly what to_dict wrote."""
        try:
            found = cls(**given)
        except TypeError:
            return None
        whole = type(found.pid) is int and found.pid > 0 and type(found.start_ticks) is int
        return found if whole and isinstance(found.boot_id, str) and isinstance(found.host, str) else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_elsewhere(self) -> bool:
        """It ran on another machine, whose processes cannot be seen from here."""
        return self.host != platform.node()

    @property
    def is_alive(self) -> bool:
        """On this machine, since this boot, the same process, and not a zombie."""
        if self.is_elsewhere or self.boot_id != _boot_id():
            return False
        stat = _stat(self.pid)
        return stat is not None and int(stat[_START]) == self.start_ticks and stat[_STATE] not in ("Z", "X")

    def send(self, number: int) -> bool:
        """Signals the process if it is still the one; False if it is not."""
        if not self.is_alive:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def identify(pid: int) -> Identity | None:
    """None when there is no such process."""
    stat = _stat(pid)
    return None if stat is None else Identity(pid, int(stat[_START]), _boot_id(), platform.node())


def kill_group(leader: Identity, mark: str) -> int:
    """SIGKILL to `leader` and to every process of its group that carries the mark; how many there were. The leader may
    be gone and its number another's, so each process is looked at."""
    if leader.is_elsewhere or leader.boot_id != _boot_id():
        return 0
    count = 0
    for pid, stat in _processes():
        if int(stat[_GROUP]) != leader.pid or stat[_STATE] in ("Z", "X"):
            continue
        if int(stat[_START]) == leader.start_ticks if pid == leader.pid else _has_mark(pid, mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                count += 1
    return count


# Fields of /proc/PID/stat behind the name, which ends with the last ")": proc(5) counts from 1, and state is the third.
_STATE, _GROUP, _START = 0, 2, 19


def _stat(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > _START else None


def _processes() -> Iterator[tuple[int, list[str]]]:
    for name in os.listdir("/proc"):
        if name.isdecimal() and (stat := _stat(int(name))) is not None:
            yield int(name), stat


def _has_mark(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{MARK}={mark}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
