"""A GPU through torch: external baselines as Python callables, and our entries over the same tensors in the same way.

In: a device's index, callables. Out: what `TaskDevice` promises. Memory is torch's; all sides are captured by
torch.cuda.CUDAGraph on one stream and timed by torch's events, so that none has a wrapper of its own. What a callable
returns is copied to the outputs outside the timing; what it raises is a `Refused`. torch is imported when a worker asks
for this class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AmkError, Unavailable
from .check import SIDES
from .device import Call, HarnessDevice, Tensor
from .external import load_callable
from .judge import Refused
from .workloads import TensorSpec

__all__ = ["TorchDevice", "tensor_at"]

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i32": "int32", "i64": "int64", "u8": "uint8"}
_WARM_UP_CALLS = 3  # compilation, choice of algorithms and the first allocations, before anything is captured
_QUEUE_CYCLES = 400_000  # as the harness: the device is busy until all launches are enqueued


class _Callable:
    """A baseline: (row, tensors) -> outputs."""

    def __init__(self, function: Any) -> None:
        self.function = function


class TorchDevice(HarnessDevice):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        try:
            import torch
        except ImportError as error:
            raise Unavailable(f"an external baseline needs the package torch: {error}") from error
        if not torch.cuda.is_available():
            raise Unavailable(
                "an external baseline needs a torch that sees the GPU; torch.cuda.is_available() is false"
            )
        self._torch = torch
        self._buffers: dict[int, Any] = {}
        self._baselines: dict[str, _Callable] = {}
        self._row: Any = None
        self._operands: Any = None

    def prepare(self, task: str, row: Any, oracle: Any, sides: Sequence[str]) -> None:
        self._row, self._operands = row, oracle.OPERANDS
        for side in sides:
            if side not in SIDES and side not in self._baselines:
                self._baselines[side] = _Callable(load_callable(side, task))

    def versions(self) -> dict[str, str]:
        torch = self._torch
        return {"torch": str(torch.__version__), "torch_cuda": str(torch.version.cuda)}

    def open(self) -> None:
        self._torch.cuda.set_device(self._index)
        super().open()
        self._stream = self._torch.cuda.Stream()

    def allocate(self, nbytes: int) -> int:
        buffer = self._torch.empty(nbytes, dtype=self._torch.uint8, device=f"cuda:{self._index}")
        self._buffers[buffer.data_ptr()] = buffer
        return buffer.data_ptr()

    def free(self, address: int) -> None:
        del self._buffers[address]

    def entry(self, task: str, side: str) -> Any:
        return self._baselines[side] if side in self._baselines else super().entry(task, side)

    def run(self, entry: Any, call: Call) -> int:
        if not isinstance(entry, _Callable):
            return super().run(entry, call)
        with self._torch.no_grad(), self._torch.cuda.stream(self._stream):
            (enqueue,) = self._enqueuers(entry, [call])
            self._put(call, enqueue())
        self._torch.cuda.synchronize()
        return 0

    def run_held(self, entry: Any, call: Call, watched: int, nbytes: int) -> tuple[int, bool, NDArray[np.uint8]]:
        """A callable is not held back: it may do what it likes, as long as its result is right."""
        if not isinstance(entry, _Callable):
            return super().run_held(entry, call, watched, nbytes)
        seen = self.download(watched, nbytes)
        return self.run(entry, call), True, seen

    def graph(self, entry: Any, calls: Sequence[Call], rounds: int) -> Any:
        if any(entry == copy for _, copy in self.copies()):  # the ceiling: a launch takes longer in torch's graphs
            return super().graph(entry, calls, rounds)
        return _TorchGraph(self, entry, calls, rounds)

    def harness_graph(self, entry: Any, calls: Sequence[Call]) -> Any:
        """As the harness captures it: the way to the names of its kernels."""
        return super().graph(entry, calls, 1)

    def _enqueuers(self, entry: Any, calls: Sequence[Call]) -> list[Callable[[], dict[str, Any] | None]]:
        """A function per call, which puts it on our stream, torch's current one: what a callable returned, None where
        an entry wrote the outputs. The operands are laid out here, once for all rounds of a graph."""
        if isinstance(entry, _Callable):
            return [partial(self._call, entry, self._tensors_of(call)) for call in calls]
        table, kept = self._calls(entry, calls)
        return [partial(self._launch, entry, table[i], (table, kept)) for i in range(len(calls))]

    def _tensors_of(self, call: Call) -> dict[str, Any]:
        names = (*self._operands["inputs"], *self._operands["outputs"])
        found = zip(names, (*call.inputs, *call.outputs), strict=True)
        return {name: self._tensor(tensor) for name, tensor in found if tensor is not None}

    def _call(self, entry: _Callable, tensors: dict[str, Any]) -> dict[str, Any]:
        wanted = self._row.outputs
        try:
            made = entry.function(self._row, dict(tensors))
        except Exception as error:  # whatever its author or its compiler raises is its own failure
            raise Refused("failed", f"{type(error).__name__}: {_first_line(error)}") from error
        if not isinstance(made, dict):
            made = made if isinstance(made, tuple | list) else (made,)
            made = dict(zip(wanted, made, strict=True)) if len(made) == len(wanted) else dict(enumerate(made))
        if set(made) != set(wanted):
            raise Refused("shape", f"expected the outputs {list(wanted)}, got {list(made)}")
        return made

    def _launch(self, entry: Any, row: Any, _kept: Any) -> None:
        stream = self._library.ffi.cast("void*", self._stream.cuda_stream)
        status = entry(row.inputs, row.n_inputs, row.scalars, row.n_scalars, row.outputs, row.n_outputs, stream)
        if status:
            raise Refused("status", f"it returned {status} while it was captured")

    def _put(self, call: Call, made: dict[str, Any] | None) -> None:
        if made is None:
            return
        for name, tensor in zip(self._operands["outputs"], call.outputs, strict=True):
            if tensor is not None:
                into = self._tensor(tensor)
                if not isinstance(made[name], self._torch.Tensor):
                    raise Refused("shape", f"{name}: expected a tensor, got {type(made[name]).__name__}")
                if tuple(made[name].shape) != tuple(into.shape) or made[name].dtype != into.dtype:
                    raise Refused("shape", f"{name}: expected {into.dtype} {tuple(into.shape)}, "
                                           f"got {made[name].dtype} {tuple(made[name].shape)}")  # fmt: skip
                into.copy_(made[name])

    def _tensor(self, tensor: Tensor) -> Any:
        base = max(address for address in self._buffers if address <= tensor.address)
        return tensor_at(self._torch, self._buffers[base], tensor.address - base, tensor.spec)


class _TorchGraph:
    def __init__(self, device: TorchDevice, entry: Any, calls: Sequence[Call], rounds: int) -> None:
        self._device, self._entry, self._calls = device, entry, list(calls)
        torch = device._torch
        self._made: list[Any] = [None] * len(self._calls)
        self._graph = torch.cuda.CUDAGraph()
        try:
            self._capture(rounds)
        except AmkError:
            raise
        except RuntimeError as error:  # torch's, of a capture that an external baseline broke
            if not isinstance(entry, _Callable):
                raise
            if isinstance(error.__context__, Refused):
                raise error.__context__ from error
            raise Refused("failed", f"its capture: {_first_line(error)}") from error
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def _capture(self, rounds: int) -> None:
        device, torch = self._device, self._device._torch
        with torch.no_grad(), torch.cuda.stream(device._stream):
            enqueuers = device._enqueuers(self._entry, self._calls)
            for _ in range(_WARM_UP_CALLS):
                enqueuers[0]()
            torch.cuda.synchronize()
            with torch.cuda.graph(self._graph, stream=device._stream):
                for _ in range(rounds):
                    for i, enqueue in enumerate(enqueuers):
                        self._made[i] = enqueue()
        torch.cuda.synchronize()

    def time(self, replays: int) -> float:
        torch = self._device._torch
        with torch.cuda.stream(self._device._stream):
            torch.cuda._sleep(_QUEUE_CYCLES)
            self._begin.record()
            for _ in range(replays):
                self._graph.replay()
            self._end.record()
        self._end.synchronize()
        return 1e3 * float(self._begin.elapsed_time(self._end))

    def publish(self) -> None:
        torch = self._device._torch
        with torch.no_grad(), torch.cuda.stream(self._device._stream):
            for call, made in zip(self._calls, self._made, strict=True):
                self._device._put(call, made)
        torch.cuda.synchronize()

    def kernels(self) -> list[dict[str, Any]]:
        if isinstance(self._entry, _Callable):
            return []
        graph = self._device.harness_graph(self._entry, self._calls[:1])
        try:
            return graph.kernels()
        finally:
            graph.close()

    def close(self) -> None:
        self._made = []
        self._graph = None


def _first_line(error: Exception) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), "no message")


def tensor_at(torch: Any, buffer: Any, offset: int, spec: TensorSpec) -> Any:
    """A view of `buffer` (bytes) with the shape, dtype and strides of an operand."""
    dtype = getattr(torch, _DTYPES[spec.dtype])
    flat = buffer[offset : offset + spec.extent * spec.itemsize].view(dtype)
    return torch.as_strided(flat, spec.shape, spec.stride)
