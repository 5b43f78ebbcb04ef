"""One judged run on a GPU: what a worker is asked, how its answers are graded, and what a latency is worth.

In: a model, an image, questions, a device. Out: answers, then grades against the reference, then a price: microseconds,
a floor and notes. The answers exist before the reference is computed. A price is only ever asked of a right run; it is
withheld when it lies below the floor, or when the device's clock and the host's contradict each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _lib
from .errors import AmkError, BuildMismatch, DeviceBusy, OutOfMemory, Rejected, StoreError, Unavailable, show
from .exam import Answers, Grade, Questions, failed, grade
from .history import history_numbers
from .nvml import held_back_by
from .supervisor import run_job
from .timing import TIMED_STEPS, TimingPlan

if TYPE_CHECKING:
    from .checkpoint import WeightSource
    from .program import Image, Program

__all__ = ["GpuTrial", "grade_trial", "price_trial", "run_trial"]

_DEVICE_CLASS = "amk.measure:CudaDevice"  # tests put another one in its place
TIMEOUT_S = 2.0  # of a step without progress on the device
STEP_S = 10.0  # of a call that the device's own deadline did not end: the worker is killed
TOTAL_S = 3600.0
CLOCK_TOLERANCE = 1.05


@dataclass(frozen=True)
class GpuTrial:
    """What came back. `trouble` is the reason why the rest did not."""

    device: str
    facts: Mapping[str, Any]
    arrays: Mapping[str, Any]
    trouble: str | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        taken = self.facts.get("snapshots") or []
        return {
            "device_name": self.facts.get("name"),
            "device_uuid": self.facts.get("uuid"),
            "driver": taken[0].get("driver_version") if taken else None,
            "read_gb_per_s": self.facts.get("read_gb_per_s"),
            "clocks": taken or None,  # before and after the timing
            "device_fault": self.facts.get("device_fault"),  # why there is no answer, where there is none
        }


def run_trial(
    source: WeightSource,
    model: str | os.PathLike[str],
    weights_digest: str,
    weights_nbytes: int,
    image: Image,
    questions: Questions,
    plan: TimingPlan,
    device: str,
    say: Callable[[str], None],
    quantize: Sequence[Any] = (),
) -> GpuTrial:
    """`quantize` are the arguments of `open_model` behind the model's name. Rejected and Unavailable are the caller's;
    whatever else goes wrong is part of the trial."""
    config = source.config
    job = {
        "model": os.fsdecode(model),
        "quantize": quantize,
        "name": source.name,
        "weights_digest": weights_digest,
        "questions": asdict(questions),
        "plan": asdict(plan),
        "device": int(device.partition(":")[2] or 0),
        "device_name": device,
        "device_class": _DEVICE_CLASS,
        "timeout_s": TIMEOUT_S,
        "limits": {
            "load_s": 120.0 + weights_nbytes / 20e6,  # a slow disk, and a context on a busy device
            "history_s": 30.0 + history_numbers(config, questions.max_seq) / 2e6,
            "step_s": STEP_S,
        },
    }
    try:
        facts, arrays = run_job(job, {"image": image.bytes}, say, total_s=TOTAL_S + weights_nbytes / 20e6)
    except (Rejected, Unavailable, OutOfMemory, BuildMismatch, DeviceBusy, StoreError):
        raise
    except AmkError as error:
        return GpuTrial(device, {"device_fault": f"{error.code}: {error}"}, {}, str(error))
    build_id = _lib.build_info().get("build_id")
    if (facts.get("library_build_id"), facts.get("image_hash")) != (build_id, image.hash):
        raise BuildMismatch(f"the GPU worker ran another library or image: {show(facts.get('library_build_id'))}")
    n_steps, n_checked = len(questions.steps), len(plan.as_questions.steps)
    for name, shape in {
        "before": (n_steps, config.vocab), "after": (n_steps, config.vocab), "checked": (n_checked, config.vocab)
    }.items():  # fmt: skip
        if name in arrays and (arrays[name].shape != shape or arrays[name].dtype != np.float32):
            return GpuTrial(device, facts, {}, f"the GPU worker gave no logits of shape {shape} for {name!r}")
    return GpuTrial(device, facts, arrays)


Reference = tuple[Answers, Callable[[], Any] | None]  # its answers, and its noise (see `grade`)


def grade_trial(
    config: Any, questions: Questions, plan: TimingPlan, trial: GpuTrial, reference: Reference, timed: Reference
) -> dict[str, Grade]:
    """By what was graded: the examination before and after the timing, and the timed steps that were chosen."""
    if trial.trouble is not None:
        return {trial.device: failed(trial.trouble)}
    faults = trial.facts.get("faults") or {}
    grades = {}
    for when, asked, truth in (
        ("before", questions, reference), ("during", plan.as_questions, timed), ("after", questions, reference)
    ):  # fmt: skip
        answers = trial.arrays.get("checked" if when == "during" else when)
        if answers is not None:
            said = Answers(answers, tuple(faults.get(when) or ()))
            grades[f"{trial.device}, {when} the timing"] = grade(config, asked, said, *truth)
    if "after" not in trial.arrays:
        grades.setdefault(trial.device, failed("the run ended before the last examination"))
    elif not np.array_equal(trial.arrays["before"], trial.arrays["after"]):
        grades[trial.device] = failed("the same steps gave other bits before and after the timing")
    return grades


def price_trial(program: Program, position: int, plan: TimingPlan, trial: GpuTrial) -> tuple[dict[str, Any], list[str]]:
    """The fields of a verdict that a right run may have, and notes."""
    us, rates = trial.arrays["us"], trial.facts["read_gb_per_s"]
    gb_per_s, wall_us = max(rates), 1e6 * trial.facts["wall_s"]
    streamed_bytes = program.cost(plan.position).streamed_bytes
    bound_us = streamed_bytes / gb_per_s / 1e3
    price: dict[str, Any] = {"latency_position": position, "bound_us": bound_us}
    if us.shape != (TIMED_STEPS,) or not np.isfinite(us).all() or not us.min() > 0:
        return price, [f"latency withheld: {TIMED_STEPS} steps gave {show(us)}"]
    p10, median, p90 = (float(value) for value in np.percentile(us, (10, 50, 90)))
    first, last = trial.facts["snapshots"]
    why = None
    if not median >= bound_us > 0:
        why = f"a median of {median:.3f} us is below the floor {bound_us:.3f} us"
    elif us.sum() > wall_us * CLOCK_TOLERANCE:
        why = f"the device's clock says {us.sum():.0f} us for all steps, the host's {wall_us:.0f}"
    elif first.get("ecc_uncorrected") != last.get("ecc_uncorrected"):
        why = "the device counted uncorrected memory errors during the timing"
    if why is not None:
        return price, [f"latency withheld: {why}"]
    price |= {
        "latency_us": median,
        "latency_p10_us": p10,
        "latency_p90_us": p90,
        "latency_kind": "measured-gpu",
        "pct_of_roofline": 100.0 * bound_us / median,
    }
    span = f"{min(plan.positions)} to {max(plan.positions)}"
    of_its_own = "a token" if plan.batch == 1 else f"{plan.batch} tokens"
    notes = [f"latency is the median of {TIMED_STEPS} steps at positions {span}, each with {of_its_own} of its own"]
    l2_bytes = trial.facts["l2_bytes"]
    if streamed_bytes <= l2_bytes:
        size = f"{streamed_bytes / 1e6:.3g} MB that a step streams fit the L2 cache of {l2_bytes / 1e6:.3g} MB"
        notes.append(f"warm: the {size}, so this is no test of memory")
    if any(len(taken.get("compute_pids") or ()) > 1 for taken in (first, last)):
        notes.append("contended: other processes had work on the device")
    if held := held_back_by(first, last):
        notes.append(f"the clocks were held back: {', '.join(held)}")
    return price, notes
