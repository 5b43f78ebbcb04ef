"""A GPU through torch: an external baseline as a Python callable, and our entry over the same tensors in the same way.

In: a device's index, a callable. Out: what `TaskDevice` promises. Memory is torch's; both sides are captured by
torch.cuda.CUDAGraph on one stream and timed by torch's events, so that neither has a wrapper of its own. What a
callable returns is copied to the outputs outside the timing. torch is imported when a worker asks for this class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, InternalError, Unavailable
from .device import Call, HarnessDevice, Tensor
from .external import load_callable
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
        self._baseline: _Callable | None = None
        self._row: Any = None
        self._operands: Any = None

    def prepare(self, task: str, row: Any, oracle: Any, external: str | None) -> None:
        self._row, self._operands = row, oracle.OPERANDS
        if external is not None and self._baseline is None:
            self._baseline = _Callable(load_callable(external, task))

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
        if side == "baseline":
            if self._baseline is None:
                raise InternalError("a baseline is asked for before there is one")
            return self._baseline
        return super().entry(task, side)

    def run(self, entry: Any, call: Call) -> int:
        if not isinstance(entry, _Callable):
            return super().run(entry, call)
        with self._torch.no_grad(), self._torch.cuda.stream(self._stream):
            self._put(call, self._enqueue(entry, call))
        self._torch.cuda.synchronize()
        return 0

    def run_held(self, entry: Any, call: Call, watched: int, nbytes: int) -> tuple[int, bool, NDArray[np.uint8]]:
        """A callable is not held back: it may do what it likes, as long as its result is right."""
        if not isinstance(entry, _Callable):
            return super().run_held(entry, call, watched, nbytes)
        seen = self.download(watched, nbytes)
        return self.run(entry, call), True, seen

    def graph(self, entry: Any, calls: Sequence[Call], rounds: int) -> Any:
        return _TorchGraph(self, entry, calls, rounds)

    def harness_graph(self, entry: Any, calls: Sequence[Call]) -> Any:
        """As the harness captures it: the way to the names of its kernels."""
        return super().graph(entry, calls, 1)

    def _enqueue(self, entry: Any, call: Call) -> dict[str, Any] | None:
        """On torch's current stream. What a callable returned, None where an entry wrote the outputs."""
        if isinstance(entry, _Callable):
            names = (*self._operands["inputs"], *self._operands["outputs"])
            found = zip(names, (*call.inputs, *call.outputs), strict=True)
            tensors = {name: self._tensor(tensor) for name, tensor in found if tensor is not None}
            made = entry.function(self._row, tensors)
            if not isinstance(made, dict):
                made = dict(zip(self._row.outputs, made if isinstance(made, tuple | list) else (made,), strict=True))
            if set(made) != set(self._row.outputs):
                raise InputError(f"baseline: expected the outputs {list(self._row.outputs)}, got {sorted(made)}")
            return made
        ffi = self._library.ffi
        table, _kept = self._calls(entry, [call])
        row = table[0]
        stream = ffi.cast("void*", self._torch.cuda.current_stream().cuda_stream)
        status = entry(row.inputs, row.n_inputs, row.scalars, row.n_scalars, row.outputs, row.n_outputs, stream)
        if status:
            raise InputError(f"kernel tasks: the solution returned {status} while it was captured")
        return None

    def _put(self, call: Call, made: dict[str, Any] | None) -> None:
        if made is None:
            return
        for name, tensor in zip(self._operands["outputs"], call.outputs, strict=True):
            if tensor is not None:
                into = self._tensor(tensor)
                if tuple(made[name].shape) != tuple(into.shape) or made[name].dtype != into.dtype:
                    raise InputError(f"baseline: {name}: expected {into.dtype} {tuple(into.shape)}, "
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
        with torch.no_grad(), torch.cuda.stream(device._stream):
            for _ in range(_WARM_UP_CALLS):
                device._enqueue(entry, self._calls[0])
            torch.cuda.synchronize()
            with torch.cuda.graph(self._graph, stream=device._stream):
                for _ in range(rounds):
                    for i, call in enumerate(self._calls):
                        self._made[i] = device._enqueue(entry, call)
        torch.cuda.synchronize()
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

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


def tensor_at(torch: Any, buffer: Any, offset: int, spec: TensorSpec) -> Any:
    """A view of `buffer` (bytes) with the shape, dtype and strides of an operand."""
    dtype = getattr(torch, _DTYPES[spec.dtype])
    flat = buffer[offset : offset + spec.extent * spec.itemsize].view(dtype)
    return torch.as_strided(flat, spec.shape, spec.stride)
