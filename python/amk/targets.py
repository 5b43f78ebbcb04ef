"""GPUs as data: what the lowering, the validator and the cost model need to know of a device, without one.

In: a name. Out: a `GpuTarget`. The presets come from the library's own table (csrc/base/target.cpp), each with the
document its figures were taken from. Only "local" asks for a device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

from . import _lib
from ._lib import ffi, lib
from .errors import InputError, Unavailable, show

__all__ = ["TARGETS", "GpuTarget", "preset_of", "query_device", "resolve_target", "same_device"]

MEMORY_TOLERANCE = 0.15  # a device reports more or less than its data sheet, a sibling product differs by more


@dataclass(frozen=True)
class GpuTarget:
    """One GPU; the fields are those of amk_target_t, and `source` says where the figures come from."""

    name: str
    sm_count: int
    cc_major: int
    cc_minor: int
    max_threads_per_block: int
    max_threads_per_sm: int
    warp_threads: int
    smem_optin_bytes: int
    smem_per_sm_bytes: int
    regs_per_sm: int
    clock_mhz: int
    l2_bytes: int
    hbm_bytes: int
    hbm_gb_per_s: float
    source: str = ""

    def __post_init__(self) -> None:
        for name, (kind, bits) in _FIELDS.items():
            value = getattr(self, name)
            if kind == "i":
                if type(value) is not int or not 0 <= value < 1 << (bits - 1):
                    raise InputError(f"target.{name}: expected a {bits}-bit integer >= 0, got {show(value)}")
            elif kind == "f":
                if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
                    raise InputError(f"target.{name}: expected a finite number above 0, got {show(value)}")
                object.__setattr__(self, name, float(value))
            elif not isinstance(value, str) or not 0 < len(value.encode(errors="replace")) < bits // 8:
                raise InputError(f"target.{name}: expected a name of 1 to {bits // 8 - 1} bytes, got {show(value)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_c(self) -> Any:
        """An amk_target_t of its own."""
        out = ffi.new("amk_target_t *")
        for name, (kind, _) in _FIELDS.items():
            value = getattr(self, name)
            setattr(out, name, value.encode(errors="replace") if kind == "S" else value)
        return out

    @classmethod
    def from_c(cls, target: Any, source: str = "") -> GpuTarget:
        """From an amk_target_t whose figures are sane; InputError when they are not."""
        values = {name: getattr(target, name) for name in _FIELDS}
        values["name"] = ffi.string(target.name).decode("utf-8", "backslashreplace")
        return cls(**values, source=source)


# Field -> (numpy kind letter, bits), read off the C struct.
_FIELDS: dict[str, tuple[str, int]] = {
    name: (entry[0].kind, entry[0].itemsize * 8)
    for name, entry in _lib.table_dtype("amk_target_t").fields.items()  # type: ignore[union-attr]
}
if [field.name for field in fields(GpuTarget)] != [*_FIELDS, "source"]:
    raise _lib.errors.BuildMismatch(f"amk_target_t has the fields {', '.join(_FIELDS)}; GpuTarget has others")


def _presets() -> Mapping[str, GpuTarget]:
    table = {}
    for index in range(lib.amk_target_count()):
        target = ffi.new("amk_target_t *")
        _lib.check(lib.amk_target_preset(index, target))
        preset = GpuTarget.from_c(target, _lib.text_of(lib.amk_target_source(index)))
        table[preset.name] = preset
    return MappingProxyType(table)


TARGETS: Mapping[str, GpuTarget] = _presets()


def resolve_target(name: str | GpuTarget) -> GpuTarget:
    """A preset by name, or a GpuTarget as it is; "local" is the live device."""
    if isinstance(name, GpuTarget):
        return name
    if name == "local":
        try:
            return query_device(0)
        except Unavailable as error:
            raise Unavailable(f"gpu 'local': {error}; name a target instead: {', '.join(TARGETS)}") from error
    if not isinstance(name, str) or name not in TARGETS:
        raise InputError(f"gpu: expected one of {', '.join(TARGETS)}, got {show(name)}")
    return TARGETS[name]


def query_device(index: int) -> GpuTarget:
    """A live device as a target; `Unavailable`, with the reason, when there is none."""
    target = ffi.new("amk_target_t *")
    _lib.check(lib.amk_device_query(index, target))
    return GpuTarget.from_c(target, "the live device")


def same_device(target: GpuTarget, live: GpuTarget) -> bool:
    """Whether the target describes the product that the live device is."""
    if (target.sm_count, target.cc_major, target.cc_minor) != (live.sm_count, live.cc_major, live.cc_minor):
        return False
    return abs(live.hbm_bytes - target.hbm_bytes) <= MEMORY_TOLERANCE * target.hbm_bytes


def preset_of(live: GpuTarget) -> str | None:
    """The name of the preset that describes a live device."""
    return next((name for name, preset in TARGETS.items() if same_device(preset, live)), None)
