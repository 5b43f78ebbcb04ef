"""The parent's side of a worker: started, listened to, and killed when it is silent for longer than it said.

In: a job and the image's bytes. Out: the worker's result; or the typed error that it reported; or `WorkerDied`, with
what is known of how. Never a hang: every wait here has an end, and the worker is gone when `run_job` returns or raises,
also on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import errors
from .errors import AmkError, InputError, Unavailable, WorkerDied
from .frames import Frame, FrameReader, encode

__all__ = ["error_of", "run_job"]

START_S = 120.0  # an interpreter and numpy, on a busy machine
GOODBYE_S = 5.0
_CHUNK_BYTES = 1 << 20
_KEPT_STDERR_BYTES = 16 << 10
# The worker imports exactly what this process would, whatever its working directory.
_BOOTSTRAP = "import sys; sys.path[:] = sys.argv[2:]; from amk.worker import main; main()"


def run_job(
    job: Mapping[str, Any], parts: Mapping[str, Any], say: Callable[[str], None], *, total_s: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(facts, arrays) of one job, done in a process of its own within `total_s` seconds."""
    if not sys.executable:
        raise Unavailable("a GPU is used from a process of its own, and this interpreter does not know its executable")
    command = [sys.executable, "-c", _BOOTSTRAP, str(os.getpid()), *(entry or os.getcwd() for entry in sys.path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: S603
        command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True
    ) as child:
        worker = _Worker(child, say)
        try:
            return worker.converse(encode(job, parts), total_s)
        finally:
            worker.end()


class _Worker:
    def __init__(self, child: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
        self._child, self._say = child, say
        self._reader = FrameReader()
        self._stderr = bytearray()
        self._doing = "starting"

    def converse(self, request: bytes, total_s: float) -> tuple[dict[str, Any], dict[str, Any]]:
        stdin, stdout, stderr = self._child.stdin, self._child.stdout, self._child.stderr
        assert stdin and stdout and stderr
        unsent = memoryview(request)
        end = time.monotonic() + total_s
        deadline = min(end, time.monotonic() + START_S)
        with selectors.DefaultSelector() as selector:
            for stream, event in ((stdin, selectors.EVENT_WRITE), (stdout, selectors.EVENT_READ),
                                  (stderr, selectors.EVENT_READ)):  # fmt: skip
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, event)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise WorkerDied(f"the GPU worker was silent for too long while {self._doing}, and was killed")
                for key, _ in selector.select(left):
                    if key.fileobj is stdin:
                        unsent = self._write(unsent)
                        if not unsent:
                            selector.unregister(stdin)
                        continue
                    data = os.read(key.fd, _CHUNK_BYTES)
                    if key.fileobj is stderr:
                        self._keep_stderr(data)
                        if not data:
                            selector.unregister(stderr)
                        continue
                    if not data:
                        raise self._died()
                    for frame in self._frames(data):
                        limit_s, result = self._hear(frame)
                        if result is not None:
                            return result
                        deadline = min(end, time.monotonic() + limit_s)

    def _write(self, unsent: memoryview) -> memoryview:
        assert self._child.stdin
        try:
            return unsent[os.write(self._child.stdin.fileno(), unsent[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            return unsent
        except BrokenPipeError:  # its end shows on stdout
            return unsent[:0]

    def end(self) -> None:
        """Nothing of the worker outlives this call, but for a process that the kernel cannot end."""
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(OSError):
            os.killpg(self._child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(GOODBYE_S)
        if self._child.returncode is None:
            self._child.returncode = -signal.SIGKILL  # Popen must not wait for it again

    def _frames(self, data: bytes) -> list[Frame]:
        try:
            return self._reader.feed(data)
        except InputError as error:
            raise WorkerDied(f"the GPU worker sent what is no answer while {self._doing}: {error}") from error

    def _hear(self, frame: Frame) -> tuple[float, tuple[dict[str, Any], dict[str, Any]] | None]:
        message, parts = frame
        kind = message.get("kind")
        if kind == "alive" and isinstance(message.get("limit_s"), int | float):
            if message.get("text"):
                self._doing = str(message["text"])
                self._say(self._doing)
            return float(message["limit_s"]), None
        if kind == "result" and isinstance(message.get("facts"), dict):
            return 0.0, (message["facts"], parts)
        if kind == "error":
            raise error_of(str(message.get("code")), str(message.get("message")))
        raise WorkerDied(f"the GPU worker sent a message of kind {errors.show(kind)} while {self._doing}")

    def _keep_stderr(self, data: bytes) -> None:
        self._stderr += data
        del self._stderr[:-_KEPT_STDERR_BYTES]

    def _died(self) -> WorkerDied:
        """Its stdout has ended, so it has ended or is about to."""
        ended = self._exit_status()
        if ended is None:
            return WorkerDied(f"the GPU worker closed its pipe while {self._doing}, without an answer")
        if self._child.stderr:
            with contextlib.suppress(OSError):
                self._keep_stderr(self._child.stderr.read() or b"")
        code, status = ended
        how = f"exit status {status}"
        if code != os.CLD_EXITED:
            with contextlib.suppress(ValueError):
                how = signal.Signals(status).name
        said = [line for line in self._stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        last = f": {said[-1].strip()[:300]}" if said else ""
        return WorkerDied(f"the GPU worker died while {self._doing} ({how}){last}")

    def _exit_status(self) -> tuple[int, int] | None:
        """How it ended, if it does soon. It is not reaped, so that its process group is still its own in `end`."""
        end = time.monotonic() + GOODBYE_S
        while time.monotonic() < end:
            found = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if found is not None:
                return found.si_code, found.si_status
            time.sleep(0.01)
        return None


def error_of(code: str, message: str) -> AmkError:
    """The typed error that another process reported by its code."""
    kinds = [AmkError]
    for kind in kinds:  # grows while it is walked
        kinds += kind.__subclasses__()
    for kind in kinds:
        if kind.code == code:
            return kind(message)
    return WorkerDied(f"the GPU worker reported {errors.show(code)}: {message}")
