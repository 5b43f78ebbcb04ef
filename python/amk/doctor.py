"""What this installation is: versions, the library and how it was built, the host, and the environment that was read.

In: nothing. Out: a plain dict; a part that is broken is described in its place instead of raising, because this is what
people run when something is broken. It must never start a GPU context and never change anything.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

from .errors import AmkError
from .evaluate import host_cpu

__all__ = ["ENVIRONMENT", "diagnose", "package_version"]

# Every variable that the package reads, and what for.
ENVIRONMENT = {
    "AMK_LIBRARY": "path of libamk instead of the one in the package",
    "AMK_CACHE_DIR": "where reference logits are cached",
    "XDG_CACHE_HOME": "parent of the cache directory when AMK_CACHE_DIR is not set",
}


def package_version() -> str:
    try:
        return metadata.version("amk")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"


def diagnose() -> dict[str, Any]:
    """`problems` is empty when everything that this build promises is in place."""
    problems: list[str] = []
    found: dict[str, Any] = {
        "version": package_version(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "numpy": _version_of("numpy", problems),
        "cffi": _version_of("cffi", problems),
        "platform": platform.platform(),
        "cpu": {"name": host_cpu(), "cores": os.cpu_count()},
        "library": _library(problems),
        "environment": {
            name: {"value": os.environ.get(name), "purpose": purpose} for name, purpose in ENVIRONMENT.items()
        },
    }
    found["gpu"] = _live_gpu()
    found["problems"] = problems
    return found


def _library(problems: list[str]) -> dict[str, Any]:
    try:
        from . import _lib

        return {
            "path": _lib.LIBRARY_PATH,
            "abi": f"{_lib.limit('ABI_VERSION_MAJOR')}.{_lib.limit('ABI_VERSION_MINOR')}",
            "build": _lib.build_info(),
        }
    except (AmkError, ImportError, ValueError) as error:
        problems.append(f"library: {error}")
        return {"path": os.environ.get("AMK_LIBRARY"), "abi": None, "build": None}


def _live_gpu() -> dict[str, Any]:
    """A machine without a GPU is healthy, so the reason is no problem."""
    try:
        from .targets import resolve_target

        return {"name": resolve_target("local").name, "reason": None}
    except (AmkError, ImportError) as error:
        return {"name": None, "reason": str(error)}


def _version_of(package: str, problems: list[str]) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        problems.append(f"{package}: not installed")
        return None
