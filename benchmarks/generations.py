#!/usr/bin/env python3
"""256 greedy tokens of every model family on a machine, against the float64 oracle, token for token.

    python tests/python/gpu_checkpoints.py CHECKPOINTS     # where transformers is: checkpoints and expected.json
    python benchmarks/generations.py CHECKPOINTS --device cuda

The second needs only amk. Prints one JSON object; exit status 1 if any token differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path


def compare(checkpoint: Path, wanted: dict, device: str) -> dict:
    import amk

    count, prompt = len(wanted["tokens"]), wanted["prompt"]
    options = {"device": device, "max_new_tokens": count, "max_seq": count + len(prompt), "stop_at_eos": False}
    tokens, times = [], []
    with amk.generate(checkpoint, prompt, **options) as generation:
        for token in generation:
            tokens.append(token.token)
            times.append(time.perf_counter())
    differs = [i for i, (got, want) in enumerate(zip(tokens, wanted["tokens"], strict=True)) if got != want]
    return {
        "checkpoint": checkpoint.name,
        "tokens": len(tokens),
        "equal": not differs,
        "first_difference": differs[0] if differs else None,
        "distinct": wanted["distinct"],
        "smallest_lead": wanted["smallest_lead"],
        "tokens_per_s": round((len(times) - 1) / (times[-1] - times[0]), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--device", default="cuda", help="cpu, cuda or cuda:N")
    arguments = parser.parse_args()
    expected = json.loads((arguments.checkpoints / "expected.json").read_text(encoding="utf-8"))
    rows = [compare(arguments.checkpoints / f"{family}-f32", expected[family], arguments.device) for family in expected]
    print(json.dumps({"benchmark": "generations", "device": arguments.device, "families": rows}))
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
