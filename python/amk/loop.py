"""propose, evaluate, keep or revert: the search for a faster schedule, unattended.

In: a model, a target, a budget of trials, and where to record them. Out: a `LoopResult`; on the way one durable record
per trial, whatever becomes of it. The same seed, corpus and keep decisions give the same proposals. A loop has one kind
of latency, measured or predicted, and never compares the two. Misuse raises a typed error before anything runs.
This module imports nothing heavy, so that `import amk` stays cheap; what it does lives in `search/`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import InputError, show
from .search.result import LoopInterrupted, LoopResult

if TYPE_CHECKING:
    from .records import Trial
    from .targets import GpuTarget

__all__ = ["SAMPLERS", "LoopInterrupted", "LoopResult", "loop"]

SAMPLERS = ("builtin", "optuna")
MAX_BUDGET = 1_000_000


def loop(
    model: str | os.PathLike[str],
    gpu: str | GpuTarget,
    budget: int = 8,
    device: str = "auto",
    *,
    seed: int = 0,
    results_path: str | os.PathLike[str] = "results.tsv",
    corpus_path: str | os.PathLike[str] | None = "corpus.jsonl",
    explore_fraction: float = 0.35,
    on_trial: Callable[[Trial], None] | None = None,
    verbose: bool = False,
    resume: bool = False,
    cold: bool = False,
    sampler: str = "builtin",
    engine: str = "process",
    workers: int = 1,
    max_seq: int | None = None,
    position: int | None = None,
    timeout_s: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> LoopResult:
    """Runs up to `budget` trials and returns what was found.

    Trial 0 is the default schedule; `round((budget - 1) * explore_fraction)` trials explore, the rest change one knob
    of the incumbent. `on_trial` is called with each trial once it is recorded. `resume` continues the last loop in the
    journal with the same model, gpu, seed and options; `cold` ignores the corpus. `engine` is where trials run:
    "process" (a disposable process each), "ray" (`workers` of them on a cluster, each with a GPU of its own if the
    device is one) or "inline". `timeout_s` bounds one trial. `progress` hears a sentence now and then; with `verbose`,
    each step.
    """
    from .embedded import open_model
    from .evaluate import choose_max_seq
    from .machine import pick_device
    from .search.plan import Plan
    from .search.run import run_loop
    from .targets import resolve_target

    budget = _require_int("budget", budget, 1, MAX_BUDGET)
    seed = _require_int("seed", seed, 0, (1 << 64) - 1)
    if sampler not in SAMPLERS:
        raise InputError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {show(sampler)}")
    explore = _require_number("explore_fraction", explore_fraction, 0.0, 1.0)
    source, target = open_model(model), resolve_target(gpu)
    max_seq = choose_max_seq(source, max_seq)
    position = _require_int("position", max_seq // 2 if position is None else position, 0, max_seq - 1)
    if engine == "ray" and device not in ("auto", "cpu"):
        if device != "cuda":
            raise InputError(f"device: expected 'auto', 'cpu' or 'cuda' with engine ray, got {show(device)}")
        device_name, notes = "cuda:0", ["each Ray worker uses the GPU that Ray gives it"]
    else:
        device_name, notes = pick_device(device, target)
    plan = Plan.make(
        source,
        target,
        model=model,
        device=device_name,
        budget=budget,
        seed=seed,
        explore_fraction=explore,
        cold=bool(cold),
        sampler=sampler,
        engine=engine,
        workers=workers,
        max_seq=max_seq,
        position=position,
        timeout_s=None if timeout_s is None else _require_number("timeout_s", timeout_s, 0.001, 1e7),
    )
    say = progress or (lambda text: None)
    for note in notes:
        say(note)
    return run_loop(
        plan,
        results_path,
        corpus_path,
        resume=bool(resume),
        on_trial=on_trial or (lambda trial: None),
        say=say,
        say_more=say if verbose else (lambda text: None),
    )


def _require_int(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{name}: expected an integer in {low}..{high}, got {show(value)}")
    return value


def _require_number(name: str, value: Any, low: float, high: float) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        raise InputError(f"{name}: expected a number in {low:g}..{high:g}, got {show(value)}")
    return float(value)
