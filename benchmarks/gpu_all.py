#!/usr/bin/env python3
"""Everything the GPU figures rest on, in one run on one machine: checks, sanitizers, times, peers, one JSON, one table.

    cmake -S . -B build -DAMK_CUDA=ON && cmake --build build --target gpu_tests
    python benchmarks/gpu_all.py build/tests/gpu --output benchmarks/results [--sanitize]

Standard library only (the peers need torch, and are left out with a note where there is none), so that the folder of
programs, tests/gpu/run.py, benchmarks/ and python/amk/peers/ can be copied to a bare GPU machine. Writes
gpu_<name>.json and gpu_<name>.md. Exit status 1 if anything failed; the table then says so.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NVIDIA_SMI = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,"
    "clocks_event_reasons.active,ecc.errors.uncorrected.volatile.total,memory.used"
)


def load_runner(path: Path):
    spec = importlib.util.spec_from_file_location("gpu_test_runner", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def state_of_device() -> dict:
    values = output_of("nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader", "-i", "0").split(", ")
    others = output_of("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader", "-i", "0")
    return dict(zip(NVIDIA_SMI.split(","), values, strict=False)) | {"compute_processes": others.splitlines()}


def run_peers(limit_s: float, shapes: list[str]) -> dict:
    arguments = ["--limit-s", str(limit_s), *(["--shapes", *shapes] if shapes else [])]
    done = subprocess.run(
        [sys.executable, str(HERE / "peer_torch.py"), *arguments], stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    if done.returncode:
        return {"results": [], "note": f"peer_torch.py ended with {done.returncode}: is torch installed?"}
    return json.loads(done.stdout)


def table(result: dict) -> list[str]:
    bench = result["bench"]
    peers = {
        (row["shape"], row["context"], row["version"]): row["median_us"] or row["note"]
        for row in result["peers"].get("results", [])
    }
    lines = [
        "| shape | context | step, us | p10 - p90 | floor, us | share of floor | torch eager, us | torch compile, us |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in bench["results"]:
        for row in model["contexts"]:
            eager, compiled = (peers.get((model["shape"], row["context"], v), "-") for v in ("eager", "compile"))
            cells = [model["shape"], f"{row['context']:,}", f"{row['median_us']:,.0f}"]
            cells += [f"{row['p10_us']:,.0f} - {row['p90_us']:,.0f}", f"{row['floor_us']:,.0f}"]
            cells += [f"{row['share_of_floor']:.0%}"]
            cells += [f"{peer:,.0f}" if isinstance(peer, float) else peer for peer in (eager, compiled)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def marks(result: dict) -> list[dict]:
    """The marks of the 1B shape: faster than eager at 1,024; 8,192 rows at most 1.35 times 1,024 rows."""
    out = []
    for model in result["bench"]["results"]:
        if model["shape"] != "1B":
            continue
        us = {row["context"]: row["median_us"] for row in model["contexts"]}
        eager = [
            row["median_us"]
            for row in result["peers"].get("results", [])
            if (row["shape"], row["context"], row["version"]) == ("1B", 1024, "eager") and row["median_us"]
        ]
        if eager:
            out.append({"mark": "1B, context 1,024: under torch eager", "got": us[1024], "limit": eager[0]})
        out.append({"mark": "1B: context 8,192 / 1,024", "got": round(us[8192] / us[1024], 3), "limit": 1.35})
    return [mark | {"met": mark["got"] <= mark["limit"]} for mark in out]


def markdown(result: dict) -> str:
    device, bench = result["before"], result["bench"]
    lines = [
        f"{device.get('name')}, driver {device.get('driver_version')}, {result['date']}; it reads "
        f"{bench['read_gb_per_s']:,} GB/s in this run, which makes the floor. Source: {result['source']}. "
        "bf16, batch 1, whole steps with attention and argmax.",
        "",
        *table(result),
        "",
        *(
            f"- {m['mark']}: {m['got']:,} (limit {m['limit']:,}): {'met' if m['met'] else 'MISSED'}"
            for m in result["marks"]
        ),
        "",
        "| program | right | failed | seconds |",
        "|---|---|---|---|",
    ]
    for record in result["checks"]:
        failed = len(record["lines_failed"]) or (f"exit status {record['exit_status']}" if record["exit_status"] else 0)
        summary = f" ({record['summary']})" if "summary" in record else ""
        lines.append(f"| {record['program']}{summary} | {record['lines_ok']} | {failed} | {record['seconds']} |")
    lines += ["", f"Failed: {', '.join(result['failed'])}." if result["failed"] else "Nothing failed."]
    return "\n".join(lines) + "\n"


def write(result: dict, folder: Path, name: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"gpu_{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shown = markdown(result)
    (folder / f"gpu_{name}.md").write_text(shown, encoding="utf-8")
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the gpu_* programs lie")
    parser.add_argument("--output", type=Path, required=True, help="folder for the JSON and the table")
    parser.add_argument("--name", default="h200")
    parser.add_argument("--runner", type=Path, default=HERE.parent / "tests" / "gpu" / "run.py")
    parser.add_argument("--source", help="what was built, where this is not its git checkout")
    parser.add_argument("--sanitize", action="store_true", help="also under compute-sanitizer's four tools")
    parser.add_argument("--shapes", nargs="*", default=[], help="0.6B 1B 8B")
    parser.add_argument("--bench", nargs="*", default=[], help="more arguments of gpu_bench, as threads=512")
    parser.add_argument(
        "--peer-limit-s", type=float, default=120, help="seconds for one shape and version; 0: no peers"
    )
    options = parser.parse_args()

    runner = load_runner(options.runner)
    session = runner.Session(options.folder)
    result = {
        "source": options.source or output_of("git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=40"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "programs": {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(options.folder.glob("gpu_*"))
            if p.is_file() and not p.suffix
        },
    }
    session.check()
    if options.sanitize:
        session.sanitize()
    quick = [("gpu_check", ["quick"], 120)]
    session.check(quick)
    result["before"] = state_of_device()
    text = session.run("gpu_bench", [*options.shapes, *options.bench], 300)
    result["after"] = state_of_device()
    session.check(quick)
    try:
        result["bench"] = json.loads(text)
    except ValueError:
        session.failed.append("gpu_bench: no JSON")
        result["bench"] = {"read_gb_per_s": 0, "results": [], "output": text}
    result |= {"peers": {"results": []}, "checks": session.records, "failed": session.failed, "marks": []}
    write(result, options.output, options.name)  # the peers take long: what was measured is kept
    if options.peer_limit_s:
        result["peers"] = run_peers(options.peer_limit_s, options.shapes)
    result["marks"] = marks(result)
    result["failed"] += [f"{m['mark']}: {m['got']}" for m in result["marks"] if not m["met"]]
    print(write(result, options.output, options.name))
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
