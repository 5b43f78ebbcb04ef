"""The one border between Python and libamk_tasks.so, the small library of kernel tasks.

In: `amk/_amk_tasks_abi.py` (generated from amk_task.h and amk_task_harness.h at build time) and the library beside it,
or at $AMK_TASKS_LIBRARY. Out: `open_library()`: ffi, lib, check. Opened when first asked for; a build without CUDA has
no such library, and says so in one sentence.
"""

from __future__ import annotations

import importlib.resources
import os
from functools import cache
from typing import Any, NamedTuple

from .. import _lib, errors

__all__ = ["Library", "library_path", "open_library"]

_FILE = "libamk_tasks.so"


class Library(NamedTuple):
    ffi: Any
    lib: Any
    path: str

    def check(self, status: int) -> None:
        """Returns when the call succeeded; else raises the exception of its status with the library's sentence."""
        if status != 0:
            raise _lib.exception_of(status, _lib.text_of(self.lib.amk_harness_last_error()), _FILE)


def library_path() -> str:
    override = os.environ.get("AMK_TASKS_LIBRARY")
    return override or os.fspath(importlib.resources.files("amk").joinpath(_FILE))  # type: ignore[arg-type]


@cache
def open_library() -> Library:
    """Unavailable where it was not built; BuildMismatch where it is another build's."""
    path = library_path()
    if not os.path.exists(path):
        built = _lib.build_info()["cuda"]["enabled"]
        why = "it is missing" if built else "this build has no CUDA, and without it no task has a kernel"
        raise errors.Unavailable(f"kernel tasks: expected {_FILE} at {path}: {why} (amk doctor; $AMK_TASKS_LIBRARY)")
    try:
        from .._amk_tasks_abi import ffi
    except ImportError as error:
        raise errors.BuildMismatch(
            f"amk/_amk_tasks_abi.py, which the build generates, is not there: {error}"
        ) from error
    try:
        lib = ffi.dlopen(path)
        found = lib.amk_harness_version()
    except (OSError, AttributeError, ffi.error) as error:
        raise errors.BuildMismatch(f"{_FILE}: expected a loadable library at {path}, got: {error}") from error
    wanted = ffi.integer_const("AMK_HARNESS_VERSION")
    if found != wanted:
        raise errors.BuildMismatch(f"{_FILE} at {path}: expected harness version {wanted}, got {found}")
    return Library(ffi, lib, path)
