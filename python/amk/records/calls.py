"""Every call to the operating system that the logs make, in one place.

In: the arguments of the call. Out: what it returns, or OSError. The logs hold one of these objects and call nothing
else, so a test can make any single call fail, write short, or stop there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Any

__all__ = ["FileCalls"]


class FileCalls:
    """The real thing. A stand-in has the same names."""

    open: Callable[..., int] = staticmethod(os.open)
    close: Callable[[int], None] = staticmethod(os.close)
    fstat: Callable[[int], os.stat_result] = staticmethod(os.fstat)
    stat: Callable[..., os.stat_result] = staticmethod(os.stat)
    read: Callable[[int, int], bytes] = staticmethod(os.read)
    pread: Callable[[int, int, int], bytes] = staticmethod(os.pread)
    write: Callable[[int, bytes], int] = staticmethod(os.write)
    ftruncate: Callable[[int, int], None] = staticmethod(os.ftruncate)
    fsync: Callable[[int], None] = staticmethod(os.fsync)
    fdatasync: Callable[[int], None] = staticmethod(os.fdatasync)
    link: Callable[..., None] = staticmethod(os.link)
    rename: Callable[[str, str], None] = staticmethod(os.rename)
    unlink: Callable[[str], None] = staticmethod(os.unlink)
    statvfs: Callable[[str], Any] = staticmethod(os.statvfs)
    flock: Callable[[int, int], None] = staticmethod(fcntl.flock)
