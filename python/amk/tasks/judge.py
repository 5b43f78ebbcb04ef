"""What an output must be: written, finite, right, and nothing else touched; and what a row must be: one that tells.

In: bytes of a block before and after a launch, expected values in float64. Out: nothing, or a `Refused` with a code and
a sentence. A comparison that zeros, or what stood there before, would pass as well proves nothing, and is refused too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Rejected
from .native import Judgement, native
from .operands import POISON, Block, Place, each_chunk, values_of
from .workloads import Tolerance

__all__ = [
    *("REASONS", "Refused", "compare", "judge_in_numpy", "judge_outputs", "judgement", "require_telling"),
    "same_bytes",
]

# code -> what it stands for; the codes are those of a record.
REASONS = {
    "status": "an entry did not return what the row asks for",
    "failed": "a side could not be called, compiled or captured",
    "wrong-stream": "an entry worked on another stream than the one it was given",
    "synchronises": "an entry waited for its stream",
    "stale-output": "elements of an output were never written",
    "cached-result": "an output is that of earlier inputs",
    "non-finite": "NaN or infinity where the oracle has a number",
    "wrong-value": "an element lies outside the tolerance",
    "shape": "an output or the oracle has another shape or dtype than the row",
    "out-of-bounds": "memory that belongs to no output was written",
    "input-changed": "an input was written",
    "zero-passes": "an output of zeros would pass: the row proves nothing",
    "untouched-passes": "the output as it was before would pass: the row proves nothing",
    "too-fast": "faster than the memory of the device allows",
    "different-flags": "baseline and solution were compiled differently",
    "changed-workloads": "the rows are not those that task.toml was frozen with",
    "missing-row": "a row of the stage is missing, or is there twice",
    "missing-cubin": "the library does not hold, or did not run, the machine code it must",
    "unchecked-time": "a time without a passed check before and after it",
    "changed-library": "the library was replaced during the run",
    "worker": "the process that ran a row failed",
    "unbalanced-samples": "the two sides were not timed equally often",
}
_TELLING_SHARE = 0.5  # of the elements, at least, must fail for zeros


class Refused(Rejected):
    """A check that failed; `.reason` is one of REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def to_dict(self) -> dict[str, str]:
        return {"reason": self.reason, "message": str(self)}

    def __reduce__(self) -> tuple[type[Refused], tuple[str, str]]:  # type: ignore[override]
        return type(self), (self.reason, str(self))


def judgement(got: NDArray[Any], dtype: str, want: NDArray[np.float64], limit: Tolerance) -> Judgement:
    """Storage `got` against what it should be, of one shape: natively where that can be, and `got` has no gaps."""
    code = native()
    if code is None or not (got.flags.c_contiguous and got.flags.aligned):
        return judge_in_numpy(got, dtype, want, limit)
    return code.judge(got, dtype, np.ascontiguousarray(want, np.float64), limit.atol, limit.rtol)


def judge_in_numpy(got: NDArray[Any], dtype: str, want: NDArray[np.float64], limit: Tolerance) -> Judgement:
    """What the native judge is held against."""
    flat, wanted = got.reshape(-1), np.ascontiguousarray(want, np.float64).reshape(-1)

    def judge(part: slice) -> Judgement:
        want = wanted[part]
        with np.errstate(invalid="ignore", over="ignore"):
            value = values_of(flat[part], dtype).astype(np.float64)
            error, tolerated = np.abs(value - want), limit.atol + limit.rtol * np.abs(want)
        finite, finite_oracle = np.isfinite(value), np.isfinite(want)
        return Judgement(
            float(error.max(initial=0.0, where=finite & finite_oracle)),
            int(np.count_nonzero(~(error <= tolerated))),
            int(np.count_nonzero(np.abs(want) > tolerated)),
            _unwritten(flat[part], want),
            _first(~finite & finite_oracle, part.start),
            _first(~finite_oracle, part.start),
        )

    judged = each_chunk(flat.size, judge)
    errors, outside, zeros_outside, unwritten, *firsts = zip(*judged, strict=True) if judged else [()] * 6
    found = (min((at for at in first if at >= 0), default=-1) for first in firsts)
    return Judgement(max(errors, default=0.0), sum(outside), sum(zeros_outside), sum(unwritten), *found)


def _first(found: NDArray[np.bool_], offset: int) -> int:
    return offset + int(np.argmax(found)) if found.any() else -1


def same_bytes(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether every byte is the same; both are contiguous."""
    if one.shape != other.shape:
        return False
    code = native()
    if code is not None:
        return code.count_different(one, other) == 0
    return all(each_chunk(one.size, lambda part: np.array_equal(one[part], other[part])))


def compare(
    name: str, got: NDArray[Any], dtype: str, expected: NDArray[np.float64], limit: Tolerance
) -> tuple[float, int]:
    """(largest error, elements outside the tolerance) of storage `got`; Refused for a shape or a non-finite value."""
    _require_shape(name, got, expected)
    return _require_finite(name, got, dtype, expected, judgement(got, dtype, expected, limit))


def _require_shape(name: str, got: NDArray[Any], expected: NDArray[np.float64]) -> None:
    if got.shape != expected.shape:
        raise Refused("shape", f"{name}: expected shape {list(expected.shape)}, got {list(got.shape)}")


def _require_finite(
    name: str, got: NDArray[Any], dtype: str, expected: NDArray[np.float64], found: Judgement
) -> tuple[float, int]:
    at = found.first_non_finite
    if at >= 0:
        where = np.unravel_index(at, got.shape)
        value = values_of(got[where].reshape(1), dtype)[0]
        raise Refused("non-finite", f"{name}: element {at} is {value}, expected {expected[where]}")
    if found.first_non_finite_oracle >= 0:
        raise Refused("non-finite", f"{name}: the oracle itself has a non-finite value; the row asks too much")
    return found.largest, found.outside


def require_telling(block: Block, before: NDArray[np.uint8], expected: Mapping[str, NDArray[np.float64]]) -> None:
    """That neither zeros nor what the outputs hold before a launch would pass. `before` is the whole block."""
    for name, spec in block.row.outputs.items():
        want, limit = expected[name], block.row.tolerance[name]
        if want.shape != spec.shape:
            raise Refused("shape", f"{name}: the oracle made shape {list(want.shape)}, the row has {list(spec.shape)}")
        found = judgement(block.places[name].view(before), spec.dtype, want, limit)
        zeros_fail, before_fails = found.zeros_outside, found.outside
        if zeros_fail < _TELLING_SHARE * want.size:
            raise Refused(
                "zero-passes",
                f"{name}: zeros would pass for {want.size - zeros_fail} of {want.size} elements; expected inputs whose "
                f"result is larger than the tolerance for at least {100 * _TELLING_SHARE:.0f} %",
            )
        if before_fails < _TELLING_SHARE * want.size:
            raise Refused("untouched-passes", f"{name}: what it holds before a launch would pass")


def judge_outputs(
    block: Block,
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    expected: Mapping[str, NDArray[np.float64]],
    earlier: Callable[[], Mapping[str, NDArray[np.float64]]] | None = None,
) -> dict[str, float]:
    """The largest error of each output. Both arrays hold the bytes from out_begin to out_end; `earlier` makes what
    earlier inputs gave at the same addresses, which is asked for where an output is wrong."""
    errors = {}
    for name, spec in block.row.outputs.items():
        place = block.places[name]
        moved = Place(spec, place.offset - block.out_begin, place.nbytes)
        got = moved.view(after)
        limit = block.row.tolerance[name]
        _require_shape(name, got, expected[name])
        found = judgement(got, spec.dtype, expected[name], limit)
        if found.unwritten:
            raise Refused(
                "stale-output", f"{name}: {found.unwritten} of {got.size} elements were not written by the launch"
            )
        worst, outside = _require_finite(name, got, spec.dtype, expected[name], found)
        if outside:
            if earlier is not None and compare(name, got, spec.dtype, earlier()[name], limit)[1] == 0:
                raise Refused("cached-result", f"{name}: it is the result of earlier inputs at the same addresses")
            raise Refused(
                "wrong-value",
                f"{name}: {outside} of {got.size} elements are outside atol {limit.atol:g}, rtol {limit.rtol:g}; the "
                f"largest error is {worst:.4g}",
            )
        errors[name] = worst
    if damaged := block.damage(before, after):
        raise Refused("out-of-bounds", f"{damaged} bytes beside the outputs were written")
    return errors


def _unwritten(got: NDArray[Any], expected: NDArray[np.float64]) -> int:
    """Elements that still hold poison, which is NaN; of integers, those that should not be what poison is, too."""
    poison = np.frombuffer(bytes([POISON]) * got.dtype.itemsize, got.dtype)
    bits = f"u{got.dtype.itemsize}"
    found = got.view(bits) == poison.view(bits)
    if got.dtype.kind == "i" or got.dtype == np.uint8:
        found &= expected != float(poison[0])
    return int(np.count_nonzero(found))
