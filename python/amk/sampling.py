"""Logits -> the next token: temperature, then top-k, then top-p, then one draw.

In: float logits [V], a `Sampling`, and the index of the token in its generation. Out: a token id and the log
probability that the model itself (temperature 1, nothing cut off) gave it.
The draw is a function of (seed, index) alone, and everything it is compared with is computed in float64 from additions,
multiplications and divisions that IEEE 754 rounds in one way only: one seed chooses the same tokens on every platform.
Equal logits rank by lowest id. It must never pass on a logit that is not a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError, NonFinite, show

__all__ = ["Sampling", "choose", "choose_token", "kept_tokens", "uniform"]

_LN2_HIGH = 6.93147180369123816490e-01  # 32 bits of ln 2, so that k * _LN2_HIGH is exact; the rest is below
_LN2_LOW = 1.90821492927058770002e-10
_EXP_UNDERFLOW = -745.2  # exp of anything below is 0 in float64
_FIRST_GUESS = 1024  # tokens ranked before all of them are


@dataclass(frozen=True)
class Sampling:
    """How to choose: temperature 0 is the greedy choice, top_k 0 and top_p 1 cut nothing off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        temperature, top_p = _number("temperature", self.temperature), _number("top_p", self.top_p)
        if not 0.0 <= temperature < math.inf:
            raise InputError(f"temperature: expected a finite number of at least 0, got {show(self.temperature)}")
        if not 0.0 < top_p <= 1.0:
            raise InputError(f"top_p: expected a number above 0 and at most 1, got {show(self.top_p)}")
        if type(self.top_k) is not int or self.top_k < 0:
            raise InputError(f"top_k: expected an integer of at least 0, got {show(self.top_k)}")
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 64:
            raise InputError(f"seed: expected an integer in 0..2^64-1, got {show(self.seed)}")
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "top_p", top_p)


def choose(logits: np.ndarray, sampling: Sampling, index: int) -> tuple[int, float]:
    """The token number `index` of a generation, and its log probability under the model."""
    values = _checked(logits)
    token = _pick(values, sampling, index)
    return token, _log_probability(values, token)


def choose_token(logits: np.ndarray, sampling: Sampling, index: int) -> int:
    """As `choose`, without the log probability."""
    return _pick(_checked(logits), sampling, index)


def _pick(values: np.ndarray, sampling: Sampling, index: int) -> int:
    if sampling.temperature == 0.0:
        return int(np.argmax(values))
    kept, weights = _kept_weights(values, sampling)
    mass = np.cumsum(weights)  # in order of id, so that a cut that keeps everything changes nothing
    at = int(np.searchsorted(mass, uniform(sampling.seed, index) * mass[-1], side="right"))
    return int(kept[min(at, int(np.searchsorted(mass, mass[-1])))])  # the product may round up to the whole mass


def kept_tokens(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Ids, ascending, of the tokens that can be chosen."""
    values = _checked(logits)
    if sampling.temperature == 0.0:
        return np.array([np.argmax(values)])
    return _kept_weights(values, sampling)[0]


def uniform(seed: int, index: int) -> float:
    """A float64 in [0, 1) with 53 random bits, from word 0 of block `index` of Philox4x64-10 under key `seed`.

    Philox is counter based (Salmon, Moraes, Dror and Shaw, SC 2011): no draw depends on how many went before.
    """
    counter = (index - 1) % (1 << 256)  # numpy steps the counter before it makes a block
    word = int(np.random.Philox(key=seed, counter=counter).random_raw())
    return (word >> 11) * 2.0**-53


def _kept_weights(values: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Ids that survive both cuts, ascending, and their weights: probabilities up to a common factor."""
    kept = np.arange(values.size)
    if 0 < sampling.top_k < values.size:
        kept = np.sort(_ranked(values, sampling.top_k))
    with np.errstate(over="ignore"):  # a small temperature may send a gap to minus infinity, whose weight is 0
        weights = _exp((values[kept] - values.max()) / sampling.temperature)
    if sampling.top_p < 1.0:
        first = np.sort(_nucleus(values[kept], weights, sampling.top_p))
        kept, weights = kept[first], weights[first]
    return kept, weights


def _nucleus(values: np.ndarray, weights: np.ndarray, top_p: float) -> np.ndarray:
    """Places of the smallest set of best tokens whose share of all weight is at least top_p."""
    wanted = top_p * np.cumsum(weights)[-1]
    for count in (min(_FIRST_GUESS, values.size), values.size):
        ranked = _ranked(values, count)
        mass = np.cumsum(weights[ranked])
        if mass[-1] >= wanted:
            return ranked[: int(np.searchsorted(mass, wanted)) + 1]
    return ranked  # the two sums round differently: top_p is a rounding error away from 1


def _ranked(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest values, largest first, equal ones by place."""
    candidates = np.arange(values.size)
    if count < values.size:
        candidates = np.flatnonzero(values >= np.partition(values, values.size - count)[values.size - count])
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]


def _exp(x: np.ndarray) -> np.ndarray:
    """e^x for x <= 0 within a few units in the last place, the same bits everywhere (libraries differ in the last bit).

    x = k ln 2 + r with |r| <= ln(2)/2, then the Taylor series of e^r, whose 14th term is below 2^-56.
    """
    x = np.maximum(x, _EXP_UNDERFLOW)
    k = np.rint(x * 1.4426950408889634)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    series = np.full_like(r, 1.0 / math.factorial(13))
    for n in range(12, -1, -1):
        series *= r
        series += 1.0 / math.factorial(n)
    return np.ldexp(series, k.astype(np.int32))


def _log_probability(values: np.ndarray, token: int) -> float:
    with np.errstate(over="ignore"):  # a gap beyond float64 is one whose probability is 0
        gaps = values - values.max()
    return float(gaps[token]) - math.log(np.exp(gaps).sum())


def _checked(logits: np.ndarray) -> np.ndarray:
    values = np.asarray(logits)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind != "f":
        raise InputError(f"logits: expected floats of shape [V], got {values.dtype} of shape {values.shape}")
    values = values.astype(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        first = int(np.argmax(bad))
        raise NonFinite(f"logits: expected finite numbers, got {values[first]} for token {first} ({bad.sum()} in all)")
    return values


def _number(name: str, value: Any) -> float:
    if isinstance(value, (int, float, np.floating)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise InputError(f"{name}: expected a number, got {show(value)}")
