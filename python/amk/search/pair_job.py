"""A comparison on a GPU: two schedules of one model, timed in interleaved pairs in a process of their own.

In: a model, a target, two schedules, a seed. Out: plain data: the samples, or why they do not count. Which steps are
checked is drawn from the seed beforehand, and their logits are compared with the reference after the worker gave its
own; a side that computed something else while it was timed has no samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from .. import _lib
from ..errors import AmkError, BuildMismatch, DeviceBusy, OutOfMemory, Rejected, StoreError, Unavailable
from ..exam import Answers, ask_oracle, grade
from ..gpu_trial import CLOCK_TOLERANCE, TIMEOUT_S, TOTAL_S
from ..history import history_numbers
from ..measure_pair import SIDES
from ..nvml import held_back_by
from ..oracle_cache import OracleCache
from ..supervisor import run_job
from ..timing import TIMED_STEPS, WARM_UP_STEPS, make_plan
from .pairs import pair_order

__all__ = ["compare_pair"]


def compare_pair(arguments: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """{"us": [[incumbent, candidate], ...], "trouble": None, ...}, or {"trouble": why, "device_fault": ...}."""
    from .. import gpu_trial
    from ..config import ScheduleConfig
    from ..embedded import open_model
    from ..evaluate import lower_and_pack
    from .jobs import target_of

    source, target = open_model(arguments["model"]), target_of(arguments["target"])
    max_seq, position, seed = arguments["max_seq"], arguments["position"], arguments["seed"]
    images, floors = {}, []
    for side in SIDES:
        schedule = ScheduleConfig.from_dict(arguments[side], strict=True)[0]
        program, images[side] = lower_and_pack(source, schedule, target, max_seq)
        floors.append(program.cost(position).streamed_bytes)
    weights = source.weights()
    digest, nbytes = weights.digest, weights.nbytes
    del weights
    plan = make_plan(source.config, position, max_seq, seed)
    device = arguments["device"]
    job = {
        "task": "pair",
        "model": os.fsdecode(arguments["model"]),
        "name": source.name,
        "weights_digest": digest,
        "plan": asdict(plan),
        "first": pair_order(WARM_UP_STEPS, TIMED_STEPS, seed),
        "device": int(device.partition(":")[2] or 0),
        "device_name": device,
        "device_class": gpu_trial._DEVICE_CLASS,
        "timeout_s": TIMEOUT_S,
        "limits": {
            "load_s": 120.0 + 2 * nbytes / 20e6,
            "history_s": 30.0 + history_numbers(source.config, max_seq) / 1e6,
            "step_s": gpu_trial.STEP_S,
        },
    }
    parts = {side: image.bytes for side, image in images.items()}
    try:
        facts, arrays = run_job(job, parts, say, total_s=TOTAL_S + 2 * nbytes / 20e6)
    except (Rejected, Unavailable, BuildMismatch, DeviceBusy, StoreError):
        raise
    except OutOfMemory as error:
        return {"trouble": f"both do not fit the device at once: {error}", "device_fault": None}
    except AmkError as error:
        return {"trouble": str(error), "device_fault": f"{error.code}: {error}"}
    hashes = [image.hash for image in images.values()]
    if (facts.get("library_build_id"), facts.get("image_hashes")) != (_lib.build_info().get("build_id"), hashes):
        raise BuildMismatch("the GPU worker ran another library or other images")
    reference = ask_oracle(
        source.config, source.raw, digest, plan.as_questions, OracleCache(os.environ.get("AMK_CACHE_DIR") or None), say
    )
    fault = str(facts["faults"][0]) if facts["faults"] else None
    wrong = {} if fault else _wrong(source.config, plan, arrays["checked"], reference)
    trouble = fault or next(iter(wrong.values()), None) or _trouble(facts, arrays, floors)
    return {
        "trouble": trouble,
        "wrong": sorted(wrong),  # sides that computed something else while they were timed
        "device_fault": facts.get("device_fault"),
        "us": None if trouble else arrays["us"].tolist(),
        "held_back_by": held_back_by(*facts.get("snapshots", ())),
        "device_uuid": facts.get("uuid"),
        "seed": seed,
    }


def _trouble(facts: Mapping[str, Any], arrays: Mapping[str, Any], streamed_bytes: list[int]) -> str | None:
    """Why these samples do not count, whatever they say."""
    us = arrays.get("us")
    if us is None or us.shape != (TIMED_STEPS, 2) or not np.isfinite(us).all() or not us.min() > 0:
        return f"expected {TIMED_STEPS} pairs of positive times"
    gb_per_s = max(facts["read_gb_per_s"])
    for side, name in enumerate(SIDES):
        floor_us = streamed_bytes[side] / gb_per_s / 1e3
        if not float(np.median(us[:, side])) >= floor_us > 0:
            return f"the {name}'s median lies below the floor {floor_us:.3f} us"
    wall_us = 1e6 * facts["wall_s"]
    if us.sum() > wall_us * CLOCK_TOLERANCE:
        return f"the device's clock says {us.sum():.0f} us for all steps, the host's {wall_us:.0f}"
    first, last = facts["snapshots"]
    if first.get("ecc_uncorrected") != last.get("ecc_uncorrected"):
        return "the device counted uncorrected memory errors during the timing"
    if any(len(taken.get("compute_pids") or ()) > 1 for taken in (first, last)):
        return "contended: other processes had work on the device"
    return None


def _wrong(config: Any, plan: Any, checked: Any, reference: Answers) -> dict[str, str]:
    """By side, what it did wrong."""
    marks = {
        name: grade(config, plan.as_questions, Answers(checked[side]), reference) for side, name in enumerate(SIDES)
    }
    return {
        name: f"the {name} was wrong while it was timed: {mark.notes[0]}"
        for name, mark in marks.items()
        if not mark.correct
    }
