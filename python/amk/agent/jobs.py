"""Jobs: `amk` commands that go on when nobody waits for them, with their state on disk.

In: a command line of `amk`. Out: a `Job`, at any time, from any process, also after a restart: what was asked, its
state, its last words, and in the end its result. A job never lies: one whose process is gone without a whole result
has `crashed`, whatever else has its process number by now, and only a result that agrees with how the process ended is
one.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError, UnknownJob, show
from .job_folder import (
    ABANDONED,
    CANCEL,
    END,
    JOB,
    PROCESS,
    STDERR,
    STDOUT,
    read_json,
    read_result,
    read_tail,
    write_json,
)
from .job_folder import jobs_root as default_root
from .processes import MARK, Identity, kill_group

__all__ = ["ENDED", "STATES", "Job", "JobStore", "stop_waiting"]

STATES = ("starting", "running", "cancelling", "finished", "cancelled", "crashed", "elsewhere")
ENDED = ("finished", "cancelled", "crashed")

MAX_RUNNING = 16
MAX_KEPT = 256
SIGN_IN_S = 60.0  # a child that has not signed in by then, and is not ours, was never started
POLL_S = 0.05
LAST_WORDS = 20
_ID = re.compile(r"[0-9a-f]{12}")

# The children that this process started and has to reap.
_CHILDREN: dict[str, subprocess.Popen[bytes]] = {}
_LOCK = threading.Lock()
_STOPPED = threading.Event()


@dataclass(frozen=True)
class Job:
    job: str
    tool: str
    state: str
    argv: tuple[str, ...]
    cwd: str
    created_utc: str
    elapsed_s: float  # to now, or to its last output
    pid: int | None
    exit_code: int | None  # of the result
    status: str | None  # of the result
    error: str | None  # why there is no result
    progress: tuple[str, ...]  # the last lines of its stderr
    folder: str

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "argv": list(self.argv), "progress": list(self.progress)}

    def to_text(self) -> str:
        """One line, and the last words while it runs or where it crashed."""
        code = "" if self.exit_code is None else f", exit code {self.exit_code} ({self.status})"
        line = f"{self.job}  {self.state:<10} {self.elapsed_s:>8.1f} s  {self.created_utc}  amk {' '.join(self.argv)}"
        return "\n".join([line + code, *([f"  {self.error}"] if self.error else [])])


class JobStore:
    """The jobs under one root. `command` is what runs a job's folder (default: this package's own child)."""

    def __init__(self, root: str | None = None, command: Sequence[str] | None = None) -> None:
        self.root = os.path.abspath(default_root() if root is None else root)
        self._command = [sys.executable, "-m", "amk.agent.child"] if command is None else list(command)

    def start(self, tool: str, argv_in: Callable[[str], list[str]]) -> Job:
        """Starts `amk` with the arguments that `argv_in` makes for the job's folder, detached from this process."""
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        jobs = self.all()
        running = sum(not job.has_ended for job in jobs)
        if running >= MAX_RUNNING:
            raise InputError(f"jobs: {running} are running, allowed {MAX_RUNNING}: cancel one, or wait for one to end")
        for old in [job for job in jobs if job.has_ended][MAX_KEPT - 1 :]:
            shutil.rmtree(old.folder, ignore_errors=True)
        job = secrets.token_hex(6)
        folder = os.path.join(self.root, job)
        os.mkdir(folder, 0o700)
        try:
            cwd = os.getcwd()
            facts = {"job": job, "tool": tool, "argv": argv_in(folder), "cwd": cwd}
            write_json(os.path.join(folder, JOB), {**facts, "created": time.time(), "host": platform.node()})
            out, err = (open(os.path.join(folder, name), "wb") for name in (STDOUT, STDERR))
            with out, err:
                child = subprocess.Popen(
                    [*self._command, folder],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    cwd=cwd,
                    env={**os.environ, MARK: job},
                    start_new_session=True,
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        _CHILDREN[job] = child
        return self.find(job)

    def find(self, job: object) -> Job:
        """A job as it is now. UnknownJob when there is none."""
        if not isinstance(job, str) or not _ID.fullmatch(job):
            raise UnknownJob(f"job: expected 12 hexadecimal digits, got {show(job)}")
        folder = os.path.join(self.root, job)
        facts = read_json(os.path.join(folder, JOB))
        if not isinstance(facts, dict):
            raise UnknownJob(f"job: there is no job {job} in {self.root}")
        try:
            return self._describe(folder, facts)
        except (KeyError, TypeError) as damage:
            raise UnknownJob(f"job {job}: what it left in {folder} cannot be read: {damage!r}") from damage

    def all(self) -> list[Job]:
        """Newest first; what cannot be read is left out."""
        try:
            names = [name for name in os.listdir(self.root) if _ID.fullmatch(name)]
        except FileNotFoundError:
            return []
        jobs = []
        for name in names:
            try:
                jobs.append(self.find(name))
            except UnknownJob:
                continue
        return sorted(jobs, key=lambda job: (job.created_utc, job.job), reverse=True)

    def result(self, job: str) -> dict[str, Any] | None:
        """What the verb printed; None while it runs, and for a job that ended without."""
        found = self.find(job)
        return read_result(found.folder) if found.has_ended else None

    def wait(self, job: str, seconds: float) -> Job:
        """The job when it has ended, or when the time is over."""
        until = time.monotonic() + seconds
        while not (found := self.find(job)).has_ended and time.monotonic() < until and not _STOPPED.wait(POLL_S):
            pass
        return found

    def cancel(self, job: str, grace_s: float) -> Job:
        """Asks the job to end (SIGINT), and after the grace kills its process group. What has ended stays as it is."""
        found = self.find(job)
        if found.has_ended:
            return found
        if found.state == "elsewhere":
            raise InputError(f"job {job} runs on another machine: cancel it there ({found.error})")
        path = os.path.join(found.folder, CANCEL)
        if read_json(path) is None:
            write_json(path, {"requested": time.time(), "grace_s": grace_s})
        identity = Identity.from_dict(read_json(os.path.join(found.folder, PROCESS)))
        if identity is not None:
            identity.send(signal.SIGINT)
        found = self.wait(job, grace_s)
        if not found.has_ended and not _STOPPED.is_set():  # else: whoever looks at the job next keeps to the grace
            self._kill(found.folder, job)
            found = self.wait(job, 10.0)
        return found

    # ---- what a folder says ----

    def _describe(self, folder: str, facts: Mapping[str, Any]) -> Job:
        end, error = read_json(os.path.join(folder, END)), None
        identity = Identity.from_dict(read_json(os.path.join(folder, PROCESS)))
        if end is None:
            state, error = self._judge(folder, facts)
            if state in ENDED:
                end = self._note_end(folder, state, error)
        if end is not None:
            state, error = end["state"], end["error"]
        end = end or {"exit_code": None, "status": None, "ended": time.time()}
        return Job(
            job=facts["job"],
            tool=facts["tool"],
            state=state,
            argv=tuple(facts["argv"]),
            cwd=facts["cwd"],
            created_utc=_utc(facts["created"]),
            elapsed_s=round(max(0.0, end["ended"] - facts["created"]), 3),
            pid=None if identity is None else identity.pid,
            exit_code=end["exit_code"],
            status=end["status"],
            error=error,
            progress=tuple(read_tail(os.path.join(folder, STDERR), LAST_WORDS)),
            folder=folder,
        )

    def _judge(self, folder: str, facts: Mapping[str, Any]) -> tuple[str, str | None]:
        """(state, why there is no result) of a job whose end nobody has noted yet."""
        cancel = read_json(os.path.join(folder, CANCEL))
        with _LOCK:
            child = _CHILDREN.get(facts["job"])
            returncode = None if child is None else child.poll()
        identity = Identity.from_dict(read_json(os.path.join(folder, PROCESS)))
        if identity is None:
            if child is not None and returncode is not None:
                return self._ended(folder, cancel, returncode)
            if child is None and facts["host"] != platform.node():
                return "elsewhere", f"it was started on {facts['host']}"
            if child is not None or time.time() - facts["created"] < SIGN_IN_S or not _give_up(folder):
                return ("starting" if cancel is None else "cancelling"), None
            return ("crashed" if cancel is None else "cancelled"), "it was never started"
        if identity.is_elsewhere:
            return "elsewhere", f"it runs on {identity.host}, or did"
        if returncode is None and identity.is_alive:
            if cancel is None:
                return "running", None
            if time.time() > cancel["requested"] + cancel["grace_s"]:  # whoever cancelled it did not live to do it
                self._kill(folder, facts["job"])
            return "cancelling", None
        if child is not None and returncode is None:
            with _LOCK:
                returncode = child.wait()  # it is a zombie: this only reaps it
        return self._ended(folder, cancel, returncode)

    def _ended(self, folder: str, cancel: Any, returncode: int | None) -> tuple[str, str | None]:
        result = read_result(folder)
        if result is None:
            if cancel is not None:
                return "cancelled", f"it was cancelled and left no result: it {_how(returncode)}"
            last = read_tail(os.path.join(folder, STDERR), 1)
            return "crashed", f"it {_how(returncode)} without a result" + (
                f"; its last words: {last[0]}" if last else ""
            )
        if returncode is not None and returncode != result["exit_code"]:
            return "crashed", f"it {_how(returncode)}, after a result that says exit code {result['exit_code']}"
        return ("cancelled" if cancel is not None and result["exit_code"] == 130 else "finished"), None

    def _note_end(self, folder: str, state: str, error: str | None) -> dict[str, Any]:
        if state != "finished":
            self._kill(folder, os.path.basename(folder))  # what it started must not go on, on a GPU perhaps
        result = read_result(folder) or {}
        times = [os.stat(path).st_mtime for name in (STDOUT, STDERR, PROCESS, JOB)
                 if os.path.exists(path := os.path.join(folder, name))]  # fmt: skip
        end = {
            "state": state,
            "error": error,
            "exit_code": result.get("exit_code"),
            "status": result.get("status"),
            "ended": max(times),
        }
        try:
            write_json(os.path.join(folder, END), end)
        except OSError:  # a full disk: it is judged again the next time
            return end
        with _LOCK:
            _CHILDREN.pop(os.path.basename(folder), None)
        return end

    def _kill(self, folder: str, job: str) -> None:
        identity = Identity.from_dict(read_json(os.path.join(folder, PROCESS)))
        if identity is not None:
            kill_group(identity, job)
        elif (child := _CHILDREN.get(job)) is not None and child.poll() is None:
            child.kill()


def stop_waiting() -> None:
    """Ends every wait of this process, now and later: it is about to exit. Jobs go on."""
    _STOPPED.set()


def _give_up(folder: str) -> bool:
    """Forbids a child that has not signed in to work; False if it just has. It signs in before it looks for this."""
    path = os.path.join(folder, ABANDONED)
    with open(path, "wb"):
        pass
    if read_json(os.path.join(folder, PROCESS)) is None:
        return True
    os.unlink(path)
    return False


def _utc(seconds: float) -> str:
    whole, rest = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{rest:03d}Z"


def _how(returncode: int | None) -> str:
    if returncode is None:
        return "vanished"
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"
