#!/usr/bin/env python3
"""A recorded search beside the waits that the cost model predicts for its trials: which are slow, and why.

    python benchmarks/long_waits.py [benchmarks/results/loop_1b_h200.json] [--gpu h200] [--max-seq 512] [--position 256]

In: the JSON of a loop over make_checkpoint.py's 1B model. Its trials are named by schedule id, and found again among
the points of the search space. Out: a line for each trial: measured and predicted time, the longest predicted wait of a
task, how many waits are longer than 50, 100 and 150 us, tile and assignment. No GPU is used.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from make_checkpoint import LLAMA_3_2_1B

import amk
from amk.model_config import parse_config
from amk.search.sampler import Space

LOOP = Path(__file__).resolve().parent / "results" / "loop_1b_h200.json"
LONG_US = (50, 100, 150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", type=Path, nargs="?", default=LOOP)
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--max-seq", type=int, default=512)
    parser.add_argument("--position", type=int, default=256)
    options = parser.parse_args()
    model = parse_config(LLAMA_3_2_1B, "LLAMA_3_2_1B")
    trials = json.loads(options.loop.read_text(encoding="utf-8"))["trials"]
    wanted = {trial["schedule_id"] for trial in trials}
    space = Space(amk.search_space(options.gpu))
    found: dict[str, amk.ScheduleConfig] = {}
    for index in range(space.size):
        config = space.point(index)
        if config.schedule_id in wanted:
            found.setdefault(config.schedule_id, config)
            if len(found) == len(wanted):
                break
    titles = ["trial", "measured us", "predicted us", "longest wait us", *(f"waits > {us} us" for us in LONG_US)]
    print("\t".join([*titles, "N_tile", "kv_block", "assignment"]))
    for trial in trials:
        config = found.get(trial["schedule_id"])
        if config is None:
            print(f"{trial['experiment']}\tno point of the search space has its id")
            continue
        program = amk.lower(model, config, options.gpu, options.max_seq)
        costs = program.task_costs(options.position)
        waits = costs["start_us"] - costs["free_us"]
        cells = [trial["experiment"], f"{float(trial['latency_us']):.0f}"]
        cells += [f"{program.cost(options.position).latency_us:.0f}", f"{waits.max():.1f}"]
        cells += [str(int((waits > us).sum())) for us in LONG_US]
        tiling = config.tiling
        cells += [str(tiling["gemv"]["N_tile"]), str(tiling["attention"]["kv_block"]), str(config.sm_assignment)]
        print("\t".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
