"""Where a job runs: one small interface, and the simplest executor behind it.

In: jobs, each the name of a function and plain arguments. Out: its plain result, or a typed error: what the function
raised, or `WorkerDied` with what is known of how. An executor runs at most `workers` jobs at once and ends whatever
still runs when it is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from ..errors import AmkError, InputError, OutOfMemory, WorkerDied, show

__all__ = ["ENGINES", "Executor", "InlineExecutor", "Job", "Say", "call_entry", "open_executor", "trouble_of"]

ENGINES = ("inline", "process", "ray")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    entry: str  # "module:function", called as function(arguments, say)
    arguments: Mapping[str, Any]  # what JSON can hold
    timeout_s: float


class Executor(Protocol):
    workers: int

    def submit(self, job: Job, say: Say) -> int:
        """A ticket for a job that runs as soon as a worker is free."""

    def wait(self, ticket: int) -> Any:
        """The job's result, or the error that stands for it; each ticket once."""

    def probe(self, ticket: int, job: Job) -> tuple[int, AmkError | None]:
        """The number of the worker that ran a ticket, and what became of a job that it runs now: None where it ended
        well. Asked once, after the ticket was waited for."""

    def close(self) -> None: ...


def trouble_of(executor: Executor, job: Job) -> AmkError | None:
    """What became of a job, where its result does not matter."""
    try:
        executor.wait(executor.submit(job, lambda text: None))
    except AmkError as error:
        return error
    return None


class InlineExecutor:
    """Runs a job in this process, when it is waited for. Nothing protects this process from it, or ends it."""

    workers = 1

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[Job, Say]] = {}
        self._next = 0

    def submit(self, job: Job, say: Say) -> int:
        self._next += 1
        self._waiting[self._next] = job, say
        return self._next

    def wait(self, ticket: int) -> Any:
        job, say = self._waiting.pop(ticket)
        try:
            return call_entry(job.entry, job.arguments, say)
        except AmkError:
            raise
        except MemoryError as error:
            raise OutOfMemory(str(error) or "out of memory") from error
        except Exception as bug:  # in a worker it would end the worker
            raise WorkerDied(f"the trial failed: {type(bug).__name__}: {bug}") from bug

    def probe(self, ticket: int, job: Job) -> tuple[int, AmkError | None]:
        return 0, trouble_of(self, job)

    def close(self) -> None:
        self._waiting.clear()


def call_entry(entry: str, arguments: Mapping[str, Any], say: Say) -> Any:
    """Runs a job here."""
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)(dict(arguments), say)


def open_executor(engine: str, workers: int, *, gpus: bool) -> Executor:
    """`gpus`: the jobs use a GPU, one each."""
    if engine not in ENGINES:
        raise InputError(f"engine: expected one of {', '.join(ENGINES)}, got {show(engine)}")
    if type(workers) is not int or not 1 <= workers <= 256:
        raise InputError(f"workers: expected an integer in 1..256, got {show(workers)}")
    if engine == "ray":
        from .ray_executor import RayExecutor

        return RayExecutor(workers, gpus=gpus)
    if workers > 1 and (gpus or engine == "inline"):
        why = "trials on one GPU would time each other" if gpus else "inline runs one trial at a time"
        raise InputError(f"workers: expected 1 with engine {engine!r}, because {why}, got {workers}")
    if engine == "inline":
        return InlineExecutor()
    from .pool import ProcessExecutor

    return ProcessExecutor(workers)
