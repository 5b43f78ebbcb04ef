"""A task, a stage and a device -> one sealed record: rows in processes of their own, no time before all passed.

In: the name of a task. Out: a plain dict, valid or with reasons. Rows are checked first, regression rows many to a
process; only then production rows are timed, one to a process, each checked again before and after. A process that
dies, hangs or is refused is a reason, and its rows stay in the record without a time.
"""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .. import nvml
from ..errors import AmkError, DeviceBusy, InputError, OutOfMemory, Unavailable, show
from ..gpu_lock import gpu_lock
from ..supervisor import run_job
from .check import SIDES
from .external import External, find_external
from .judge import Refused
from .measure import load_oracle
from .record import build_row, preflight, proofs, seal
from .workloads import Row, Task, load_task

__all__ = ["run_kernel_bench"]

_DEVICE_CLASS = "amk.tasks.device:HarnessDevice"
_ROWS_PER_CHECK = 16
_DEVICES_S = 120.0
_COMPILE_S = 300.0  # that an external baseline may take more, for its imports and its compiler

Say = Callable[[str], None]


def run_kernel_bench(
    name: str,
    *,
    stage: str = "full",
    baseline: str | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Say | None = None,
) -> dict[str, Any]:
    """The record of `amk bench kernel NAME`. What is wrong with the request, or with this computer, is raised."""
    say = progress or (lambda text: None)
    task = load_task(name)
    load_oracle(task)
    rows = task.rows_of(stage)
    external = None if baseline is None else find_external(baseline, task.name)
    found, _ = run_job(
        {"task": "kernel", "action": "devices", "device": 0, "device_class": _DEVICE_CLASS}, {}, say, total_s=_DEVICES_S
    )
    chosen = _choose(device, found["devices"])
    record: dict[str, Any] = {
        "task": task.name, "title": task.title, "stage": stage, "seed": seed, "targets": list(task.targets),
        "workloads_sha256": task.workloads_sha256, "settings": asdict(task.settings),
        "baseline": external.describe() if external else {"kind": "in-repo"},
        "proved_sides": ["solution"] if external else list(SIDES),
        "device": {key: value for key, value in chosen.items() if key != "snapshot"},
        "library": found["library"], "library_sha256_seen": [], "snapshots": [], "rows": [],
        "reasons": preflight(task, found["library"]),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "amk": _amk_version()},
        "command": " ".join(sys.argv), "began": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
    }  # fmt: skip
    if not record["reasons"]:
        with gpu_lock(chosen["uuid"]):
            _measure(task, rows, record, external, chosen["index"], say)
    record["ended"] = datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")
    record["notes"] = _notes(record, chosen)
    sealed = seal(task, record)
    sealed["proofs"] = proofs(task, sealed) if sealed["valid"] else None
    return sealed


def _measure(
    task: Task, rows: Sequence[Row], record: dict[str, Any], external: External | None, index: int, say: Say
) -> None:
    """Fills the record's rows, in the order of the file."""
    job = {
        "task": "kernel", "folder": str(task.folder.resolve()), "workloads_sha256": task.workloads_sha256,
        "device": index, "seed": record["seed"], "device_class": _DEVICE_CLASS,
    }  # fmt: skip
    answers: dict[str, Mapping[str, Any]] = {}
    plain = [row for row in rows if row.kind != "production"]
    for at in range(0, len(plain), _ROWS_PER_CHECK):
        some = plain[at : at + _ROWS_PER_CHECK]
        answers |= _ask({**job, "action": "check"}, some, record, task.settings.check_limit_s, say)
    if any(answer["refused"] for answer in answers.values()):
        say("a regression row failed: nothing is timed")
    else:
        if external is not None:
            job |= {"device_class": external.device_class, "external": external.spec}
        for row in rows:
            if row.kind == "production":
                limit_s = task.settings.row_limit_s + (_COMPILE_S if external is not None else 0.0)
                answers |= _ask({**job, "action": "time"}, [row], record, limit_s, say)
    for row in rows:
        answer = answers.get(row.name)
        if answer is None:
            continue  # not run; `seal` says that it is missing
        if answer["refused"] is None and "timing" in answer:
            try:
                answer = build_row(answer, task.settings)
            except Refused as refusal:
                answer = _refused(row, refusal.reason, str(refusal))
        record["rows"].append(dict(answer))


def _ask(
    job: Mapping[str, Any], rows: Sequence[Row], record: dict[str, Any], limit_s: float, say: Say
) -> dict[str, Mapping[str, Any]]:
    """The answers of one worker; what ended it early is the answer of every row that it had."""
    names = [row.name for row in rows]
    try:
        facts, _ = run_job({**job, "rows": names}, {}, say, total_s=limit_s)
    except (Unavailable, OutOfMemory, InputError):
        raise
    except AmkError as error:
        return {row.name: _refused(row, "worker", f"{error.code}: {error}") for row in rows}
    if facts.get("uuid") != record["device"]["uuid"]:
        raise Unavailable(f"the device changed: expected {record['device']['uuid']}, a worker has {facts.get('uuid')}")
    record["library_sha256_seen"].append(facts["library_sha256"])
    record["snapshots"].append({"rows": [names[0], names[-1]], "before": facts["snapshots"][0],
                                "after": facts["snapshots"][-1]})  # fmt: skip
    record["versions"] |= facts["versions"]
    return {answer["name"]: answer for answer in facts["rows"]}


def _refused(row: Row, reason: str, message: str) -> dict[str, Any]:
    return {"name": row.name, "kind": row.kind, "refused": {"reason": reason, "message": message}}


def _choose(device: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`auto`: the first on which nobody computes; `cuda:N`: that one. DeviceBusy where somebody does."""
    if not found:
        raise Unavailable("kernel tasks: expected a GPU, found none")
    if device == "auto":
        for one in found:
            if not one["snapshot"].get("compute_pids"):
                return dict(one)
        raise DeviceBusy(f"kernel tasks: other processes compute on every one of {len(found)} devices")
    name, _, index = device.partition(":")
    if name != "cuda" or (index and not index.isdigit()):
        raise InputError(f"device: expected auto, cuda or cuda:N, got {show(device)}")
    number = int(index or 0)
    if number >= len(found):
        raise InputError(f"device: expected one of {len(found)} devices, got {show(device)}")
    return dict(found[number])


def _notes(record: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    notes = []
    if not str(chosen["compute"]).startswith("10."):
        notes.append(f"taken on {chosen['name']} (compute capability {chosen['compute']}): not validated on a B200")
    if record["stage"] != "full":
        notes.append(f"stage {record['stage']}: only full counts")
    taken = [snapshot[when] for snapshot in record["snapshots"] for when in ("before", "after")]
    if slower := nvml.held_back_by(*taken):
        notes.append(f"the device was held back by {', '.join(slower)}")
    if chosen["snapshot"].get("compute_pids"):
        notes.append("another process had a context on the device when the run began")
    return notes


def _amk_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("amk")
    except PackageNotFoundError:  # a source tree on sys.path
        return "unknown"
