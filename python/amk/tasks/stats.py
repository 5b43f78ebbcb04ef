"""Samples -> the figures of a row, and rows -> the headline. Plain arithmetic; nothing is left out or trimmed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["describe", "means"]


def describe(samples_us: Sequence[float]) -> dict[str, Any]:
    """Microseconds per launch."""
    us = np.asarray(samples_us, np.float64)
    low, middle, high = np.percentile(us, [10, 50, 90])
    spread = float(us.std(ddof=1)) if us.size > 1 else 0.0
    return {
        "median_us": float(middle), "mean_us": float(us.mean()), "std_us": spread,
        "min_us": float(us.min()), "p10_us": float(low), "p90_us": float(high), "samples": int(us.size),
    }  # fmt: skip


def means(speed_ups: Sequence[float]) -> dict[str, float]:
    """Equal weight for every row."""
    return {
        "geometric_mean": math.exp(math.fsum(map(math.log, speed_ups)) / len(speed_ups)),
        "arithmetic_mean": math.fsum(speed_ups) / len(speed_ups),
    }
