"""Which machine runs an image: the one place that turns a device's name into something with `step`.

In: a device name, an image, its weights. Out: a `Machine`. A device that is not there is `Unavailable`, and
`choose_device` says so before any work is done. This module imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .errors import DeviceError, InputError, Unavailable, show

if TYPE_CHECKING:
    import numpy as np

    from .program import Image
    from .vm import ReferenceVM

__all__ = ["DEFAULT_GPU", "Machine", "choose_device", "default_gpu", "open_machine"]

DEFAULT_GPU = "h200"  # the target of a schedule where none is named and no device is live
THREADED_WEIGHT_BYTES = 64 << 20  # from here on, threads pay for themselves


class Machine(Protocol):
    """What a caller needs of a machine that decodes: rows below `pos` are in its cache already."""

    @property
    def max_seq(self) -> int: ...

    def step(self, token: int, pos: int) -> np.ndarray: ...


def choose_device(device: Any) -> str:
    """The device that "auto" means, or the one asked for: "cpu" is the only one of this build."""
    if device in ("auto", "cpu"):
        return "cpu"
    if isinstance(device, str) and device.split(":")[0] in ("cuda", "gpu"):
        raise Unavailable(f"device {device!r}: this build has no GPU kernel yet; use 'cpu' or 'auto'")
    raise InputError(f"device: expected 'auto', 'cpu' or 'cuda', got {show(device)}")


def default_gpu() -> str:
    """The target that lowering is for when nobody names one: the live device, else the default."""
    from .targets import resolve_target

    try:
        resolve_target("local")
        return "local"
    except DeviceError:
        return DEFAULT_GPU


def open_machine(device: str, image: Image, weights: Mapping[str, np.ndarray]) -> ReferenceVM:
    """A machine holding the image, with an empty cache; the caller closes it."""
    from . import vm

    choose_device(device)
    nbytes = sum(array.nbytes for array in weights.values())
    threads = min(os.cpu_count() or 1, 8) if nbytes >= THREADED_WEIGHT_BYTES else 0
    return vm.ReferenceVM(image, weights, threads=threads)
