"""A float64 model of the gated delta net, written from the paper, and random operands for it; numpy alone."""

import math

import numpy as np

DIM = 128
# One rounding of o, and what f32 sums of 128 terms may lose.
TOLERANCE = {"f32": 2e-6, "f16": 2**-10, "bf16": 2**-7}
F16_HALF_STEP = 2**-25  # what rounding moves a subnormal of f16; those of the others are out of reach


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """x as storage: bf16 as the uint16 that holds its bits."""
    x = x.astype(np.float32)
    if dtype == "f32":
        return x
    if dtype == "f16":
        return x.astype(np.float16)
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def wide(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def model(q, k, v, state, a_log, a, dt_bias, b, scale, l2norm):
    """The recurrence as one sum: S' = g S - beta (g S k) k^T + beta v k^T, o = scale S' q, in float64."""
    q, k, v, state, a_log, a, dt_bias, b = map(wide, (q, k, v, state, a_log, a, dt_bias, b))
    batch, _, heads, _ = v.shape
    out, new = np.empty(v.shape), np.empty_like(state)
    for i in range(batch):
        for h in range(heads):
            g_head = h // (heads // q.shape[2])
            qh, kh = q[i, 0, g_head], k[i, 0, g_head]
            if l2norm:
                qh, kh = (x / math.sqrt(float(x @ x) + 1e-6) for x in (qh, kh))
            g = math.exp(-math.exp(a_log[h]) * np.logaddexp(0.0, a[i, 0, h] + dt_bias[h]))
            beta = 0.5 * (1 + math.tanh(b[i, 0, h] / 2))
            kept = g * state[i, h]
            new[i, h] = kept - beta * np.outer(kept @ kh, kh) + beta * np.outer(v[i, 0, h], kh)
            out[i, 0, h] = scale * new[i, h] @ qh
    return out, new


def sample(
    rng, batch, key_heads, value_heads, dtype="bf16", gate="bf16", bias="f32", size=1.0, state_size=1.0, shift=0.0
):
    normal = rng.standard_normal
    return {
        "q": rounded(normal((batch, 1, key_heads, DIM)) * size, dtype),
        "k": rounded(normal((batch, 1, key_heads, DIM)) * size, dtype),
        "v": rounded(normal((batch, 1, value_heads, DIM)), dtype),
        "state": (normal((batch, value_heads, DIM, DIM)) * state_size).astype(np.float32),
        "a_log": normal(value_heads).astype(np.float32),
        "a": rounded(normal((batch, 1, value_heads)) + shift, gate),
        "dt_bias": rounded(normal(value_heads), bias),
        "b": rounded(normal((batch, 1, value_heads)) * 4, gate),
    }


def assert_close(got, want, dtype, terms):
    """Errors against the size of what was summed, which may cancel."""
    assert np.all(np.isfinite(wide(got)))
    atol = TOLERANCE["f32"] * terms + (F16_HALF_STEP if dtype == "f16" else 0)
    np.testing.assert_allclose(wide(got), want, rtol=TOLERANCE[dtype], atol=atol)


def sizes(arrays, scale, l2norm):
    """How large the terms of a new state row and of o are, at most."""
    q, k = np.abs(wide(arrays["q"])), np.abs(wide(arrays["k"]))
    q, k = (np.sqrt((x * x).sum(-1)).max() for x in (q, k))
    if l2norm:
        q, k = min(q, 1.0), min(k, 1.0)
    row = np.sqrt((arrays["state"].astype(np.float64) ** 2).sum(-1)).max()
    new = row * (1 + k * k) + np.abs(wide(arrays["v"])).max() * k
    return new, abs(scale) * new * q
