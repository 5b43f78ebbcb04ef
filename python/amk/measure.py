"""What a worker does with a GPU: the examination, the timing, and the examination again, on one machine.

In: a job (which model, questions, plan), its parts (the image's bytes), a device. Out: facts and arrays, ungraded: the
reference is computed by the parent, after it has these answers. Nothing here judges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .embedded import open_model
from .errors import BuildMismatch, DeviceError, show
from .exam import Answers, Questions, ask_machine
from .gpu_lock import gpu_lock
from .program import Image
from .timing import TimingPlan, time_machine

__all__ = ["PROBE_S", "CudaDevice", "Pulse", "Tell", "measure", "tuples_of"]

PULSE_S = 0.2
PROBE_S = 60.0
LOCK_WAIT_S = 20.0  # a worker that was killed may still be leaving

Tell = Callable[[str | None, float], None]


class CudaDevice:
    """One GPU of this computer; a test puts another class in its place."""

    def __init__(self, index: int) -> None:
        self._index = index

    def open(self, image: Image, weights: Mapping[str, np.ndarray], timeout_s: float, *, timeline: bool = False) -> Any:
        from .megakernel import MegakernelVM

        machine = MegakernelVM(image, weights, device=self._index, timeout_s=timeout_s, guard=True, timeline=timeline)
        try:
            machine.prepare()
        except BaseException:
            machine.close()
            raise
        return machine

    def require_timeline(self) -> None:
        from .vm import require_timeline

        require_timeline()

    def read_bandwidth(self) -> float:
        from .megakernel import read_bandwidth

        return read_bandwidth(self._index)

    def facts(self) -> dict[str, Any]:
        from .megakernel import device_uuid
        from .targets import query_device

        live = query_device(self._index)
        return {"name": live.name, "uuid": device_uuid(self._index), "l2_bytes": live.l2_bytes}

    def snapshot(self) -> dict[str, Any]:
        from . import nvml
        from .megakernel import device_uuid

        return nvml.snapshot(device_uuid(self._index))


def measure(
    job: Mapping[str, Any], parts: Mapping[str, Any], device: Any, tell: Tell
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Everything one job asks for. A machine that fails ends it early; what it answered until then is kept."""
    from . import _lib

    limits = job["limits"]
    questions, plan = Questions(**tuples_of(job["questions"])), TimingPlan(**tuples_of(job["plan"]))
    tell(f"loading {job['name']} on {job['device_name']}", limits["load_s"])
    source = open_model(job["model"], *job.get("quantize", ()))
    weights = source.weights()
    if weights.digest != job["weights_digest"]:
        raise BuildMismatch(f"{show(job['model'])}: its weights changed while they were judged")
    image = Image.from_bytes(parts["image"])
    build = _lib.build_info()
    facts: dict[str, Any] = {
        **device.facts(), "library_build_id": build.get("build_id"), "image_hash": image.hash, "faults": {},
    }  # fmt: skip
    arrays: dict[str, np.ndarray] = {}
    with (
        gpu_lock(facts["uuid"], wait_s=LOCK_WAIT_S, beat=lambda: tell("waiting for the device", PROBE_S)),
        device.open(image, weights, job["timeout_s"]) as machine,
    ):
        del weights
        pulse = Pulse(machine, tell, limits["step_s"], facts)

        def examine(when: str) -> bool:
            tell(f"questions {when} the timing on {job['device_name']}", limits["history_s"])
            answers: Answers = ask_machine(pulse, source.config, questions, lambda _: None)
            arrays[when], facts["faults"][when] = answers.logits, list(answers.faults)
            return not answers.faults

        if not examine("before"):
            return facts, arrays
        tell(f"read bandwidth of {job['device_name']}", PROBE_S)
        rates, snapshots = [device.read_bandwidth()], [device.snapshot()]
        tell(f"timing {len(plan.positions)} steps", limits["history_s"])
        timing = time_machine(pulse, source.config, plan, pulse.beat)
        snapshots.append(device.snapshot())
        arrays |= {"us": timing.us, "checked": timing.checked_logits}
        facts |= {"wall_s": timing.wall_s, "snapshots": snapshots}
        facts["faults"]["during"] = list(timing.faults)
        if timing.faults or not examine("after"):
            return facts, arrays
        tell(None, PROBE_S)
        rates.append(device.read_bandwidth())
        facts["read_gb_per_s"] = rates
    return facts, arrays


class Pulse:
    """A machine that tells, between calls, that it still lives; a call may last `step_s`. A failure of the device is
    also put in `facts`: it is no answer, and says nothing of the schedule's numbers."""

    def __init__(self, machine: Any, tell: Tell, step_s: float, facts: dict[str, Any]) -> None:
        self._machine, self._tell, self._step_s, self._facts = machine, tell, step_s, facts
        self._last = -PULSE_S

    def beat(self) -> None:
        if time.monotonic() - self._last >= PULSE_S:
            self._last = time.monotonic()
            self._tell(None, self._step_s)

    def __getattr__(self, name: str) -> Any:
        """`step`, `time` and the like, each followed by a sign of life; `next_token` as it is."""
        found = getattr(self._machine, name)
        if not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            self.beat()
            try:
                return found(*arguments)
            except DeviceError as fault:
                self._facts["device_fault"] = f"{fault.code}: {fault}"
                raise

        return call


def tuples_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a record, which JSON has made lists of."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
