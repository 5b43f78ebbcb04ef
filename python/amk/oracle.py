"""Independent float64 decoder: the reference every machine's logits are judged against.

In: a model description, a function that returns one tensor by its Hugging Face name, tokens, positions, K and V rows,
and the state of linear layers. Out: float64 logits [n, V], and the largest acceptable logit error per storage dtype.
Written from the papers: RMSNorm (arXiv 1910.07467), rotary embedding (2104.09864, the rotate-half pairing of dimension
i with i + D/2), grouped-query attention (2305.13245), SwiGLU (2002.05202), per-head q/k norm (2302.05442), gated delta
nets (`oracle_delta`, its other half).
It must never import another amk module: an error there must not be able to reach both sides of a comparison.
It works layer by layer over all positions at once; a weight is converted in row chunks, never as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .oracle_delta import DeltaWeights, delta_net, silu, split_projections

F64 = NDArray[np.float64]
# Per layer: K [n, G, D] (normed and rotated) and V [n, G, D]; of a linear layer the state after each of the n steps:
# the convolution's inputs [n, C, W - 1] and S [n, Hv, D (v), D (k)].
Rows = list[tuple[F64, F64]]
KvSource = Callable[[int], tuple[NDArray[Any], NDArray[Any]]]
StateSource = Callable[[int], tuple[NDArray[Any], NDArray[Any]]]
_Attend = Callable[[int, F64, F64, F64], F64]

# Attention over S rows leaves what a sum of so many times S terms does: S / 6 of p V and S / 9 of the sum of p.
ATTENTION_TERMS = 5 / 3
# What a linear layer does before its gated norm counts so many times (`error_limit`).
DELTA_NET_GAIN = 2.0
CHUNK_BYTES = 64 << 20  # of float64, the most that one converted piece of a weight may take
UNIT_ROUNDOFF = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}


def to_float64(array: NDArray[Any], dtype: str) -> F64:
    """Values of `array`. uint16 is read as the bits of `dtype` (f16 or bf16); a float array holds the values itself."""
    if array.dtype == np.uint16 and dtype == "bf16":
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return (array.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    if array.dtype == np.uint16 and dtype == "f16":
        return array.view(np.float16).astype(np.float64)
    if dtype in UNIT_ROUNDOFF and array.dtype in (np.float16, np.float32, np.float64):
        return array.astype(np.float64)
    raise ValueError(f"cannot read an array of {array.dtype} as {dtype}")


def round_to(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Nearest-even storage form: float32, float16, or the uint16 bits of bf16. Overflow gives inf, NaN stays NaN."""
    wide = np.asarray(array, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype == "f16":
            return wide.astype(np.float16)
        single = wide.astype(np.float32)
    if dtype == "f32":
        return single
    if dtype != "bf16":
        raise ValueError(f"unknown dtype {dtype!r}, expected one of {sorted(UNIT_ROUNDOFF)}")
    # float64 -> float32 -> bf16 would round twice. Going through float32 rounded to odd is exact (Boldo & Melquiond,
    # 2008): truncate toward zero, then set the last bit if anything was lost.
    bits = single.view(np.uint32)
    back = single.astype(np.float64)
    bits = (bits - (np.abs(back) > np.abs(wide))) | (back != wide)
    bits = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(wide), np.uint64(0x7FC0), bits).astype(np.uint16)


def inverse_frequencies(config: Any) -> F64:
    """Rotary frequencies in radians per position of each pair that rotates (D/2 of them, or rotary_dim / 2), `llama3`
    and `linear` scaling applied, all in float64."""
    width = config.rotary_dim or config.head_dim
    freq = float(config.rope_theta) ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    scaling = config.rope_scaling
    if scaling is None:
        return freq

    def field(name: str) -> Any:
        value = scaling.get(name) if isinstance(scaling, Mapping) else getattr(scaling, name, None)
        if value is None:
            raise ValueError(f"rope_scaling lacks {name}")
        return value

    kind = field("rope_type")
    if kind == "default":
        return freq
    if kind == "linear":
        return freq / float(field("factor"))
    if kind != "llama3":
        raise ValueError(f"rope_scaling.rope_type {kind!r} is not modelled, expected 'llama3' or 'linear'")
    # Long wavelengths (fewer than `low` turns in the original context) are stretched by `factor`, short ones (more
    # than `high` turns) are kept, and those between are blended linearly in the number of turns.
    low, high = float(field("low_freq_factor")), float(field("high_freq_factor"))
    turns = float(field("original_max_position_embeddings")) * freq / (2.0 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * freq + (1.0 - keep) * freq / float(field("factor"))


def synthetic_kv(config: Any, max_rows: int, seed: int, layer: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Seeded K and V [G, S, D] float32, every value exact in the storage dtype. Row s does not depend on `max_rows`.

    A query with unit-variance entries meets scores of standard deviation 2 after the 1/sqrt(D) scale: peaked enough
    that a wrong scale, rotation or mask moves the logits, flat enough that many rows still matter.
    """
    mask = (1 << 64) - 1
    generator = np.random.Generator(np.random.Philox(key=np.array([seed & mask, layer & mask], dtype=np.uint64)))
    rows = generator.standard_normal((max_rows, 2, config.n_kv_heads, config.head_dim), dtype=np.float32)
    rows[:, 0] *= 2.0
    exact = to_float64(round_to(rows, config.dtype), config.dtype).astype(np.float32).transpose(1, 2, 0, 3)
    return np.ascontiguousarray(exact[0]), np.ascontiguousarray(exact[1])


def synthetic_state(config: Any, seed: int, layer: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """A linear layer's seeded state, float32: inputs of the convolution [C, W - 1], every value exact in the storage
    dtype, and S [Hv, D, D]. The same at every position.

    The inputs have unit variance, as projections do. A unit key reads from S what is about as large as a value, so that
    neither of the two terms of its change hides the other.
    """
    mask = (1 << 64) - 1
    generator = np.random.Generator(np.random.Philox(key=np.array([seed & mask, ~layer & mask], dtype=np.uint64)))
    dim, values = config.linear_head_dim, config.linear_value_heads
    channels = (2 * config.linear_key_heads + values) * dim
    past = generator.standard_normal((channels, config.conv_width - 1), dtype=np.float32)
    memory = np.float32(0.5) * generator.standard_normal((values, dim, dim), dtype=np.float32)
    return to_float64(round_to(past, config.dtype), config.dtype).astype(np.float32), memory


def is_linear(config: Any, layer: int) -> bool:
    """Whether a layer is a gated delta net: all but every n-th."""
    return config.full_attention_interval > 0 and (layer + 1) % config.full_attention_interval != 0


class Oracle:
    """Decodes in float64. `raw(name)` returns a tensor in storage dtype (bf16 as uint16 bits), afresh at each call.

    With `noise`, every activation that a machine stores is off by a random part of itself, as a sum in f32 and a
    rounding to the storage dtype may leave it: the answers are then draws of what a right machine may say.
    """

    def __init__(
        self, config: Any, raw: Callable[[str], NDArray[Any]], *, noise: np.random.Generator | None = None
    ) -> None:
        if config.n_heads % config.n_kv_heads or config.head_dim % 2:
            raise ValueError(
                f"n_heads {config.n_heads} must be a multiple of n_kv_heads {config.n_kv_heads}, head_dim even"
            )
        self.config = config
        self._raw = raw
        self._noise = noise
        self._freq = inverse_frequencies(config)

    def probe(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        kv: KvSource,
        state: StateSource | None = None,
        *,
        rows: Rows | None = None,
        chain: int = 1,
    ) -> F64:
        """Logits [n, V] of n independent steps: tokens[i] at positions[i] over history rows [0, positions[i]).

        `kv(layer)` -> (K, V), each [G, S, D] with K already normed and rotated. An item's own row comes after its
        history and is never rounded. `state(layer)` of a linear layer -> what its steps start from: (convolution inputs
        [C, W - 1], S [Hv, D, D]), for all items alike or with an axis of items in front. `rows`, when given, is a list
        that receives each layer's new (K, V) or states.

        Every `chain` items follow one another at consecutive positions: the history of each is the rows below the
        first one's position, then the own rows of those before it.
        """
        if len(tokens) != len(positions):
            raise ValueError(f"{len(tokens)} tokens but {len(positions)} positions")
        starts = [positions[i - i % chain] for i in range(len(positions))]
        if len(tokens) % chain or any(pos != starts[i] + i % chain for i, pos in enumerate(positions)):
            raise ValueError(f"positions {list(positions)} are no chains of {chain} that follow one another")
        cfg = self.config

        def attend(layer: int, q: F64, k: F64, v: F64) -> F64:
            past_k, past_v = kv(layer)
            longest = max(starts)
            for name, past in (("K", past_k), ("V", past_v)):
                if past.ndim != 3 or (past.shape[0], past.shape[2]) != k.shape[1:] or past.shape[1] < longest:
                    raise ValueError(f"layer {layer} {name} is {past.shape}, expected [G, >= {longest}, D]")
            out = np.empty_like(q)
            for g in range(cfg.n_kv_heads):
                head_k = to_float64(past_k[g, :longest], cfg.dtype)
                head_v = to_float64(past_v[g, :longest], cfg.dtype)
                for first in range(0, len(starts), chain):
                    start, own = starts[first], slice(first, first + chain)
                    chain_k = np.concatenate([head_k[:start], k[own, g]])
                    chain_v = np.concatenate([head_v[:start], v[own, g]])
                    for i in range(first, first + chain):
                        seen = start + i - first + 1
                        scores = q[i, g] @ chain_k[:seen].T / math.sqrt(cfg.head_dim)
                        out[i, g] = _softmax(scores) @ chain_v[:seen]
            return out

        if state is None and any(is_linear(cfg, layer) for layer in range(cfg.layers)):
            raise ValueError("a model with linear layers needs their state")
        return self._decode(tokens, positions, attend, state, chain, rows)

    def prefill(self, tokens: Sequence[int], *, rows: Rows | None = None, copies: int = 1) -> F64:
        """Logits [n, V] of a decode from an empty cache: positions 0..n-1 at once, each seeing itself and before.
        [copies * n, V] of that many such decodes, which noise makes differ."""
        cfg, n = self.config, len(tokens)
        hidden_future = np.triu(np.full((n, n), -np.inf), k=1)

        def attend(layer: int, q: F64, k: F64, v: F64) -> F64:
            out = np.empty_like(q)
            for copy in range(copies):
                own = slice(copy * n, copy * n + n)
                for g in range(cfg.n_kv_heads):
                    for r in range(q.shape[2]):
                        scores = q[own, g, r] @ k[own, g].T / math.sqrt(cfg.head_dim)
                        out[own, g, r] = _softmax(scores + hidden_future) @ v[own, g]
            return out

        return self._decode([*tokens] * copies, [*range(n)] * copies, attend, None, n, rows)

    def _decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        attend: _Attend,
        state: StateSource | None,
        chain: int,
        rows: Rows | None,
    ) -> F64:
        """Every `chain` tokens follow one another, from `state` (None: zero)."""
        cfg, n = self.config, len(tokens)
        if n == 0:
            raise ValueError("no tokens")
        if not all(0 <= t < cfg.vocab for t in tokens) or min(positions) < 0:
            raise ValueError(f"tokens must lie in [0, {cfg.vocab}) and positions must not be negative")
        stored = self._stored
        x = to_float64(self._tensor("model.embed_tokens.weight", (cfg.vocab, cfg.hidden))[list(tokens)], cfg.dtype)
        for layer in range(cfg.layers):
            at = f"model.layers.{layer}."
            h = self._norm(x, at + "input_layernorm.weight")
            if is_linear(cfg, layer):
                mixed = self._mix_linear(h, layer, chain, state, rows)
            else:
                mixed = self._mix_attention(h, layer, positions, attend, rows)
            x = stored(x + mixed)
            h = self._norm(x, at + "post_attention_layernorm.weight")
            gate = self._linear(h, at + "mlp.gate_proj", cfg.ffn, cfg.mlp_bias)
            up = self._linear(h, at + "mlp.up_proj", cfg.ffn, cfg.mlp_bias)
            x = stored(x + self._linear(stored(silu(gate) * up), at + "mlp.down_proj", cfg.hidden, cfg.mlp_bias))
        head = "model.embed_tokens" if cfg.tied else "lm_head"
        return self._project(self._norm(x, "model.norm.weight"), head, cfg.vocab, False)

    def _mix_attention(self, h: F64, layer: int, positions: Sequence[int], attend: _Attend, rows: Rows | None) -> F64:
        cfg, n, stored = self.config, len(h), self._stored
        depth = np.asarray(positions, dtype=np.float64)[:, None, None]
        cos, sin = np.cos(depth * self._freq), np.sin(depth * self._freq)
        at = f"model.layers.{layer}.self_attn."
        kv_width, kv_shape = cfg.n_kv_heads * cfg.head_dim, (n, cfg.n_kv_heads, cfg.head_dim)
        q_width = cfg.n_heads * cfg.head_dim
        # With a gate, each head of q_proj is a query and then its gate.
        per_head = 2 * cfg.head_dim if cfg.attention_gate else cfg.head_dim
        q = self._linear(h, at + "q_proj", cfg.n_heads * per_head, cfg.qkv_bias).reshape(n, cfg.n_heads, -1)
        q, gate = q[..., : cfg.head_dim], q[..., cfg.head_dim :]
        k = self._linear(h, at + "k_proj", kv_width, cfg.qkv_bias).reshape(kv_shape)
        v = self._linear(h, at + "v_proj", kv_width, cfg.qkv_bias).reshape(kv_shape)
        if cfg.qk_norm:
            q, k = self._norm(q, at + "q_norm.weight"), self._norm(k, at + "k_norm.weight")
        q, k = stored(_rotate(q, cos, sin)), stored(_rotate(k, cos, sin))
        if rows is not None:
            rows.append((k, v))
        # Query head j reads kv head j // (n_heads / n_kv_heads), so [Q, D] splits as [G, Q/G, D].
        mixed = attend(layer, q.reshape(n, cfg.n_kv_heads, -1, cfg.head_dim), k, v)
        mixed = stored(mixed, ATTENTION_TERMS * depth[..., None]).reshape(n, q_width)
        if cfg.attention_gate:
            with np.errstate(over="ignore"):
                mixed = stored(mixed / (1.0 + np.exp(-gate.reshape(n, q_width))))
        return self._linear(mixed, at + "o_proj", cfg.hidden, cfg.o_bias)

    def _mix_linear(self, h: F64, layer: int, chain: int, state: StateSource | None, rows: Rows | None) -> F64:
        cfg, chains = self.config, len(h) // chain
        at = f"model.layers.{layer}.linear_attn."
        heads, values, dim = cfg.linear_key_heads, cfg.linear_value_heads, cfg.linear_head_dim
        channels = (2 * heads + values) * dim
        qkvz = self._linear(h, at + "in_proj_qkvz", channels + values * dim, False)
        ba = self._linear(h, at + "in_proj_ba", 2 * values, False)
        parts = split_projections(qkvz, ba, heads, values)
        small = {"conv1d.weight": (channels, 1, cfg.conv_width), "A_log": (values,), "dt_bias": (values,)}
        small["norm.weight"] = (dim,)
        conv, *others = (to_float64(self._tensor(at + name, shape), cfg.dtype) for name, shape in small.items())
        shapes = ((chains, channels, cfg.conv_width - 1), (chains, values, dim, dim))
        if state is None:
            start = tuple(np.zeros(shape) for shape in shapes)
        else:
            given = zip(state(layer), shapes, strict=True)
            start = tuple(np.broadcast_to(to_float64(part, cfg.dtype), shape) for part, shape in given)
        after: list[tuple[F64, F64]] | None = None if rows is None else []
        mixed = delta_net(
            *(part.reshape(chains, chain, *part.shape[1:]) for part in parts),
            DeltaWeights(conv[:, 0], *others), start, cfg.eps, self._stored, after,
        )  # fmt: skip
        if rows is not None and after is not None:
            pasts, memories = (np.stack(part, axis=1) for part in zip(*after, strict=True))
            rows.append((pasts.reshape(-1, *pasts.shape[2:]), memories.reshape(-1, *memories.shape[2:])))
        return self._linear(mixed.reshape(len(h), -1), at + "out_proj", cfg.hidden, False)

    def _linear(self, x: F64, name: str, n_out: int, bias: bool) -> F64:
        """A projection, as a machine stores it."""
        return self._stored(self._project(x, name, n_out, bias), x.shape[1])

    def _stored(self, x: F64, terms: Any = 0) -> F64:
        """As it is, or with noise: that of one rounding, at most u of each value and u / sqrt(3) rms, and that of the
        sum of so many terms in f32 which it is, u32 * sqrt(terms / 6) rms (see `error_limit`)."""
        if self._noise is None:
            return x
        most = np.sqrt(UNIT_ROUNDOFF[self.config.dtype] ** 2 + UNIT_ROUNDOFF["f32"] ** 2 * terms / 2)
        return x * (1.0 + most * self._noise.uniform(-1.0, 1.0, x.shape))

    def _norm(self, x: F64, name: str) -> F64:
        weight = to_float64(self._tensor(name, (x.shape[-1],)), self.config.dtype)
        if self.config.norm_plus_one:
            weight = 1.0 + weight
        return self._stored(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config.eps) * weight)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        tensor = self._raw(name)
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tensor.shape}, expected {shape}")
        return tensor

    def _project(self, x: F64, name: str, n_out: int, bias: bool) -> F64:
        """x: [n, K] -> [n, N] = x W^T (+ b), W [N, K] taken a chunk of rows at a time."""
        weight = self._tensor(name + ".weight", (n_out, x.shape[1]))
        out = np.empty((x.shape[0], n_out))
        step = max(1, CHUNK_BYTES // (8 * x.shape[1]))
        for first in range(0, n_out, step):
            out[:, first : first + step] = x @ to_float64(weight[first : first + step], self.config.dtype).T
        return out + to_float64(self._tensor(name + ".bias", (n_out,)), self.config.dtype) if bias else out


def _rotate(x: F64, cos: F64, sin: F64) -> F64:
    """x: [n, heads, D], cos and sin: [n, 1, R/2]. Turns the plane of dimensions (i, i + R/2) by the angle of i, and
    leaves the dimensions from R on as they are."""
    half = cos.shape[-1]
    a, b, still = np.split(x, [half, 2 * half], axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, still], axis=-1)


def _softmax(scores: F64) -> F64:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def logit_error(got: NDArray[Any], ref: F64) -> float:
    """Largest row of max|got - ref| / max|ref|; inf if shapes differ, a row is all 0, or a value is not finite."""
    if got.shape != ref.shape or not ref.size or not (np.isfinite(got).all() and np.isfinite(ref).all()):
        return math.inf
    got, ref = np.atleast_2d(got), np.atleast_2d(ref)
    scale = np.abs(ref).max(axis=-1)
    return float(np.max(np.abs(got - ref).max(axis=-1) / scale)) if scale.all() else math.inf


def error_limit(dtype: str, config: Any, *, position: int = 0) -> float:
    """Largest acceptable `logit_error` of a machine that stores in `dtype`, sums in f32 in any order, up to `position`.

    Errors are taken as independent, so their squares add (u is the unit roundoff, all figures relative and rms):
    - A stored activation: at most u / sqrt(3). A layer stores 12: norm, qkv, rope, attention, o, add, norm, gate, up,
      silu * up, down, add; q/k norm is a 13th, an output gate one more. A linear layer stores 13: norm, projections,
      convolution, delta net, gated norm, out, add, and the same six. The last norm and the logits are 2 more. The
      residual stream carries each one to the end with a gain near 1, hence the square root of layers.
    - A sum of K terms in f32, one after another: partial sum k has size sqrt(k), so K roundings leave
      u32 * sqrt(K / 6). Sums in lanes or trees leave less. A layer's chain has K = H, Q D, H, H, F; the head has H. A
      linear layer has Hv D in place of Q D, W for the convolution, and D four times: the length of q and k, S k, S q,
      the gated norm.
    - Attention over S rows: u32 * sqrt(S / 6) for p V, and sqrt(S / 9) for the sum of p, whose terms are all positive.
    - A rotary angle position * f in f32: f and the product are each rounded, for q and for k. f = 1 is exact.
      It counts in full, although a mean over many independent V rows (as in `synthetic_kv`) hides most of it.
    - The state of a linear layer is rounded to f32 twice a step, decayed and changed: u32 * sqrt(2 / 3) each step, of
      which decay forgets a part that is not counted on.
    - The gated norm divides by the size of S q. A head that forgets soon remembers few directions, and a query that is
      nearly orthogonal to all of them is answered by little more than rounding errors, at full size. So all that comes
      before that norm, except the state's own rounding, counts DELTA_NET_GAIN times; more than that is left to the
      noise of the very weights (`exam.noise_of`).
    The limit is 3 times the total. The factor covers what the model leaves out: the gain of the softmax and of
    gate * up, and the largest of V logits. The emulator in tests/python/test_oracle.py stays between 0.05 and 1.
    """
    u, u32 = UNIT_ROUNDOFF[dtype], UNIT_ROUNDOFF["f32"]
    linear = sum(is_linear(config, layer) for layer in range(config.layers))
    full = config.layers - linear
    gain, dim = DELTA_NET_GAIN**2, config.linear_head_dim
    stored = full * (12 + bool(config.qk_norm) + bool(config.attention_gate)) + linear * (4 * gain + 9) + 2
    summed = config.layers * (2 * config.hidden + config.ffn) + config.hidden
    summed += full * (config.hidden + config.n_heads * config.head_dim)
    summed += linear * (gain * (config.hidden + config.conv_width + 3 * dim) + (config.linear_value_heads + 1) * dim)
    turned = 4 / 3 * position**2 * float(np.sum(inverse_frequencies(config)[1:] ** 2)) / (config.head_dim / 2)
    history = full * (position * ATTENTION_TERMS / 6 + turned) + linear * position * 2 / 3
    square = u**2 * stored / 3 + u32**2 * (summed / 6 + history)
    return 3.0 * math.sqrt(square)
