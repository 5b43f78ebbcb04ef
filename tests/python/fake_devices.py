"""Devices that a worker is given in place of a GPU: one that is right, and many that fail in one way each.

They are found by name in the worker's own process, and compute with the reference machine.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

import numpy as np

import made_timelines
from amk import measure, timing, vm, worker
from amk.errors import DeviceTimeout, OutOfMemory, Rejected, Unavailable

SNAPSHOT = {
    "driver_version": "1.2.3", "name": "Fake", "throttle_reasons": ["gpu_idle"], "ecc_uncorrected": 0,
    "compute_pids": [1],
}  # fmt: skip


measure.LOCK_WAIT_S = float(os.environ.get("FAKE_LOCK_WAIT_S", measure.LOCK_WAIT_S))


class FakeMachine(vm.ReferenceVM):
    """A reference machine that can be timed, as the GPU's can."""

    n_timed = 0
    tasks: np.ndarray  # of the image's program
    took_us = 0.0

    def time(self, pos: int, n: int) -> np.ndarray:
        self.n_timed += 1
        start = time.perf_counter()
        with self._lock:
            self._run(pos)
        self.took_us = 1e6 * (time.perf_counter() - start)
        return np.full(n, self.took_us)

    def timeline(self) -> np.ndarray:
        """A replay of the last step with durations of its own, within what the step took."""
        records = made_timelines.replay(self.tasks, seed=self.n_timed)
        share = 0.9 * self.took_us / records["finish_us"].max()
        for name in ("start_us", "ready_us", "finish_us"):
            records[name] *= share
        return records


class Faithful:
    """Right about everything; slower than any floor."""

    machine: type[FakeMachine] = FakeMachine

    def __init__(self, index: int) -> None:
        self.index = index

    def open(self, image: Any, weights: Any, timeout_s: float, *, timeline: bool = False) -> Any:
        machine = self.machine(image, weights, guard=True)
        machine.tasks = image.program().tables().tasks
        return machine

    def require_timeline(self) -> None:
        pass

    def read_bandwidth(self) -> float:
        return 4000.0

    def facts(self) -> dict[str, Any]:
        return {"name": "Fake device", "uuid": f"GPU-fake-{os.getppid()}", "l2_bytes": 1}

    def snapshot(self) -> dict[str, Any]:
        return dict(SNAPSHOT)


def with_machine(**methods: Any) -> type[Faithful]:
    return type("Device", (Faithful,), {"machine": type("Machine", (FakeMachine,), methods)})


def with_methods(**methods: Any) -> type[Faithful]:
    return type("Device", (Faithful,), methods)


# --- a device whose time depends on the program alone


class SizedMachine(FakeMachine):
    """A step takes 300 us and 2 us more for each task, by a clock with a little noise; the work is done as well."""

    def __init__(self, image: Any, weights: Any, **options: Any) -> None:
        super().__init__(image, weights, **options)
        self.us = 300.0 + 2.0 * image.program().n_tasks
        self.noise = np.random.default_rng(image.program().n_tasks)

    def time(self, pos: int, n: int) -> np.ndarray:
        start = time.perf_counter()
        with self._lock:
            self._run(pos)
        us = self.us * float(np.exp(float(os.environ.get("FAKE_NOISE", "0.002")) * self.noise.standard_normal()))
        while 1e6 * (time.perf_counter() - start) < us:  # the host's clock agrees
            pass
        return np.full(n, us)


class Sized(Faithful):
    machine = SizedMachine


class _FasterOnceMachine(SizedMachine):
    """Programs with few tasks are fast in the first comparison that a test makes, and as slow as others after it."""

    def __init__(self, image: Any, weights: Any, **options: Any) -> None:
        super().__init__(image, weights, **options)
        if os.path.getsize(os.path.join(os.environ["LOOP_JOBS_DIR"], "compare")) > 1:
            self.us = 528.0


class FasterOnce(Faithful):
    machine = _FasterOnceMachine


class _WrongWhenFewTasksMachine(SizedMachine):
    def time(self, pos: int, n: int) -> np.ndarray:
        return super().time(max(pos - 1, 0) if self.us < 500 else pos, n)


class WrongWhenFewTasks(Faithful):
    machine = _WrongWhenFewTasksMachine


# --- wrong answers


def _scaled_step(self: Any, token: int, pos: int) -> Any:
    return FakeMachine.step(self, token, pos) * np.float32(1.01)


def _wrong_after_timing(self: Any, token: int, pos: int) -> Any:
    return FakeMachine.step(self, token, pos) * np.float32(1.01 if self.n_timed else 1)


def _other_bits_after_timing(self: Any, token: int, pos: int) -> Any:
    logits = FakeMachine.step(self, token, pos)
    return np.nextafter(logits, np.float32(9)) if self.n_timed else logits


def _does_nothing(self: Any, pos: int, n: int) -> Any:
    return np.full(n, 50.0)


def _previous_position(self: Any, pos: int, n: int) -> Any:
    return FakeMachine.time(self, max(pos - 1, 0), n)


Wrong = with_machine(step=_scaled_step)
WrongAfter = with_machine(step=_wrong_after_timing)
OtherBitsAfter = with_machine(step=_other_bits_after_timing)
NoWorkWhenTimed = with_machine(time=_does_nothing)
WrongPositionWhenTimed = with_machine(time=_previous_position)


def _replays(self: Any, pos: int, n: int) -> Any:
    """Runs the first step that is timed, and from then on only waits as long as that took."""
    if self.n_timed == 0:
        return FakeMachine.time(self, pos, n)
    self.n_timed += 1
    time.sleep(0.0002)
    return np.full(n, 150.0)


def _skips_after_warm_up(self: Any, pos: int, n: int) -> Any:
    if self.n_timed < timing.WARM_UP_STEPS:
        return FakeMachine.time(self, pos, n)
    return _does_nothing(self, pos, n)


def _caches(self: Any, token: int, pos: int) -> Any:
    """Answers each question once, and again from memory, whatever the cache of the model holds by then."""
    known = self.__dict__.setdefault("known", {})
    if token not in known:
        known[token] = FakeMachine.step(self, token, pos)
    return known[token]


ReplaysWhenTimed = with_machine(time=_replays)
SkipsAfterWarmUp = with_machine(time=_skips_after_warm_up)
OnceThenCached = with_machine(step=_caches, time=_replays)

# --- wrong clocks


def _too_fast(self: Any, pos: int, n: int) -> Any:
    return FakeMachine.time(self, pos, n) * 0 + 1e-6


def _too_slow(self: Any, pos: int, n: int) -> Any:
    return FakeMachine.time(self, pos, n) * 100


def _not_a_number(self: Any, pos: int, n: int) -> Any:
    return FakeMachine.time(self, pos, n) * np.nan


def _negative(self: Any, pos: int, n: int) -> Any:
    return -FakeMachine.time(self, pos, n)


def _infinite(self: Any, pos: int, n: int) -> Any:
    return FakeMachine.time(self, pos, n) + np.inf


def _ecc(self: Any) -> dict[str, Any]:
    self.taken = getattr(self, "taken", 0) + 1
    return {**SNAPSHOT, "ecc_uncorrected": self.taken}


def _busy(self: Any) -> dict[str, Any]:
    return {**SNAPSHOT, "compute_pids": [1, 2], "throttle_reasons": ["hw_slowdown"]}


TooFast = with_machine(time=_too_fast)
TooSlow = with_machine(time=_too_slow)
NotANumber = with_machine(time=_not_a_number)
NegativeTime = with_machine(time=_negative)
InfiniteTime = with_machine(time=_infinite)
MemoryErrors = with_methods(snapshot=_ecc)
Busy = with_methods(snapshot=_busy)

# --- no answers


def _fault(self: Any, pos: int, n: int) -> Any:
    if self.n_timed == 20:
        raise DeviceTimeout("no progress for 2000 ms: SM 3, task 7 waits for counter 2")
    return FakeMachine.time(self, pos, n)


def _fault_in_exam(self: Any, token: int, pos: int) -> Any:
    raise DeviceTimeout("no progress for 2000 ms")


def _crash(*_: Any) -> Any:
    ctypes.string_at(0)


def _exit(*_: Any) -> Any:
    print("last words", file=sys.stderr, flush=True)
    os._exit(7)


def _hang(*_: Any) -> Any:
    if path := os.environ.get("FAKE_DEVICE_PID_FILE"):
        with open(path + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".new", path)
    time.sleep(600)


def _hang_deaf(*_: Any) -> Any:
    """In C, holding the interpreter's lock: no thread of the worker can notice anything."""
    if path := os.environ.get("FAKE_DEVICE_PID_FILE"):
        with open(path + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".new", path)
    ctypes.PyDLL(None).sleep(600)


def _garbage(*_: Any) -> Any:
    os.write(worker._pipe, b"Hello from a library that prints\n")


def _half_a_frame(*_: Any) -> Any:
    os.write(worker._pipe, b"AMK\x01\x10\x00")
    os._exit(0)


def _close_pipe(*_: Any) -> Any:
    os.close(worker._pipe)
    time.sleep(600)


def _noise(self: Any) -> float:
    print("x" * 100000)
    os.write(1, b"y" * 300000)
    os.write(2, b"z" * 300000)
    os.system("echo from a child")
    return 4000.0


def _raise(error: Exception) -> Any:
    def method(*_: Any) -> Any:
        raise error

    return method


FaultWhenTimed = with_machine(time=_fault)
FaultInExam = with_machine(step=_fault_in_exam)
Crash = with_methods(read_bandwidth=_crash)
CrashAtOpen = with_methods(open=_crash)
Exit = with_methods(read_bandwidth=_exit)
HangInStep = with_machine(step=_hang)
HangDeaf = with_machine(step=_hang_deaf)
Garbage = with_methods(read_bandwidth=_garbage)
HalfAFrame = with_methods(read_bandwidth=_half_a_frame)
ClosedPipe = with_methods(read_bandwidth=_close_pipe)
Noisy = with_methods(read_bandwidth=_noise)
Bug = with_methods(read_bandwidth=_raise(ZeroDivisionError("a bug in the worker")))
Refuses = with_methods(open=_raise(Rejected("V10: the grid has 132 blocks, Fake holds 1")))
Gone = with_methods(open=_raise(Unavailable("no machine code for Fake")))
Full = with_methods(open=_raise(OutOfMemory("weights: 9 bytes asked, 1 free")))


# --- timelines


def _other_logits(self: Any, name: str) -> Any:
    found = FakeMachine.read(self, name)
    return found if self.n_timed < 5 or not self.took_us else np.nextafter(found, np.float32(self.n_opened))


class _Differs(Faithful):
    """Two machines that agree for a while."""

    n_opened = 0

    def open(self, *arguments: Any, **options: Any) -> Any:
        machine = super().open(*arguments, **options)
        self.n_opened += 1
        machine.n_opened = 1000.0 * self.n_opened * (-1) ** self.n_opened
        return machine


def _spoiled(change: Any) -> Any:
    """Records that `change` spoils."""

    def timeline(self: Any) -> np.ndarray:
        records = FakeMachine.timeline(self)
        return change(records)

    return timeline


def _set(field: str, value: Any) -> Any:
    def change(records: np.ndarray) -> np.ndarray:
        records[field][len(records) // 2] = value
        return records

    return change


def _stretch(records: np.ndarray) -> np.ndarray:
    for name in ("start_us", "ready_us", "finish_us"):
        records[name] *= 2.0
    return records


OtherLogits = type("Device", (_Differs,), {"machine": type("Machine", (FakeMachine,), {"read": _other_logits})})
NoTimeline = with_methods(require_timeline=_raise(Unavailable("timeline: this libamk has no call amk_vm_timeline")))
HangInTimeline = with_machine(timeline=_hang)
ExitInTimeline = with_machine(timeline=_exit)
ShortTimeline = with_machine(timeline=_spoiled(lambda records: records[1:]))
DoubleTimeline = with_machine(timeline=_spoiled(_set("task", 0)))
NotANumberTimeline = with_machine(timeline=_spoiled(_set("ready_us", np.nan)))
OtherQueueTimeline = with_machine(timeline=_spoiled(_set("queue", 7000)))
LongTimeline = with_machine(timeline=_spoiled(_stretch))
