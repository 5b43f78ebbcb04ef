"""Trials for tests, small and valid, with any field replaced."""

from __future__ import annotations

from typing import Any

from amk.records import Trial

LOOP = "0123456789ab"


def make_trial(experiment: int = 0, loop: str = LOOP, **changed: Any) -> Trial:
    """A kept, correct, predicted trial."""
    config = {"pipelining_depth": 2, "tiling": {"gemv": {"N_tile": 64}}}
    fields = {
        **{"trial_id": f"{loop}-{experiment:06d}", "loop": loop, "experiment": experiment, "tag": "kept"},
        **{"model": "toy", "gpu": "h200", "regime": "predicted", "correctness": "PASS"},
        **{"latency_us": 10.0, "pct_of_roofline": 50.0, "schedule_id": f"{experiment:016x}", "kernel_id": "build"},
        **{"description": "the default", "schedule_config": config, "comparison": {}, "shape": {"layers": 1}},
        "verdict": {
            **{"schedule_config": config, "latency_kind": "predicted", "max_seq": 64, "latency_position": 32},
            **{"seed": 0, "device": "cpu", "provenance": {"image_hash": "ff" * 8, "driver": None}},
        },
        **{"time_utc": "2026-01-02T03:04:05Z", "duration_s": 0.25},
    }
    return Trial(**{**fields, **changed})


def failed_trial(experiment: int = 0, loop: str = LOOP, **changed: Any) -> Trial:
    """A crash."""
    nothing = {"latency_us": None, "pct_of_roofline": None, "verdict": {}}
    return make_trial(experiment, loop, **{**nothing, "tag": "crash", "correctness": "CRASH", **changed})
