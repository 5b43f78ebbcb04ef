"""Which machine runs an image: the one place that turns a device's name into something with `step`.

In: a device name, an image, its weights. Out: a `Machine`. A device that is not there is `Unavailable`, and
`pick_device` says so before any work is done. This module imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .errors import DeviceError, InputError, Unavailable, show

if TYPE_CHECKING:
    import numpy as np

    from .megakernel import MegakernelVM
    from .program import Image
    from .targets import GpuTarget
    from .vm import ReferenceVM

__all__ = ["DEFAULT_GPU", "Machine", "choose_device", "default_gpu", "open_machine", "pick_device"]

DEFAULT_GPU = "h200"  # the target of a schedule where none is named and no device is live
THREADED_WEIGHT_BYTES = 64 << 20  # from here on, threads pay for themselves


class Machine(Protocol):
    """What a caller needs of a machine that decodes: rows below `pos` are in its cache already. `reset_state` is called
    only for a model that has a state."""

    @property
    def max_seq(self) -> int: ...

    def step(self, token: int, pos: int) -> np.ndarray: ...

    def reset_state(self) -> None: ...


def pick_device(device: Any, target: GpuTarget | None = None) -> tuple[str, list[str]]:
    """("cpu" or "cuda:N", notes). "auto" is the first GPU where one is live and is what `target` describes."""
    from .megakernel import device_count
    from .targets import query_device, same_device

    if device == "cpu":
        return device, []
    is_auto = device == "auto"
    index = 0 if is_auto else _device_index(device)
    try:
        count = device_count()
    except Unavailable as reason:
        if is_auto:
            return "cpu", [f"device auto: the cpu reference machine, because {reason}"]
        raise Unavailable(f"device {device!r}: {reason}; use 'cpu' or 'auto'") from reason
    if index >= count:
        raise Unavailable(f"device {device!r}: expected a device below cuda:{count}; use 'cpu' or 'auto'")
    live = query_device(index)
    if target is None or target == live or same_device(target, live):
        return f"cuda:{index}", []
    if is_auto:
        return "cpu", [f"device auto: the cpu reference machine, because the live {live.name} is not a {target.name}"]
    return f"cuda:{index}", [f"the schedule is for {target.name}, and it ran on {live.name}"]


def choose_device(device: Any, target: GpuTarget | None = None) -> str:
    """The device that "auto" means, or the one asked for, if it is there."""
    return pick_device(device, target)[0]


def default_gpu() -> str:
    """The target that lowering is for when nobody names one: the live device, by the name of its preset where it has
    one, else "local"; without a device, the default."""
    from .targets import preset_of, resolve_target

    try:
        return preset_of(resolve_target("local")) or "local"
    except DeviceError:
        return DEFAULT_GPU


def open_machine(device: str, image: Image, weights: Mapping[str, np.ndarray]) -> MegakernelVM | ReferenceVM:
    """A machine holding the image, with an empty cache; the caller closes it."""
    from . import megakernel, vm

    device = choose_device(device)
    if device != "cpu":
        return megakernel.MegakernelVM(image, weights, device=_device_index(device))
    nbytes = sum(array.nbytes for array in weights.values())
    threads = min(os.cpu_count() or 1, 8) if nbytes >= THREADED_WEIGHT_BYTES else 0
    return vm.ReferenceVM(image, weights, threads=threads)


def _device_index(device: Any) -> int:
    kind, colon, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or (colon and not (number.isascii() and number.isdecimal() and len(number) <= 4)):
        raise InputError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {show(device)}")
    return int(number or 0)
