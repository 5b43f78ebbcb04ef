"""Passes over whole operands on all cores, in C++: what lies there against what should, bytes that differ, bf16.

In: contiguous arrays. Out: plain figures, or arrays. `native()` is None where there is no library of tasks: numpy then
does the same (`judge.py`, `operands.py`), bit for bit, and is what this is held against.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._lib import enum_names
from ..errors import Unavailable
from .harness_library import Library, open_library
from .workloads import DTYPES

__all__ = ["Judgement", "Native", "native"]


class Judgement(NamedTuple):
    """Storage against float64, each operation rounded once."""

    largest: float  # |got - want| where both are finite
    outside: int  # elements without |got - want| <= atol + rtol * |want|; NaN is outside
    zeros_outside: int  # that a zero in their place would miss
    unwritten: int  # still poison; of integers only where that is not what they should be
    first_non_finite: int  # where the oracle is finite; -1: none
    first_non_finite_oracle: int


class Native:
    def __init__(self, library: Library) -> None:
        self._library = library

    def judge(self, got: NDArray[Any], dtype: str, want: NDArray[np.float64], atol: float, rtol: float) -> Judgement:
        """Both are C-contiguous and of one size."""
        ffi, lib, _ = self._library
        out = ffi.new("amk_harness_judgement_t*")
        number = _dtype_number(self._library, dtype)
        self._library.check(
            lib.amk_harness_judge(self._at(got), number, self._at(want, "double*"), want.size, atol, rtol, out)
        )
        return Judgement(*(getattr(out, name) for name in Judgement._fields))

    def count_different(self, one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
        """Bytes that differ; both are contiguous and of one size."""
        out = self._library.ffi.new("int64_t*")
        self._library.check(
            self._library.lib.amk_harness_count_different(self._at(one), self._at(other), one.nbytes, out)
        )
        return int(out[0])

    def to_bf16(self, values: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
        call = self._library.lib.amk_harness_to_bf16
        self._library.check(call(self._at(values, "float*"), self._at(out, "uint16_t*"), out.size))

    def from_bf16(self, bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
        call = self._library.lib.amk_harness_from_bf16
        self._library.check(call(self._at(bits, "uint16_t*"), self._at(out, "float*"), out.size))

    def _at(self, array: NDArray[Any], kind: str = "void*") -> Any:
        """The address; whoever calls holds the array."""
        return self._library.ffi.cast(kind, array.ctypes.data)


def _dtype_number(library: Library, dtype: str) -> int:
    name = DTYPES[dtype][1]
    if name == "I64":
        return int(library.ffi.integer_const("AMK_TASK_DTYPE_I64"))
    return next(number for number, found in enum_names("amk_dtype", "AMK_DTYPE_").items() if found == name)


@cache
def native() -> Native | None:
    """None where this build has no library of tasks; a library that cannot be used is a BuildMismatch."""
    try:
        return Native(open_library())
    except Unavailable:
        return None
