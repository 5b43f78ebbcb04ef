"""Paired samples -> how much faster: the statistics of a measured comparison, as pure functions of arrays.

In: microseconds [n, 2] of the incumbent and the candidate, each row one token at one position on both, one right after
the other. Out: a `Gain`, or the reason why there is none. Order: pairs come in blocks of two, A B B A or B A A B, so
what running second costs or gains cancels within a block, and slow drift of the clocks very nearly does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..exam import draw
from .keep import Gain

__all__ = ["MIN_BLOCKS", "pair_order", "paired_gain"]

MIN_BLOCKS = 20
RESAMPLES = 2000
CONFIDENCE = 0.95  # one-sided: the true gain lies above the bound in 95 of 100 such comparisons


def pair_order(n_warm_up: int, n_timed: int, seed: int) -> list[int]:
    """Which side goes first at each step, 0 the incumbent's; each block of two timed pairs has both orders."""
    starts = [draw(seed, "pair order", block, 2) for block in range((n_warm_up + n_timed + 1) // 2 + 1)]
    timed = [starts[i // 2] ^ (i % 2) for i in range(n_timed)]
    return [i % 2 for i in range(n_warm_up)] + timed


def paired_gain(us: NDArray[np.float64] | Sequence[Sequence[float]], seed: int) -> Gain | str:
    """The median over blocks of how much faster the candidate was, and the lower 95 % bound of that median by the
    percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 13.3). Text where there is no gain."""
    table = np.asarray(us, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != 2:
        return f"expected pairs of samples, got an array of shape {table.shape}"
    if not (np.isfinite(table).all() and (table > 0).all()):
        return "some samples are not finite and positive"
    n_blocks = len(table) // 2
    if n_blocks < MIN_BLOCKS:
        return f"{len(table)} pairs are too few, expected {2 * MIN_BLOCKS}"
    logs = np.log(table[: 2 * n_blocks, 0] / table[: 2 * n_blocks, 1])
    blocks = logs.reshape(n_blocks, 2).mean(axis=1)
    medians = np.median(blocks[_resamples(n_blocks, seed)], axis=1)
    low = float(np.quantile(medians, 1.0 - CONFIDENCE, method="lower"))
    return Gain(1.0 - math.exp(-float(np.median(blocks))), 1.0 - math.exp(-low), False)


def _resamples(n: int, seed: int) -> NDArray[np.intp]:
    """Indices [RESAMPLES, n]; raw bits of PCG64, whose stream numpy promises to keep."""
    raw = np.random.PCG64(seed).random_raw(RESAMPLES * n)
    return (raw % np.uint64(n)).astype(np.intp).reshape(RESAMPLES, n)
