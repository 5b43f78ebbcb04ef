"""The process that disposable workers are forked from: all modules loaded, no device ever opened.

In: frames on stdin, one job at a time. Out: frames on stdout: what the job says, its result or error, and then how its
process ended, in that order. Each job runs in a process of its own, forked when it comes, so it starts in milliseconds
and takes nothing with it when it faults. Whatever else a job prints goes to stderr.
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
    _send(pipe, {"kind": "ready"})
    reader = FrameReader()
    while data := os.read(0, _CHUNK_BYTES):
        for job, _ in reader.feed(data):
            _send(pipe, {"kind": "ended", "how": _run(pipe, job)})


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


def _run(pipe: int, job: dict[str, Any]) -> str:
    """Forks, and waits for the end of the child."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            die_with(parent)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            _work(pipe, job)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)  # no destructor may wait for a device that does not answer
    _, status = os.waitpid(child, 0)
    return how_it_ended(os.waitstatus_to_exitcode(status))


def _work(pipe: int, job: dict[str, Any]) -> None:
    try:
        value = call_entry(job["entry"], job["arguments"], lambda text: _send(pipe, {"kind": "alive", "text": text}))
        _send(pipe, {"kind": "result", "value": value})
    except AmkError as error:
        _send(pipe, {"kind": "error", "code": error.code, "message": str(error)})
    except MemoryError as error:
        _send(pipe, {"kind": "error", "code": "out-of-memory", "message": str(error) or "out of memory"})


def _send(pipe: int, message: dict[str, Any]) -> None:
    view: Any = memoryview(encode(message))
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
