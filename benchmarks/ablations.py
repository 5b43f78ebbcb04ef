#!/usr/bin/env python3
"""What each of the machine's ideas is worth: decode steps without it against the default, in turns, on one GPU.

    cmake --build BUILD --target gpu_ablate gpu_check
    python benchmarks/ablations.py BUILD/tests/gpu --output benchmarks/results [--name h200] [--shapes 0.6B 1B 8B]

In: a folder with the two programs; standard library only, so that it runs on a bare GPU machine. What is left out, and
how it is timed, says tests/gpu/gpu_ablate.cpp. The machine's results are checked before and after: gpu_check's quick
models, and inside gpu_ablate small models of every arm and the bits of every timed program. Out: ablations_<name>.json
and ablations_<name>.md, with the programs' hashes, the source and the device's state. Exit status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

from gpu_all import HERE, load_runner, output_of, state_of_device

PROGRAMS = ("gpu_ablate", "gpu_check")
LIMIT_S = 240
QUICK = [("gpu_check", ["quick"], 120)]
TEXTS = {
    "direct_loads": "weights loaded directly, without the ring",
    "scalar_matvec": "FMA on the CUDA cores instead of mma",
    "round_robin": "tasks to SMs in turn",
    "load_balance": "tasks to the SM with the least predicted work",
    "tables_every_step": "tables packed and uploaded before each step",
}


def table(ablated: dict) -> list[str]:
    """One line for each shape and idea, a column for each context: without / with, and the ratio of the pairs."""
    contexts = list(dict.fromkeys(row["context"] for row in ablated["rows"]))
    lines = [
        f"| shape | without | {' | '.join(f'ctx {context:,}' for context in contexts)} |",
        f"|---|---|{'---|' * len(contexts)}",
    ]
    found: dict[tuple[str, str], dict[int, str]] = {}
    for row in ablated["rows"]:
        text = f"{row['us']:,.0f} / {row['default_us']:,.0f} us = {row['ratio']:.3f}"
        if row["pack_us"]:
            text += f" (packing alone {row['pack_us']:,.0f})"
        found.setdefault((row["shape"], row["arm"]), {})[row["context"]] = text
    for (shape, arm), cells in found.items():
        row = " | ".join(cells.get(context, "-") for context in contexts)
        lines.append(f"| {shape} | {TEXTS.get(arm, arm)} | {row} |")
    return lines


def markdown(result: dict) -> str:
    ablated, device = result["ablations"], result["before"]
    checks = [check for when in ("checks_before", "checks_after") for check in ablated.get(when, [])]
    wrong = [check for check in checks if not check["error"] <= check["limit"]]
    changed = [row for row in ablated["rows"] if not row["same_bits_after"]]
    said = f"{len(checks) - len(wrong)} of {len(checks)} small models right, before and after; "
    said += f"{len(ablated['rows']) - len(changed)} of {len(ablated['rows'])} timed programs gave the same bits after."
    lines = [
        f"{device.get('name') or ablated.get('device')}, driver {device.get('driver_version')}, {result['date']}, "
        f"source {result['source']}. Cells: microseconds per token without the idea / with it, medians of "
        f"{ablated['rows'][0]['pairs'] if ablated['rows'] else 0} steps each, taken in turns, and the median of the "
        "pairs' ratios. bf16, batch 1, whole steps; the last row of a shape is the host's clock on both sides.",
        "",
        *table(ablated),
        "",
        said,
        f"Failed: {', '.join(result['failed'])}." if result["failed"] else "Nothing failed.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where gpu_ablate and gpu_check lie")
    parser.add_argument("--output", type=Path, required=True, help="folder for the JSON and the table")
    parser.add_argument("--name", default="h200")
    parser.add_argument("--runner", type=Path, default=HERE.parent / "tests" / "gpu" / "run.py")
    parser.add_argument("--source", help="what was built, where this is not its git checkout")
    parser.add_argument("--shapes", nargs="*", default=[], help="0.6B 1B 8B")
    options = parser.parse_args()
    missing = [name for name in PROGRAMS if not (options.folder / name).is_file()]
    if missing:
        parser.error(f"{options.folder} has no {' and no '.join(missing)}")
    session = load_runner(options.runner).Session(options.folder)
    result = {
        "benchmark": "ablations",
        "command": f"python benchmarks/ablations.py BUILD/tests/gpu --output DIR {' '.join(options.shapes)}".strip(),
        "source": options.source or output_of("git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=40"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "programs": {
            name: hashlib.sha256((options.folder / name).read_bytes()).hexdigest() for name in sorted(PROGRAMS)
        },
    }
    session.check(QUICK)
    result["before"] = state_of_device()
    text = session.run("gpu_ablate", options.shapes, LIMIT_S)
    result["after"] = state_of_device()
    session.check(QUICK)
    try:
        result["ablations"] = json.loads(text)
    except ValueError:
        session.failed.append("gpu_ablate: no JSON")
        result["ablations"] = {"rows": [], "output": text}
    result |= {"checks": session.records, "failed": session.failed}
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"ablations_{options.name}"
    stem.with_name(stem.name + ".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shown = markdown(result)
    stem.with_name(stem.name + ".md").write_text(shown, encoding="utf-8")
    print(shown)
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
