"""An operating system that fails on demand, for the logs: the k-th call fails, writes short, or is the last one.

In: k, and what shall happen at it. Out: the calls that `RecordStore(calls=...)` takes; `count` says how many were made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from amk.records.calls import FileCalls


class Stopped(BaseException):
    """The process would be dead here: nothing that comes after reaches the disk."""


class FaultyCalls:
    """fault: an errno, "short" (the first write from the k-th call on is halved) or "stop". k is from 1; 0: never."""

    def __init__(self, k: int = 0, fault: int | str = 0) -> None:
        self.count = 0
        self.names: list[str] = []
        self.fired = ""  # the call that failed
        self._k, self._fault = k, fault
        self._real = FileCalls()
        self._handles: set[int] = set()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real = getattr(self._real, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.count += 1
            self.names.append(name)
            if self._fault == "stop" and self._k and self.count >= self._k:
                if self.count == self._k and name == "write":  # killed in the middle of it
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                self.fired = self.fired or name
                while self._handles:  # the kernel closes what a dead process had open, and so unlocks it
                    os.close(self._handles.pop())
                raise Stopped(name)
            if self._fault == "short":
                if self._k and self.count >= self._k and name == "write" and not self.fired:
                    self.fired = name
                    return real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            elif self.count == self._k and isinstance(self._fault, int):
                self.fired = name
                if name == "close":
                    self._handles.discard(arguments[0])
                    real(*arguments, **keywords)  # Linux frees the handle whatever close returns
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 3])  # some of it may be there all the same
                raise OSError(self._fault, os.strerror(self._fault))
            result = real(*arguments, **keywords)
            if name == "open":
                self._handles.add(result)
            elif name == "close":
                self._handles.discard(arguments[0])
            return result

        return call
