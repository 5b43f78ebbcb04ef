#!/usr/bin/env python3
"""The compiler's own figures: lower, validate, pack, and the validator against the exhaustive oracle.

    python benchmarks/core.py [--programs 1000000] [--build-dir build-bench] [--output FILE.json]

Builds the C++ benches of tests/cpp without CUDA and without sanitizers, runs them one after the other on one core, and
writes what they printed, with the commit and the machine, as one JSON object. Targets: validate + pack of 200,000 tasks
on 132 queues under 1 s and under 1 GB; lower + validate of the 1B shape under 0.3 s and of the 8B shape under 1 s; no
false accept and no false reject in 1,000,000 programs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(directory: Path, targets: list[str]) -> None:
    configure = ["cmake", "-S", str(ROOT), "-B", str(directory), "-DAMK_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    for command in (configure, ["cmake", "--build", str(directory), "-j", "2", "--target", *targets]):
        subprocess.run(command, check=True, stdout=sys.stderr)


def run(program: Path, *arguments: str) -> dict:
    start = time.perf_counter()
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    print(done.stdout, end="", file=sys.stderr)
    result = {"command": " ".join([program.name, *arguments]), "exit_status": done.returncode}
    return result | {"seconds": round(seconds, 2), "lines": done.stdout.splitlines()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=1_000_000, help="programs for the exhaustive oracle")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--build-dir", type=Path, default=ROOT / "build-bench")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    names = ["bench_lower", "bench_validate", "validator_vs_exhaustive"]
    build(arguments.build_dir, names)
    programs = arguments.build_dir / "tests" / "cpp"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    result = {
        "commit": commit,
        "machine": {"processor": cpu_name(), "cores": os.cpu_count(), "system": platform.platform()},
        "lower": run(programs / "bench_lower"),
        "validate": run(programs / "bench_validate"),
        "exhaustive": run(programs / "validator_vs_exhaustive", str(arguments.programs), str(arguments.seed)),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return max(result[name]["exit_status"] for name in ("lower", "validate", "exhaustive"))


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
