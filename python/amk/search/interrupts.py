"""Sections that Ctrl-C may not cut in two: it is heard when they end.

In: nothing. Out: a context. Python runs signal handlers in the main thread alone, so in any other there is nothing to
do.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["unbroken"]


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """SIGINT is put off until the section ends, and then handled as it would have been."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])
