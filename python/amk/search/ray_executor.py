"""Jobs on the workers of a Ray cluster: many GPUs, or many hosts, each worker with one GPU of its own.

In: jobs. Out: their results. Each Ray actor runs its jobs through a process pool of its own, so a trial that faults or
hangs is ended there; a trial whose actor or host is lost is `WorkerDied`, and Ray starts the actor again.
Uses the cluster that this process is connected to, or that RAY_ADDRESS names, or one of this computer's own.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import Any

from ..errors import AmkError, Unavailable, WorkerDied
from ..supervisor import error_of
from .executor import Job, Say
from .pool import START_S, ProcessExecutor

__all__ = ["RayExecutor"]

_SLACK_S = 60.0  # for the messages between hosts, after a job's own deadline has passed


class RayExecutor:
    def __init__(self, workers: int = 1, *, gpus: bool = False) -> None:
        try:
            import ray
        except ImportError as error:
            raise Unavailable('engine ray needs Ray: pip install "amk[ray]"') from error
        self.workers = workers
        self._ray = ray
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _connect(ray, workers)
        needed = {"GPU": float(workers)} if gpus else {"CPU": float(workers)}
        have = ray.cluster_resources()
        for kind, count in needed.items():
            if have.get(kind, 0.0) < count:
                self._leave()
                raise Unavailable(
                    f"engine ray: {count:g} workers need as many {kind}s, the cluster has {have.get(kind, 0.0):g}"
                )
        remote = ray.remote(_Worker).options(
            num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=0
        )
        paths = [entry or os.getcwd() for entry in sys.path]
        self._actors = [remote.remote(paths) for _ in range(workers)]
        self._free = deque(range(workers))
        self._queue: deque[tuple[int, Job, Say]] = deque()
        self._running: dict[Any, tuple[int, int, float]] = {}  # by reference: ticket, actor, deadline
        self._done: dict[int, Any] = {}
        self._ran_on: dict[int, int] = {}  # by ticket: the actor, until it is asked for
        self._next = 0

    def submit(self, job: Job, say: Say) -> int:
        self._next += 1
        self._queue.append((self._next, job, say))
        self._start_waiting()
        return self._next

    def wait(self, ticket: int) -> Any:
        while ticket not in self._done:
            self._turn()
        value = self._done.pop(ticket)
        if isinstance(value, AmkError):
            raise value
        return value

    def probe(self, ticket: int, job: Job) -> tuple[int, AmkError | None]:
        """On the actor that ran the ticket, which has the device that the ticket used: a host sees only its own."""
        index = self._ran_on.pop(ticket)
        reference = self._actors[index].run.remote(job.entry, dict(job.arguments), job.timeout_s)
        ready, _ = self._ray.wait([reference], timeout=START_S + job.timeout_s + _SLACK_S)
        if not ready:
            self._ray.kill(self._actors[index], no_restart=False)
            return index, WorkerDied(f"Ray worker {index} did not answer in time and was killed")
        value = self._result(reference, index)
        return index, value if isinstance(value, AmkError) else None

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor, no_restart=True)
        self._leave()

    def _leave(self) -> None:
        if self._is_ours:
            self._ray.shutdown()

    def _start_waiting(self) -> None:
        while self._free and self._queue:
            ticket, job, say = self._queue.popleft()
            index = self._free.popleft()
            self._ran_on[ticket] = index
            say(f"on Ray worker {index}")
            reference = self._actors[index].run.remote(job.entry, dict(job.arguments), job.timeout_s)
            self._running[reference] = ticket, index, time.monotonic() + START_S + job.timeout_s + _SLACK_S

    def _turn(self) -> None:
        deadline = min(end for _, _, end in self._running.values())
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        for reference in ready:
            ticket, index, _ = self._running.pop(reference)
            self._done[ticket] = self._result(reference, index)
            self._free.append(index)
        now = time.monotonic()
        for reference in [reference for reference, (_, _, end) in self._running.items() if now >= end]:
            ticket, index, _ = self._running.pop(reference)
            self._ray.kill(self._actors[index], no_restart=False)
            self._done[ticket] = WorkerDied(f"Ray worker {index} did not answer in time and was killed")
            self._free.append(index)
        self._start_waiting()

    def _result(self, reference: Any, index: int) -> Any:
        try:
            is_result, value = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            first = (str(error).strip().splitlines() or [""])[0]
            return WorkerDied(f"Ray worker {index} died ({type(error).__name__}): {first[:200]}")
        return value if is_result else error_of(*value)


class _Worker:
    """Runs in the actor. Errors cross as text, because their classes must not have to be importable where they land."""

    def __init__(self, paths: list[str]) -> None:
        sys.path[:] = [*paths, *(entry for entry in sys.path if entry not in paths)]
        self._pool = ProcessExecutor(1)

    def run(self, entry: str, arguments: dict[str, Any], timeout_s: float) -> tuple[bool, Any]:
        try:
            return True, self._pool.wait(self._pool.submit(Job(entry, arguments, timeout_s), lambda text: None))
        except AmkError as error:
            return False, (error.code, str(error))


def _connect(ray: Any, workers: int) -> None:
    """The named cluster, or a local one that says nothing on this process's terminal."""
    options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
    if not os.environ.get("RAY_ADDRESS"):
        options["num_cpus"] = max(workers, 1)
    else:
        options.pop("include_dashboard")
    try:
        ray.init(**options)
    except Exception as error:  # of many kinds, Ray's own and those of what it is built on
        raise Unavailable(f"engine ray: no cluster: {type(error).__name__}: {error}") from error
