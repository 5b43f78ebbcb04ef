"""model + gpu + schedule -> the timeline of one decode step, and what it amounts to: measured on a GPU, or predicted.

In: a model, a target, a schedule, a device. Out: a `Profile`: the timeline, checked against its program, and a summary
of plain data. On a GPU several steps are recorded in a process of its own, with and without the timeline, and the one
of median duration is given; without a GPU the cost model's replay is given, and is called predicted wherever it shows.
A profile judges nothing: whether the numbers are right is what `evaluate` says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _lib, gpu_trial
from .embedded import open_model
from .errors import BuildMismatch, InputError, WorkerDied, show
from .evaluate import choose_max_seq, freeze_config, lower_and_pack
from .exam import draw
from .explanation import by_producer
from .machine import pick_device
from .measure_profile import COLUMNS, WARM_UP
from .supervisor import run_job
from .targets import preset_of, resolve_target
from .timeline import MEASURED, Timeline, join, predict, read_machine
from .trace import task_labels

if TYPE_CHECKING:
    from .checkpoint import WeightSource
    from .program import Image, Program
    from .targets import GpuTarget

__all__ = ["STEPS", "Profile", "run_profile", "summarize"]

STEPS = 20
MAX_STEPS = 1000
CLOCK_TOLERANCE = 1.05

Say = Callable[[str], None]


@dataclass(frozen=True)
class Profile:
    timeline: Timeline
    program: Program
    summary: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The summary, and the timeline as columns by task."""
        timeline = self.timeline
        columns = {name: getattr(timeline, name).tolist() for name in ("queue", "start_us", "ready_us", "finish_us")}
        meta = {**timeline.meta, "kind": timeline.kind, "step_us": timeline.step_us}
        return {**self.summary, "timeline": {"meta": {**meta, "overlap_closed_us": timeline.overlap_us}, **columns}}


def run_profile(
    model: str | os.PathLike[str],
    gpu: str | GpuTarget,
    config: Any = None,
    device: str = "auto",
    *,
    strict: bool = False,
    context: int | None = None,
    max_seq: int | None = None,
    steps: int = STEPS,
    seed: int = 0,
    progress: Say | None = None,
) -> Profile:
    """`device` chooses as `evaluate` does: "cpu" predicts, "cuda" or "cuda:N" measures, "auto" measures where a live
    GPU is what `gpu` describes. `context` is the rows that the step attends to, its own included (default: half of the
    cache). Rejected for the schedule's sake; Unavailable where a GPU was found and its library keeps no timeline."""
    say = progress or (lambda text: None)
    source, target = open_model(model), resolve_target(gpu)
    device_name, notes = pick_device(device, target)
    limit = source.config.max_position
    if context is not None and (type(context) is not int or not 1 <= context <= limit):
        raise InputError(f"context: expected an integer in 1..{limit}, got {show(context)}")
    rows = choose_max_seq(source, max_seq)
    if max_seq is None and context is not None:
        rows = max(rows, context)
    context = rows // 2 + 1 if context is None else context
    if context > rows:
        raise InputError(f"context: expected at most max_seq, {rows}, got {context}")
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps: expected an integer in 1..{MAX_STEPS}, got {show(steps)}")
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise InputError(f"seed: expected an integer in 0..2^64-1, got {show(seed)}")
    schedule, dropped = freeze_config(config, strict)
    say(f"lowering {source.name} for {target.name}, max_seq {rows}")
    program, image = lower_and_pack(source, schedule, target, rows)
    meta: dict[str, Any] = {
        "model": source.name,
        "gpu": preset_of(target) or target.name,
        "device": device_name,
        "context": context,
        "position": context - 1,
        "max_seq": rows,
        "image_hash": image.hash,
        "schedule_id": schedule.schedule_id,
        "schedule_config": schedule.to_dict(),
        "library_build_id": _lib.build_info().get("build_id", ""),
    }
    if device_name == "cpu":
        timeline = predict(program, context - 1).with_meta(**meta, read_gb_per_s=target.hbm_gb_per_s, steps=0)
        notes.append("predicted by the cost model, not measured")
        extra: dict[str, Any] = {"steps": 0, "overhead": None}
    else:
        timeline, extra = _measured(source, model, program, image, meta, steps, seed, say)
    return Profile(timeline, program, {**summarize(timeline, program), **extra, "notes": [*notes, *dropped]})


def _measured(
    source: WeightSource,
    model: str | os.PathLike[str],
    program: Program,
    image: Image,
    meta: dict[str, Any],
    steps: int,
    seed: int,
    say: Say,
) -> tuple[Timeline, dict[str, Any]]:
    config, position, device = source.config, meta["position"], meta["device"]
    nbytes = program.cost(position).weight_bytes
    kv_numbers = 2 * config.layers * config.n_kv_heads * config.head_dim * meta["max_seq"]
    job = {
        "task": "profile",
        "model": os.fsdecode(model),
        "name": source.name,
        "position": position,
        "max_seq": meta["max_seq"],
        "seed": seed,
        "tokens": [draw(seed, "profiled token", i, config.vocab) for i in range(WARM_UP + steps)],
        "device": int(device.partition(":")[2] or 0),
        "device_name": device,
        "device_class": gpu_trial._DEVICE_CLASS,
        "timeout_s": gpu_trial.TIMEOUT_S,
        "limits": {
            "load_s": 120.0 + 2 * nbytes / 20e6,
            "history_s": 30.0 + 2 * kv_numbers / 2e6,
            "step_s": gpu_trial.STEP_S,
        },
    }
    facts, arrays = run_job(job, {"image": image.bytes}, say, total_s=gpu_trial.TOTAL_S + 2 * nbytes / 20e6)
    if (facts.get("library_build_id"), facts.get("image_hash")) != (meta["library_build_id"], image.hash):
        raise BuildMismatch(f"the GPU worker ran another library or image: {show(facts.get('library_build_id'))}")
    us, records = arrays.get("us"), arrays.get("records")
    if not _is_table(us, 2) or len(us) != steps or not (np.isfinite(us).all() and (us > 0).all()):
        raise WorkerDied(f"the GPU worker gave no positive times of {steps} steps")
    if not _is_table(records, len(COLUMNS)):
        raise WorkerDied("the GPU worker gave no timeline")
    if us.sum() > 1e6 * facts["wall_s"] * CLOCK_TOLERANCE:
        took = f"the device's clock says {us.sum():.0f} us for all steps, the host's {1e6 * facts['wall_s']:.0f}"
        raise WorkerDied(f"the times contradict each other: {took}")
    exported = facts["exported_step"]
    step_us = float(us[exported, 1])
    timeline = read_machine(dict(zip(COLUMNS, records.T, strict=True)), program, step_us)
    if timeline.span_us > step_us * CLOCK_TOLERANCE:
        raise InputError(f"the machine's timeline: its tasks took {timeline.span_us:.1f} us of a {step_us:.1f} us step")
    off, on = (float(np.median(us[:, side])) for side in (0, 1))
    extra = {
        "steps": steps,
        "exported_step": exported,
        "overhead": {"off_us": off, "on_us": on, "share": on / off - 1.0},
        "device_name": facts.get("name"),
        "device_uuid": facts.get("uuid"),
        "clocks": facts.get("snapshots"),
        "read_gb_per_s": facts["read_gb_per_s"],
    }
    meta = {**meta, "read_gb_per_s": max(facts["read_gb_per_s"]), "steps": steps, "device_name": facts.get("name")}
    return timeline.with_meta(**meta), extra


def _is_table(array: Any, columns: int) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.float64 and array.ndim == 2 and array.shape[1] == columns


def summarize(timeline: Timeline, program: Program) -> dict[str, Any]:
    """By kind of op, and by the producer waited for; the rate that the step achieved against its floor."""
    position = timeline.meta["position"]
    labels, ops = task_labels(program)
    costs, cost, tables = program.task_costs(position), program.cost(position), program.tables()
    found = join(timeline, tables.tasks)
    waited, worked = timeline.ready_us - timeline.start_us, timeline.finish_us - timeline.ready_us
    grid, rate = program.launch["grid"], float(timeline.meta["read_gb_per_s"])
    sm_us = grid * timeline.step_us
    made, finish = found.producer, timeline.finish_us
    early = float((finish[made] - timeline.ready_us)[made >= 0].max(initial=0.0))
    by_op = []
    for op in sorted(set(ops)):
        mine = np.array([name == op for name in ops])
        by_op.append(
            {
                "op": op,
                "tasks": int(mine.sum()),
                "waiting_us": float(waited[mine].sum()),
                "working_us": float(worked[mine].sum()),
                "streamed_bytes": int(costs["streamed_bytes"][mine].sum()),
                "share": float((waited + worked)[mine].sum()) / sm_us,
            }
        )
    bound_us = cost.streamed_bytes / rate / 1e3
    return {
        **timeline.meta,
        "latency_kind": timeline.kind,
        "tasks": timeline.n_tasks,
        "sms": grid,
        "step_us": timeline.step_us,
        "span_us": timeline.span_us,  # from the first task taken up to the last one done
        "outside_us": timeline.step_us - timeline.span_us,  # launch, resets
        "by_op": sorted(by_op, key=lambda entry: (-entry["share"], entry["op"])),
        "sm_time": {
            "waiting": float(waited.sum()) / sm_us,
            "working": float(worked.sum()) / sm_us,
            "idle": 1.0 - float((waited + worked).sum()) / sm_us,
        },
        "waits": by_producer(np.where(waited > 0, made, -1), waited, labels),
        "streamed_bytes": cost.streamed_bytes,
        "gb_per_s": cost.streamed_bytes / timeline.step_us / 1e3,
        "floor": {
            "us": bound_us,
            "gb_per_s": rate,
            "from": "read in this run" if timeline.kind == MEASURED else "published",
            "pct": 100.0 * bound_us / timeline.step_us,
        },
        "clock": {"overlap_closed_us": timeline.overlap_us, "ready_before_producer_us": max(early, 0.0)},
    }
