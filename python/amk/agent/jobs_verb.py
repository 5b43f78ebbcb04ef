"""`amk jobs`: what became of the jobs that an agent started; the same verb is behind the agent's own job tools.

In: parsed arguments. Out: an `Outcome`: all jobs, one job, its result, or what became of cancelling it.
"""

from __future__ import annotations

import math
from argparse import Namespace
from typing import Any

from ..errors import InputError, UnknownJob, show
from ..verb import Outcome, Say
from .jobs import Job, JobStore
from .tools import page_of

__all__ = ["MAX_WAIT_S", "jobs_verb"]

MAX_WAIT_S = 600.0
MOST = 1 << 31


def jobs_verb(arguments: Namespace, _: Say) -> Outcome:
    """Runs the verb. A job without a result (yet) is a "no": exit code 1."""
    for name, least, most in (
        ("wait", 0, MAX_WAIT_S),
        ("grace", 0, MAX_WAIT_S),
        ("offset", 0, MOST),
        ("limit", 1, MOST),
    ):
        _require_number(name, getattr(arguments, name), least, most)
    store, action, page = JobStore(), arguments.ACTION, (arguments.offset, arguments.limit)
    if arguments.JOB is None:
        if action != "status":
            raise UnknownJob(f"amk jobs {action}: expected a job, got none; `amk jobs status` lists them")
        jobs = store.all()
        text = "\n".join(job.to_text() for job in jobs) or f"no jobs in {store.root}"
        return Outcome(0, "OK", page_of({"root": store.root, "jobs": [job.to_dict() for job in jobs]}, *page), text)
    job = (
        store.cancel(arguments.JOB, arguments.grace)
        if action == "cancel"
        else store.wait(arguments.JOB, arguments.wait)
    )
    result: dict[str, Any] = {"job": job.to_dict()}
    if action == "result":
        found = store.result(job.job)
        result["result"] = None if found is None else page_of(found, *page)
        missing = found is None or job.state == "crashed"
        return Outcome(int(missing), job.state.upper(), result, _text(job, found))
    return Outcome(0, job.state.upper(), result, _text(job, None))


def _text(job: Job, result: dict[str, Any] | None) -> str:
    if result is None:
        return "\n".join([job.to_text(), *(f"  {line}" for line in job.progress)])
    return "\n".join([job.to_text(), *(f"  {name}: {show(value)}" for name, value in result.items())])


def _require_number(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise InputError(f"--{name}: expected a number in {least}..{most:.0f}, got {show(value)}")
