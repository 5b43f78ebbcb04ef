"""Trials as a loop would record them, made without running one: for what reads logs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import amk
from amk.propose import search_space, with_knob
from amk.records import RecordStore, Trial

LOOP = "0123456789ab"
BUILD = amk.build_info()["build_id"]
HOSTILE = [
    "<script>document.documentElement.id = 'pwned'</script>",
    "</td></table><img src=x onerror=\"document.documentElement.id='pwned'\">",
    "\"'><svg onload=document.documentElement.id='pwned'><iframe src=http://evil.example/frame>",
    "<link rel=stylesheet href=http://evil.example/style.css><img src=http://evil.example/pixel.png>",
    "{{ 7 * 191 }} {% raw %} {# #} ${1337} $\\frac{a}{b}$ $",
    "\u202egnp.exe \u200b\u2066isolated\u2069 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "]]></svg><script>document.documentElement.id='pwned'</script>",
    "a\ttab\nnewline\x07bell",
    "long " + "x" * 5000,
]


def make_trial(experiment: int, **changed: Any) -> Trial:
    """A right trial of the toy model, unless `changed` says otherwise."""
    loop = changed.pop("loop", LOOP)
    latency = changed.pop("latency_us", 20.0 + (experiment * 7 % 5))
    regime = changed.get("regime", "predicted")
    config = changed.pop("schedule_config", amk.ScheduleConfig.default().to_dict())
    verdict = {
        "max_seq": 256, "latency_position": 128, "seed": 0, "device": "cpu" if regime == "predicted" else "cuda:0",
        "schedule_config": config, "latency_kind": None if latency is None else regime,
        "provenance": {"host_cpu": "a <b>processor</b>", "driver": None, "clocks": None},
    }  # fmt: skip
    if regime != "predicted":
        clocks = [{"sm_clock_mhz": 1980, "throttle_reasons": ["gpu_idle"]}] * 2
        verdict["provenance"] |= {"device_name": "NVIDIA H200", "driver": "580.1", "clocks": clocks}
        verdict |= {"latency_p10_us": latency and latency - 1, "latency_p90_us": latency and latency + 2}
    facts: dict[str, Any] = {
        "trial_id": f"{loop}-{experiment:06d}", "loop": loop, "experiment": experiment, "tag": "tried",
        "model": "toy", "gpu": "h200", "regime": regime, "correctness": "PASS", "latency_us": latency,
        "pct_of_roofline": None if latency is None else 6.0 / latency, "schedule_id": f"{experiment:016x}",
        "kernel_id": BUILD, "description": f"trial {experiment}: not 1 % faster, so not kept",
        "schedule_config": config, "verdict": verdict, "comparison": {}, "shape": {"layers": 1},
        "time_utc": f"2026-01-02T03:04:{experiment % 60:02d}Z", "duration_s": 0.25,
    }  # fmt: skip
    return Trial(**{**facts, **changed})


def make_loop(n: int = 24, seed: int = 0, **changed: Any) -> list[Trial]:
    """A search over the knobs with every kind of outcome in it."""
    rng, space = random.Random(seed), search_space("h200")
    config, best, trials = amk.ScheduleConfig.default().to_dict(), None, []
    for i in range(n):
        tried = config
        if i:
            path = rng.choice(sorted(space))
            tried = with_knob(config, path, rng.choice(space[path]))
        outcome: dict[str, Any] = {"latency_us": round(18 + 8 * rng.random(), 3)}
        if i % 9 == 4:
            outcome = {"tag": "rejected", "correctness": "REJECTED", "latency_us": None}
        elif i % 9 == 6:
            outcome = {"tag": "crash", "correctness": "CRASH", "latency_us": None}
        elif i % 9 == 8:
            outcome = {"tag": "revert", "correctness": "FAIL", "latency_us": None}
        elif best is None or outcome["latency_us"] < 0.99 * best:
            best, config = outcome["latency_us"], tried
            outcome |= {"tag": "kept", "comparison": {"gain_low": 0.02}, "description": f"kept <i>because</i> {i}"}
        trials.append(make_trial(i, schedule_config=tried, **outcome, **changed))
    return trials


def hostile_trials() -> list[Trial]:
    """Every hostile text in every field that takes one."""
    out = []
    for i, text in enumerate(HOSTILE):
        config = {"tiling": {text[:60]: i % 3}, "sm_assignment": text[:200], "fusion_grouping": [text[:60]]}
        comparison, provenance = {text[:60]: text[:200]}, {"device_name": text[:200], "clocks": [{text[:60]: 1}]}
        verdict = {"provenance": provenance, "seed": text[:200], "device": text[:200], "max_seq": text[:60]}
        out.append(
            make_trial(
                i, tag="kept", model=text, gpu=text[:200], description=text, schedule_id=text[:200],
                kernel_id=text[:200], schedule_config=config, verdict=verdict, comparison=comparison,
            )
        )  # fmt: skip
    return out


def write_log(folder: Path, trials: list[Trial], **facts: Any) -> Path:
    """results.tsv and its journal, as a loop leaves them."""
    path = folder / "results.tsv"
    with RecordStore(path) as store:
        for loop in dict.fromkeys(trial.loop for trial in trials):
            store.begin_loop(loop, {"model": "toy", "gpu": "h200", "budget": len(trials), "seed": 0, **facts})
        for trial in trials:
            store.start(trial.trial_id, trial.loop, trial.experiment, trial.schedule_id, trial.schedule_config)
            store.end(trial)
    return path
