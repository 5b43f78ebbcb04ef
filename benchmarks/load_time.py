#!/usr/bin/env python3
"""From files that are not in memory to the first token, in a fresh process, against a plain read of the same files.

    python benchmarks/load_time.py /data/random-1b --device cuda

The checkpoint is made first (2.5 GB, make_checkpoint.py) where the directory does not exist. Each round drops the files
from the page cache and reads them, drops them again and loads them: what CUDA itself takes to start (driver, context,
the kernels' machine code, a first launch of the embedded toy) is measured before and shown apart; all else that the
process does until its first token counts. Prints one JSON object. Mark: less than twice the read. Exit status 1 if it
is missed, or if the files could not be dropped, as then nothing was measured. Needs amk, and for the checkpoint numpy.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
READ_BYTES = 8 << 20
MARK, MEMORY_MARK = 2.0, 1.3
COLD_ENOUGH = 0.02  # share of the files that may still be in memory
CHILD_LIMIT_S = 240


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix == ".safetensors")


def resident_share(path: Path) -> float:
    """The part of a file that is in the page cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as view:
        start = ctypes.c_char.from_buffer(view)
        found = (ctypes.c_ubyte * pages)()
        status = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), found
        )
        del start
    if status:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in found) / pages


def drop(files: list[Path]) -> float:
    """Takes the files out of the page cache; returns the share of the worst that stayed."""
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)  # what is not written yet cannot be dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    worst = max(map(resident_share, files))
    if worst > COLD_ENOUGH and os.access("/proc/sys/vm/drop_caches", os.W_OK):
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
        worst = max(map(resident_share, files))
    return worst


def plain_read_s(files: list[Path]) -> float:
    buffer = bytearray(READ_BYTES)
    start = time.perf_counter()
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while os.readv(fd, [buffer]):
                pass
        finally:
            os.close(fd)
    return time.perf_counter() - start


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load(arguments: argparse.Namespace) -> dict:
    """The fresh process: what CUDA takes, then the phases of a load."""
    laps: list[tuple[str, float]] = []
    last = arguments.started

    def lap(name: str) -> None:
        nonlocal last
        now = time.monotonic()
        laps.append((name, now - last))
        last = now

    import amk
    from amk.machine import open_machine
    from amk.program import lower

    lap("interpreter_and_import_s")
    is_gpu, target = arguments.device != "cpu", "h200" if arguments.device == "cpu" else "local"
    if is_gpu:
        from amk.megakernel import device_count

        device_count()
        lap("cuda_driver_s")
        toy = amk.open_model("toy")
        image = lower(toy.config, amk.ScheduleConfig.default(), amk.resolve_target(target), 64).pack()
        weights = toy.weights()
        lap("imports_and_toy_s")
        with open_machine(arguments.device, image, weights) as machine:
            lap("cuda_context_s")
            machine.step(0, 0)
        lap("cuda_first_launch_s")
        del weights
    base = peak_bytes()
    started = time.monotonic()
    last = started
    source = amk.open_model(arguments.directory)
    lap("open_s")
    schedule = amk.ScheduleConfig.default()
    image = lower(source.config, schedule, amk.resolve_target(target), arguments.max_seq).pack(source.config)
    lap("lower_prove_pack_s")
    weights = source.weights(hashed=False)
    lap("read_weights_s")
    nbytes = weights.nbytes
    with open_machine(arguments.device, image, weights) as machine:
        lap("machine_s")
        if is_gpu:
            machine.prepare()
            lap("upload_s")
        machine.step(0, 0)
        lap("first_token_s")
        loaded = time.monotonic()
    cuda_init_s = sum(s for name, s in laps if name.startswith("cuda_"))
    return {
        "load_s": loaded - arguments.started - cuda_init_s,  # the interpreter's start and all imports are part of it
        "cuda_init_s": cuda_init_s,
        "open_to_first_token_s": loaded - started,
        "weight_bytes": nbytes,
        "peak_over_weights": (peak_bytes() - base) / nbytes,
        "phases": {name: round(s, 4) for name, s in laps},
    }


def child(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=CHILD_LIMIT_S)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:3])} ended with {done.returncode}")
    return done.stdout


def one_round(arguments: argparse.Namespace, files: list[Path]) -> dict:
    stayed = [drop(files)]
    read_s = plain_read_s(files)
    stayed.append(drop(files))
    options = ["--device", arguments.device, "--max-seq", str(arguments.max_seq)]
    here = [sys.executable, __file__, str(arguments.directory), *options]
    found = json.loads(child(*here, "--started", repr(time.monotonic())))
    stayed.append(drop(files))
    start = time.monotonic()
    child(sys.executable, "-m", "amk", "generate", str(arguments.directory), "--ids", "1", "--max-new-tokens", "1",
          "--quiet", "--json", *options)  # fmt: skip
    found["generate_command_s"] = time.monotonic() - start
    return {"read_s": read_s, "still_in_memory": max(stayed), **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--device", default="cuda", help="cpu, cuda or cuda:N")
    parser.add_argument("--max-seq", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default="llama-3.2-1b", help="of the checkpoint that is made")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.started is not None:
        print(json.dumps(load(arguments)))
        return 0
    if not (arguments.directory / "config.json").exists():
        child(sys.executable, str(HERE / "make_checkpoint.py"), str(arguments.directory), "--shape", arguments.shape)
    files = files_of(arguments.directory)
    rounds = [one_round(arguments, files) for _ in range(arguments.rounds)]
    names = ("read_s", "load_s", "open_to_first_token_s", "cuda_init_s", "generate_command_s")
    middle = {name: statistics.median(one[name] for one in rounds) for name in names}
    ratio = middle["load_s"] / middle["read_s"]
    cold = max(one["still_in_memory"] for one in rounds) <= COLD_ENOUGH
    peak = max(one["peak_over_weights"] for one in rounds)
    nbytes = sum(path.stat().st_size for path in files)
    result = {
        "benchmark": "load_time",
        "device": arguments.device,
        "bytes": nbytes,
        "read_gb_per_s": nbytes / middle["read_s"] / 1e9,
        **middle,
        "load_over_read": ratio,
        "peak_over_weights": peak,
        "cold": cold,
        "marks": {"load_over_read": MARK, "peak_over_weights": MEMORY_MARK},
        "met": cold and ratio < MARK and peak < MEMORY_MARK,
        "cpu_count": os.cpu_count(),
        "rounds": rounds,
    }
    print(json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in result.items()}))
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
