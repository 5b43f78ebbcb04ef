"""The disposable process that touches the GPU: `python -m amk.worker PARENT_PID`, one job in, one result out.

In: one frame on stdin (a job as `measure` takes it, and the image's bytes). Out: frames on stdout: "alive" with how
long the next silence may last, then one "result" or "error". Whatever else in this process prints goes to stderr. It
ends with its parent: the kernel kills it when the parent dies, and so does the end of its stdin.
A fault of the device is for the rest of a process's life, which is why this one is short.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .errors import AmkError
from .frames import Frame, FrameReader, encode

__all__ = ["die_with", "main"]

_PR_SET_PDEATHSIG = 1
_CHUNK_BYTES = 1 << 20
_pipe = -1  # the parent's, once main has taken it from stdout


def main() -> None:
    """Runs one job; the exit status says nothing, the frames do."""
    die_with(int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid())
    global _pipe
    _pipe = os.dup(1)
    os.dup2(2, 1)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    job, parts = _read_job()
    threading.Thread(target=_exit_at_end_of_stdin, daemon=True).start()
    try:
        module, _, name = job.pop("device_class").partition(":")
        device = getattr(import_module(module), name)(job["device"])
        facts, arrays = _task(job.pop("task", "measure"))(job, parts, device, _tell)
        _send(encode({"kind": "result", "facts": facts}, arrays))
    except AmkError as error:
        _send(encode({"kind": "error", "code": error.code, "message": str(error)}))
    except MemoryError as error:
        _send(encode({"kind": "error", "code": "out-of-memory", "message": str(error) or "out of memory"}))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # no destructor may wait for a device that does not answer


def die_with(parent: int) -> None:
    """From here on this process ends when `parent` does."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the end of stdin remains
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _task(name: str) -> Callable[..., Any]:
    """What a job may ask for."""
    if name == "pair":
        from .measure_pair import measure_pair

        return measure_pair
    if name == "kernel":
        from .tasks.measure import run_action

        return run_action
    if name == "profile":
        from .measure_profile import measure_profile

        return measure_profile
    from .measure import measure

    return measure


def _exit_at_end_of_stdin() -> None:
    while os.read(0, _CHUNK_BYTES):
        pass
    os._exit(1)


def _read_job() -> Frame:
    reader = FrameReader()
    while data := os.read(0, _CHUNK_BYTES):
        for frame in reader.feed(data):
            return frame
    os._exit(1)


def _tell(text: str | None, limit_s: float) -> None:
    """What is being done (None: as before), and how long the next silence may last."""
    _send(encode({"kind": "alive", "text": text, "limit_s": limit_s}))


def _send(data: bytes) -> None:
    view: Any = memoryview(data)
    while view:
        view = view[os.write(_pipe, view) :]


if __name__ == "__main__":
    main()
