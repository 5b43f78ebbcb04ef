"""y = norm(h) * (1 + scale) + shift, with h = x, x + residual, or residual + gate * x, over the last of [B, S, C].

The norm is LayerNorm (arXiv:1607.06450), or RMS norm (arXiv:1910.07467) where the scalar rms is 1; weight and bias [C]
belong to it. With a residual, h itself is the output residual_out; y is the norm of h before that is rounded.
Layouts of gate, scale and shift: [1], [C], [1, C], [B, C], [B, 1, C], [1, 1, C], [1, S, C], [B, S, C], and
[B, F, 1, C], where frame f holds S / F rows. Rank 2 is one row per batch, never one per position.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

__all__ = ["OPERANDS", "make_inputs", "reference", "torch_reference"]

OPERANDS = {
    "inputs": ("x", "residual", "gate", "scale", "shift", "weight", "bias"),
    "outputs": ("y", "residual_out"),
    "scalars": ("eps", "rms"),
}
CHUNK_ELEMENTS = 1 << 16  # of x in float64 at a time: it stays in the cache
# mean and standard deviation of what is drawn; x is not centred, so that a norm without the mean is found out
DRAWN = {"x": (0.5, 1.0), "residual": (0.25, 1.0), "scale": (0.0, 0.5), "weight": (1.0, 0.2), "bias": (0.0, 0.3)}


def make_inputs(row: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    out = {}
    for name, spec in row.inputs.items():
        mean, deviation = DRAWN.get(name, (0.0, 1.0))
        values = rng.standard_normal(spec.shape, np.float32)
        if deviation != 1:
            values *= np.float32(deviation)
        if mean != 0:
            values += np.float32(mean)
        out[name] = values
    return out


def reference(row: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Row by row independent, so chunks of rows go to threads: the arithmetic and its order do not depend on them."""
    shape = inputs["x"].shape
    out = {name: np.empty(shape, np.float64) for name in row.outputs}

    def one(chunk: tuple[int, slice]) -> None:
        at = (chunk[0], chunk[1])
        h = inputs["x"][at].astype(np.float64)
        if "gate" in inputs:
            h *= _modulation(inputs["gate"], shape, *chunk)
        if "residual" in inputs:
            h += inputs["residual"][at]
            out["residual_out"][at] = h
        if not row.scalars["rms"]:
            h -= h.mean(axis=-1, keepdims=True)
        mean_square = np.einsum("ij,ij->i", h, h)[:, None] / shape[2]
        h /= np.sqrt(mean_square + row.scalars["eps"])
        if "weight" in inputs:
            h *= inputs["weight"]
        if "bias" in inputs:
            h += inputs["bias"]
        h *= 1 + _modulation(inputs["scale"], shape, *chunk)
        np.add(h, _modulation(inputs["shift"], shape, *chunk), out=out["y"][at])

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.map(one, _chunks(shape)):
            pass
    return out


def _chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    batches, rows, columns = shape
    step = max(1, CHUNK_ELEMENTS // columns)
    for batch in range(batches):
        for first in range(0, rows, step):
            yield batch, slice(first, min(first + step, rows))


def _modulation(values: np.ndarray, shape: tuple[int, ...], batch: int, rows: slice) -> np.ndarray:
    """What multiplies these rows of one batch: [rows or 1, C or 1]."""
    if values.ndim > 1:
        values = values[batch if values.shape[0] > 1 else 0]
    if values.ndim == 2 and values.shape[0] > 1:
        values = values[rows]
    elif values.ndim == 3:
        frame_rows = shape[1] // values.shape[0]
        values = values[np.arange(rows.start, rows.stop) // frame_rows, 0]
    return np.atleast_2d(np.asarray(values, np.float64))


def torch_reference(row: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    import torch

    x = tensors["x"]
    out = {}

    def modulation(name: str) -> Any:
        values = tensors[name]
        if values.ndim == 4:
            batches, frames, _, columns = values.shape
            values = values.expand(batches, frames, x.shape[1] // frames, columns).reshape(batches, -1, columns)
        return values[:, None, :] if values.ndim == 2 else values

    def affine(name: str) -> Any:
        return tensors[name].to(x.dtype) if name in tensors else None

    if "residual" in tensors:
        gated = x * modulation("gate") if "gate" in tensors else x
        out["residual_out"] = x = (tensors["residual"] + gated).to(x.dtype)
    if row.scalars["rms"]:
        y = torch.nn.functional.rms_norm(x, x.shape[-1:], affine("weight"), row.scalars["eps"])
        y = y + affine("bias") if "bias" in tensors else y
    else:
        y = torch.nn.functional.layer_norm(x, x.shape[-1:], affine("weight"), affine("bias"), row.scalars["eps"])
    out["y"] = (y * (1 + modulation("scale")) + modulation("shift")).to(x.dtype)
    return out
