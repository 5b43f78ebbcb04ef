#!/usr/bin/env python3
"""Everything the GPU figures rest on, in one run on one machine: checks, sanitizers, times, peers, one JSON, one table.

    tests/gpu/pack.sh build-gpu/carry.tar.xz            # where nvcc and a network are
    mkdir carry && tar -C carry -xJf carry.tar.xz       # on the GPU machine, in a checkout of the same commit
    python benchmarks/gpu_all.py carry/programs --python carry/wheels carry/checkpoints --load /tmp/random-1b \
        --random-trials 6 --peer-limit-s 0 --output RESULTS [--sanitize]

Without --python, the folder of programs (`cmake --build BUILD --target gpu_tests`, BUILD/tests/gpu), tests/gpu/run.py,
benchmarks/ and python/amk/peers/ are all it needs. Standard library only (the peers need torch, and are left out with a
note where there is none). Every child has a limit. Writes gpu_<name>.json and gpu_<name>.md, and what was
measured until then also when it is interrupted. Exit status 1 if anything failed; the table then says so.
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
PYTHON_LIMIT_S = 420
MAKER_LIMIT_S = 120
PEERS, PEER_SPARE_S = 3, 30  # shapes; each has a limit of its own inside


def wait_or_kill(child: subprocess.Popen, limit_s: float) -> int:
    try:
        return child.wait(limit_s)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


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
    command = [sys.executable, str(HERE / "peer_torch.py"), *arguments]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, timeout=PEERS * limit_s + PEER_SPARE_S
        )
    except subprocess.TimeoutExpired as error:
        return {"results": [], "note": f"peer_torch.py: no end after {error.timeout:.0f} s"}
    if done.returncode:
        return {"results": [], "note": f"peer_torch.py ended with {done.returncode}: is torch installed?"}
    return json.loads(done.stdout)


def read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def random_trials(checks: list, trials: int | None) -> list:
    """The programs of run.py, with fewer random configurations where that was asked for."""
    if trials is None:
        return checks
    return [(name, [f"trials={trials}"] if name == "gpu_random" else given, s) for name, given, s in checks]


def run_python(session, script: Path, wheels: Path, checkpoints: Path, load: Path | None, output: Path) -> dict:
    """Tests, judgements, generations and the load, from Python; what they wrote."""
    output.mkdir(parents=True, exist_ok=True)
    arguments = [str(wheels), str(checkpoints), str(output), *([str(load)] if load else [])]
    print(session.python(script, arguments, PYTHON_LIMIT_S), end="", flush=True)
    names = ("python_on_gpu", "generations", *(["load_time", "host_cost", "prompt_time"] if load else []))
    return {name: read_json(output / f"{name}.json") for name in names}


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
    loaded = result.get("python", {}).get("load_time")
    if loaded:
        title = "1B: load to first token / cold read" + ("" if loaded["cold"] else " (not measured: files NOT cold)")
        mark = {"mark": title, "got": loaded["load_over_read"], "limit": loaded["marks"]["load_over_read"]}
        out.append(mark if loaded["cold"] else mark | {"met": False})
        peak = {"got": loaded["peak_over_weights"], "limit": loaded["marks"]["peak_over_weights"]}
        out.append({"mark": "1B: peak host memory of a load / checkpoint", **peak})
    host = result.get("python", {}).get("host_cost")
    if host and "host_us_per_token" in host:
        title = "1B: host cost of a generated token, us (amk.generate)"
        out.append({"mark": title, "got": host["host_us_per_token"]["generate"], "limit": host["mark_us"]})
    return [{"met": mark["got"] <= mark["limit"]} | mark for mark in out]


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
    for row in (result.get("python", {}).get("generations") or {}).get("families", []):
        said = "all equal" if row["equal"] else f"DIFFER from token {row['first_difference']}"
        lines.append(f"| {row['tokens']} greedy tokens, {row['checkpoint']}, against the oracle: {said} | | | |")
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
    parser.add_argument("--bench", nargs="*", default=[], help="more arguments of gpu_bench, as pipelining_depth=8")
    parser.add_argument(
        "--peer-limit-s",
        type=float,
        default=180,
        help="seconds for one shape, eager and compiled, of which compiling takes 30 and more; 0: no peers",
    )
    parser.add_argument("--python", nargs=2, type=Path, metavar=("WHEELS", "CHECKPOINTS"), help="the Python side too")
    parser.add_argument("--load", type=Path, help="with --python: time a load of this checkpoint, made if it is absent")
    parser.add_argument("--random-trials", type=int, help="configurations for each knob value (default: 20)")
    options = parser.parse_args()
    if options.load and not options.python:
        parser.error("--load needs --python")

    maker = None
    if options.load and not (options.load / "config.json").exists():  # takes a processor and no GPU: meanwhile
        maker = subprocess.Popen([sys.executable, str(HERE / "make_checkpoint.py"), str(options.load)],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
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
    session.check(random_trials(runner.CHECKS, options.random_trials))
    if options.sanitize:
        session.sanitize()
    if maker is not None and wait_or_kill(maker, MAKER_LIMIT_S):
        session.failed.append("make_checkpoint.py")
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
    write(result, options.output, options.name)  # what was measured is kept, whatever becomes of the rest
    if options.python:
        script = options.runner.parent / "python_on_gpu.sh"
        result["python"] = run_python(session, script, *options.python, options.load, options.output)
        write(result, options.output, options.name)
    if options.peer_limit_s:
        result["peers"] = run_peers(options.peer_limit_s, options.shapes)
    result["marks"] = marks(result)
    result["failed"] += [f"{m['mark']}: {m['got']}" for m in result["marks"] if not m["met"]]
    print(write(result, options.output, options.name))
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
