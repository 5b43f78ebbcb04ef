#!/usr/bin/env python3
"""Runs the GPU test programs and says what each proved. Standard library only, so that it runs on a bare GPU machine.

In: the folder they were built in (`cmake --build BUILD --target gpu_tests`), then flags for the benchmark. Out: their
output, one summary line each; the benchmark's JSON goes to the file named by --json. Exit status 1 if any failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

# Name, arguments, seconds after which the program counts as hung. Two faults end their process's CUDA context.
CHECKS = [
    ("gpu_check", [], 300),
    ("gpu_faults", [], 120),
    ("gpu_faults", ["illegal-address"], 60),
    ("gpu_faults", ["loop-forever"], 60),
]


def run(folder: Path, name: str, arguments: list[str], limit_s: int) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [str(folder / name), *arguments], stdout=subprocess.PIPE, stderr=sys.stderr, timeout=limit_s, text=True
        )
    except subprocess.TimeoutExpired as error:
        return 1, f"{(error.stdout or b'').decode()}FAIL hung: no end after {limit_s} s\n"
    return done.returncode, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where gpu_check, gpu_faults and gpu_bench lie")
    parser.add_argument("--json", type=Path, help="run the benchmark and write its JSON here")
    parser.add_argument("--bench", nargs="*", default=[], help="arguments of gpu_bench: shapes, threads=N, kv_block=N")
    options = parser.parse_args()
    options.folder = options.folder.resolve()  # a bare name would be looked up in PATH
    failed = []
    for name, arguments, limit_s in CHECKS:
        status, output = run(options.folder, name, arguments, limit_s)
        print(output, end="", flush=True)
        if status:
            failed.append(" ".join([name, *arguments]))
    if options.json:
        status, output = run(options.folder, "gpu_bench", options.bench, 300)
        print(output, end="", flush=True)
        options.json.write_text(output, encoding="utf-8")
        if status:
            failed.append("gpu_bench")
    print("all GPU checks passed" if not failed else f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
