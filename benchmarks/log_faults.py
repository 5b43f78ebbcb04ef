#!/usr/bin/env python3
"""Does the store of trials lose a row that it acknowledged, or show one that nobody wrote? Breaks it on purpose.

    python benchmarks/log_faults.py [--only kills calls race full cost] [--folder DIR] [--memory DIR] [--output FILE]

Acknowledged means that a writer told its parent, over a pipe, after `end()` had returned. Five parts:
kills: SIGKILL at random instants, 8 writers on one store, each started again at once; on the disk of --folder.
calls: the k-th call to the operating system fails (ENOSPC, EIO, EINTR, EDQUOT, a short write) or is the last one before
    SIGKILL, for every k; in --memory.
race: 16 processes, 10,000 rows each, on a store that does not exist yet; in --memory.
full: a file system of 64 KiB, filled and freed 100 times (a tmpfs; it takes root to mount it).
cost: what one `start()` and one `end()` take, on the disk and in memory.
Prints one JSON object; exit code 1 when anything was lost, forged, torn or doubled. Sources of the faults are
tests/python/faulty_calls.py; what must hold afterwards is in tests/python/whole_store.py.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "python"))

from amk.errors import StoreError  # noqa: E402
from amk.records import Trial  # noqa: E402
from amk.records.lines import CORPUS_HEADER, JOURNAL_HEADER, TSV_HEADER, row_line  # noqa: E402
from amk.records.read import Log  # noqa: E402
from faulty_calls import FaultyCalls  # noqa: E402
from whole_store import check_whole, failed_trial, make_trial, open_store, paths, start  # noqa: E402

FORGED = row_line(make_trial(999, "f" * 12, description="forged")).decode()
HOSTILE = ("plain", f"\n{FORGED}", "\t\t\t\r\n", '","crc":"00000000"}\n{"kind":"end"', "\\t\\n\0\x85\u2028\ud800")
CAMPAIGN_KILLS = 50  # then a fresh store, so that opening it stays a small part of a writer's life


def trial_of(loop: str, experiment: int) -> Trial:
    """What this writer writes as its n-th trial: known to the judge as well."""
    tag = "kept" if experiment % 3 == 0 else "tried"
    return make_trial(experiment, loop, tag=tag, description=HOSTILE[experiment % len(HOSTILE)])


def loop_id(number: int) -> str:
    return f"{number:012x}"


# ---- kills ----


def write_until_killed(folder: Path, loop: str, pipe: int) -> None:
    """As a loop does that is resumed: what was running is recorded as a crash, then it goes on."""

    def acknowledge(trial: Trial) -> None:
        os.write(pipe, f"{trial.experiment} {trial.tag}\n".encode())

    with open_store(folder) as store:
        store.begin_loop(loop, {})
        known = {trial.experiment for trial in store.trials(loop)}
        for left in store.interrupted():
            if left["loop"] == loop:
                crash = failed_trial(left["experiment"], loop)
                store.end(crash)
                acknowledge(crash)
                known.add(crash.experiment)
        experiment = max(known, default=-1) + 1
        while True:
            trial = trial_of(loop, experiment)
            start(store, trial)
            store.end(trial)
            acknowledge(trial)
            experiment += 1


class Writer:
    """A process that writes until it is killed, and what it acknowledged."""

    def __init__(self, folder: Path, loop: str) -> None:
        self.loop = loop
        self._pipe, write_end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                write_until_killed(folder, loop, write_end)
            except BaseException as error:
                print(f"writer {loop}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        os.close(write_end)  # before the next writer is forked: only this one holds it

    def kill(self) -> tuple[dict[str, str], bool]:
        """(trial -> tag of what it acknowledged, did it still live?)"""
        os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        with open(self._pipe, "rb") as pipe:
            words = [line.split() for line in pipe.read().decode().splitlines()]
        said = {f"{self.loop}-{int(number):06d}": tag for number, tag in words}
        return said, os.WIFSIGNALED(status)


def kills(arguments: argparse.Namespace) -> dict[str, Any]:
    draw = random.Random(arguments.seed)
    total: dict[str, Any] = dict.fromkeys(
        ("kills", "died_otherwise", "acknowledged", "recorded", "lost", "forged", "doubled", "bad_lines"), 0
    )
    total |= {"writers": arguments.writers, "stores": 0, "torn_tails_cut": 0, "repaired_rows": 0, "headers_wrong": 0}
    while total["kills"] < arguments.kills:
        with tempfile.TemporaryDirectory(prefix="amk-kills-", dir=arguments.folder) as name:
            folder, acknowledged = Path(name), {}
            writers = [Writer(folder, loop_id(number)) for number in range(arguments.writers)]
            ends = min(CAMPAIGN_KILLS, arguments.kills - total["kills"])
            for count in range(ends):
                time.sleep(draw.choice([draw.uniform(0, 0.02), draw.uniform(0, 0.2)]))
                at = draw.randrange(len(writers))
                said, lived = writers[at].kill()
                acknowledged |= said
                total["kills"] += 1
                total["died_otherwise"] += not lived
                if count + len(writers) < ends:
                    writers[at] = Writer(folder, loop_id(at))
                else:
                    del writers[at]
                    if not writers:
                        break
            for writer in writers:
                acknowledged |= writer.kill()[0]
            judge_killed(folder, acknowledged, total)
    return total


def judge_killed(folder: Path, acknowledged: dict[str, str], total: dict[str, Any]) -> None:
    results, _, journal = paths(folder)
    with Log(str(results)) as log:
        rows_before = sum(1 for _ in log.trials())
    with open_store(folder) as store:
        found = store.trials()
    by_id = {trial.trial_id: trial for trial in found}
    total["stores"] += 1
    total["acknowledged"] += len(acknowledged)
    total["recorded"] += len(found)
    total["repaired_rows"] += len(found) - rows_before
    total["torn_tails_cut"] += len(list(folder.glob("*.torn.*")))
    total["doubled"] += len(found) - len(by_id)
    total["forged"] += sum(
        trial not in (trial_of(trial.loop, trial.experiment), failed_trial(trial.experiment, trial.loop))
        for trial in found
    )
    total["lost"] += sum(name not in by_id or by_id[name].tag != tag for name, tag in acknowledged.items())
    judge_files(folder, by_id, total)


def judge_files(folder: Path, by_id: dict[str, Trial], total: dict[str, Any]) -> None:
    """Rows and corpus hold exactly the journal's trials, in lines that are whole; and one header each."""
    for path, header in zip(paths(folder), (TSV_HEADER, CORPUS_HEADER, JOURNAL_HEADER), strict=True):
        data = path.read_bytes()
        total["headers_wrong"] += not data.startswith(header) or data.count(header) != 1 or not data.endswith(b"\n")
        with Log(str(path)) as log:
            names = [trial.trial_id for trial in log.trials()]
        total["bad_lines"] += log.tally.bad_lines
        total["doubled"] += log.tally.duplicates
        wanted = {name for name, trial in by_id.items() if path.suffix == ".tsv" or trial.in_corpus}
        wanted = set(by_id) if path == paths(folder)[2] else wanted
        total["lost"] += len(wanted - set(names))
        total["forged"] += len(set(names) - wanted)


# ---- calls ----


class KillingCalls(FaultyCalls):
    """The k-th call is the last: a write is cut in half, and the process is killed."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = super().__getattr__(name)

        def counted(*given: Any, **keywords: Any) -> Any:
            if self.count + 1 == self._kill_at:
                if name == "write":
                    os.write(given[0], given[1][: len(given[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **keywords)

        return counted

    def __init__(self, k: int) -> None:
        self._kill_at = k
        super().__init__()


SCRIPT = [trial_of(loop_id(1), experiment) for experiment in range(4)]


def run_script(folder: Path, calls: Any, acknowledge: Callable[[Trial], None]) -> None:
    """Two stores after each other on the same files, so that opening an old one is among the calls."""
    for part in (SCRIPT[:2], SCRIPT[2:]):
        with open_store(folder, calls=calls) as store:
            store.begin_loop(loop_id(1), {})
            for trial in part:
                store.check_writable()
                start(store, trial)
                store.end(trial)
                acknowledge(trial)


def calls(arguments: argparse.Namespace) -> dict[str, Any]:
    faults: dict[str, int | str] = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EINTR", "EDQUOT")}
    faults |= {"short write": "short", "SIGKILL": "kill"}
    clean = FaultyCalls()
    with fresh(arguments.memory) as folder:
        run_script(folder, clean, lambda trial: None)
    total: dict[str, Any] = {"calls_of_the_script": clean.count, "by_fault": {}, "violations": []}
    for name, fault in faults.items():
        counts = {"runs": 0, "clean_errors": 0, "acknowledged": 0}
        for k in range(1, clean.count + 1):
            with fresh(arguments.memory) as folder:
                if fault == "kill":
                    acknowledged, failed = run_and_die(folder, k)
                else:
                    acknowledged, failed = run_and_fail(folder, k, fault)
                counts["runs"] += 1
                counts["clean_errors"] += failed
                counts["acknowledged"] += len(acknowledged)
                try:
                    check_whole(folder, acknowledged, maybe=SCRIPT[: len(acknowledged) + 1])
                except AssertionError as error:
                    total["violations"].append(f"{name} at call {k}: {error!s:.300}")
        total["by_fault"][name] = counts
    return total


def run_and_fail(folder: Path, k: int, fault: int | str) -> tuple[list[Trial], bool]:
    acknowledged: list[Trial] = []
    try:
        run_script(folder, FaultyCalls(k, fault), acknowledged.append)
    except StoreError:
        return acknowledged, True
    return acknowledged, False


def run_and_die(folder: Path, k: int) -> tuple[list[Trial], bool]:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run_script(folder, KillingCalls(k), lambda trial: os.write(write_end, b"."))
        finally:
            os._exit(0)
    os.close(write_end)
    _, status = os.waitpid(child, 0)
    with open(read_end, "rb") as pipe:
        return SCRIPT[: len(pipe.read())], os.WIFSIGNALED(status)


@contextlib.contextmanager
def fresh(root: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="amk-", dir=root) as name:
        yield Path(name)


# ---- race ----


def race(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows as a loop writes them, but no `start`: the ends are what is counted."""
    total: dict[str, Any] = dict.fromkeys(
        ("acknowledged", "recorded", "lost", "forged", "doubled", "bad_lines", "headers_wrong", "out_of_order"), 0
    )
    total |= {"processes": arguments.processes, "rows_each": arguments.rows}
    with fresh(arguments.memory) as folder:
        begun = time.perf_counter()
        children = []
        for number in range(arguments.processes):
            read_end, write_end = os.pipe()
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    with open_store(folder) as store:
                        for experiment in range(arguments.rows):
                            store.end(trial_of(loop_id(number), experiment))
                            os.write(write_end, b".")
                    code = 0
                except BaseException as error:
                    print(f"process {number}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                finally:
                    os._exit(code)
            os.close(write_end)
            children.append((child, read_end))
        said = [len(Path(f"/dev/fd/{read_end}").open("rb").read()) for _, read_end in children]
        codes = [os.waitpid(child, 0)[1] for child, _ in children]
        total["seconds"] = round(time.perf_counter() - begun, 1)
        total["exit_codes_wrong"] = sum(code != 0 for code in codes)
        total["acknowledged"] = sum(said)
        judge_race(folder, said, total)
    return total


def judge_race(folder: Path, said: list[int], total: dict[str, Any]) -> None:
    """Line by line, as 160,000 trials at once are a gigabyte."""
    total["temporary_files_left"] = len(list(folder.glob(".*.tmp")))
    total["torn_tails_cut"] = len(list(folder.glob("*.torn.*")))
    for path, header in zip(paths(folder), (TSV_HEADER, CORPUS_HEADER, JOURNAL_HEADER), strict=True):
        data = path.read_bytes()
        total["headers_wrong"] += not data.startswith(header) or data.count(header) != 1 or not data.endswith(b"\n")
        del data
        whole = path.suffix != ".tsv"
        seen: list[int] = [0] * len(said)  # of each writer: the next experiment, where the log holds all
        step = 3 if path == paths(folder)[1] else 1
        with Log(str(path)) as log:
            for trial in log.trials():
                number, expected = int(trial.loop, 16), trial_of(trial.loop, trial.experiment)
                same = trial == expected if whole else row_line(trial) == row_line(expected)
                total["forged"] += not same
                total["out_of_order"] += trial.experiment != seen[number]
                seen[number] = trial.experiment + step
                total["recorded"] += path.suffix == ".tsv"
        total["bad_lines"] += log.tally.bad_lines + log.tally.torn_bytes
        total["doubled"] += log.tally.duplicates
        total["lost"] += sum(last < count for last, count in zip(seen, said, strict=True))


# ---- full ----


def full(arguments: argparse.Namespace) -> dict[str, Any]:
    total: dict[str, Any] = dict.fromkeys(("fills", "acknowledged", "refused", "resumed"), 0)
    total["violations"] = []
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="amk-full-") as name:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", name]
        mounted = subprocess.run(mount, capture_output=True, text=True)
        if mounted.returncode:
            return {"not_run": f"{' '.join(mount[:-1])}: {mounted.stderr.strip()}"}
        try:
            folder, filler, acknowledged = Path(name) / "store", Path(name) / "filler", []
            for number in range(arguments.fills):
                pages = os.statvfs(name).f_bavail
                if number == 0 or pages < 5:  # a store is filled and freed until it is the whole of its file system
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                    acknowledged, pages = [], os.statvfs(name).f_bavail
                filler.write_bytes(bytes(draw.randrange(max(3, pages // 2), pages - 1) * os.statvfs(name).f_bsize))
                fill(folder, acknowledged, total, 1 << 20)
                judge_full(folder, acknowledged, arguments.memory, total)
                filler.unlink()
                before = len(acknowledged)
                fill(folder, acknowledged, total, 1)
                total["resumed"] += len(acknowledged) == before + 1
                judge_full(folder, acknowledged, arguments.memory, total)
                total["fills"] += 1
        finally:
            subprocess.run(["umount", name], check=True)
    return total


def fill(folder: Path, acknowledged: list[Trial], total: dict[str, Any], limit: int) -> None:
    """Appends until the store refuses, or `limit` trials. Each is tried again later, as the same trial."""
    try:
        with open_store(folder) as store:
            for _ in range(limit):
                trial = trial_of(loop_id(7), len(acknowledged))
                start(store, trial)
                store.end(trial)
                acknowledged.append(trial)
                total["acknowledged"] += 1
    except StoreError:
        total["refused"] += 1


def judge_full(folder: Path, acknowledged: list[Trial], memory: str, total: dict[str, Any]) -> None:
    """First as it is, read only; then a copy with room to be opened and repaired."""
    journal = paths(folder)[2]
    found: list[Trial] = []
    if journal.exists():
        with Log(str(journal)) as log:
            found = list(log.trials())
        if log.tally.bad_lines or log.tally.torn_bytes or log.tally.duplicates:
            total["violations"].append(f"fill {total['fills']}: {log.tally}")
    if found[: len(acknowledged)] != acknowledged:
        total["violations"].append(f"fill {total['fills']}: {len(found)} of {len(acknowledged)} trials")
    with fresh(memory) as copy:
        for path in folder.iterdir():
            shutil.copy(path, copy / path.name)
        try:
            check_whole(copy, acknowledged, maybe=[trial_of(loop_id(7), len(acknowledged))])
        except AssertionError as error:
            total["violations"].append(f"fill {total['fills']}: {error!s:.300}")


# ---- cost ----


def cost(arguments: argparse.Namespace) -> dict[str, Any]:
    total: dict[str, Any] = {"unit": "ms", "rows": 500, "mark": "loop overhead below 20 ms a trial"}
    for place, root in (("disk", arguments.folder), ("memory", arguments.memory)):
        starts, ends = [], []
        with fresh(root) as folder, open_store(folder) as store:
            for experiment in range(total["rows"]):
                trial = trial_of(loop_id(3), experiment)
                begun = time.perf_counter()
                start(store, trial)
                middle = time.perf_counter()
                store.end(trial)
                ends.append(time.perf_counter() - middle)
                starts.append(middle - begun)
        for name, times in (("start", starts), ("end", ends)):
            times.sort()
            total[f"{name}_{place}_median"] = round(1e3 * statistics.median(times), 3)
            total[f"{name}_{place}_p95"] = round(1e3 * times[int(0.95 * len(times))], 3)
    return total


# ---- the report ----

PARTS = {"kills": kills, "calls": calls, "race": race, "full": full, "cost": cost}
ZERO = ("died_otherwise", "lost", "forged", "doubled", "bad_lines", "headers_wrong", "out_of_order", "exit_codes_wrong")


def broken(found: dict[str, Any]) -> list[str]:
    """What should be zero or empty, and is not."""
    return [f"{name}: {found[name]}" for name in (*ZERO, "violations") if found.get(name)]


def file_system(folder: str) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--rows", type=int, default=10_000, help="of each process")
    parser.add_argument("--fills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="on a disk")
    parser.add_argument("--memory", default="/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
    parser.add_argument("--output", help="JSON file; parts that are not run now are kept from it")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    result: dict[str, Any] = {"benchmark": "log_faults"}
    if arguments.output and os.path.exists(arguments.output):
        result |= json.loads(Path(arguments.output).read_text(encoding="utf-8"))
    result |= {
        "seed": arguments.seed,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "disk": file_system(arguments.folder),
        "memory": file_system(arguments.memory),
    }
    for name in arguments.only:
        begun = time.perf_counter()
        found = PARTS[name](arguments)
        place = {"kills": "disk", "calls": "memory", "race": "memory", "full": "tmpfs of 64 KiB"}.get(name)
        found |= {"took_s": round(time.perf_counter() - begun, 1), "commit": commit, "problems": broken(found)}
        result[name] = found | ({"on": place} if place else {})
        print(f"{name}: {found['problems'] or 'nothing lost, nothing forged'} in {found['took_s']} s", file=sys.stderr)
        if arguments.output:
            Path(arguments.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 1 if any(result[name]["problems"] for name in PARTS if name in result) else 0


if __name__ == "__main__":
    sys.exit(main())
