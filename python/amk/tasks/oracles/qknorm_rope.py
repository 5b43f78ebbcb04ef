"""RMS norm of every head of q and k (arXiv:1910.07467), then the rotary embedding (arXiv:2104.09864), in place.

q, k [tokens, heads, 128] are outputs that hold data. Row p of cos_sin_cache [rows, 128] holds the 64 cosines and then
the 64 sines of position p. Pair i is (i, i + 64), or (2 i, 2 i + 1) where the scalar interleaved is 1.
Regimes: positions "counted" (0, 1, 2, ...), "shuffled" (different ones), "repeated"; "weight"; "cache"; else normal.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

__all__ = ["OPERANDS", "bytes_moved", "make_inputs", "reference", "torch_reference"]

OPERANDS = {
    "inputs": ("q_weight", "k_weight", "cos_sin_cache", "positions"),
    "outputs": ("q", "k"),
    "scalars": ("eps", "interleaved"),
}
HALF = 64
ROPE_BASE = 10_000.0
CHUNK_ELEMENTS = 1 << 17  # of a head tensor in float64 at a time: it stays in the cache


def make_inputs(row: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name, spec in row.inputs.items():
        if spec.regime == "cache":
            angles = np.outer(np.arange(spec.shape[0]), ROPE_BASE ** -(np.arange(HALF) / HALF))
            table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
            out[name] = np.resize(table, spec.shape).astype(np.float32)
        elif spec.regime == "weight":
            out[name] = (1 + 0.2 * rng.standard_normal(spec.shape)).astype(np.float32)
        elif name == "positions":
            out[name] = _positions(spec, row.inputs["cos_sin_cache"].shape[0], rng)
        else:
            out[name] = rng.standard_normal(spec.shape, np.float32)
    for name, spec in row.outputs.items():
        # Heads of different sizes: a norm over anything but the head would not go unnoticed.
        size = np.exp(rng.standard_normal((*spec.shape[:-1], 1), np.float32))
        out[name] = rng.standard_normal(spec.shape, np.float32) * size
    return out


def _positions(spec: Any, cache_rows: int, rng: np.random.Generator) -> np.ndarray:
    tokens = spec.shape[0]
    if spec.regime == "counted":
        return np.arange(tokens, dtype=np.int64)
    if spec.regime == "repeated":
        return rng.integers(0, cache_rows, tokens)
    return rng.permutation(cache_rows)[:tokens]


def reference(row: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Token by token independent, so ranges of tokens go to threads: the arithmetic does not depend on them."""
    positions = np.asarray(inputs["positions"], np.int64)
    cache = np.asarray(inputs["cos_sin_cache"], np.float64)[positions]
    cosine, sine = cache[:, None, :HALF], cache[:, None, HALF:]
    eps, interleaved = row.scalars["eps"], bool(row.scalars["interleaved"])
    out = {}

    def one(name: str, weight: np.ndarray, part: slice) -> None:
        x = np.asarray(inputs[name][part], np.float64)
        x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight
        pairs = x.reshape(*x.shape[:2], HALF, 2) if interleaved else x.reshape(*x.shape[:2], 2, HALF)
        a, b = (pairs[..., 0], pairs[..., 1]) if interleaved else (pairs[:, :, 0], pairs[:, :, 1])
        turned = (a * cosine[part] - b * sine[part], b * cosine[part] + a * sine[part])
        out[name][part] = np.stack(turned, axis=-1 if interleaved else -2).reshape(x.shape)

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for name in ("q", "k"):
            out[name] = np.empty(inputs[name].shape, np.float64)
            weight = np.asarray(inputs[f"{name}_weight"], np.float64)
            for _ in pool.map(partial(one, name, weight), _token_ranges(inputs[name].shape)):
                pass
    return out


def _token_ranges(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, CHUNK_ELEMENTS // math.prod(shape[1:]))
    for first in range(0, shape[0], step):
        yield slice(first, first + step)


def bytes_moved(row: Any) -> int:
    """q and k are read and written; of the cache only the rows that some token stands at."""
    cache, positions = row.inputs["cos_sin_cache"], row.inputs["positions"]
    total = 2 * sum(spec.touched * spec.itemsize for spec in row.outputs.values())
    total += sum(row.inputs[name].touched * row.inputs[name].itemsize for name in ("q_weight", "k_weight", "positions"))
    return total + min(cache.shape[0], positions.shape[0]) * cache.shape[1] * cache.itemsize


def torch_reference(row: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    import torch

    turn = tensors["cos_sin_cache"][tensors["positions"].long()]
    cosine, sine = turn[:, None, :HALF], turn[:, None, HALF:]
    out = {}
    for name in ("q", "k"):
        x = tensors[name]
        x = torch.nn.functional.rms_norm(x, x.shape[-1:], tensors[f"{name}_weight"], row.scalars["eps"])
        if row.scalars["interleaved"]:
            a, b = x[..., 0::2], x[..., 1::2]
            y = torch.stack((a * cosine - b * sine, b * cosine + a * sine), dim=-1).flatten(-2)
        else:
            a, b = x[..., :HALF], x[..., HALF:]
            y = torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)
        out[name] = y.to(x.dtype)
    return out
