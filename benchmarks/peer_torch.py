#!/usr/bin/env python3
"""The same decode step in PyTorch, on the same machine: what the kernel's times are compared with. Needs only torch.

    python benchmarks/peer_torch.py [--shapes 0.6B 1B 8B] [--limit-s 180] [--output FILE.json]

Shapes, contexts and steps are those of tests/gpu/gpu_bench.cpp; what is run and how it is timed is the package's own
peer (python/amk/peers/torch_decode.py, which imports nothing of the package: the two folders can be copied to a bare
machine together). Each shape runs in a process of its own, eager first, then compiled once for all contexts. It is
ended at --limit-s; what it had measured counts, and the rest says in which stage it was. Stages go to stderr.
`amk bench --peers torch` does the same for any model, beside AMK itself.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PEER = Path(__file__).resolve().parents[1] / "python" / "amk" / "peers" / "torch_decode.py"
BIASES = {"qkv_bias": False, "o_bias": False, "mlp_bias": False}
COMMON = {**BIASES, "dtype": "bf16", "eps": 1e-5, "rope_theta": 10000.0, "n_kv_heads": 8}
SHAPES = {
    "0.6B": dict(layers=28, hidden=1024, n_heads=16, head_dim=128, ffn=3072, vocab=151936, qk_norm=True, tied=True),
    "1B": dict(layers=16, hidden=2048, n_heads=32, head_dim=64, ffn=8192, vocab=128256, qk_norm=False, tied=True),
    "8B": dict(layers=32, hidden=4096, n_heads=32, head_dim=128, ffn=14336, vocab=128256, qk_norm=False, tied=False),
}
CONTEXTS = (1, 1024, 8192)
VERSIONS = ("eager", "compile")  # the quick one first
TIMES = {"median": "", "p10": "_p10", "p90": "_p90"}


def run_peer(shape: str, versions: list[str], limit_s: float) -> tuple[dict, list[dict]]:
    """(what the peer says of itself, a row per version and context): without a time, and with a note, where it has
    none."""
    job = {"shape": {**COMMON, **SHAPES[shape]}, "versions": versions, "contexts": CONTEXTS, "device": 0}
    command = [sys.executable, str(PEER), json.dumps(job)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    note = ""
    try:
        output, _ = process.communicate(timeout=limit_s)
        if process.returncode:
            note = f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the compiler's own processes too
        output, _ = process.communicate()
        note = f"ended after {limit_s:.0f} s"
    about, rows, stage = {}, {}, ""
    for message in map(json.loads, output.splitlines()):
        about |= message.get("about", {})
        stage = message.get("stage", stage)
        if "skipped" in message:
            note, stage = message["skipped"], ""
        if "context" in message:
            times = {f"{name}_us": round(message[f"latency{key}_us"], 1) for name, key in TIMES.items()}
            rest = {name: message[name] for name in ("steps", "attention", "prepared_s", "compile_s")}
            rows[message["version"], message["context"]] = {**times, **rest}
    absent = {"median_us": None, "note": f"{note} while {stage}" if note and stage else note}
    keys = [{"shape": shape, "version": version, "context": context} for version in versions for context in CONTEXTS]
    return about, [{**key, **rows.get((key["version"], key["context"]), absent)} for key in keys]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--versions", nargs="*", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("--limit-s", type=float, default=180, help="seconds for one shape")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    about, rows = {}, []
    for shape in options.shapes:
        said, found = run_peer(shape, options.versions, options.limit_s)
        about |= said
        rows += found
        for row in found:
            print(json.dumps(row), file=sys.stderr, flush=True)
    text = json.dumps({"torch": about.get("torch"), "device": about.get("device"), "results": rows}, indent=1)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
