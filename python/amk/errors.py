"""The exceptions of AMK, one class per outcome that a caller treats differently.

`AmkError` is the base of all; `.code` is a stable string for machines, the message is a sentence for people that says
what is wrong, where, what was expected and what was found. Nothing here imports anything.
"""

from __future__ import annotations

__all__ = [
    "AmkError",
    "BuildMismatch",
    "DeviceBusy",
    "DeviceError",
    "DeviceFault",
    "DevicePoisoned",
    "DeviceTimeout",
    "InputError",
    "InternalError",
    "NonFinite",
    "OutOfMemory",
    "Rejected",
    "StoreError",
    "Unavailable",
    "UnknownJob",
    "UnsupportedModel",
    "WorkerDied",
    "show",
]


class AmkError(Exception):
    """Base of every error that AMK raises on purpose."""

    code: str = "error"


class InputError(AmkError):
    """A file or an argument is missing, malformed or out of its domain."""

    code = "input"


class UnknownJob(InputError):
    """There is no job of this name, or what it left cannot be read."""

    code = "unknown-job"


class UnsupportedModel(AmkError):
    """The model is well formed but asks for something AMK does not model; `.key` names the config key."""

    code = "unsupported-model"

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key

    def __reduce__(self) -> tuple[type[UnsupportedModel], tuple[str, str]]:
        return type(self), (str(self), self.key)


class Rejected(AmkError):
    """A schedule or a program was judged and refused; `.report` is the validator's, where there is one."""

    code = "rejected"

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[type[Rejected], tuple[str, object]]:
        return type(self), (str(self), self.report)


class BuildMismatch(AmkError):
    """The native library and the Python package, or the build and the device, do not belong together."""

    code = "build-mismatch"


class DeviceError(AmkError):
    """The device failed, or a program running on it did."""

    code = "device"


class Unavailable(DeviceError):
    """Needs a GPU, a driver or a build option that is not there."""

    code = "unavailable"


class DeviceFault(DeviceError):
    """The device reported a fault."""

    code = "device-fault"


class DeviceTimeout(DeviceError):
    """A launch made no progress within its deadline."""

    code = "timeout"


class DevicePoisoned(DeviceError):
    """An earlier fault makes this object unusable."""

    code = "poisoned"


class DeviceBusy(DeviceError):
    """Another process of AMK times something on this device."""

    code = "busy"


class WorkerDied(DeviceError):
    """The process that used the device crashed, hung or spoke nonsense; this one is unharmed."""

    code = "worker-died"


class StoreError(AmkError):
    """A log of trials is locked, cannot be written, or is damaged: nothing was acknowledged that is not there."""

    code = "store"


class NonFinite(AmkError):
    """NaN or infinity where a number is due."""

    code = "non-finite"


class InternalError(AmkError):
    """A promise of AMK's own code was broken: always a bug worth reporting."""

    code = "internal"


class OutOfMemory(AmkError):
    """Host or device memory ran out."""

    code = "out-of-memory"


def show(value: object) -> str:
    """A value for a message: its repr, cut short, whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # an integer too long to print, a repr that recurses or fails
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
