"""The gated delta net of a hybrid decoder in float64: what stands in place of attention in its linear layers.

In: projected activations of one or more chains of tokens, the layer's small weights, the state each chain starts from.
Out: the mixed values before the output projection, and the state after every token. Written from the paper (Yang et al.
2024, "Gated Delta Networks", arXiv:2412.06464) and, for what it leaves open, the modelling code of `qwen3_next`.
Like `oracle`, whose part it is, it must never import another amk module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
State = tuple[F64, F64]  # of a chain or token: inputs of the convolution [C, W - 1], oldest first; S [Hv, D (v), D (k)]

L2_EPS = 1e-6


@dataclass(frozen=True)
class DeltaWeights:
    """Hq key heads, Hv value heads, D head size, C = (2 Hq + Hv) D channels, W width."""

    conv: F64  # [C, W]
    a_log: F64  # [Hv]
    dt_bias: F64  # [Hv]
    norm: F64  # [D]


def split_projections(qkvz: F64, ba: F64, key_heads: int, value_heads: int) -> tuple[F64, F64, F64, F64]:
    """The grouped columns of the two input projections, [n, ...] -> (qkv [n, C], z [n, Hv, D], b, a [n, Hv]).

    A key head's group is its q, its k, then v and z of its value heads; and b and a of its value heads.
    """
    n, per_key = len(qkvz), value_heads // key_heads
    dim = qkvz.shape[1] // (2 * key_heads + 2 * value_heads)
    grouped = qkvz.reshape(n, key_heads, -1)
    edges = np.cumsum([dim, dim, per_key * dim])
    q, k, v, z = np.split(grouped, edges, axis=-1)
    b, a = np.split(ba.reshape(n, key_heads, -1), 2, axis=-1)
    qkv = np.concatenate([part.reshape(n, -1) for part in (q, k, v)], axis=-1)
    return qkv, z.reshape(n, value_heads, dim), b.reshape(n, value_heads), a.reshape(n, value_heads)


def delta_net(
    qkv: F64,
    z: F64,
    b: F64,
    a: F64,
    weights: DeltaWeights,
    start: State,
    eps: float,
    stored: Callable[..., F64],
    states: list[State] | None = None,
) -> F64:
    """[chains, tokens, ...] in, mixed [chains, tokens, Hv * D] out.

    `start` has a leading axis of chains. `stored` is what storing an activation, a sum of so many terms, does to it.
    `states`, when given, is a list that receives the states of all chains after each token.
    """
    chains, tokens, value_heads = b.shape
    dim = len(weights.norm)
    key_width = (qkv.shape[-1] - value_heads * dim) // 2
    past, memory = (np.array(part, dtype=np.float64) for part in start)
    mixed = np.empty((chains, tokens, value_heads * dim))
    for t in range(tokens):
        window = np.concatenate([past, qkv[:, t, :, None]], axis=-1)
        past = window[..., 1:]
        turned = stored(silu(np.sum(window * weights.conv, axis=-1)), window.shape[-1])
        q, k, v = np.split(turned, [key_width, 2 * key_width], axis=-1)
        v = v.reshape(chains, value_heads, dim)
        # Value head h reads key head h // (Hv / Hq).
        q, k = (np.repeat(_unit(x.reshape(chains, -1, dim)), value_heads * dim // key_width, axis=1) for x in (q, k))
        decay = np.exp(-np.exp(weights.a_log) * np.logaddexp(0.0, a[:, t] + weights.dt_bias))
        memory = memory * decay[..., None, None]
        told = np.einsum("chvk,chk->chv", memory, k)
        change = (v - told) * _sigmoid(b[:, t])[..., None]
        memory = memory + change[..., None] * k[:, :, None, :]
        out = stored(np.einsum("chvk,chk->chv", memory, q) / math.sqrt(dim), 3 * dim)  # the lengths, S k and S q
        normed = out / np.sqrt(np.mean(out * out, axis=-1, keepdims=True) + eps) * weights.norm
        mixed[:, t] = stored(normed * silu(z[:, t]), dim).reshape(chains, -1)
        if states is not None:
            states.append((past, memory))
    return mixed


def silu(x: F64) -> F64:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, -0
        return x / (1.0 + np.exp(-x))


def _sigmoid(x: F64) -> F64:
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-x))


def _unit(x: F64) -> F64:
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + L2_EPS)
