"""AMK: one decode step of an LLM as one persistent kernel, proved before it runs and judged before it is timed.

Public names only. `evaluate`, `generate`, `loop`, `propose` and `search_space` are functions of modules that import
nothing heavy; the rest is loaded when first asked for, so that `import amk` stays cheap and works, for `amk doctor`,
even when the native library is missing. It must never open a GPU context.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from . import errors

# Functions named like their modules: bound here, at once, so that the name means the function ever after.
from .errors import (
    AmkError,
    BuildMismatch,
    DeviceError,
    InputError,
    InternalError,
    NonFinite,
    OutOfMemory,
    Rejected,
    StoreError,
    Unavailable,
    UnknownJob,
    UnsupportedModel,
)
from .evaluate import evaluate
from .generate import GeneratedToken, Generation, generate
from .loop import LoopResult, loop
from .propose import propose, search_space
from .verdict import Verdict

# name -> the module that has it
_LAZY = {
    "Checkpoint": "checkpoint",
    "Explanation": "explanation",
    "GpuTarget": "targets",
    "Image": "program",
    "MegakernelVM": "megakernel",
    "Oracle": "oracle",
    "Program": "program",
    "RecordStore": "records",
    "ReferenceVM": "vm",
    "Rejection": "program",
    "Report": "program",
    "ScheduleConfig": "config",
    "TARGETS": "targets",
    "Trial": "records",
    "explain": "explanation",
    "gdn_decode": "gdn",
    "lower": "program",
    "open_model": "embedded",
    "read_trials": "records",
    "resolve_target": "targets",
}

__all__ = [
    "TARGETS",
    "AmkError",
    "BuildMismatch",
    "Checkpoint",
    "DeviceError",
    "Explanation",
    "GeneratedToken",
    "Generation",
    "GpuTarget",
    "Image",
    "InputError",
    "InternalError",
    "LoopResult",
    "MegakernelVM",
    "NonFinite",
    "Oracle",
    "OutOfMemory",
    "Program",
    "RecordStore",
    "ReferenceVM",
    "Rejected",
    "Rejection",
    "Report",
    "ScheduleConfig",
    "StoreError",
    "Trial",
    "Unavailable",
    "UnknownJob",
    "UnsupportedModel",
    "Verdict",
    "build_info",
    "errors",
    "evaluate",
    "explain",
    "gdn_decode",
    "generate",
    "loop",
    "lower",
    "open_model",
    "propose",
    "read_trials",
    "resolve_target",
    "search_space",
]


def build_info() -> dict[str, Any]:
    """How the native library was built."""
    from . import _lib

    return _lib.build_info()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from .doctor import package_version

        return package_version()
    if name not in _LAZY:
        raise AttributeError(f"module 'amk' has no attribute {name!r}")
    value = getattr(import_module(f"amk.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
