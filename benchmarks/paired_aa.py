#!/usr/bin/env python3
"""How often a comparison of a config with itself would end in a keep, and how often a real gain is found.

    python benchmarks/paired_aa.py [--comparisons 2000] [--output FILE]

Simulated samples go through the statistics and the keep rule of a measured loop: 100 interleaved pairs, the 95 % lower
bound of the gain above 1 %, confirmed once in a fresh process. The step noise is that of a recorded run on an H200
(results/gpu_h200.json: p10, median and p90 of each shape at context 1,024); on top of it, in three strengths: slow
drift of the clocks (AR(1)), a cost of running second, rare slow steps, and a bias between the two machines that lasts
as long as their process does, which no interleaving can see (memory placement). Prints one JSON object.
This is a simulation; the test on a device is the same rule with measured samples.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from amk.search.keep import decide
from amk.search.pairs import pair_order, paired_gain

RESULTS = Path(__file__).resolve().parent / "results"
TIMED = 100
# Parts of a step: sigma and correlation of the drift, cost of running second, share and size of slow steps, sigma of
# the bias of a process.
NOISE: dict[str, dict[str, float]] = {
    "quiet": {"drift": 0.001, "second": 0.001, "slow": 0.005, "slow_by": 0.05, "bias": 0.001},
    "usual": {"drift": 0.005, "second": 0.005, "slow": 0.02, "slow_by": 0.10, "bias": 0.003},
    "rough": {"drift": 0.02, "second": 0.02, "slow": 0.05, "slow_by": 0.30, "bias": 0.005},
}
GAINS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05)


def step_sigma() -> float:
    """Of one step, as a part of the median: the largest among the recorded shapes."""
    found = json.loads((RESULTS / "gpu_h200.json").read_text())["bench"]["results"]
    rows = [row for shape in found for row in shape["contexts"] if row["context"] == 1024]
    return max((row["p90_us"] - row["p10_us"]) / 2.563 / row["median_us"] for row in rows)


def samples(rng: np.random.Generator, sigma: float, noise: dict[str, float], gain: float, seed: int) -> np.ndarray:
    logs = sigma * rng.standard_normal((TIMED, 2))
    drift = np.empty(2 * TIMED)
    drift[0] = rng.standard_normal()
    for i in range(1, len(drift)):  # one value per step, in the order in which the steps ran
        drift[i] = 0.95 * drift[i - 1] + np.sqrt(1 - 0.95**2) * rng.standard_normal()
    first = np.array(pair_order(0, TIMED, seed))
    rows = np.arange(TIMED)
    logs[rows, first] += noise["drift"] * drift[0::2]
    logs[rows, 1 - first] += noise["drift"] * drift[1::2] + np.log1p(noise["second"])
    logs += np.log1p(noise["slow_by"]) * (rng.random((TIMED, 2)) < noise["slow"])
    logs[:, 1] += np.log1p(-gain) + noise["bias"] * rng.standard_normal()
    return 800.0 * np.exp(logs)


def keeps(rng: np.random.Generator, sigma: float, noise: dict[str, float], gain: float, sizes: tuple[int, int]) -> bool:
    """One comparison as the loop makes it: twice, with its own samples and its own bias each time."""
    for _ in range(2):
        seed = int(rng.integers(1 << 62))
        found = paired_gain(samples(rng, sigma, noise, gain, seed), seed)
        if isinstance(found, str) or not decide(found, *sizes).keep:
            return False
    return True


def rate(count: int, *arguments: Any) -> float:
    return round(statistics.mean(keeps(*arguments) for _ in range(count)), 5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=2000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rng, sigma, start = np.random.default_rng(0), step_sigma(), time.perf_counter()
    rows = {}
    for name, noise in NOISE.items():
        few = max(options.comparisons // 10, 1)
        rows[name] = {
            "noise": noise,
            "false_keeps": rate(options.comparisons, rng, sigma, noise, 0.0, (5, 5)),
            "kept_by_true_gain": {f"{100 * g:g} %": rate(few, rng, sigma, noise, g, (5, 5)) for g in GAINS},
            "simpler_kept_by_true_loss": {
                f"{100 * loss:g} %": rate(few, rng, sigma, noise, -loss, (4, 5)) for loss in (0.0, 0.01, 0.015, 0.02)
            },
        }
    report = {
        "benchmark": "paired_aa",
        "kind": "simulation",
        "step_sigma": round(sigma, 5),
        "pairs": TIMED,
        "comparisons": options.comparisons,
        "target_false_keeps": 0.01,
        "seconds": round(time.perf_counter() - start, 1),
        "noise": rows,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
