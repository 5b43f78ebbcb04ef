"""The one border between Python and libamk: the only file that imports cffi.

In: `amk/_amk_abi.py` (generated from csrc/amk.h at build time) and libamk beside it, or at $AMK_LIBRARY. Out: `ffi`,
`lib`, `check(status)`, and the constants, enums and table layouts of the header as Python values, so that no number of
the interface is written down a second time. Importing fails with BuildMismatch when library and package disagree.
"""

from __future__ import annotations

import importlib.resources
import json
import os
from functools import cache
from typing import Any, NoReturn

import numpy as np

from . import errors

try:
    from ._amk_abi import ffi
except ImportError as error:
    raise errors.BuildMismatch(f"amk/_amk_abi.py, which the build generates, is not there: {error}") from error

__all__ = [
    "LIBRARY_PATH",
    "aligned_copy",
    "build_info",
    "check",
    "enum_names",
    "exception_of",
    "ffi",
    "has_call",
    "has_field",
    "lib",
    "limit",
    "owned",
    "pointer",
    "read_table",
    "table_dtype",
    "text_of",
]

# The order in which amk_struct_sizes lists them (a promise of the header).
_SIZED = (
    "params buffer instruction counter binding page launch target program_tables model schedule rejection cost "
    "vm_options access strings task_cost gdn_decode task_time"
)


def _find_library() -> str:
    override = os.environ.get("AMK_LIBRARY")
    if override:
        return override
    return os.fspath(importlib.resources.files("amk").joinpath("libamk.so"))  # type: ignore[arg-type]


def _open_library(path: str) -> Any:
    try:
        library = ffi.dlopen(path)
    except OSError as error:
        raise errors.BuildMismatch(f"libamk: expected a loadable library at {path}, got: {error}") from error
    try:
        _check_same_build(library, path)
    except (AttributeError, ffi.error) as error:  # a symbol of the header that the library lacks
        raise errors.BuildMismatch(f"libamk at {path}: {error}") from error
    return library


def _check_same_build(library: Any, path: str) -> None:
    """The drift guard: a library of another header would read our structs wrongly and never say so."""
    version = limit("ABI_VERSION_MAJOR") << 16 | limit("ABI_VERSION_MINOR")
    if (found := library.amk_abi_version()) != version:
        raise errors.BuildMismatch(
            f"libamk at {path}: expected ABI {version >> 16}.{version & 0xFFFF}, got {found >> 16}.{found & 0xFFFF}"
        )
    names = [f"amk_{name}_t" for name in _SIZED.split()]
    sizes = ffi.new("uint64_t[]", len(names))
    count = library.amk_struct_sizes(sizes, len(names))
    if count != len(names):
        raise errors.BuildMismatch(f"libamk at {path}: expected {len(names)} structs, got {count}")
    for name, size in zip(names, sizes, strict=True):
        if ffi.sizeof(name) != size:
            raise errors.BuildMismatch(f"libamk at {path}: {name}: expected {ffi.sizeof(name)} bytes, got {size}")


def limit(name: str) -> int:
    """A `#define` of the header without its prefix: limit("MAX_WAITS")."""
    return ffi.integer_const("AMK_" + name)


@cache
def enum_names(ctype: str, prefix: str) -> dict[int, str]:
    """Number -> name without the prefix, in order: enum_names("amk_dtype", "AMK_DTYPE_")[0] == "F32"."""
    elements = ffi.typeof(ctype).elements
    return {number: elements[number].removeprefix(prefix) for number in sorted(elements)}


@cache
def table_dtype(ctype: str) -> np.dtype:
    """The numpy dtype of a POD table's record; offsets and size are those of the C struct."""
    return _numpy_dtype(ffi.typeof(ctype))


def _numpy_dtype(ctype: Any) -> np.dtype:
    if ctype.kind == "array":
        if ctype.item.cname == "char":
            return np.dtype(f"S{ctype.length}")
        return np.dtype((_numpy_dtype(ctype.item), (ctype.length,)))
    if ctype.kind == "struct":
        return np.dtype(
            {
                "names": [name for name, _ in ctype.fields],
                "formats": [_numpy_dtype(field.type) for _, field in ctype.fields],
                "offsets": [field.offset for _, field in ctype.fields],
                "itemsize": ffi.sizeof(ctype),
            }
        )
    letter = "f" if ctype.cname in ("float", "double") else "u" if ctype.cname.startswith("u") else "i"
    return np.dtype(f"{letter}{ffi.sizeof(ctype)}")


def read_table(ctype: str, address: Any, count: int) -> np.ndarray:
    """A copy of `count` records at a borrowed pointer (which may be NULL when there are none)."""
    dtype = table_dtype(ctype)
    if count == 0:
        return np.zeros(0, dtype)
    return np.frombuffer(ffi.buffer(address, count * dtype.itemsize), dtype).copy()


def pointer(ctype: str, array: np.ndarray) -> Any:
    """The address of a C-contiguous array's first record; keep the array (or this) alive while C reads it."""
    return ffi.from_buffer(f"{ctype}[]", array) if array.nbytes else ffi.NULL


def aligned_copy(array: np.ndarray, alignment: int) -> np.ndarray:
    """A copy whose first byte lies on a multiple of `alignment`."""
    room = np.empty(array.nbytes + alignment, np.uint8)
    start = -room.ctypes.data % alignment
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def text_of(address: Any) -> str:
    """A C string; bytes that are no UTF-8 are shown as escapes."""
    return "" if address == ffi.NULL else ffi.string(address).decode("utf-8", "backslashreplace")


def owned(handle: Any, destroy: Any) -> Any:
    """The handle behind an out pointer, destroyed with the Python object."""
    return ffi.gc(handle[0], destroy)


def has_call(name: str) -> bool:
    """Whether the header that this package was built with has a call of this name."""
    return hasattr(lib, name)


def has_field(ctype: str, name: str) -> bool:
    return any(field == name for field, _ in ffi.typeof(ctype).fields)


def build_info() -> dict[str, Any]:
    """What the library says of its own build."""
    return json.loads(text_of(lib.amk_build_info()))


_EXCEPTIONS: dict[str, type[errors.AmkError]] = {
    "INVALID_ARGUMENT": errors.InputError,
    "INPUT": errors.InputError,
    "UNSUPPORTED": errors.UnsupportedModel,
    "REJECTED": errors.Rejected,
    "OUT_OF_MEMORY": errors.OutOfMemory,
    "MISMATCH": errors.BuildMismatch,
    "UNAVAILABLE": errors.Unavailable,
    "DEVICE_FAULT": errors.DeviceFault,
    "TIMEOUT": errors.DeviceTimeout,
    "POISONED": errors.DevicePoisoned,
    "NONFINITE": errors.NonFinite,
    "INTERNAL": errors.InternalError,
}


def check(status: int) -> None:
    """Returns when the call succeeded; else raises the exception of its status with the library's sentence."""
    if status != 0:
        _raise(status)


def _raise(status: int) -> NoReturn:
    raise exception_of(status, text_of(lib.amk_last_error()), "libamk")


def exception_of(status: int, reason: str, library: str) -> errors.AmkError:
    """The exception that a status other than 0 stands for."""
    exception = _EXCEPTIONS.get(enum_names("amk_status", "AMK_ERR_").get(status, ""))
    if exception is None:
        return errors.InternalError(f"{library} returned {status}, which is no status of its header")
    return exception(reason or f"{library} returned {status} without a reason")


LIBRARY_PATH = _find_library()
lib = _open_library(LIBRARY_PATH)
