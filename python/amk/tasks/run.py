"""A task, a stage, a device and baselines -> a sealed record each: rows in processes of their own, no time before all
passed.

In: the name of a task. Out: plain dicts, each valid or with reasons. Rows are checked first, regression rows many to a
process; only then production rows are timed, one to a process, each checked again before and after. All baselines of a
run are timed beside one solution and one copy, so that its samples are the same in every record. A process that dies,
hangs or is refused is a reason, and its rows stay in the record without a time; a baseline that is refused is a reason
of its own record.
"""

from __future__ import annotations

import datetime
import math
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
from .check import SIDES, SOLUTION
from .external import DEVICE_CLASS, IN_REPO, External, find_external
from .journal import Journal
from .judge import Refused
from .measure import load_oracle
from .record import answer_about, build_row, preflight, proofs, seal
from .workloads import Row, Settings, Task, load_task

__all__ = ["run_kernel_bench"]

_DEVICE_CLASS = "amk.tasks.device:HarnessDevice"
# A process that checks takes more than two seconds to begin and to end, and most rows take less to check.
_ROWS_PER_CHECK, _ROWS_PER_LIMIT = 128, 16
_DEVICES_S = 120.0
_COMPILE_S = 300.0  # that an external baseline may take more, for its imports and its compiler

Say = Callable[[str], None]


def run_kernel_bench(
    name: str,
    *,
    stage: str = "full",
    baselines: Sequence[str] = (IN_REPO,),
    device: str = "auto",
    seed: int = 0,
    journal: str | None = None,
    progress: Say | None = None,
) -> list[dict[str, Any]]:
    """The records of `amk bench kernel NAME`, one for each baseline: "in-repo", "torch", "torch.compile" or
    "module:function". journal: a file that keeps what workers have answered; a run that was cut short goes on from it.
    What is wrong with the request, or with this computer, is raised."""
    say = progress or (lambda text: None)
    task = load_task(name)
    load_oracle(task)
    rows = task.rows_of(stage)
    if not baselines or isinstance(baselines, str) or len(set(baselines)) < len(baselines):
        raise InputError(f"baseline: expected some, each once, got {show(baselines)}")
    externals = {spec: find_external(spec, task.name) for spec in baselines if spec != IN_REPO}
    found, _ = run_job(
        {"task": "kernel", "action": "devices", "device": 0, "device_class": _DEVICE_CLASS}, {}, say, total_s=_DEVICES_S
    )
    chosen = _choose(device, found["devices"])
    run: dict[str, Any] = {
        "task": task.name, "title": task.title, "stage": stage, "seed": seed, "targets": list(task.targets),
        "workloads_sha256": task.workloads_sha256, "settings": asdict(task.settings),
        "baseline": None, "proved_sides": [],
        "device": {key: value for key, value in chosen.items() if key != "snapshot"},
        "library": found["library"], "library_sha256_seen": [], "snapshots": [], "rows": [],
        "reasons": preflight(task, found["library"]),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "amk": _amk_version()},
        "command": " ".join(sys.argv), "began": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
    }  # fmt: skip
    answers: dict[str, Mapping[str, Any]] = {}
    kept = None
    if not run["reasons"]:
        sides = [SIDES[0] if spec == IN_REPO else spec for spec in baselines]
        with gpu_lock(chosen["uuid"]):
            kept = None if journal is None else _journal(journal, run, baselines, externals)
            answers = _measure(task, rows, run, sides, chosen["index"], kept, say)
    run["ended"] = datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")
    notes = _notes(run, chosen)
    if kept is not None and kept.continued:
        notes.append(f"a run that was cut short, continued from its journal at {run['began']}")
        run["began"] = kept.began
    return [
        _sealed(task, rows, run, answers, externals.get(spec), notes + _beside(spec, baselines)) for spec in baselines
    ]


def _journal(path: str, run: Mapping[str, Any], baselines: Sequence[str], externals: Mapping[str, External]) -> Journal:
    """Of a run that differs in nothing that a time depends on."""
    same = ("task", "stage", "seed", "workloads_sha256", "settings", "device", "versions")
    identity = {name: run[name] for name in same}
    identity |= {"baselines": list(baselines), "library_sha256": run["library"]["sha256"]}
    identity["sources"] = {
        spec: {key: value for key, value in one.source.items() if key != "resolved"} for spec, one in externals.items()
    }
    return Journal(path, identity, run["began"])


def _sealed(
    task: Task,
    rows: Sequence[Row],
    run: Mapping[str, Any],
    answers: Mapping[str, Mapping[str, Any]],
    external: External | None,
    notes: list[str],
) -> dict[str, Any]:
    """The record of one baseline, with its rows in the order of the file."""
    side = external.spec if external else SIDES[0]
    record = {
        **run,
        "baseline": external.describe() if external else {"kind": IN_REPO},
        "proved_sides": [SOLUTION] if external else list(SIDES),
        # a row that was not run is not there; `seal` says that it is missing
        "rows": [
            _row(row, answer_about(side, answers[row.name]), task.settings) for row in rows if row.name in answers
        ],
        "notes": notes,
    }
    sealed = seal(task, record)
    sealed["proofs"] = proofs(task, sealed) if sealed["valid"] else None
    return sealed


def _row(row: Row, answer: dict[str, Any], settings: Settings) -> dict[str, Any]:
    if answer["refused"] is None and "timing" in answer:
        try:
            return build_row(answer, settings)
        except Refused as refusal:
            return _refused(row, refusal.reason, str(refusal))
    return answer


def _measure(
    task: Task,
    rows: Sequence[Row],
    run: dict[str, Any],
    baselines: Sequence[str],
    index: int,
    journal: Journal | None,
    say: Say,
) -> dict[str, Mapping[str, Any]]:
    """The answers, by row; what every record rests on is added to `run`."""
    job = {
        "task": "kernel", "folder": str(task.folder.resolve()), "workloads_sha256": task.workloads_sha256,
        "device": index, "seed": run["seed"], "device_class": _DEVICE_CLASS, "sides": list(SIDES),
    }  # fmt: skip
    answers: dict[str, Mapping[str, Any]] = {}
    plain = [row for row in rows if row.kind != "production"]
    for at in range(0, len(plain), _ROWS_PER_CHECK):
        some = plain[at : at + _ROWS_PER_CHECK]
        limit_s = task.settings.check_limit_s * math.ceil(len(some) / _ROWS_PER_LIMIT)
        answers |= _ask({**job, "action": "check"}, some, run, limit_s, journal, say)
    if any(answer["refused"] for answer in answers.values()):
        say("a regression row failed: nothing is timed")
        return answers
    job["sides"] = [*baselines, SOLUTION]
    n_external = sum(side not in SIDES for side in baselines)
    if n_external:
        job["device_class"] = DEVICE_CLASS  # of all sides: equal wrappers
    limit_s = task.settings.row_limit_s * len(baselines) + _COMPILE_S * n_external
    for row in rows:
        if row.kind == "production":
            answers |= _ask({**job, "action": "time"}, [row], run, limit_s, journal, say)
    return answers


def _ask(
    job: Mapping[str, Any],
    rows: Sequence[Row],
    run: dict[str, Any],
    limit_s: float,
    journal: Journal | None,
    say: Say,
) -> dict[str, Mapping[str, Any]]:
    """The answers of one worker; what ended it early is the answer of every row that it had."""
    names = [row.name for row in rows]
    facts = journal.find(names) if journal is not None else None
    is_known = facts is not None
    if facts is None:
        try:
            facts, _ = run_job({**job, "rows": names}, {}, say, total_s=limit_s)
        except (Unavailable, OutOfMemory, InputError):
            raise
        except AmkError as error:
            return {row.name: _refused(row, "worker", f"{error.code}: {error}") for row in rows}
    if facts.get("uuid") != run["device"]["uuid"]:
        raise Unavailable(f"the device changed: expected {run['device']['uuid']}, a worker has {facts.get('uuid')}")
    for name, version in facts["versions"].items():
        if (before := run["versions"].setdefault(name, version)) != version:
            raise Unavailable(f"{name} changed during the run: expected {before}, a worker has {version}")
    if journal is not None and not is_known:
        journal.add(names, facts)
    run["library_sha256_seen"].append(facts["library_sha256"])
    run["snapshots"].append({"rows": [names[0], names[-1]], "before": facts["snapshots"][0],
                                "after": facts["snapshots"][-1]})  # fmt: skip
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


def _notes(run: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    notes = []
    if not str(chosen["compute"]).startswith("10."):
        notes.append(f"taken on {chosen['name']} (compute capability {chosen['compute']}): not validated on a B200")
    if run["stage"] != "full":
        notes.append(f"stage {run['stage']}: only full counts")
    taken = [snapshot[when] for snapshot in run["snapshots"] for when in ("before", "after")]
    if slower := nvml.held_back_by(*taken):
        notes.append(f"the device was held back by {', '.join(slower)}")
    if chosen["snapshot"].get("compute_pids"):
        notes.append("another process had a context on the device when the run began")
    return notes


def _beside(spec: str, baselines: Sequence[str]) -> list[str]:
    if len(baselines) < 2:
        return []
    return [f"timed in one run with {', '.join(other for other in baselines if other != spec)} as other baselines"]


def _amk_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("amk")
    except PackageNotFoundError:  # a source tree on sys.path
        return "unknown"
