"""`MegakernelVM`: the machine that runs an image on a GPU, one persistent kernel per step; and facts of the device.

In: an `Image` and its weights, by name. Out: what `ReferenceVM` gives, by the same calls; besides, launches on a stream
of the caller's, and how long steps take. Weights are copied to the device by `prepare` (the first step does it too) and
may be let go after it. A launch that fails or does not end is a typed error; after a fault of the device every further
call is `DevicePoisoned`, and only another process can use the device again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from . import _lib
from ._lib import ffi, lib
from .errors import InputError, show
from .program import Image
from .streams import stream_handle
from .vm import ImageMachine, checked_int32, require_kind, require_timeline

__all__ = ["MegakernelVM", "device_count", "device_uuid", "read_bandwidth"]

MAX_TIMEOUT_S = 3600.0


class MegakernelVM(ImageMachine):
    """Runs an image on GPU `device`. Refused before anything is launched when the image does not fit that device.

    `timeout_s`: a step without progress for so long is ended. guard=True poisons scratch and outputs before each step.
    timeline=True keeps the times of the last step's tasks (see `timeline`), which slows the step a little. `share` is
    another machine of this model on this device, whose weights and caches are used in place of its own.
    """

    def __init__(
        self,
        image: Image,
        weights: Mapping[str, np.ndarray],
        *,
        device: int = 0,
        timeout_s: float = 2.0,
        guard: bool = False,
        timeline: bool = False,
        share: MegakernelVM | None = None,
    ) -> None:
        self._handle = None
        self._is_prepared = False
        if timeline:
            require_timeline()
        index = checked_int32("device", device)
        options = ffi.new("amk_vm_options_t *")
        options.deadline_ms, options.guard = _milliseconds(timeout_s), bool(guard)
        self._opened = {"device": index, "timeout_s": timeout_s, "guard": guard}
        if timeline:
            options.timeline = 1
        require_kind("share", share, MegakernelVM)
        if share is not None:
            share.prepare()
        super().__init__(
            image, weights, lambda given, out: lib.amk_vm_create_cuda(image._handle, given, index, out), options, share
        )

    def beside(self, image: Image) -> MegakernelVM:
        """A machine for another image of this model, on this one's weights and caches."""
        return MegakernelVM(image, {}, **self._opened, share=self)

    def prepare(self) -> None:
        """Copies the weights to the device, once; from here on a launch waits for nothing."""
        with self._lock:
            self._prepare()

    def launch(self, pos: int, stream: object = None) -> None:
        """Enqueues one step and returns. `stream` is a cudaStream_t as an integer, an object with `cuda_stream` or
        `__cuda_stream__`, or None for the machine's own. The stream may be capturing. One step may be in flight."""
        handle = ffi.cast("void *", stream_handle(stream))
        with self._lock:
            machine = self._open()
            if not self._is_prepared:
                raise InputError("launch: expected `prepare` before it, because copying the weights would wait")
            _lib.check(lib.amk_vm_launch(machine, checked_int32("pos", pos), handle))
            self._last_pos = int(pos)

    def aim(self, pos: int) -> None:
        """The position that the next replay of a captured launch decodes."""
        with self._lock:
            _lib.check(lib.amk_vm_aim(self._open(), checked_int32("pos", pos)))
            self._last_pos = int(pos)

    def finish(self) -> None:
        """Waits for the step in flight and checks its completion proof."""
        with self._lock:
            _lib.check(lib.amk_vm_finish(self._open()))

    def time(self, pos: int, n: int = 1) -> np.ndarray:
        """Microseconds [n] of n steps at `pos` by CUDA events, each launched and finished alone, each starting from the
        state that the one before left."""
        count = checked_int32("n", n)
        if count < 1:
            raise InputError(f"n: expected at least 1, got {n}")
        out = np.empty(count, np.float32)
        with self._lock:
            machine = self._open()
            self._prepare()
            times = ffi.from_buffer("float[]", out, require_writable=True)
            _lib.check(lib.amk_vm_time(machine, checked_int32("pos", pos), count, times))
            self._last_pos = int(pos)
        return out.astype(np.float64)

    # ---- the lock is held ----

    def _prepare(self) -> None:
        machine = self._open()
        if not self._is_prepared:
            _lib.check(lib.amk_vm_prepare(machine))
            self._is_prepared = True
            self._bound = []  # the device has its own copy


def device_count() -> int:
    """How many devices the driver offers; `Unavailable`, with the reason, when none."""
    out = ffi.new("int32_t *")
    _lib.check(lib.amk_device_count(out))
    return out[0]


def device_uuid(device: int) -> str:
    """GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, as the driver's tools print it."""
    out = ffi.new("char[41]")
    _lib.check(lib.amk_device_uuid(checked_int32("device", device), out))
    return _lib.text_of(out)


def read_bandwidth(device: int) -> float:
    """1e9 bytes per second that the device reads, measured now."""
    out = ffi.new("double *")
    _lib.check(lib.amk_device_read_bandwidth(checked_int32("device", device), out))
    return out[0]


def _milliseconds(timeout_s: object) -> int:
    if type(timeout_s) not in (int, float) or not 0.001 <= timeout_s <= MAX_TIMEOUT_S:  # type: ignore[operator]
        raise InputError(f"timeout_s: expected seconds in 0.001..{MAX_TIMEOUT_S:g}, got {show(timeout_s)}")
    return math.ceil(timeout_s * 1000)  # type: ignore[operator]
