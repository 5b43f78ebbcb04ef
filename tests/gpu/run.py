#!/usr/bin/env python3
"""Runs the GPU test programs and says what each proved. Standard library only, so that it runs on a bare GPU machine.

In: the folder they were built in (`cmake --build BUILD --target gpu_tests`), then flags. Out: their output and one
summary line for each; the benchmark's JSON goes to the file named by --json. Exit status 1 if any failed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

# Name, arguments, seconds after which the program counts as hung. Some faults end their process's CUDA context.
CHECKS = [
    ("gpu_ops", [], 300),
    ("gpu_check", [], 400),
    ("gpu_random", [], 300),
    ("gpu_repeat", [], 260),
    ("gpu_gdn", ["check"], 120),
    ("gpu_faults", [], 120),
    ("gpu_faults", ["interrupt"], 60),
    ("gpu_faults", ["no-device"], 60),
    ("gpu_faults", ["illegal-address"], 60),
    ("gpu_faults", ["loop-forever"], 60),
    ("gpu_other_architecture", [], 60),
]
TOOLS = ["memcheck", "initcheck", "racecheck", "synccheck"]
# Every opcode, and three whole models. The watchdog waits longer, as everything takes some hundred times longer.
SANITIZED = [("gpu_ops", ["few", "deadline_ms=100000"], 600), ("gpu_check", ["three", "deadline_ms=100000"], 600)]


def run(command: list[str], limit_s: float) -> tuple[int, str]:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=sys.stderr, timeout=limit_s, text=True)
    except subprocess.TimeoutExpired as error:
        return 1, f"{(error.stdout or b'').decode()}FAIL hung: no end after {limit_s} s\n"
    return done.returncode, done.stdout


class Session:
    """Runs programs of one folder and remembers what failed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()  # a bare name would be looked up in PATH
        self.failed: list[str] = []
        self.records: list[dict] = []

    def run(self, name: str, arguments: list[str], limit_s: float, prefix: tuple[str, ...] = ()) -> str:
        start = time.monotonic()
        status, output = run([*prefix, str(self.folder / name), *arguments], limit_s)
        title = " ".join([*(p for p in prefix if p in TOOLS), name, *arguments])
        self.record(title, status, output, time.monotonic() - start)
        return output

    def python(self, script: Path, arguments: list[str], limit_s: float) -> str:
        """tests/gpu/python_on_gpu.sh: "ok" and "FAIL" lines as the programs have them."""
        start = time.monotonic()
        status, output = run(["bash", str(script), *arguments], limit_s)
        self.record(script.name, status, output, time.monotonic() - start)
        return output

    def record(self, title: str, status: int, output: str, seconds: float) -> None:
        lines = output.splitlines()
        self.records.append(
            {
                "program": title,
                "exit_status": status,
                "seconds": round(seconds, 1),
                "lines_ok": sum(line.startswith("ok ") for line in lines),
                "lines_failed": [line for line in lines if line.startswith("FAIL")],
            }
        )
        if status:
            self.failed.append(title)

    def check(self, checks: list[tuple[str, list[str], int]] = CHECKS) -> None:
        for name, arguments, limit_s in checks:
            print(self.run(name, arguments, limit_s), end="", flush=True)

    def sanitize(self) -> None:
        sanitizer = shutil.which("compute-sanitizer")
        if not sanitizer:
            print("FAIL --sanitize: compute-sanitizer is not on PATH")
            self.failed.append("compute-sanitizer")
            return
        for tool in TOOLS:
            for name, arguments, limit_s in SANITIZED:
                prefix = (sanitizer, "--tool", tool, "--error-exitcode", "99")
                output = self.run(name, arguments, limit_s, prefix)
                said = [line for line in output.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
                if not said:  # it found nothing because it did not look
                    self.failed.append(f"{tool} {name}: no summary")
                elif self.records[-1]["exit_status"]:
                    print("\n".join(output.splitlines()[:80]))
                self.records[-1]["summary"] = " ".join(said).strip("= ")
                print(f"{tool} {name}: {' '.join(said) or 'NO SUMMARY'}", flush=True)
        self.plant(sanitizer)

    def plant(self, sanitizer: str) -> None:
        """A sanitizer that is silent about a planted error proves nothing when it is silent about the rest."""
        planted = [sanitizer, "--tool", "memcheck", str(self.folder / "gpu_faults"), "illegal-address"]
        found = re.search(r"ERROR SUMMARY: ([1-9]\d*) error", run(planted, 60)[1])
        print(f"memcheck of a planted error: {found[0] if found else 'FAIL nothing found'}", flush=True)
        if not found:
            self.failed.append("memcheck: a planted error was not found")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the gpu_* programs lie")
    parser.add_argument("--sanitize", action="store_true", help="also under compute-sanitizer's four tools")
    parser.add_argument("--json", type=Path, help="run the benchmark and write its JSON here")
    parser.add_argument("--bench", nargs="*", default=[], help="arguments of gpu_bench: shapes, threads=N, kv_block=N")
    options = parser.parse_args()
    session = Session(options.folder)
    session.check()
    if options.sanitize:
        session.sanitize()
    if options.json:
        output = session.run("gpu_bench", options.bench, 300)
        print(output, end="", flush=True)
        options.json.write_text(output, encoding="utf-8")
    print("all GPU checks passed" if not session.failed else f"FAILED: {', '.join(session.failed)}")
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
