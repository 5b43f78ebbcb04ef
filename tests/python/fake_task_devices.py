"""Devices that the kernel task framework is given in place of a GPU: an honest one, and frauds.

They are found by name in the worker's own process. Memory is numpy's; an entry puts operations on the stream that it is
given, which are carried out when the stream is waited for. Times are made up, and honest ones depend on bytes alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from amk.tasks.device import Call, Tensor
from amk.tasks.operands import stored, values_of
from amk.tasks.workloads import DTYPES

Operation = Callable[[], None]
ARCHITECTURES = ("sm_90a", "sm_100a")
COMMAND = "nvcc -O3 --fmad=true -c {source} -o {object}"
GB_PER_S = 1000.0
SNAPSHOT = {"driver_version": "1.2.3", "name": "Fake", "throttle_reasons": [], "compute_pids": []}


def frame_gate(gate: np.ndarray, rows: int) -> np.ndarray | None:
    """The gate over [B, S, D]; None where its frames do not divide the rows."""
    if gate.ndim == 4:
        return None if rows % gate.shape[1] else np.repeat(gate[:, :, 0], rows // gate.shape[1], axis=1)
    return gate[:, None] if gate.ndim == 2 else gate


class Graph:
    def __init__(self, device: Honest, entry: Any, calls: Sequence[Call], rounds: int) -> None:
        self._device, self._entry, self._calls = device, entry, calls
        self._operations: list[Operation] = []
        for call in calls:
            assert device.call(entry, call, self._operations) == 0
        self._us = rounds * sum(device.us(entry, call) for call in calls)
        self._names = [f"kernel_of_{entry}"]

    def time(self, replays: int) -> float:
        for operation in self._operations:
            operation()
        return replays * self._us

    def publish(self) -> None:
        pass

    def kernels(self) -> list[dict[str, Any]]:
        return [{"name": name, "binary_version": 90, "registers": 32, "local_bytes": 0, "launches": len(self._calls),
                 "grid": [1, 1, 1], "block": [256, 1, 1]} for name in self._names]  # fmt: skip

    def close(self) -> None:
        self._operations = []


class Honest:
    """Right about everything."""

    fraud = "solution"  # the side that a fraud is planted in
    commands = dict.fromkeys(("baseline", "solution"), COMMAND)
    architectures = ARCHITECTURES

    def __init__(self, index: int) -> None:
        self._memory: dict[int, np.ndarray] = {}
        self._next = 1 << 20

    @staticmethod
    def count() -> int:
        return 1

    def facts(self) -> dict[str, Any]:
        return {"name": "Fake device", "uuid": f"GPU-fake-{os.getppid()}", "compute": "9.0", "sm_count": 4,
                "l2_bytes": 1_000, "memory_bytes": 1 << 30, "runtime_version": 1, "driver_version": 1}  # fmt: skip

    def snapshot(self) -> dict[str, Any]:
        return dict(SNAPSHOT)

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def prepare(self, task: str, row: Any, oracle: Any, sides: Sequence[str]) -> None:
        pass

    def facts_of_library(self) -> dict[str, Any]:
        names = [f"kernel_of_{side}" for side in ("baseline", "solution", "copy")]
        sides = {side: {"source": f"{side}.cu", "sha256": "5" * 64, "command": self.commands[side]}
                 for side in ("baseline", "solution")}  # fmt: skip
        return {
            "file": "libamk_tasks.so", "sha256": "a" * 64,
            "build": {"nvcc": "13.0", "flags": "-O3", "headers_sha256": "6" * 64,
                      "tasks": {"residual_gate_add": sides}},
            "cubins": [{"arch": arch, "sha256": arch[-1] * 64, "kernels": names} for arch in self.architectures],
        }  # fmt: skip

    def sha256_of_library(self) -> str:
        return self.facts_of_library()["sha256"]

    def open(self) -> None:
        pass

    def close(self) -> None:
        assert not self._memory, f"{len(self._memory)} allocations were not given back"

    # --- memory ---

    def allocate(self, nbytes: int) -> int:
        address, self._next = self._next, self._next + nbytes + 4096
        self._memory[address] = np.zeros(nbytes, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self._memory[address]

    def at(self, address: int, nbytes: int) -> np.ndarray:
        base = max(start for start in self._memory if start <= address)
        part = self._memory[base][address - base : address - base + nbytes]
        assert part.size == nbytes, "an access outside of an allocation"
        return part

    def upload(self, address: int, data: np.ndarray) -> None:
        self.at(address, data.nbytes)[:] = data

    def download(self, address: int, nbytes: int) -> np.ndarray:
        return self.at(address, nbytes).copy()

    def move(self, to: int, source: int, nbytes: int) -> None:
        self.at(to, nbytes)[:] = self.at(source, nbytes)

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        self.at(address, nbytes)[:] = byte

    def view(self, tensor: Tensor) -> np.ndarray:
        dtype = DTYPES[tensor.spec.dtype][0]
        flat = self.at(tensor.address, tensor.spec.extent * dtype.itemsize).view(dtype)
        steps = tuple(step * dtype.itemsize for step in tensor.spec.stride)
        return np.lib.stride_tricks.as_strided(flat, tensor.spec.shape, steps)

    # --- entries ---

    def entry(self, task: str, side: str) -> str:
        return side

    def copies(self) -> list[tuple[str, str]]:
        return [("plain", "copy"), ("slower", "slow_copy")]

    def us(self, entry: str, call: Call) -> float:
        tensors = [tensor for tensor in (*call.inputs, *call.outputs) if tensor is not None]
        moved = sum(tensor.spec.touched * tensor.spec.itemsize for tensor in tensors)
        of_copy = {"baseline": 2.0, "solution": 1.05, "copy": 1.0, "slow_copy": 1.2}
        return moved / GB_PER_S / 1e3 * of_copy.get(entry, 3.0)  # an external baseline

    def run(self, entry: str, call: Call) -> int:
        stream: list[Operation] = []
        status = self.call(entry, call, stream)
        for operation in stream:
            operation()
        return status

    def run_held(self, entry: str, call: Call, watched: int, nbytes: int) -> tuple[int, bool, np.ndarray]:
        stream: list[Operation] = []
        status = self.call(entry, call, stream)
        seen = self.download(watched, nbytes)
        for operation in stream:
            operation()
        return status, True, seen

    def graph(self, entry: str, calls: Sequence[Call], rounds: int) -> Graph:
        return Graph(self, entry, calls, rounds)

    def call(self, entry: str, call: Call, stream: list[Operation]) -> int:
        """As an amk_task_fn. A fraud changes `cheat`, which is asked for one side."""
        if "copy" in entry:
            stream.append(lambda: self._copy(call))
            return 0
        gate, x = call.inputs[2], call.inputs[1]
        assert gate is not None and x is not None
        if len(gate.spec.shape) == 4 and x.spec.shape[1] % gate.spec.shape[1]:
            return -1
        return self.cheat(call, stream) if entry == self.fraud else self.compute(call, stream)

    def compute(self, call: Call, stream: list[Operation]) -> int:
        stream.append(lambda: self.write(call, self.result(call)))
        return 0

    def cheat(self, call: Call, stream: list[Operation]) -> int:
        return self.compute(call, stream)

    def result(self, call: Call) -> np.ndarray:
        residual, x, gate = (values_of(self.view(tensor), tensor.spec.dtype) for tensor in call.inputs if tensor)
        return residual + frame_gate(gate, x.shape[1]) * x

    def write(self, call: Call, values: np.ndarray) -> None:
        (y,) = call.outputs
        assert y is not None
        self.view(y)[...] = stored(values, y.spec.dtype)

    def _copy(self, call: Call) -> None:
        source, to = call.inputs[0], call.outputs[0]
        assert source is not None and to is not None
        self.view(to)[...] = self.view(source)


class Stale(Honest):
    """Writes the first half of its output."""

    def cheat(self, call: Call, stream: list[Operation]) -> int:
        def half() -> None:
            values = self.result(call)
            (y,) = call.outputs
            n = values.shape[1] // 2
            self.view(y)[:, :n] = stored(values[:, :n], y.spec.dtype)

        stream.append(half)
        return 0


class Cached(Honest):
    """Computes once for each address, and gives the same result ever after."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._results: dict[int, np.ndarray] = {}

    def cheat(self, call: Call, stream: list[Operation]) -> int:
        (y,) = call.outputs

        def again() -> None:
            if y.address not in self._results or self._results[y.address].shape != y.spec.shape:
                self._results[y.address] = self.result(call)
            self.write(call, self._results[y.address])

        stream.append(again)
        return 0


class WrongStream(Honest):
    """Does its work at once, wherever the given stream may be."""

    def cheat(self, call: Call, stream: list[Operation]) -> int:
        self.write(call, self.result(call))
        return 0


class WrongStreamOfBaseline(WrongStream):
    fraud = "baseline"


class Synchronises(Honest):
    def run_held(self, entry: str, call: Call, watched: int, nbytes: int) -> tuple[int, bool, np.ndarray]:
        status, _, seen = super().run_held(entry, call, watched, nbytes)
        return status, entry != self.fraud, seen


class OnlyWhileCaptured(Honest):
    """Does its work while its launches are captured; what is replayed does nothing."""

    def graph(self, entry: str, calls: Sequence[Call], rounds: int) -> Graph:
        graph = Graph(self, entry, calls, rounds)
        if entry == self.fraud:
            graph.time(1)
            graph.close()
        return graph


class SlowCopyInTurns(Honest):
    """A copy takes half as long again right behind any other graph, as on a GPU between torch's."""

    factor = 1.5
    last: Graph | None = None  # that was timed

    def graph(self, entry: str, calls: Sequence[Call], rounds: int) -> Graph:
        graph = Graph(self, entry, calls, rounds)
        alone = graph.time

        def time(replays: int) -> float:
            is_behind, self.last = "copy" in entry and self.last is not graph, graph
            return alone(replays) * (self.factor if is_behind else 1.0)

        graph.time = time  # type: ignore[method-assign]
        return graph


class SlowCopyAlone(SlowCopyInTurns):
    """And the other way round."""

    factor = 1 / 1.5


class DifferentFlags(Honest):
    commands = {"baseline": COMMAND.replace("-O3", "-O1"), "solution": COMMAND}


class FastMath(Honest):
    commands = dict.fromkeys(("baseline", "solution"), COMMAND + " --use_fast_math")


class NotANumber(Honest):
    def cheat(self, call: Call, stream: list[Operation]) -> int:
        def one_nan() -> None:
            values = self.result(call)
            values.flat[values.size // 3] = np.inf
            self.write(call, values)

        stream.append(one_nan)
        return 0


class Zeros(Honest):
    def cheat(self, call: Call, stream: list[Operation]) -> int:
        stream.append(lambda: self.write(call, np.zeros_like(self.result(call))))
        return 0


class OneWrongElement(Honest):
    def cheat(self, call: Call, stream: list[Operation]) -> int:
        def nearly() -> None:
            values = self.result(call)
            values.flat[-1] += 1.0
            self.write(call, values)

        stream.append(nearly)
        return 0


class MissingCubin(Honest):
    architectures = ("sm_90a",)


class OtherCubin(Honest):
    """The library holds both, and the device runs machine code of neither."""

    architectures = ("sm_100a", "sm_80")


class LazyWhenTimed(Honest):
    """Right whenever it is checked; once it has been launched often enough, it writes no more."""

    launches = 0

    def cheat(self, call: Call, stream: list[Operation]) -> int:
        def lazy() -> None:
            self.launches += 1
            if self.launches < 60:
                self.write(call, self.result(call))

        stream.append(lazy)
        return 0


class TooFast(Honest):
    def us(self, entry: str, call: Call) -> float:
        return super().us(entry, call) * (0.1 if entry == self.fraud else 1.0)


class OutOfBounds(Honest):
    def cheat(self, call: Call, stream: list[Operation]) -> int:
        (y,) = call.outputs

        def too_much() -> None:
            self.write(call, self.result(call))
            self.at(y.address + y.spec.extent * y.spec.itemsize, 4)[:] = 7

        stream.append(too_much)
        return 0


class FillsTheGaps(Honest):
    """Writes where no element of a strided output is."""

    def cheat(self, call: Call, stream: list[Operation]) -> int:
        (y,) = call.outputs

        def gaps() -> None:
            self.write(call, self.result(call))
            width, step = y.spec.shape[2], y.spec.stride[1]
            if step > width:
                self.at(y.address + width * y.spec.itemsize, y.spec.itemsize)[:] = 0

        stream.append(gaps)
        return 0


class ChangesInput(Honest):
    def cheat(self, call: Call, stream: list[Operation]) -> int:
        def spoil() -> None:
            self.write(call, self.result(call))
            self.at(call.inputs[0].address, 1)[:] ^= 1

        stream.append(spoil)
        return 0


class SpoilsPristine(Honest):
    """Finds where the inputs are kept for later launches, and writes what it read and made to all of that memory."""

    def cheat(self, call: Call, stream: list[Operation]) -> int:
        (y,) = call.outputs

        def elsewhere() -> None:
            self.write(call, self.result(call))
            mine = max(start for start in self._memory if start <= y.address)
            for start, memory in self._memory.items():
                if start != mine and memory.size > 1000:
                    memory[256:260] ^= 1

        stream.append(elsewhere)
        return 0


class RefusesNothing(Honest):
    """Returns success for a row that it has to refuse, as a crash of the index arithmetic would."""

    def call(self, entry: str, call: Call, stream: list[Operation]) -> int:
        status = super().call(entry, call, stream)
        return 0 if entry == self.fraud else status


class Replaced(Honest):
    """Another library than the one that the run began with."""

    seen = 0

    def facts_of_library(self) -> dict[str, Any]:
        Replaced.seen += 1
        return {**super().facts_of_library(), "sha256": f"{Replaced.seen:064d}"}


class Crash(Honest):
    def graph(self, entry: str, calls: Sequence[Call], rounds: int) -> Graph:
        os.kill(os.getpid(), 11)
        raise AssertionError
