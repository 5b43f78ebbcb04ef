"""A row's operands as bytes of one block of memory: inputs, then outputs, each between guards, everything else poison.

In: a row, values by operand. Out: the block's bytes, the tensors in it by offset, and, after a launch, the outputs
taken out of the bytes again. What an output must not touch (its guards, the gaps between its strides) is found changed
or not. Rounding to f16 and bf16 is to nearest even.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError
from .native import native
from .workloads import DTYPES, Row, TensorSpec

__all__ = ["POISON", "Block", "FreshInputs", "Place", "each_chunk", "stored", "values_of"]

POISON = 0xFF  # of a byte: NaN in every float type, -1 in every integer
GUARD_BYTES = 256
ALIGN_BYTES = 256
CHUNK = 1 << 18  # elements
_FEW_CHUNKS = 8  # that are not worth a thread
_MOST_WORKERS = 16
Result = TypeVar("Result")
_TILE = 4_194_301  # a prime: what repeats never meets the same row, column or piece of a launch twice in the same place


class FreshInputs(np.random.Generator):
    """A generator whose large arrays of floats repeat after some four million random values: drawing billions of them
    would take longer than everything else."""

    @classmethod
    def of(cls, *seed: int) -> FreshInputs:
        return cls(np.random.PCG64(np.random.SeedSequence(seed)))

    def standard_normal(self, size: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self._tiled(lambda n: super(FreshInputs, self).standard_normal(n, dtype), size)

    def random(self, size: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self._tiled(lambda n: super(FreshInputs, self).random(n, dtype), size)

    def _tiled(self, draw: Any, size: Any) -> Any:
        if size is None or int(np.prod(size)) <= _TILE:
            return draw(size)
        tile = draw(_TILE)
        out = np.empty(size, tile.dtype)
        flat = out.reshape(-1)

        def fill(at: int) -> None:
            part = flat[at : at + _TILE]
            part[:] = tile[: part.size]

        list(_workers().map(fill, range(0, flat.size, _TILE)))
        return out


@dataclass(frozen=True)
class Place:
    """One operand inside the block."""

    spec: TensorSpec
    offset: int
    nbytes: int

    def view(self, block: NDArray[np.uint8]) -> NDArray[Any]:
        """The operand's elements as the strides have them; an absent dimension of stride 0 is repeated."""
        dtype = DTYPES[self.spec.dtype][0]
        flat = block[self.offset : self.offset + self.nbytes].view(dtype)
        steps = tuple(step * dtype.itemsize for step in self.spec.stride)
        return np.lib.stride_tricks.as_strided(flat, self.spec.shape, steps)


class Block:
    """Where the operands of a row lie. `out_begin` and `out_end` enclose the outputs and their guards."""

    def __init__(self, row: Row, operands: Mapping[str, Sequence[str]]) -> None:
        self.row = row
        self.places: dict[str, Place] = {}
        at = 0
        for names, specs in ((operands["inputs"], row.inputs), (operands["outputs"], row.outputs)):
            if specs is row.outputs:
                self.out_begin = at = _up(at)
            for name in names:
                if name in specs:
                    at = _up(at + GUARD_BYTES)
                    self.places[name] = Place(specs[name], at, specs[name].extent * specs[name].itemsize)
                    at += self.places[name].nbytes
        self.out_end = self.nbytes = _up(at + GUARD_BYTES)
        self.inputs = tuple(self.places.get(name) for name in operands["inputs"])
        self.outputs = tuple(self.places.get(name) for name in operands["outputs"])
        self.scalars = tuple(row.scalars[name] for name in operands["scalars"])

    def fill(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
        """The block's bytes before a launch: inputs, rounded, in their places, poison everywhere else."""
        block = np.empty(self.nbytes, np.uint8)

        def poison(part: slice) -> None:
            block[part] = POISON

        each_chunk(block.size, poison)
        for name, values in inputs.items():
            if name not in self.places:
                raise InternalError(f"the oracle made an input {name!r}, which row {self.row.name} does not have")
            place = self.places[name]
            view = place.view(block)
            if place.spec.is_contiguous and np.shape(values) == place.spec.shape:
                stored(values, place.spec.dtype, view)
                continue
            array = stored(values, place.spec.dtype)
            for step, n in enumerate(place.spec.stride):
                if n == 0:  # the first of those that lie at one place
                    array = np.take(array, [0], axis=step)
                    view = view[(slice(None),) * step + (slice(0, 1),)]
            view[...] = array
        return block

    def damage(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> int:
        """Bytes from out_begin on that changed and belong to no output. Both arrays hold that part only."""
        if self.row.rejects is None and all(self.places[name].spec.is_contiguous for name in self.row.outputs):
            ends = [self.out_begin, *self._edges(), self.out_end]
            return sum(
                int(np.count_nonzero(before[low - self.out_begin : high - self.out_begin]
                                     != after[low - self.out_begin : high - self.out_begin]))
                for low, high in zip(ends[::2], ends[1::2], strict=True)
            )  # fmt: skip
        changed = before != after
        for name in self.row.outputs:
            place = self.places[name]
            moved = Place(place.spec, place.offset - self.out_begin, place.nbytes)
            mask = np.zeros(self.out_end - self.out_begin, np.uint8)
            view = moved.view(mask)
            view[...] = (
                np.iinfo(view.dtype).max
                if view.dtype.kind in "iu"
                else np.array(-1, f"i{view.itemsize}").view(view.dtype)
            )
            changed &= mask == 0
        return int(np.count_nonzero(changed))

    def _edges(self) -> list[int]:
        found = []
        for name in self.row.outputs:
            found += [self.places[name].offset, self.places[name].offset + self.places[name].nbytes]
        return found


def each_chunk(size: int, work: Callable[[slice], Result]) -> list[Result]:
    """What `work` makes of each CHUNK of `size` elements, in order; of a large operand, as many at once as there are
    cores (numpy holds no lock while it computes). The first that raises is raised. `work` does not come back here with
    more than a chunk."""
    parts = [slice(at, min(at + CHUNK, size)) for at in range(0, size, CHUNK)]
    return list(map(work, parts) if len(parts) < _FEW_CHUNKS else _workers().map(work, parts))


@functools.cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_WORKERS), "amk-chunks")


def stored(array: NDArray[Any], dtype: str, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Values -> the storage of `dtype`, in `out`, which is contiguous, where it is given; integers must fit as they
    are."""
    storage = DTYPES[dtype][0]
    if out is None:
        out = np.empty(np.shape(array), storage)
    if dtype == "bf16":
        values = np.ascontiguousarray(array, np.float32)
        if (code := native()) is not None:
            code.to_bf16(values, out)
        else:
            _in_chunks(values, out, _to_bf16)
        return out
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, array, casting="unsafe")
    if storage.kind != "f" and not np.array_equal(out, array):
        raise InternalError(f"the oracle made values that are no {dtype}")
    return out


def values_of(array: NDArray[Any], dtype: str, out: NDArray[np.float32] | None = None) -> NDArray[Any]:
    """The storage of `dtype` -> float32 values, or integers as they are; exact. Values of bf16 go to `out`, contiguous,
    where it is given."""
    if dtype == "bf16":
        bits = np.ascontiguousarray(array)
        if out is None:
            out = np.empty(np.shape(array), np.float32)
        if (code := native()) is not None:
            code.from_bf16(bits, out)
        else:
            _in_chunks(bits, out, _from_bf16)
        return out
    return np.asarray(array).astype(np.float32) if dtype == "f16" else np.asarray(array)


def _in_chunks(array: NDArray[Any], out: NDArray[Any], convert: Callable[[NDArray[Any]], Any]) -> None:
    """Pieces that stay in the cache: the arrays in between would be larger than the operands."""
    flat, source = out.reshape(-1), array.reshape(-1)

    def one(part: slice) -> None:
        flat[part] = convert(source[part])

    each_chunk(flat.size, one)


def _to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded)


def _from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _up(offset: int) -> int:
    return -(-offset // ALIGN_BYTES) * ALIGN_BYTES
