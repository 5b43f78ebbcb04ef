"""model + gpu + schedule -> `Verdict`: the fixed judge.

In: a model name or directory, a target, a schedule to try. Out: a verdict, never an exception, for whatever the
schedule holds; misuse (an unknown model or target, a token that does not exist, a device that is not there) raises a
typed error. The order is fixed: the schedule is frozen, then the questions are drawn, then the machines answer, then
the reference, and only a right answer is given a latency. A prediction is never called anything else. A GPU is used
from a process of its own, and where one was asked for, its own answers decide.
This module imports nothing heavy, so that `import amk` stays cheap.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache as once
from typing import TYPE_CHECKING, Any

from .errors import InputError, Rejected, Unavailable, show
from .machine import THREADED_WEIGHT_BYTES, pick_device
from .verdict import Verdict

if TYPE_CHECKING:
    from .checkpoint import WeightSource
    from .config import ScheduleConfig
    from .exam import Grade, Questions
    from .gpu_trial import GpuTrial
    from .program import Image, Program
    from .targets import GpuTarget
    from .timing import TimingPlan

__all__ = ["DEFAULT_MAX_SEQ", "evaluate", "freeze_config", "lower_and_pack"]

DEFAULT_MAX_SEQ = 1024
MAX_NOTES = 6


def evaluate(
    model: str | os.PathLike[str],
    gpu: str | GpuTarget,
    config: Any = None,
    device: str = "auto",
    *,
    token: int = 7,
    batch: int = 1,
    strict: bool = False,
    max_seq: int | None = None,
    position: int | None = None,
    seed: int = 0,
    quantize: str | None = None,
    group: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Judges one schedule (`ScheduleConfig`, dict, or None for the default) of one model on one target.

    `device` is "cpu" (the reference machine judges, the latency is a prediction), "cuda" or "cuda:N" (the GPU is judged
    too, and measured), or "auto": the GPU where a live one is what `gpu` describes. `max_seq` is the capacity of the
    cache (default: what the model was made for, at most 1,024); `position` is the context that the latency is for
    (default: half of it); `seed` draws the questions. With `strict`, a key of the schedule that AMK does not know is
    rejected instead of named in the notes. `batch` (1 to 16) is how many consecutive tokens of one sequence a step
    decodes, in one pass over the weights: the logits after each of them are judged, and the latency is that of the
    step. Independent sequences are not modelled, nor a batch of a model with linear layers. With `quantize="int8"` the
    judged model is the quantised one (`group`: 64 or 128 elements of a row share a scale), and the verdict says besides
    what quantising loses against the plain one.
    """
    from .embedded import open_model
    from .targets import resolve_target

    say = progress or (lambda text: None)
    source = open_model(model, quantize, group)
    target = resolve_target(gpu)
    device_name, notes = pick_device(device, target)
    max_seq = choose_max_seq(source, max_seq)
    unfit = _unfit_batch(batch, source, max_seq)
    room = 1 if unfit else batch
    position = min(max_seq // 2, max_seq - room) if position is None else position
    position = _require_int("position", position, 0, max_seq - room)
    token = _require_int("token", token, 0, source.config.vocab - 1)
    seed = _require_int("seed", seed, 0, (1 << 64) - 1)

    asked: dict[str, Any] = {
        "model": source.name, "gpu": target.name, "device": device_name, "max_seq": max_seq,
        "quantize": getattr(source, "scheme", None), "batch": room,
    }  # fmt: skip
    frozen: dict[str, Any] = {"schedule_id": "", "schedule_config": {}}
    try:
        if unfit:
            raise Rejected(unfit)
        schedule, dropped = freeze_config(config, strict)
        notes += dropped
        frozen = {"schedule_id": schedule.schedule_id, "schedule_config": schedule.to_dict()}
        say(f"lowering {source.name} for {target.name}")
        program, image = lower_and_pack(source, schedule, target, max_seq, batch)
    except Rejected as refusal:
        return Verdict(**asked, **frozen, valid=False, rejected_reason=str(refusal), seed=seed, notes=tuple(notes))

    from .exam import make_questions

    questions = make_questions(source.config, token, program.launch["kv_block"], max_seq, seed, batch)
    plan = None
    if device_name != "cpu":
        from .timing import make_plan

        plan = make_plan(source.config, position, max_seq, seed, batch)
    try:
        found = _examine(model, source, image, questions, plan, device_name, say, (quantize, group))
    except Rejected as refusal:  # by the live device, before anything ran on it
        return Verdict(**asked, **frozen, valid=False, rejected_reason=str(refusal), seed=seed, notes=tuple(notes))
    except Unavailable as reason:
        if device != "auto":
            raise
        notes.append(f"device auto: the cpu reference machine, because {reason}")
        asked["device"], plan = "cpu", None
        found = _examine(model, source, image, questions, None, "cpu", say, (quantize, group))
    mark = found.grade
    notes += mark.remarks
    notes += mark.notes if len(mark.notes) <= MAX_NOTES else (
        *mark.notes[:MAX_NOTES], f"and {len(mark.notes) - MAX_NOTES} more steps like these"
    )  # fmt: skip
    price, why = _price(program, position, target.name, plan, found.trial) if mark.correct else ({}, [])
    if "latency_us" in price:
        price["latency_per_token_us"] = price["latency_us"] / batch
    notes += why
    return Verdict(
        **asked, **frozen, **price,
        valid=True, correct=mark.correct,
        max_abs_err=mark.max_abs_err, rel_err=mark.rel_err, err_limit=mark.err_limit,
        top1_agreement=mark.top1_agreement,
        tasks=program.n_tasks, n_buffers=program.n_buffers, n_counters=program.n_counters,
        weight_mb=found.weight_nbytes / 1e6, quantize_loss=found.quantize_loss,
        positions=tuple(sorted(questions.probe_starts)), decode_steps=len(questions.decode_tokens), seed=seed,
        notes=tuple(notes), provenance=_provenance(image.hash, found),
    )  # fmt: skip


@dataclass(frozen=True)
class _Findings:
    grade: Grade
    weights_digest: str
    weight_nbytes: int
    trial: GpuTrial | None
    quantize_loss: Mapping[str, Any]


def freeze_config(config: Any, strict: bool = False) -> tuple[ScheduleConfig, list[str]]:
    """The schedule that will run, and a note per key that was dropped. Anything that is no schedule is Rejected."""
    from .config import ScheduleConfig

    if config is None:
        return ScheduleConfig.default(), []
    if isinstance(config, ScheduleConfig):
        return config, []
    if not isinstance(config, Mapping):
        raise Rejected(f"config: expected an object, got {type(config).__name__}")
    schedule, notes = ScheduleConfig.from_dict(dict(config), strict=strict)
    return schedule, list(notes)


def choose_max_seq(source: WeightSource, max_seq: int | None) -> int:
    """The capacity of the cache: as asked, within what the model was made for."""
    limit = source.config.max_position
    return _require_int("max_seq", min(limit, DEFAULT_MAX_SEQ) if max_seq is None else max_seq, 1, limit)


def lower_and_pack(
    source: WeightSource, schedule: ScheduleConfig, target: GpuTarget, max_seq: int, batch: int = 1
) -> tuple[Program, Image]:
    """The program of one model under one schedule, proved to be that model and packed; Rejected names what was
    refused."""
    from .program import lower

    program = lower(source.config, schedule, target, max_seq, batch)
    return program, program.pack(source.config, max_seq, batch)


def _examine(
    model: str | os.PathLike[str],
    source: WeightSource,
    image: Image,
    questions: Questions,
    plan: TimingPlan | None,
    device: str,
    say: Callable[[str], None],
    quantize: tuple[str | None, int | None],
) -> _Findings:
    """Every machine's answers, then the reference's, then the grades. Never holds the weights and the reference at
    once."""
    from . import vm
    from .exam import ask_machine, ask_oracle, grade, noise_of, worst_of
    from .oracle_cache import OracleCache

    say(f"reading the weights of {source.name}")
    weights = source.weights()
    digest, nbytes, plain_digest = weights.digest, weights.nbytes, weights.plain_digest
    threads = min(os.cpu_count() or 1, 8) if nbytes >= THREADED_WEIGHT_BYTES else 0
    with vm.ReferenceVM(image, weights, threads=threads) as machine:
        answers = ask_machine(machine, source.config, questions, say)
    del machine, weights
    trial = None
    if plan is not None:
        from .gpu_trial import grade_trial, run_trial

        trial = run_trial(source, model, digest, nbytes, image, questions, plan, device, say, quantize)
    cache = OracleCache(os.environ.get("AMK_CACHE_DIR") or None)
    reference = ask_oracle(source.config, source.raw, digest, questions, cache, say)
    noise = once(lambda: noise_of(source.config, source.raw, questions, reference, say))
    grades = {"reference machine": grade(source.config, questions, answers, reference, noise)}
    if plan is not None and trial is not None:
        asked = plan.as_questions
        timed = ask_oracle(source.config, source.raw, digest, asked, cache, say)
        timed_noise = once(lambda: noise_of(source.config, source.raw, asked, timed, say))
        grades |= grade_trial(source.config, questions, plan, trial, (reference, noise), (timed, timed_noise))
    loss: Mapping[str, Any] = {}
    if plain_digest is not None:
        from .quantize import loss_of

        base = source.base  # type: ignore[attr-defined]  # only a quantised source has a plain digest
        say(f"the reference of {base.name}, for what quantising loses")
        plain = ask_oracle(base.config, base.raw, plain_digest, questions, cache, say)
        loss = loss_of(plain.logits, reference.logits)
    return _Findings(worst_of(grades), digest, nbytes, trial, loss)


def _price(
    program: Program, position: int, gpu: str, plan: TimingPlan | None, trial: GpuTrial | None
) -> tuple[dict[str, Any], list[str]]:
    """The latency at one position, measured where a GPU ran, else predicted; withheld if it contradicts the floor."""
    if plan is not None and trial is not None:
        from .gpu_trial import price_trial

        return price_trial(program, position, plan, trial)
    cost = program.cost(position)
    price: dict[str, Any] = {"latency_position": position, "bound_us": cost.bound_us}
    if not cost.latency_us >= cost.bound_us > 0:
        note = f"latency withheld: a prediction of {cost.latency_us:.3f} us is below the floor {cost.bound_us:.3f} us"
        return price, [note]
    price |= {
        "latency_us": cost.latency_us,
        "latency_kind": "predicted",
        "pct_of_roofline": 100.0 * cost.bound_us / cost.latency_us,
    }
    return price, [f"latency is the cost model's prediction for {gpu} at position {position}, not a measurement"]


def _unfit_batch(batch: Any, source: WeightSource, max_seq: int) -> str:
    """Why no step decodes such a batch of this model; "" where one does."""
    from . import _lib

    most = _lib.limit("MAX_BATCH")
    if type(batch) is not int or not 1 <= batch <= most:
        return (
            f"batch: expected 1 to {most} consecutive tokens of one sequence (independent sequences are not modelled), "
            f"got {show(batch)}"
        )
    if batch > 1 and source.config.has_state:
        return (
            f"batch: expected 1, because {source.name} has linear layers, whose state takes one token after the other, "
            f"got {batch}"
        )
    if batch > max_seq:
        return f"batch: expected at most max_seq, which is {max_seq}, got {batch}"
    return ""


def _require_int(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{name}: expected an integer in {low}..{high}, got {show(value)}")
    return value


def _provenance(image_hash: str, found: _Findings) -> dict[str, Any]:
    from . import _lib

    build = _lib.build_info()
    return {
        "image_hash": image_hash,
        "weights_digest": found.weights_digest,
        "library_build_id": build.get("build_id", ""),
        "library_version": build.get("version", ""),
        "abi_version": f"{_lib.limit('ABI_VERSION_MAJOR')}.{_lib.limit('ABI_VERSION_MINOR')}",
        "host_cpu": host_cpu(),
        "driver": None,
        "clocks": None,
        **({} if found.trial is None else found.trial.provenance),
    }


def host_cpu() -> str:
    """The processor's own name for itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
