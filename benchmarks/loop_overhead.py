#!/usr/bin/env python3
"""What `amk.loop` costs beyond `amk.evaluate`, and whether its memory grows.

    python benchmarks/loop_overhead.py [--trials 200] [--long 1000] [--output FILE]

On the toy model and the CPU path. Evaluate alone is called for the same schedules in this process, with the reference's
answers cached as in a loop; loops run with their trials inline and with a disposable process per trial, recording to
the disk of the working directory and to memory (/dev/shm). All of them alternate round by round, so that a busy machine
slows them alike. Overhead is the time from one trial's record to the next, less the time that evaluate took inside that
trial, median; `beyond_evaluate_alone_ms` compares with evaluate alone instead, and so also has what a fresh process
costs evaluate itself (pages copied after the fork). `cpu_ms` is processor time per trial, workers included, which other
work on the machine does not inflate. Then one loop of --long trials, with this process's resident memory after each.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import amk
from amk.evaluate import host_cpu
from amk.records import Trial

WARM = 3  # trials of each loop that start its worker and fill the cache


def cpu_s() -> float:
    ours, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return ours.ru_utime + ours.ru_stime + theirs.ru_utime + theirs.ru_stime


class Case:
    """One engine on one file system: seconds between records, and those inside evaluate."""

    def __init__(self, engine: str, folder: str) -> None:
        self.engine, self.folder = engine, folder
        self.spans: list[float] = []
        self.inside: list[float] = []
        self.cpu: list[float] = []

    def run(self, trials: int, seed: int) -> list[dict[str, Any]]:
        times: list[float] = []
        inside: list[float] = []
        configs: list[dict[str, Any]] = []

        def on_trial(trial: Trial) -> None:
            times.append(time.perf_counter())
            configs.append(dict(trial.schedule_config))

        def hear(text: str) -> None:
            if text.startswith("judged in "):
                inside.append(float(text.split()[2]))

        before = cpu_s()
        amk.loop(
            "toy", "h200", trials + WARM, "cpu", seed=seed, results_path=f"{self.folder}/{self.engine}{seed}.tsv",
            corpus_path=None, engine=self.engine, on_trial=on_trial, progress=hear, verbose=True,
        )  # fmt: skip
        self.cpu.append((cpu_s() - before) / len(times))
        self.spans += [b - a for a, b in zip(times[WARM - 1 :], times[WARM:], strict=False)]
        self.inside += inside[WARM:]
        return configs[WARM:]

    def report(self, alone_ms: float) -> dict[str, float]:
        beyond = [span - inside for span, inside in zip(self.spans, self.inside, strict=True)]
        return {
            "trial_ms": ms(self.spans),
            "evaluate_inside_ms": ms(self.inside),
            "overhead_ms": ms(beyond),
            "overhead_p10_ms": round(1e3 * statistics.quantiles(beyond, n=10)[0], 2),
            "beyond_evaluate_alone_ms": round(ms(self.spans) - alone_ms, 2),
            "cpu_ms": ms(self.cpu),
        }


def ms(times: list[float]) -> float:
    return round(1e3 * statistics.median(times), 2)


def sync_ms(folder: str) -> float:
    """One append of 2 KB and its sync."""
    took = []
    with open(f"{folder}/sync", "wb", buffering=0) as file:
        for _ in range(100):
            start = time.perf_counter()
            file.write(b"x" * 2000)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - start)
    return ms(took)


def rss_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def long_loop(trials: int, folder: str) -> dict[str, Any]:
    memory: list[float] = []
    start = time.perf_counter()
    result = amk.loop(
        "toy", "h200", trials, "cpu", results_path=f"{folder}/long.tsv", corpus_path=f"{folder}/long.jsonl",
        on_trial=lambda trial: memory.append(rss_mib()),
    )  # fmt: skip
    tenth = memory[len(memory) // 10]
    return {
        "trials": len(result.trials),
        "seconds": round(time.perf_counter() - start, 1),
        "rss_mib_after_10_percent": round(tenth, 2),
        "rss_mib_after_all": round(memory[-1], 2),
        "rss_mib_growth": round(memory[-1] - tenth, 2),
        "counts": result.counts,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--long", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rounds = 5
    with (
        tempfile.TemporaryDirectory(dir=".") as disk,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="loop_overhead_") as memory,
    ):
        os.environ["AMK_CACHE_DIR"] = f"{disk}/cache"
        cases = {
            f"{engine}, {where}": Case(engine, folder)
            for engine in ("inline", "process")
            for where, folder in (("disk", disk), ("memory", memory))
        }
        alone: list[float] = []
        alone_cpu: list[float] = []
        for seed in range(rounds):
            for case in cases.values():
                configs = case.run(options.trials // rounds, seed)
            before = cpu_s()
            for config in configs:
                start = time.perf_counter()
                amk.evaluate("toy", "h200", config, "cpu", seed=seed)
                alone.append(time.perf_counter() - start)
            alone_cpu.append((cpu_s() - before) / len(configs))
        report = {
            "benchmark": "loop_overhead",
            "host": host_cpu(),
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 1),
            "python": sys.version.split()[0],
            "library_build_id": amk.build_info().get("build_id"),
            "trials": options.trials,
            "target_overhead_ms": 20,
            "evaluate_alone_ms": ms(alone),
            "evaluate_alone_cpu_ms": ms(alone_cpu),
            **{name: case.report(ms(alone)) for name, case in cases.items()},
            "sync_ms": {"disk": sync_ms(disk), "memory": sync_ms(memory)},
            "syncs_per_trial": "3, and 1 for a kept one",
        }
        report["long"] = long_loop(options.long, disk)
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
