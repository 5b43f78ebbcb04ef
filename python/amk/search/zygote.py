"""The process that disposable workers are forked from: all modules loaded, no device ever opened.

In: frames on stdin, one job at a time. Out: frames on stdout: what the job says, its result or error, and then how its
process ended, in that order. Each job runs in a process of its own, so it takes nothing with it when it faults; that
process is forked before its job comes, while the last one is being recorded. What else a job prints goes to stderr.
It starts no thread and ends with its parent; so do its children.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import traceback
import warnings
from importlib import import_module
from typing import Any

from ..errors import AmkError
from ..frames import FrameReader, encode
from ..worker import die_with
from .executor import call_entry

__all__ = ["how_it_ended", "main"]

_CHUNK_BYTES = 1 << 20
# What a trial loads: once here, and not once per trial.
_PRELOADED = (
    *("amk.evaluate", "amk.embedded", "amk.checkpoint", "amk.config", "amk.program", "amk.vm", "amk.exam"),
    *("amk.oracle", "amk.timing", "amk.gpu_trial", "amk.machine", "amk.targets", "amk.verdict", "amk.search.jobs"),
    *("concurrent.futures.thread", "numpy.random", "ctypes", "tempfile", "json.encoder"),
)


def main() -> None:
    """Serves jobs until stdin ends."""
    die_with(int(sys.argv[1]))
    pipe = os.dup(1)
    os.dup2(2, 1)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # CPython warns when a process with threads forks. Those here are of a BLAS library, which knows about forks.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    for name in _PRELOADED:
        import_module(name)
    _warm_up()
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of this process
    spare = _fork(pipe)
    _send(pipe, {"kind": "ready"})
    reader = FrameReader()
    while data := os.read(0, _CHUNK_BYTES):
        for job, _ in reader.feed(data):
            if not _give(spare, job):  # it died while it was idle, which is no fault of this job
                os.waitpid(spare[0], 0)
                spare = _fork(pipe)
                _give(spare, job)
            _, status = os.waitpid(spare[0], 0)
            _send(pipe, {"kind": "ended", "how": how_it_ended(os.waitstatus_to_exitcode(status))})
            spare = _fork(pipe)


def _warm_up() -> None:
    """Judges the smallest model once: what is set up at first use is then there for every child. Not fatal: a child
    will say what is wrong. The reference's answers are not kept, and no device is asked for."""
    from ..evaluate import evaluate

    kept = os.environ.get("AMK_CACHE_DIR")
    os.environ["AMK_CACHE_DIR"] = os.devnull  # no directory: the cache is off
    try:
        evaluate("toy", "h200", device="cpu", max_seq=16)
    except AmkError:
        pass
    finally:
        os.environ.pop("AMK_CACHE_DIR")
        if kept is not None:
            os.environ["AMK_CACHE_DIR"] = kept


def _fork(pipe: int) -> tuple[int, int]:
    """(pid, where it hears its job) of a child that waits for the one job that it will do."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    hears, tells = os.pipe()
    child = os.fork()
    if child != 0:
        os.close(hears)
        return child, tells
    try:
        die_with(parent)
        os.close(tells)
        os.dup2(hears, 0)
        os.close(hears)
        reader, jobs = FrameReader(), []
        while not jobs and (data := os.read(0, _CHUNK_BYTES)):
            jobs = reader.feed(data)
        for job, _ in jobs:
            _work(pipe, job)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # no destructor may wait for a device that does not answer


def _give(spare: tuple[int, int], job: dict[str, Any]) -> bool:
    """Hands a job over; the end of the pipe is all that the child will read."""
    try:
        _write(spare[1], encode(job))
        return True
    except BrokenPipeError:
        return False
    finally:
        os.close(spare[1])


def _work(pipe: int, job: dict[str, Any]) -> None:
    try:
        value = call_entry(job["entry"], job["arguments"], lambda text: _send(pipe, {"kind": "alive", "text": text}))
        _send(pipe, {"kind": "result", "value": value})
    except AmkError as error:
        _send(pipe, {"kind": "error", "code": error.code, "message": str(error)})
    except MemoryError as error:
        _send(pipe, {"kind": "error", "code": "out-of-memory", "message": str(error) or "out of memory"})


def _send(pipe: int, message: dict[str, Any]) -> None:
    _write(pipe, encode(message))


def _write(pipe: int, data: bytes) -> None:
    view: Any = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]


def how_it_ended(code: int) -> str:
    """An exit code of Python's kind, as text."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
