"""What a worker does with two images on one GPU: each step of the plan on both, one right after the other.

In: a job (as `measure` takes it, and which image goes first at each step), both images' bytes, a device. Out: facts and
arrays, unjudged: microseconds [n, 2] of the timed steps, and the logits that the parent chose beforehand. Both machines
get the same token, position and cache, so that a pair differs in the schedule and in nothing else; both outputs hold
NaN when a step begins (`guard`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import _lib, measure
from .embedded import open_model
from .errors import BuildMismatch, DeviceError, NonFinite, show
from .gpu_lock import gpu_lock
from .history import hide_rows, set_states, stored_history, stored_states
from .measure import PROBE_S, Pulse, Tell, tuples_of
from .program import Image
from .timing import WARM_UP_STEPS, TimingMachine, TimingPlan

__all__ = ["SIDES", "measure_pair"]

SIDES = ("incumbent", "candidate")


def measure_pair(
    job: Mapping[str, Any], parts: Mapping[str, Any], device: Any, tell: Tell
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Everything one comparison asks for; a step that fails ends it, and its fault is told."""
    limits, plan = job["limits"], TimingPlan(**tuples_of(job["plan"]))
    tell(f"loading {job['name']} twice on {job['device_name']}", limits["load_s"])
    source = open_model(job["model"])
    weights = source.weights()
    if weights.digest != job["weights_digest"]:
        raise BuildMismatch(f"{show(job['model'])}: its weights changed while they were judged")
    images = [Image.from_bytes(parts[side]) for side in SIDES]
    facts: dict[str, Any] = {
        **device.facts(),
        "library_build_id": _lib.build_info().get("build_id"),
        "image_hashes": [image.hash for image in images],
    }
    with (
        gpu_lock(facts["uuid"], wait_s=measure.LOCK_WAIT_S, beat=lambda: tell("waiting for the device", PROBE_S)),
        device.open(images[0], weights, job["timeout_s"]) as incumbent,
        device.open(images[1], weights, job["timeout_s"]) as candidate,
    ):
        del weights
        pulses = [Pulse(machine, tell, limits["step_s"], facts) for machine in (incumbent, candidate)]
        tell(f"read bandwidth of {job['device_name']}", PROBE_S)
        rates, snapshots = [device.read_bandwidth()], [device.snapshot()]
        tell(f"timing {len(plan.positions)} pairs of steps", limits["history_s"])
        arrays = _time_pairs(pulses, source.config, plan, job["first"], facts, pulses[0].beat)
        snapshots.append(device.snapshot())
        tell(None, PROBE_S)
        if not facts["faults"]:
            rates.append(device.read_bandwidth())
        facts |= {"snapshots": snapshots, "read_gb_per_s": rates}
    return facts, arrays


def _time_pairs(
    machines: Sequence[TimingMachine],
    config: Any,
    plan: TimingPlan,
    first: Sequence[int],
    facts: dict[str, Any],
    alive: Callable[[], None],
) -> dict[str, np.ndarray]:
    high = max(plan.positions)
    history, states = stored_history(config, high + 1, plan.seed), stored_states(config, plan.seed)
    n_timed = len(plan.positions) - WARM_UP_STEPS
    us = np.full((n_timed, 2), math.nan)
    checked = np.full((2, len(plan.checked), config.vocab), math.nan, np.float32)
    facts |= {"wall_s": 0.0, "faults": []}
    for i, (token, pos) in enumerate(zip(plan.tokens, plan.positions, strict=True)):
        if i % plan.window == 0:
            for layer, (k, v) in history.items():
                rows = [hide_rows(table, high, plan.max_seq, config.dtype) for table in (k, v)] if i == 0 else [k, v]
                for machine in machines:
                    machine.set_kv(layer, *rows)
        for side in (first[i], 1 - first[i]):
            if i == 0 or i in plan.checked:
                set_states(machines[side], states)
            alive()
            try:
                machines[side].write("token", np.array([token], np.int32))
                start = time.perf_counter()
                took_us = float(machines[side].time(pos, 1)[0])
                if i >= WARM_UP_STEPS:
                    facts["wall_s"] += time.perf_counter() - start
                    us[i - WARM_UP_STEPS, side] = took_us
                if i in plan.checked:
                    checked[side, plan.checked.index(i)] = machines[side].read("logits")
            except (DeviceError, NonFinite) as fault:
                facts["faults"].append(f"{SIDES[side]}, step {i} at position {pos}: {fault}")
                return {"us": us, "checked": checked}
    return {"us": us, "checked": checked}
