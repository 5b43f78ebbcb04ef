"""What a worker does for a kernel task: names devices and the library, checks rows, or times one.

In: a job (an action, a task by its folder and the hash of its rows, names of rows, sides), a device. Out: plain facts.
A row that is refused, or one of its baselines, is an answer, with its reason; everything else that goes wrong ends the
worker with a typed error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import InputError
from .check import SIDES, Contest, check_row
from .judge import Refused
from .time_row import time_row
from .workloads import Row, Task, check_operands, read_task

__all__ = ["load_oracle", "run_action"]

Tell = Callable[[str | None, float], None]
STEP_S = 300.0  # the longest silence: a compiler behind an external baseline, a check of a gigabyte on a busy machine
_BEAT_S = 0.5


def run_action(
    job: Mapping[str, Any], parts: Mapping[str, Any], device: Any, tell: Tell
) -> tuple[dict[str, Any], dict[str, Any]]:
    action = job["action"]
    if action == "devices":
        found = []
        for index in range(device.count()):
            one = type(device)(index)
            found.append({"index": index, **one.facts(), "snapshot": one.snapshot()})
        return {"devices": found, "library": device.facts_of_library()}, {}
    task = read_task(Path(job["folder"]))
    if task.workloads_sha256 != job["workloads_sha256"]:
        raise InputError(f"{task.name}/workloads.json: it changed during the run")
    oracle = load_oracle(task)
    rows = {row.name: row for row in task.rows}
    facts: dict[str, Any] = {**device.facts(), "snapshots": [device.snapshot()], "rows": []}
    facts |= {"library_sha256": device.sha256_of_library(), "versions": device.versions()}
    device.open()
    try:
        for name in job["rows"]:
            facts["rows"].append(_do(action, device, task, rows[name], oracle, job, tell))
    finally:
        device.close()
    facts["snapshots"].append(device.snapshot())
    return facts, {}


def load_oracle(task: Task) -> Any:
    """The module of a task, with the rows held against its operands."""
    try:
        oracle = import_module(f"amk.tasks.oracles.{task.name}")
    except ModuleNotFoundError as error:
        raise InputError(f"task {task.name}: expected its oracle at amk.tasks.oracles.{task.name}, {error}") from error
    check_operands(task, oracle.OPERANDS)
    return oracle


def _do(
    action: str, device: Any, task: Task, row: Row, oracle: Any, job: Mapping[str, Any], tell: Tell
) -> dict[str, Any]:
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last >= _BEAT_S:
            last = time.monotonic()
            tell(None, STEP_S)

    contest = Contest(job.get("sides", SIDES))
    out: dict[str, Any] = {"name": row.name, "kind": row.kind, "refused": None}
    try:
        tell(f"checking {row.name}", STEP_S)
        device.prepare(task.name, row, oracle, contest.sides)
        out["before"] = check_row(device, task.name, row, oracle, beat, contest)
        if action == "time":
            tell(f"timing {row.name}", STEP_S)
            out["timing"] = time_row(device, task.name, row, oracle, task.settings, job["seed"], beat, contest)
    except Refused as refusal:
        out = {"name": row.name, "kind": row.kind, "refused": refusal.to_dict()}
    return {**out, "refused_baselines": contest.refused}
