"""A small copy of a kernel task, benched without a GPU: its files, workers in this process, what a record says.

In: a folder, a device of `fake_task_devices` by name. Out: records of `run_kernel_bench`.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

import fake_task_devices
from amk.tasks import run as task_run
from amk.tasks.external import External
from amk.tasks.measure import run_action
from amk.tasks.run import run_kernel_bench
from amk.tasks.write import json_lines, markdown, table

TASK = "residual_gate_add"
GAPS = [200, 10, 1]


def spec(shape: list[int], dtype: str, **extra: Any) -> dict[str, Any]:
    return {"shape": shape, "dtype": dtype, **extra}


def row(name: str, kind: str, dtype: str, gate: list[int], shape: tuple = (1, 12, 8), **extra: Any) -> dict[str, Any]:
    like = spec(list(shape), dtype)
    return {
        "name": name, "kind": kind, "scalars": {}, "seed": len(name), "outputs": {"y": {**like, **extra.pop("y", {})}},
        "inputs": {"residual": like, "x": like, "gate": spec(gate, dtype)},
        "tolerance": {"atol": 0.05 if dtype != "f32" else 1e-5, "rtol": 0.05 if dtype != "f32" else 1e-5}, **extra,
    }  # fmt: skip


ROWS = [
    row("large", "production", "bf16", [1, 12, 8]),
    row("small", "production", "bf16", [1, 1, 8]),
    row("strided", "regression", "f32", [1, 4, 1, 8], y={"stride": GAPS}),
    row("rejected", "regression", "f32", [1, 5, 1, 8], rejects="INVALID_ARGUMENT"),
    row("half", "regression", "f16", [1]),
]
TOML = """schema_version = 1
name = "residual_gate_add"
title = "a small copy of the task"
targets = ["sm_90a", "sm_100a"]
workloads_sha256 = "{digest}"
[tolerances]
f32 = {f32}
f16 = 0.05
bf16 = 0.05
[stages]
quick = ["large", "small", "half"]
representative = ["large", "strided"]
[bench]
trials = 3
iterations = 2
min_sample_us = 1.0
"""


def write_task(root: Path, rows: list[dict[str, Any]] = ROWS, f32: float = 1e-5) -> Path:
    folder = root / TASK
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": "amk.workloads", "schema_version": 1, "task": TASK, "rows": rows})
    (folder / "workloads.json").write_text(text)
    (folder / "task.toml").write_text(TOML.format(digest=hashlib.sha256(text.encode()).hexdigest(), f32=f32))
    return folder


def bench_one(name: str, **options: Any) -> dict[str, Any]:
    (record,) = run_kernel_bench(name, **options)
    return record


def in_this_process(
    kind: str | type, monkeypatch: pytest.MonkeyPatch, drop: str | None = None, fraud: str | None = None
) -> list[dict[str, Any]]:
    """Workers without their processes: what crosses between them is still JSON. Returns the jobs as they come."""
    jobs = []
    made = getattr(fake_task_devices, kind) if isinstance(kind, str) else kind
    if fraud is not None:
        monkeypatch.setattr(made, "fraud", fraud)

    def run_job(job: Any, parts: Any, say: Any, *, total_s: float) -> Any:
        jobs.append(json.loads(json.dumps(job)))
        facts, arrays = run_action(jobs[-1], parts, made(0), lambda text, limit_s: None)
        if drop is not None and "rows" in facts:
            facts["rows"] = [answer for answer in facts["rows"] if answer["name"] != drop]
        return json.loads(json.dumps(facts)), arrays

    monkeypatch.setattr(task_run, "run_job", run_job)
    return jobs


def reasons(record: dict[str, Any]) -> set[str]:
    return {entry["reason"] for entry in record["reasons"]}


def assert_no_time(record: dict[str, Any]) -> None:
    """An invalid record has its reasons, and no figure anywhere."""
    assert record["valid"] is False and record["counts"] is False and record["headline"] is None
    text = json_lines(record) + markdown(record) + table(record)
    assert not re.search(r'(?<!min_sample)_us"|median|speed_up|samples|gb_per_s|copy_ways', text)
    assert "INVALID" in table(record) and "no time is given" in markdown(record)


def from_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"repository": "https://example.org/k.git", "branch": "main", "commit": "c0ffee", "resolved": "now",
              "files": [{"path": "k.py", "sha256": "7" * 64}]}  # fmt: skip
    monkeypatch.setattr(task_run, "find_external", lambda spec, task: External(spec, task, source))
    monkeypatch.setattr(task_run, "DEVICE_CLASS", "fake:Device")
