"""One GPU as a task is run on it: memory, calls, graphs that are timed. A test puts another class in its place.

In: a device's index. Out: bytes, statuses, microseconds, and what the library says of itself. It judges nothing.
Everything that checks and times is written against `TaskDevice`, so that a fraud can be planted behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import nvml
from .._lib import enum_names, text_of
from ..errors import BuildMismatch, InputError
from .cubins import read_cubins
from .harness_library import Library, open_library
from .workloads import DTYPES, TensorSpec

__all__ = ["Call", "HarnessDevice", "Tensor", "TaskDevice", "TimedGraph", "describe_library"]


@dataclass(frozen=True)
class Tensor:
    address: int
    spec: TensorSpec


@dataclass(frozen=True)
class Call:
    """One set of operands; None where an operand is absent."""

    inputs: tuple[Tensor | None, ...]
    scalars: tuple[float, ...]
    outputs: tuple[Tensor | None, ...]


class TimedGraph(Protocol):
    """Launches captured once."""

    def time(self, replays: int) -> float: ...  # microseconds of all of them

    def publish(self) -> None: ...  # brings results to the outputs, where a callable made tensors of its own

    def kernels(self) -> list[dict[str, Any]]: ...

    def close(self) -> None: ...


class TaskDevice(Protocol):
    def facts(self) -> dict[str, Any]: ...  # before `open`: makes no context

    def snapshot(self) -> dict[str, Any]: ...

    def facts_of_library(self) -> dict[str, Any]: ...

    def sha256_of_library(self) -> str: ...  # of the file, without what is in it

    def versions(self) -> dict[str, str]: ...  # of what else takes part

    def prepare(self, task: str, row: Any, oracle: Any, sides: Sequence[str]) -> None: ...  # before each row

    def open(self) -> None: ...

    def close(self) -> None: ...

    def allocate(self, nbytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def upload(self, address: int, data: NDArray[np.uint8]) -> None: ...

    # What it and `run_held` return is read before the next call of either, or of `upload`: it may be one buffer.
    def download(self, address: int, nbytes: int) -> NDArray[np.uint8]: ...

    def move(self, to: int, source: int, nbytes: int) -> None: ...

    def fill(self, address: int, byte: int, nbytes: int) -> None: ...

    def entry(self, task: str, side: str) -> Any: ...

    def copies(self) -> list[tuple[str, Any]]: ...

    def run(self, entry: Any, call: Call) -> int: ...

    def run_held(self, entry: Any, call: Call, watched: int, nbytes: int) -> tuple[int, bool, NDArray[np.uint8]]: ...

    def graph(self, entry: Any, calls: Sequence[Call], rounds: int) -> TimedGraph: ...


_COPIED_BYTES = 1 << 20
SETTLE_MS = 20  # longer than any launch takes to begin on another stream


def describe_library(path: str, build_info: str) -> dict[str, Any]:
    """The file, by its hash, and the code that it holds."""
    data = Path(path).read_bytes()
    return {
        "file": Path(path).name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "build": json.loads(build_info),
        "cubins": [cubin.to_dict() for cubin in read_cubins(data, path)],
    }


class HarnessDevice:
    def __init__(self, index: int) -> None:
        self._index = index
        self._library: Library = open_library()
        self._harness: Any = None

    @property
    def _h(self) -> Any:
        if self._harness is None:
            self.open()
        return self._harness

    @staticmethod
    def count() -> int:
        library = open_library()
        out = library.ffi.new("int32_t*")
        library.check(library.lib.amk_harness_device_count(out))
        return int(out[0])

    def facts(self) -> dict[str, Any]:
        ffi, lib, _ = self._library
        out = ffi.new("amk_harness_device_t*")
        self._library.check(lib.amk_harness_device(self._index, out))
        texts = {name: ffi.string(getattr(out, name)).decode("utf-8", "replace") for name in ("name", "uuid")}
        numbers = ("sm_count", "l2_bytes", "memory_bytes", "runtime_version", "driver_version")
        compute = {"compute": f"{out.compute_major}.{out.compute_minor}"}
        return {**texts, **compute, **{name: int(getattr(out, name)) for name in numbers}}

    def snapshot(self) -> dict[str, Any]:
        return nvml.snapshot(self.facts()["uuid"])

    def facts_of_library(self) -> dict[str, Any]:
        return describe_library(self._library.path, text_of(self._library.lib.amk_tasks_build_info()))

    def sha256_of_library(self) -> str:
        return hashlib.sha256(Path(self._library.path).read_bytes()).hexdigest()

    def versions(self) -> dict[str, str]:
        return {}

    def prepare(self, task: str, row: Any, oracle: Any, sides: Sequence[str]) -> None:
        """Our entries need no more than their operands."""

    def open(self) -> None:
        ffi, lib, _ = self._library
        out = ffi.new("amk_harness**")
        self._library.check(lib.amk_harness_keep_freed_memory())  # of a worker that makes one large trial after another
        self._library.check(lib.amk_harness_create(self._index, out))
        self._harness = out[0]

    def close(self) -> None:
        if self._harness is not None:
            self._library.lib.amk_harness_destroy(self._harness)
            self._harness = None

    def allocate(self, nbytes: int) -> int:
        ffi, lib, _ = self._library
        out = ffi.new("void**")
        self._library.check(lib.amk_harness_allocate(self._h, nbytes, out))
        return int(ffi.cast("uintptr_t", out[0]))

    def free(self, address: int) -> None:
        self._library.check(self._library.lib.amk_harness_free(self._h, self._pointer(address)))

    def upload(self, address: int, data: NDArray[np.uint8]) -> None:
        ffi, lib, _ = self._library
        source = ffi.from_buffer("uint8_t[]", np.ascontiguousarray(data))
        self._library.check(lib.amk_harness_upload(self._h, self._pointer(address), source, data.nbytes))

    def download(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """Of more than a megabyte, the harness's one page-locked buffer: read it before the next call of this, of
        `run_held` or of `upload`."""
        staging, out = self._staging(nbytes)
        self._library.check(self._library.lib.amk_harness_download(self._h, staging, self._pointer(address), nbytes))
        return out.copy() if nbytes <= _COPIED_BYTES else out

    def _staging(self, nbytes: int) -> tuple[Any, NDArray[np.uint8]]:
        """(its address, the bytes, which nobody may write)."""
        ffi, lib, _ = self._library
        out = ffi.new("void**")
        self._library.check(lib.amk_harness_staging(self._h, nbytes, out))
        seen = np.frombuffer(ffi.buffer(out[0], nbytes), np.uint8)
        seen.flags.writeable = False
        return out[0], seen

    def move(self, to: int, source: int, nbytes: int) -> None:
        lib = self._library.lib
        self._library.check(lib.amk_harness_move(self._h, self._pointer(to), self._pointer(source), nbytes))

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        self._library.check(self._library.lib.amk_harness_fill(self._h, self._pointer(address), byte, nbytes))

    def entry(self, task: str, side: str) -> Any:
        ffi, lib, path = self._library
        found = lib.amk_tasks_entry(task.encode(), side.encode())
        if found == ffi.NULL:
            raise BuildMismatch(f"{path}: expected a {side} of the task {task}, found none")
        return found

    def copies(self) -> list[tuple[str, Any]]:
        ffi, lib, _ = self._library
        found, name = [], ffi.new("const char**")
        while (entry := lib.amk_tasks_copy(len(found), name)) != ffi.NULL:
            found.append((text_of(name[0]), entry))
        return found

    def run(self, entry: Any, call: Call) -> int:
        ffi, lib, _ = self._library
        table, _kept = self._calls(entry, [call])
        status = ffi.new("int32_t*")
        self._library.check(lib.amk_harness_run(self._h, table, status))
        return int(status[0])

    def run_held(self, entry: Any, call: Call, watched: int, nbytes: int) -> tuple[int, bool, NDArray[np.uint8]]:
        ffi, lib, _ = self._library
        table, _kept = self._calls(entry, [call])
        status, held = ffi.new("int32_t*"), ffi.new("int32_t*")
        to, seen = self._staging(nbytes)
        self._library.check(
            lib.amk_harness_run_held(self._h, table, SETTLE_MS, self._pointer(watched), to, nbytes, status, held)
        )
        return int(status[0]), bool(held[0]), seen

    def graph(self, entry: Any, calls: Sequence[Call], rounds: int) -> _Graph:
        ffi, lib, _ = self._library
        table, _kept = self._calls(entry, calls)
        out = ffi.new("amk_harness_graph**")
        self._library.check(lib.amk_harness_graph_create(self._h, table, len(calls), rounds, out))
        return _Graph(self._library, out[0])

    def _pointer(self, address: int) -> Any:
        return self._library.ffi.cast("void*", address)

    def _calls(self, entry: Any, calls: Sequence[Call]) -> tuple[Any, list[Any]]:
        """(the C table, what must outlive its use)."""
        ffi = self._library.ffi
        table = ffi.new("amk_harness_call_t[]", len(calls))
        kept: list[Any] = []
        for row, call in zip(table, calls, strict=True):
            tables = [self._tensors(call.inputs), ffi.new("double[]", list(call.scalars)), self._tensors(call.outputs)]
            kept += tables
            row.entry, (row.inputs, row.scalars, row.outputs) = entry, tables
            row.n_inputs, row.n_scalars, row.n_outputs = len(call.inputs), len(call.scalars), len(call.outputs)
        return table, kept

    def _tensors(self, tensors: Sequence[Tensor | None]) -> Any:
        ffi = self._library.ffi
        out = ffi.new("amk_task_tensor_t[]", len(tensors))
        for row, tensor in zip(out, tensors, strict=True):
            if tensor is not None:
                row.data, row.dtype = self._pointer(tensor.address), _dtype_number(ffi, tensor.spec.dtype)
                row.rank = len(tensor.spec.shape)
                row.shape[0 : row.rank] = list(tensor.spec.shape)
                row.stride[0 : row.rank] = list(tensor.spec.stride)
        return out


def _dtype_number(ffi: Any, dtype: str) -> int:
    name = DTYPES[dtype][1]
    if name == "I64":
        return ffi.integer_const("AMK_TASK_DTYPE_I64")
    return next(number for number, found in enum_names("amk_dtype", "AMK_DTYPE_").items() if found == name)


class _Graph:
    def __init__(self, library: Library, graph: Any) -> None:
        self._library, self._graph = library, graph

    def time(self, replays: int) -> float:
        us = self._library.ffi.new("double*")
        self._library.check(self._library.lib.amk_harness_graph_time(self._graph, replays, us))
        return float(us[0])

    def publish(self) -> None:
        """An entry writes its outputs itself."""

    def kernels(self) -> list[dict[str, Any]]:
        ffi, lib, _ = self._library
        room, count = 64, ffi.new("int32_t*")
        out = ffi.new("amk_harness_kernel_t[]", room)
        self._library.check(lib.amk_harness_graph_kernels(self._graph, out, room, count))
        if count[0] > room:
            raise InputError(f"kernel tasks: expected at most {room} different kernels in one graph, got {count[0]}")
        return [
            {
                "name": ffi.string(row.name).decode("utf-8", "replace"),
                **{
                    name: int(getattr(row, name)) for name in ("binary_version", "registers", "local_bytes", "launches")
                },
                "grid": list(row.grid),
                "block": list(row.block),
            }
            for row in out[0 : count[0]]
        ]

    def close(self) -> None:
        if self._graph is not None:
            self._library.lib.amk_harness_graph_destroy(self._graph)
            self._graph = None
