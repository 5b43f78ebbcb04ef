"""What workers answered -> the record of a result, or the reasons why there is none.

In: a task, a stage, answers. Out: a plain dict. `seal` holds a record against everything a result rests on: all rows,
each checked before and after its timing, both sides compiled alike, the machine code proved, the rows unchanged. A
record that fails has reasons and no time; it never becomes shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .check import SIDES, SOLUTION
from .cubins import prove
from .judge import REASONS, Refused
from .stats import describe, means
from .time_row import COPY, MODES, SMALL_COPY_US, require_possible
from .workloads import Settings, Task

__all__ = ["answer_about", "build_row", "preflight", "proofs", "seal", "without_times"]

_TIMES = ("cold", "warm", "speed_up", "bound", "timing", "copy_ways", "launches")
_BOUND_BY_MEMORY = 0.85  # of the copy's speed


def answer_about(side: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Of an answer about several baselines what concerns one of them: as if it had been alone beside the solution."""
    out = {key: value for key, value in answer.items() if key != "refused_baselines"}
    refused = answer.get("refused_baselines", {}).get(side, answer["refused"])
    if refused is not None:
        return {"name": answer["name"], "kind": answer["kind"], "refused": refused}
    if "timing" not in answer:
        return out
    names = {side: SIDES[0], SOLUTION: SOLUTION, COPY: COPY}

    def mine(table: Mapping[str, Any]) -> dict[str, Any]:
        return {to: table[name] for name, to in names.items() if name in table}

    timing, before = answer["timing"], answer["before"]
    checks = [{**check, "side": names[check["side"]]} for check in timing["checks_after"] if check["side"] in names]
    by_mode = {name: {mode: mine(table) for mode, table in timing[name].items()} for name in ("samples_us", "launches")}
    out["before"] = {**before, "errors": mine(before["errors"]), "kernels": mine(before["kernels"])}
    out["timing"] = {**timing, **by_mode, "checks_after": checks, "kernels": mine(timing["kernels"])}
    return out


def build_row(answer: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Figures of one timed row; Refused where they cannot be."""
    timing = answer["timing"]
    samples = timing["samples_us"]
    row: dict[str, Any] = {
        "name": answer["name"], "kind": answer["kind"], "refused": None, "before": answer["before"],
        "after": timing["checks_after"], "kernels": timing["kernels"],
        **{name: timing[name] for name in ("bytes_moved", "copy_bytes_moved", "copy_ways", "sets", "launches")},
    }  # fmt: skip
    for mode in MODES:
        table = {name: describe(samples[mode][name]) for name in (*SIDES, COPY)}
        wanted = settings.trials * settings.iterations
        if any(figures["samples"] != wanted for figures in table.values()):
            counts = {name: figures["samples"] for name, figures in table.items()}
            raise Refused("unbalanced-samples", f"{mode}: expected {wanted} samples of each, got {counts}")
        for name in (*SIDES, COPY):
            us = np.reshape(samples[mode][name], (settings.trials, settings.iterations))
            table[name]["trial_medians_us"] = np.median(us, axis=1).tolist()
        moved, copy_moved = row["bytes_moved"], row["copy_bytes_moved"]
        # In turns with many other graphs a copy may take longer than when it was chosen, which would flatter the sides.
        copy_us = min(table[COPY]["median_us"], *row["copy_ways"][mode].values())
        for name in SIDES:
            us = table[name]["median_us"]
            if mode == "cold":
                table[name]["share_of_copy"] = require_possible(name, moved, us, copy_moved, copy_us)
            else:
                table[name]["share_of_copy"] = (moved / us) / (copy_moved / copy_us)
            table[name]["gb_per_s"] = moved / us / 1e3
        table[COPY]["ceiling_us"], table[COPY]["gb_per_s"] = copy_us, copy_moved / copy_us / 1e3
        table["speed_up"] = table["baseline"]["median_us"] / table["solution"]["median_us"]
        row[mode] = table
    row["speed_up"] = row["cold"]["speed_up"]
    row["bound"] = _bound_of(row["cold"])
    return row


def _bound_of(cold: Mapping[str, Any]) -> str:
    """The active bound of the solution, in words."""
    share, copy_us = cold["solution"]["share_of_copy"], cold[COPY]["ceiling_us"]
    percent = f"{100 * share:.0f} % of the best copy of the same bytes"
    if copy_us < SMALL_COPY_US:
        return f"launch and memory latency: a copy of so few bytes takes {copy_us:.2f} us itself ({percent})"
    if share >= _BOUND_BY_MEMORY:
        return f"memory bandwidth: {percent}"
    return f"not memory bandwidth ({percent}): latency, instruction issue or an uneven last wave"


def seal(task: Task, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its verdict: `valid`, `reasons`, and, where it is valid, the headline."""
    reasons = [*record.get("reasons", ()), *_faults(task, record)]
    unknown = [entry["reason"] for entry in reasons if entry["reason"] not in REASONS]
    assert not unknown, unknown
    out = {**record, "reasons": reasons, "valid": not reasons, "headline": None}
    if reasons:
        return {**out, "counts": False, "rows": [without_times(row) for row in record["rows"]]}
    timed = [row for row in record["rows"] if row["kind"] == "production"]
    out["headline"] = {"rows": len(timed), **means([row["speed_up"] for row in timed])} if timed else None
    out["counts"] = record["stage"] == "full" and out["headline"] is not None
    return out


def without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _TIMES}


def preflight(task: Task, library: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is wrong with a library whatever is run of it: then nothing is."""
    found = []
    if message := _flags_differ(library["build"], task.name):
        found.append({"reason": "different-flags", "row": None, "message": message})
    archs = sorted({cubin["arch"] for cubin in library["cubins"]})
    if missing := [target for target in task.targets if target not in archs]:
        message = f"the library holds no {', '.join(missing)} cubin, only {', '.join(archs) or 'none'}"
        found.append({"reason": "missing-cubin", "row": None, "message": message})
    return found


def _faults(task: Task, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if not record["rows"] and record.get("reasons"):
        return found  # nothing was run, and why is said

    def fault(reason: str, message: str, row: str | None = None) -> None:
        found.append({"reason": reason, "row": row, "message": message})

    if record["workloads_sha256"] != task.workloads_sha256:
        fault("changed-workloads", f"rows of {record['workloads_sha256']}, task.toml has {task.workloads_sha256}")
    _row_names(task, record, fault)
    if message := _flags_differ(record["library"]["build"], task.name):
        fault("different-flags", message)
    for sha in dict.fromkeys(record["library_sha256_seen"]):
        if sha != record["library"]["sha256"]:
            fault("changed-library", f"expected SHA-256 {record['library']['sha256']}, a worker saw {sha}")
    for row in record["rows"]:
        if row["refused"] is not None:
            fault(row["refused"]["reason"], row["refused"]["message"], row["name"])
        else:
            _checks(row, record["settings"], fault)
            if row["kind"] == "production":
                _proof(task, row, record, fault)
    return found


def _row_names(task: Task, record: Mapping[str, Any], fault: Any) -> None:
    wanted = [row.name for row in task.rows_of(record["stage"])]
    got = [row["name"] for row in record["rows"]]
    for name in wanted:
        if got.count(name) != 1:
            fault("missing-row", f"expected it once, got it {got.count(name)} times", name)
    for name in dict.fromkeys(got):
        if name not in wanted:
            fault("missing-row", f"a row that stage {record['stage']} does not have", name)


def _checks(row: Mapping[str, Any], settings: Mapping[str, Any], fault: Any) -> None:
    """A time needs both sides checked before it, and after it in every trial and mode."""
    before = row.get("before") or {}
    is_timed = any(name in row for name in _TIMES)
    if not before.get("trials") or (is_timed and set(before.get("errors", ())) != set(SIDES)):
        fault("unchecked-time", "it was not checked before the timing", row["name"])
    if row["kind"] != "production":
        return
    if not is_timed:
        fault("missing-row", "it was checked and not timed", row["name"])
    got = {(check["trial"], check["mode"], check["side"]) for check in row.get("after") or ()}
    wanted = {(number, mode, side) for number in range(settings["trials"]) for mode in MODES for side in SIDES}
    if got != wanted:
        fault(
            "unchecked-time", f"{len(wanted - got)} of {len(wanted)} checks after the timing are missing", row["name"]
        )


def _flags_differ(build: Mapping[str, Any], name: str) -> str | None:
    """The build's own record of both command lines, which name source and object by placeholders."""
    sides = build.get("tasks", {}).get(name, {})
    commands = [sides.get(side, {}).get("command") for side in SIDES]
    if not all(commands):
        return f"the build does not say how both sides of {name} were compiled"
    if commands[0] != commands[1]:
        words = [str(command).split() for command in commands]
        only = [sorted(set(a) - set(b)) for a, b in (words, words[::-1])]
        return f"baseline alone: {' '.join(only[0]) or 'nothing'}; solution alone: {' '.join(only[1]) or 'nothing'}"
    if "fast_math" in commands[0] or "fast-math" in commands[0]:
        return "both sides were compiled with fast math"
    return None


def _proof(task: Task, row: Mapping[str, Any], record: Mapping[str, Any], fault: Any) -> None:
    for side in record["proved_sides"]:
        found = prove((row.get("kernels") or {}).get(side) or [], record["library"]["cubins"], task.targets)
        if isinstance(found, str):
            fault("missing-cubin", f"{side}: {found}", row["name"])


def proofs(task: Task, record: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Kernel by kernel, each once: which cubins the library holds of it, and which ran."""
    out: dict[str, dict[str, dict[str, Any]]] = {side: {} for side in record["proved_sides"]}
    for row in record["rows"]:
        for side, kernels in (row.get("kernels") or {}).items():
            if side in out and row["kind"] == "production":
                found = prove(kernels, record["library"]["cubins"], task.targets)
                out[side].update({entry["kernel"]: entry for entry in found if not isinstance(found, str)})
    return {side: list(table.values()) for side, table in out.items()}
