#!/usr/bin/env python3
"""Seconds per token of the reference machine on a checkpoint, and the peak memory of doing so.

    python benchmarks/make_checkpoint.py /data/random-1b
    python benchmarks/reference_vm.py /data/random-1b

Prints one JSON object. Target on the 1B shape: under 3 s per token on 2 cores, peak under 1.3 times the checkpoint.
Peak memory is that of a process which does nothing else (import, read, decode), as the kernel counts it, less what the
interpreter with numpy and amk takes before it reads anything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(arguments: argparse.Namespace) -> dict:
    import amk

    before = peak_bytes()
    start = time.perf_counter()
    source = amk.open_model(arguments.model)
    weights = source.weights()
    read = time.perf_counter() - start
    after_read = peak_bytes()
    start = time.perf_counter()
    target = amk.TARGETS[arguments.gpu]
    program = amk.lower(source.config, amk.ScheduleConfig.default(), target, arguments.max_seq)
    image = program.pack()
    compile_seconds = time.perf_counter() - start
    steps = []
    with amk.ReferenceVM(image, weights, threads=arguments.threads) as machine:
        token = 7
        for pos in range(arguments.tokens + 1):
            start = time.perf_counter()
            machine.step(token, pos)
            steps.append(time.perf_counter() - start)
            token = int(machine.next_token)
    return {
        "weight_bytes": weights.nbytes,
        "read_s": round(read, 3),
        "lower_validate_pack_s": round(compile_seconds, 3),
        "first_token_s": round(steps[0], 4),
        "s_per_token": round(statistics.median(steps[1:]), 4),
        "base_rss_bytes": before,
        "peak_after_read_bytes": after_read,
        "peak_rss_bytes": peak_bytes(),
        "peak_over_weights": round((peak_bytes() - before) / weights.nbytes, 3),
        "peak_rss_over_weights": round(peak_bytes() / weights.nbytes, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint directory, or an embedded model")
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--max-seq", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=3, help="fresh processes; the median one is reported")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments)))
        return 0
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    runs = []
    for number in range(arguments.repeat):
        print(f"run {number + 1} of {arguments.repeat}", file=sys.stderr)
        runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    runs.sort(key=lambda run: run["s_per_token"])
    result = {
        "benchmark": "reference_vm",
        "model": arguments.model,
        "threads": arguments.threads,
        "cpu_count": os.cpu_count(),
        "s_per_token_all": [run["s_per_token"] for run in runs],
        **runs[len(runs) // 2],
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
