"""What the driver says of a GPU while it is measured: clocks, power, temperature, and who else computes on it.

In: a device's UUID. Out: a plain dict; what the driver does not offer, or refuses to say, is None and never a guess.
NVML is opened by name at run time, so a machine without a driver loses nothing but these facts.
Names and numbers: NVIDIA Management Library reference manual (nvml.h), which keeps them stable.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_uint, c_ulonglong, c_void_p
from typing import Any

__all__ = ["driver_version", "held_back_by", "snapshot"]

_LIBRARY = "libnvidia-ml.so.1"
_SUCCESS = 0
_NAME_BYTES = 96
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_TEMPERATURE_GPU = 0
_ECC_UNCORRECTED, _ECC_SINCE_REBOOT = 1, 0
_MAX_PROCESSES = 256

# nvmlClocksEventReasons
_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
_SLOWER = {"sw_power_cap", "hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"}


class _ProcessInfo(Structure):  # nvmlProcessInfo_t
    _fields_ = [
        ("pid", c_uint),
        ("used_bytes", c_ulonglong),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
    ]


def snapshot(uuid: str) -> dict[str, Any]:
    """The device as it is now. `compute_pids` are processes with a context on it, ours among them where the driver
    numbers processes as we do (in a container it may not)."""
    found: dict[str, Any] = dict.fromkeys(
        ("driver_version", "name", "sm_clock_mhz", "memory_clock_mhz", "max_sm_clock_mhz", "throttle_reasons",
         "power_w", "power_limit_w", "temperature_c", "ecc_uncorrected", "compute_pids")
    )  # fmt: skip
    nvml = _open()
    if nvml is None:
        return found
    try:
        found["driver_version"] = _text(nvml, "nvmlSystemGetDriverVersion")
        device = c_void_p()
        if _call(nvml, "nvmlDeviceGetHandleByUUID", c_char_p(uuid.encode()), byref(device)) != _SUCCESS:
            return found
        found |= {
            "name": _text(nvml, "nvmlDeviceGetName", device),
            "sm_clock_mhz": _number(nvml, "nvmlDeviceGetClockInfo", device, c_uint(_CLOCK_SM)),
            "memory_clock_mhz": _number(nvml, "nvmlDeviceGetClockInfo", device, c_uint(_CLOCK_MEMORY)),
            "max_sm_clock_mhz": _number(nvml, "nvmlDeviceGetMaxClockInfo", device, c_uint(_CLOCK_SM)),
            "throttle_reasons": _reasons(_wide(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", device)),
            "power_w": _thousandth(_number(nvml, "nvmlDeviceGetPowerUsage", device)),
            "power_limit_w": _thousandth(_number(nvml, "nvmlDeviceGetEnforcedPowerLimit", device)),
            "temperature_c": _number(nvml, "nvmlDeviceGetTemperature", device, c_uint(_TEMPERATURE_GPU)),
            "ecc_uncorrected": _wide(
                nvml, "nvmlDeviceGetTotalEccErrors", device, c_uint(_ECC_UNCORRECTED), c_uint(_ECC_SINCE_REBOOT)
            ),
            "compute_pids": _compute_pids(nvml, device),
        }
    finally:
        _call(nvml, "nvmlShutdown")
    return found


def driver_version() -> str | None:
    nvml = _open()
    if nvml is None:
        return None
    try:
        return _text(nvml, "nvmlSystemGetDriverVersion")
    finally:
        _call(nvml, "nvmlShutdown")


def held_back_by(*snapshots: dict[str, Any]) -> list[str]:
    """Reasons, in any of the snapshots, for which the clocks were lower than the device could run."""
    return sorted(_SLOWER & {reason for taken in snapshots for reason in taken.get("throttle_reasons") or ()})


def _open() -> Any:
    """The library, initialised; None without a driver. Never opens a context, and says nothing."""
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    return nvml if _call(nvml, "nvmlInit_v2") == _SUCCESS else None


def _call(nvml: Any, name: str, *arguments: Any) -> int:
    function = getattr(nvml, name, None)
    if function is None:  # an older driver
        return -1
    function.restype = ctypes.c_int
    return function(*arguments)


def _text(nvml: Any, name: str, *arguments: Any) -> str | None:
    out = (c_char * _NAME_BYTES)()
    if _call(nvml, name, *arguments, out, c_uint(_NAME_BYTES)) != _SUCCESS:
        return None
    return out.value.decode("utf-8", "replace")


def _number(nvml: Any, name: str, *arguments: Any) -> int | None:
    out = c_uint()
    return out.value if _call(nvml, name, *arguments, byref(out)) == _SUCCESS else None


def _wide(nvml: Any, name: str, *arguments: Any) -> int | None:
    out = c_ulonglong()
    return out.value if _call(nvml, name, *arguments, byref(out)) == _SUCCESS else None


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _reasons(mask: int | None) -> list[str] | None:
    if mask is None:
        return None
    known = [name for bit, name in _REASONS.items() if mask & bit]
    rest = mask & ~sum(_REASONS)
    return known + ([f"0x{rest:x}"] if rest else [])


def _compute_pids(nvml: Any, device: c_void_p) -> list[int] | None:
    count = c_uint(_MAX_PROCESSES)
    table = (_ProcessInfo * _MAX_PROCESSES)()
    listing = ctypes.cast(table, POINTER(_ProcessInfo))
    if _call(nvml, "nvmlDeviceGetComputeRunningProcesses_v3", device, byref(count), listing) != _SUCCESS:
        return None  # unknown, or more of them than there is room for
    return sorted(table[i].pid for i in range(min(count.value, _MAX_PROCESSES)))
