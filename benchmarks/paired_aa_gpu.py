#!/usr/bin/env python3
"""How often a schedule compared with itself on a GPU would end in a keep: the loop's own comparison, measured.

    python benchmarks/paired_aa_gpu.py [MODEL] [--comparisons 200] [--device cuda:0] [--max-seq 1024] [--position 255]
        [--minutes 12] [--output FILE]

Each comparison is what `amk loop` does before it keeps a candidate: a worker process of its own, both machines loaded,
100 interleaved pairs of steps, checked logits, the 95 % lower bound of the gain above 1 %; what would be kept is
confirmed once in another process. Both sides are the default schedule, so every keep is a false one. Prints one JSON
object; the mark is at most 1 %. Fewer comparisons than asked for are said so, and are then no pass.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MARK = 0.01


def compare_once(model: str, target: Any, device: str, sizes: tuple[int, int], seed: int) -> tuple[Any, dict[str, Any]]:
    """The gain that one comparison found (or why there is none), and its answer."""
    from amk.config import ScheduleConfig
    from amk.search.pair_job import compare_pair
    from amk.search.pairs import paired_gain

    config = ScheduleConfig().to_dict()
    asked = {
        "model": model, "target": target.to_dict(), "device": device, "incumbent": config, "candidate": config,
        "max_seq": sizes[0], "position": sizes[1], "seed": seed,
    }  # fmt: skip
    answer = compare_pair(asked, lambda text: None)
    return answer["trouble"] or paired_gain(answer["us"], seed), answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="toy-qwen3", help="an embedded model or a checkpoint")
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--max-seq", type=int, default=1024)
    parser.add_argument("--position", type=int, default=255)
    parser.add_argument("--minutes", type=float, default=60.0, help="no comparison begins later than this")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    from amk.errors import AmkError
    from amk.exam import draw
    from amk.search.keep import Gain, decide
    from amk.targets import query_device

    if "AMK_CACHE_DIR" not in os.environ:
        os.environ["AMK_CACHE_DIR"] = tempfile.mkdtemp()
    try:
        target = query_device(int(options.device.partition(":")[2] or 0))
    except AmkError as error:
        print(f"no GPU to compare on: {error}", file=sys.stderr)
        return 4
    sizes = options.max_seq, options.position
    start = time.monotonic()
    gains: list[float] = []
    lows: list[float] = []
    troubles: list[str] = []
    medians: list[float] = []
    done = keeps = at_first = 0
    for i in range(options.comparisons):
        if time.monotonic() - start > 60 * options.minutes:
            break
        kept = True
        for attempt in range(2):
            seed = draw(i, f"a/a {attempt}", 0, 1 << 63)
            gain, answer = compare_once(options.model, target, options.device, sizes, seed)
            if not isinstance(gain, Gain):
                troubles.append(str(gain))
                kept = False
                break
            gains.append(gain.estimate)
            lows.append(gain.low)
            medians.append(statistics.median(pair[0] for pair in answer["us"]))
            if not decide(gain, 1, 1).keep:
                kept = False
                break
            at_first += attempt == 0
        keeps += kept
        done += 1
        print(f"{done}: {gain}", file=sys.stderr, flush=True)
    result = {
        "benchmark": "paired_aa_gpu", "model": options.model, "device": target.name, "max_seq": sizes[0],
        "position": sizes[1], "asked": options.comparisons, "comparisons": done, "troubles": troubles,
        "kept_at_first": at_first, "false_keeps": keeps, "false_keep_rate": keeps / max(done, 1), "mark": MARK,
        "median_step_us": statistics.median(medians) if medians else None,
        "largest_gain": max(gains, default=None), "largest_low": max(lows, default=None),
        "stdev_of_gain": statistics.pstdev(gains) if gains else None,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")
    passed = 0 < done == options.comparisons and not troubles and keeps <= MARK * done
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
