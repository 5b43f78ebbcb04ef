"""Jobs in disposable processes of this computer, each with a deadline.

In: jobs. Out: their results. Each worker is a process (`zygote`) that forks one child per job; a child that faults
takes nothing with it, and one that is silent past its deadline is killed together with its zygote, which is then
replaced. One thread, no signal handlers: whoever waits moves all workers on.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ..errors import AmkError, InputError, Unavailable, WorkerDied
from ..frames import FrameReader, encode
from ..supervisor import error_of
from .executor import Job, Say, trouble_of
from .zygote import how_it_ended

__all__ = ["ProcessExecutor"]

START_S = 120.0  # an interpreter and numpy, on a busy machine
GOODBYE_S = 5.0
_CHUNK_BYTES = 1 << 20
_KEPT_STDERR_BYTES = 16 << 10
# The worker imports exactly what this process would, whatever its working directory.
_BOOTSTRAP = "import sys; sys.path[:] = sys.argv[2:]; from amk.search.zygote import main; main()"


@dataclass
class _Slot:
    """One worker. It is free again when the child has ended, which is a little after its answer came."""

    child: subprocess.Popen[bytes] | None = None
    reader: FrameReader = field(default_factory=FrameReader)
    stderr: bytearray = field(default_factory=bytearray)
    ready: bool = False
    ticket: int = 0  # 0: free
    job: Job | None = None
    say: Say = lambda text: None
    doing: str = "starting"
    deadline: float = 0.0
    answered: bool = False


class ProcessExecutor:
    def __init__(self, workers: int = 1) -> None:
        if not sys.executable:
            raise Unavailable("a trial runs in a process of its own, and this interpreter does not know its executable")
        self.workers = workers
        self._slots = [_Slot() for _ in range(workers)]
        self._queue: deque[tuple[int, Job, Say]] = deque()
        self._done: dict[int, tuple[bool, Any]] = {}
        self._next = 0
        self._selector = selectors.DefaultSelector()

    def submit(self, job: Job, say: Say) -> int:
        self._next += 1
        self._queue.append((self._next, job, say))
        self._start_waiting()
        return self._next

    def wait(self, ticket: int) -> Any:
        while ticket not in self._done:
            self._turn()
        is_result, value = self._done.pop(ticket)
        if is_result:
            return value
        raise value

    def probe(self, ticket: int, job: Job) -> tuple[int, AmkError | None]:
        """The workers share one computer and its devices: each speaks for all."""
        return 0, trouble_of(self, job)

    def close(self) -> None:
        self._queue.clear()
        for slot in self._slots:
            self._end(slot)
        self._selector.close()

    def pids(self) -> list[int]:
        """Of the processes that jobs are forked from, as far as they live."""
        return [slot.child.pid for slot in self._slots if slot.child is not None]

    # ---- one turn: whatever came, whoever is late, whoever is next ----

    def _turn(self) -> None:
        busy = [slot for slot in self._slots if slot.ticket]
        left = min((slot.deadline for slot in busy), default=time.monotonic()) - time.monotonic()
        for key, _ in self._selector.select(max(left, 0.0)):
            slot, name = key.data
            if slot.child is None:  # ended earlier in this turn
                continue
            try:
                data = os.read(key.fd, _CHUNK_BYTES)
            except BlockingIOError:
                continue
            if name == "stderr":
                slot.stderr += data
                del slot.stderr[:-_KEPT_STDERR_BYTES]
                if not data:
                    self._selector.unregister(key.fileobj)
            elif data:
                self._hear(slot, data)
            else:
                self._lost(slot, "died")
        now = time.monotonic()
        for slot in self._slots:
            if slot.ticket and now >= slot.deadline:
                self._lost(slot, "did not end in time and was killed")
        self._start_waiting()

    def _hear(self, slot: _Slot, data: bytes) -> None:
        try:
            frames = slot.reader.feed(data)
        except InputError as error:
            return self._lost(slot, f"sent what is no answer and was killed: {error}")
        for message, _ in frames:
            kind = message.get("kind")
            if kind == "ready":
                slot.ready = True
                if slot.job is not None:
                    slot.deadline = time.monotonic() + slot.job.timeout_s
            elif kind == "alive":
                slot.doing = str(message.get("text"))
                slot.say(slot.doing)
            elif kind == "result" and "value" in message and not slot.answered:
                self._answer(slot, True, message["value"])
            elif kind == "error" and not slot.answered:
                self._answer(slot, False, error_of(str(message.get("code")), str(message.get("message"))))
            elif kind == "ended" and slot.ticket:
                if not slot.answered:
                    self._answer(slot, False, self._death(slot, f"died ({message.get('how')})"))
                slot.ticket, slot.job = 0, None
                slot.stderr.clear()
            else:
                return self._lost(slot, f"sent a message that means nothing here ({str(kind)[:40]}) and was killed")

    def _lost(self, slot: _Slot, what: str) -> None:
        """The worker itself is gone, or has to go."""
        if what == "died" and slot.child is not None:
            ended = _exit_code(slot.child.pid, GOODBYE_S)
            what = f"died ({'it closed its pipe' if ended is None else how_it_ended(ended)})"
        self._drain_stderr(slot)
        error = self._death(slot, what)
        self._end(slot)
        if slot.ticket and not slot.answered:
            self._answer(slot, False, error)
        slot.ticket, slot.job = 0, None

    def _answer(self, slot: _Slot, is_result: bool, value: Any) -> None:
        self._done[slot.ticket] = is_result, value
        slot.answered = True
        slot.deadline = time.monotonic() + GOODBYE_S  # a child has nothing to do after its answer

    def _death(self, slot: _Slot, what: str) -> AmkError:
        self._drain_stderr(slot)
        said = [line for line in slot.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        last = f": {said[-1].strip()[:300]}" if said else ""
        return WorkerDied(f"the worker {what} while {slot.doing}{last}")

    def _drain_stderr(self, slot: _Slot) -> None:
        if slot.child is not None and slot.child.stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                slot.stderr += os.read(slot.child.stderr.fileno(), _CHUNK_BYTES)
                del slot.stderr[:-_KEPT_STDERR_BYTES]

    # ---- processes ----

    def _start_waiting(self) -> None:
        for slot in self._slots:
            if slot.ticket or not self._queue:
                continue
            ticket, job, say = self._queue.popleft()
            slot.ticket, slot.job, slot.say, slot.answered = ticket, job, say, False
            request = encode({"entry": job.entry, "arguments": dict(job.arguments)})
            if slot.child is not None and not self._give(slot, request):
                self._end(slot)  # it died while it was idle: that is no fault of this job
            if slot.child is None:
                self._begin(slot)
                if not self._give(slot, request):
                    self._lost(slot, "died")
                    continue
            slot.doing = "at work"
            slot.deadline = time.monotonic() + job.timeout_s + (0.0 if slot.ready else START_S)

    def _begin(self, slot: _Slot) -> None:
        command = [sys.executable, "-c", _BOOTSTRAP, str(os.getpid()), *(entry or os.getcwd() for entry in sys.path)]
        pipe = subprocess.PIPE
        slot.child = subprocess.Popen(  # noqa: S603
            command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True
        )
        slot.reader, slot.ready = FrameReader(), False
        slot.stderr.clear()
        for name in ("stdout", "stderr"):
            stream = getattr(slot.child, name)
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, (slot, name))

    def _give(self, slot: _Slot, request: bytes) -> bool:
        assert slot.child is not None and slot.child.stdin is not None
        view = memoryview(request)
        try:
            while view:
                view = view[os.write(slot.child.stdin.fileno(), view) :]
        except OSError:
            return False
        return _exit_code(slot.child.pid, 0.0) is None

    def _end(self, slot: _Slot) -> None:
        """Nothing of the worker outlives this call, but for a process that the kernel cannot end."""
        child = slot.child
        if child is None:
            return
        for stream in (child.stdout, child.stderr):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(stream)  # type: ignore[arg-type]
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GOODBYE_S)
        if child.returncode is None:
            child.returncode = -signal.SIGKILL  # Popen must not wait for it again
        slot.child = None


def _exit_code(pid: int, within_s: float) -> int | None:
    """How a child ended, if it does in time. It is not reaped, so its process group is still its own in `_end`."""
    end = time.monotonic() + within_s
    while (found := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
        if time.monotonic() >= end:
            return None
        time.sleep(0.01)
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
