"""What a loop's workers run in place of the judge: the judge itself, and what may go wrong with it.

They are found by name in the worker's own process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from amk import gpu_trial
from amk.errors import Rejected, Unavailable
from amk.search import jobs

UUID = "GPU-fake-loop"


def n_tile(arguments: dict[str, Any]) -> int:
    return arguments["schedule_config"]["tiling"]["gemv"]["N_tile"]


def count(name: str) -> int:
    """How often this was called in all processes of a test, which gives a folder for it."""
    path = Path(os.environ["LOOP_JOBS_DIR"]) / name
    with open(path, "a") as file:
        file.write("x")
    return path.stat().st_size


def troubled(arguments: dict[str, Any], say: Any) -> Any:
    """By the tile: 8 faults, 16 hangs, 32 is killed, 64 raises, 128 answers nonsense, 256 answers with a lie."""
    tile = n_tile(arguments)
    if tile == 8:
        ctypes.string_at(0)
    if tile == 16:
        time.sleep(600)
    if tile == 32:
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if tile == 64:
        raise ZeroDivisionError("a bug in the worker")
    if tile == 128:
        print("noise on stdout", flush=True)
        return {"verdict": "all is well"}
    answer = jobs.judge(arguments, say)
    if tile == 256:
        answer["verdict"]["latency_us"] = 1e-6
    return answer


def slow(arguments: dict[str, Any], say: Any) -> Any:
    time.sleep(float(os.environ.get("LOOP_JOBS_SLEEP", "0.05")))
    return jobs.judge(arguments, say)


def waits(arguments: dict[str, Any], say: Any) -> Any:
    """Tells that it runs, and then takes its time."""
    pid = Path(os.environ["LOOP_JOBS_DIR"], "pid")
    pid.with_suffix(".new").write_text(str(os.getpid()))
    pid.with_suffix(".new").replace(pid)  # whole as soon as it is there
    time.sleep(600)


def wrong(arguments: dict[str, Any], say: Any) -> Any:
    """A machine whose logits are 1 % off for every schedule but the default."""
    from amk import vm

    class Off(vm.ReferenceVM):
        def step(self, token: int, pos: int) -> Any:
            return super().step(token, pos) * 1.01

    vm.ReferenceVM = Off  # type: ignore[misc]
    return jobs.judge(arguments, say)


def echo(arguments: dict[str, Any], say: Any) -> Any:
    say("echoing")
    return arguments


def refuse(arguments: dict[str, Any], say: Any) -> Any:
    raise Rejected("V99: refused")


# --- a GPU of the tests


def on_fake_gpu(arguments: dict[str, Any], say: Any) -> Any:
    """The judge, with a device of fake_devices in the GPU's place."""
    _put_device_in_place()
    return jobs.judge(arguments, say)


def compare_on_fake_gpu(arguments: dict[str, Any], say: Any) -> Any:
    _put_device_in_place("LOOP_JOBS_PAIR_DEVICE")
    count("compare")
    return jobs.compare(arguments, say)


def _put_device_in_place(which: str = "LOOP_JOBS_DEVICE") -> None:
    device = os.environ.get(which, "Sized")
    gpu_trial._DEVICE_CLASS = f"fake_devices:{device}"
    gpu_trial.STEP_S = 2.0
    sys.modules["amk.evaluate"].pick_device = lambda *_: ("cuda:0", [])  # type: ignore[attr-defined]


def probe(arguments: dict[str, Any], say: Any) -> Any:
    """A device that is lost after so many looks at it."""
    if count("probe") > int(os.environ.get("LOOP_JOBS_ALIVE", "1000")):
        raise Unavailable("the driver sees no device")
    return {"uuid": os.environ.get("LOOP_JOBS_UUID", UUID), "name": "Fake"}
