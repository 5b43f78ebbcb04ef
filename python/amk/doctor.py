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
from .nvml import driver_version

__all__ = ["ENVIRONMENT", "describe", "diagnose", "package_version"]

# Every variable that the package reads, and what for.
ENVIRONMENT = {
    "AMK_LIBRARY": "path of libamk instead of the one in the package",
    "AMK_CACHE_DIR": "where reference logits are cached",
    "AMK_HOME": "where jobs are kept (in jobs/)",
    "XDG_STATE_HOME": "parent of amk/jobs when AMK_HOME is not set",
    "XDG_CACHE_HOME": "parent of the cache directory when AMK_CACHE_DIR is not set, and of the locks of devices",
    "RAY_ADDRESS": "the cluster of a loop with the engine ray, instead of one on this computer",
    "NO_COLOR": "no colours in the bar of a loop",
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


def describe(found: dict[str, Any]) -> str:
    """What `diagnose` found, for people."""
    library = found["library"]
    build = library["build"] or {}
    lines = [
        f"amk       {found['version']} (ABI {library['abi']})",
        f"library   {library['path']}",
        f"build     {build.get('build_id', '')} {build.get('compiler', '')} {build.get('cxx_flags', '')}".rstrip(),
        f"cuda      {_cuda_line(build.get('cuda') or {})}",
        f"gpu       {_gpu_line(found['gpu'])}",
        f"python    {found['python']['version']} ({found['python']['executable']})",
        f"packages  numpy {found['numpy']}, cffi {found['cffi']}",
        f"host      {found['cpu']['name']}, {found['cpu']['cores']} cores, {found['platform']}",
    ]
    for name, entry in found["environment"].items():
        value = "not set" if entry["value"] is None else repr(entry["value"])
        lines.append(f"env       {name}: {value} ({entry['purpose']})")
    lines += [f"PROBLEM   {problem}" for problem in found["problems"]] or ["no problem found"]
    return "\n".join(lines)


def _cuda_line(cuda: dict[str, Any]) -> str:
    if not cuda.get("enabled"):
        return "not in this build: the reference machine and the cost model only"
    kernels = f"architectures {cuda.get('architectures')}, threads per block {cuda.get('variants')}"
    return f"nvcc {cuda.get('nvcc')}, {kernels}, flags {cuda.get('flags')}"


def _gpu_line(gpu: dict[str, Any]) -> str:
    if not gpu["devices"]:
        return f"none: {gpu['reason']}"
    shown = []
    for live in gpu["devices"]:
        size = f"{live['sm_count']} SMs, compute capability {live['compute_capability']}, {live['memory_gb']:.0f} GB"
        shown.append(f"cuda:{live['index']} {live['name']} ({size}, target {live['target']}, {live['uuid']})")
    return f"{'; '.join(shown)}, driver {gpu['driver'] or 'unknown'}"


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
    found: dict[str, Any] = {"name": None, "driver": driver_version(), "devices": [], "reason": None}
    try:
        from .megakernel import device_count, device_uuid
        from .targets import preset_of, query_device

        for index in range(device_count()):
            live = query_device(index)
            found["devices"].append(
                {
                    "index": index,
                    "name": live.name,
                    "uuid": device_uuid(index),
                    "target": preset_of(live) or "local",
                    "sm_count": live.sm_count,
                    "compute_capability": f"{live.cc_major}.{live.cc_minor}",
                    "memory_gb": live.hbm_bytes / 1e9,
                }
            )
        found["name"] = found["devices"][0]["name"] if found["devices"] else None
    except (AmkError, ImportError) as error:
        found["reason"] = str(error)
    return found


def _version_of(package: str, problems: list[str]) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        problems.append(f"{package}: not installed")
        return None
