"""What a worker does for a profile: one step many times, on a machine that keeps a timeline and on one that does not.

In: a job (model, plan of steps, position), the image's bytes, a device. Out: facts and arrays, unjudged: microseconds
[n, 2] of the steps without and with the timeline, and the records of the step of median duration. Both machines get
the same token, position and cache, in turns, so that what the timeline costs is the only difference; their logits must
be the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _lib, measure
from .embedded import open_model
from .errors import BuildMismatch, DeviceFault, show
from .gpu_lock import gpu_lock
from .history import hide_rows, set_states, stored_history, stored_states
from .measure import PROBE_S, Pulse, Tell
from .program import Image

__all__ = ["COLUMNS", "WARM_UP", "measure_profile"]

COLUMNS = ("task", "queue", "start_us", "ready_us", "finish_us")  # of amk_task_time_t, as float64
WARM_UP = 3


def measure_profile(
    job: Mapping[str, Any], parts: Mapping[str, Any], device: Any, tell: Tell
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Everything one profile asks for. Whatever fails is raised: half a profile is none."""
    limits = job["limits"]
    device.require_timeline()
    tell(f"loading {job['name']} twice on {job['device_name']}", limits["load_s"])
    source = open_model(job["model"])
    weights = source.weights(hashed=False)
    image = Image.from_bytes(parts["image"])
    facts: dict[str, Any] = {
        **device.facts(), "library_build_id": _lib.build_info().get("build_id"), "image_hash": image.hash
    }  # fmt: skip
    if image.program().launch["max_seq"] <= job["position"]:
        raise BuildMismatch(f"the image has no position {show(job['position'])}")
    with (
        gpu_lock(facts["uuid"], wait_s=measure.LOCK_WAIT_S, beat=lambda: tell("waiting for the device", PROBE_S)),
        device.open(image, weights, job["timeout_s"]) as plain,
        device.open(image, weights, job["timeout_s"], timeline=True) as recording,
    ):
        del weights
        pulses = [Pulse(machine, tell, limits["step_s"], facts) for machine in (plain, recording)]
        tell(f"read bandwidth of {job['device_name']}", PROBE_S)
        rates, snapshots = [device.read_bandwidth()], [device.snapshot()]
        tell(f"setting the cache of {job['device_name']}", limits["history_s"])
        _set_cache(pulses, source.config, job)
        tell(f"timing {len(job['tokens'])} steps, without and with the timeline", limits["step_s"])
        arrays = _time_steps(pulses, source.config, job, facts)
        snapshots.append(device.snapshot())
        tell(None, PROBE_S)
        rates.append(device.read_bandwidth())
        facts |= {"snapshots": snapshots, "read_gb_per_s": rates}
    return facts, arrays


def _set_cache(machines: list[Pulse], config: Any, job: Mapping[str, Any]) -> None:
    """Rows below the position; the rest is NaN, which no step may read before it wrote it."""
    for layer, (k, v) in stored_history(config, job["position"] + 1, job["seed"]).items():
        rows = [hide_rows(table, job["position"], job["max_seq"], config.dtype) for table in (k, v)]
        for machine in machines:
            machine.set_kv(layer, *rows)


def _time_steps(
    machines: list[Pulse], config: Any, job: Mapping[str, Any], facts: dict[str, Any]
) -> dict[str, np.ndarray]:
    tokens, pos, states = job["tokens"], job["position"], stored_states(config, job["seed"])
    us = np.full((len(tokens), 2), math.nan)
    kept: list[np.ndarray] = []
    facts["wall_s"] = 0.0
    for i, token in enumerate(tokens):
        logits = [np.empty(0), np.empty(0)]
        for side in (i % 2, 1 - i % 2):
            set_states(machines[side], states)
            machines[side].write("token", np.array([token], np.int32))
            start = time.perf_counter()
            us[i, side] = float(machines[side].time(pos, 1)[0])
            if i >= WARM_UP:
                facts["wall_s"] += time.perf_counter() - start
            if side == 1 and i >= WARM_UP:
                records = machines[1].timeline()
                kept.append(np.stack([records[name].astype(np.float64) for name in COLUMNS], axis=1))
            logits[side] = machines[side].read("logits")
        if not np.array_equal(*logits):
            raise DeviceFault(f"step {i}: the machine with a timeline gave other logits than the one without")
    us = us[WARM_UP:]
    middle = int(np.argsort(us[:, 1], kind="stable")[(len(us) - 1) // 2])
    facts["exported_step"] = middle
    return {"us": us, "records": kept[middle]}
