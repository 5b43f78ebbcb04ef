"""One decode step of a gated delta net (Yang et al. 2024, arXiv:2412.06464), the state k-last [B, Hv, V, K]:

    g = exp(-exp(a_log) softplus(a + dt_bias)); beta = sigmoid(b); S = g S; S = S + beta (v - S k) k^T; o = scale S q

Value head h has key head h / (Hv / Hq). With l2norm, q and k are divided by sqrt(sum x^2 + 1e-6) first. A row without
the input `state` is in place: `state_out` holds the old state.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["OPERANDS", "make_inputs", "reference", "torch_reference"]

OPERANDS = {
    "inputs": ("q", "k", "v", "state", "a_log", "a", "dt_bias", "b"),
    "outputs": ("o", "state_out"),
    "scalars": ("scale", "l2norm"),
}
_EPS = 1e-6

# Of each regime: spread of q and k, of the state; shift of a and of a_log; spread of b.
_REGIMES = {
    "normal": (1.0, 1.0, 0.0, 0.0, 1.0),
    "strong_decay": (1.0, 1.0, 4.0, 1.0, 1.0),
    "long_lived": (1.0, 4.0, -14.0, -4.0, 1.0),
    "beta_edges": (1.0, 1.0, 0.0, 0.0, 16.0),
    "large_state": (1.0, 1000.0, 0.0, 0.0, 1.0),
    "tiny_qk": (1e-4, 4.0, 0.0, 0.0, 1.0),  # with a state that leaves outputs larger than the tolerance
}


def make_inputs(row: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    given = dict(row.inputs)
    if "state" not in given:
        given["state_out"] = row.outputs["state_out"]
    vectors, states, a_shift, a_log_shift, b_spread = _REGIMES[row.inputs["q"].regime]
    spread = {"q": vectors, "k": vectors, "state": states, "state_out": states, "b": b_spread, "a_log": 0.5}
    shift = {"a": a_shift, "a_log": a_log_shift}
    values = {
        name: rng.standard_normal(spec.shape, np.float32) * spread.get(name, 1.0) + shift.get(name, 0.0)
        for name, spec in given.items()
    }
    return {name: np.rint(x) if given[name].dtype == "i32" else x for name, x in values.items()}  # to be refused


def reference(row: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    wide = {name: np.asarray(value, np.float64) for name, value in inputs.items()}
    q, k, v = (wide[name][:, 0] for name in ("q", "k", "v"))
    if row.scalars["l2norm"]:
        q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + _EPS) for x in (q, k))
    per_key = v.shape[1] // q.shape[1]
    q, k = (np.repeat(x, per_key, axis=1) for x in (q, k))
    g = np.exp(-np.exp(wide["a_log"]) * np.logaddexp(0.0, wide["a"][:, 0] + wide["dt_bias"]))
    beta = np.exp(-np.logaddexp(0.0, -wide["b"][:, 0]))
    state = wide.get("state", wide.get("state_out")) * g[..., None, None]
    delta = beta[..., None] * (v - np.einsum("bhvk,bhk->bhv", state, k))
    state = state + delta[..., None] * k[:, :, None, :]
    o = row.scalars["scale"] * np.einsum("bhvk,bhk->bhv", state, q)
    return {"o": o[:, None], "state_out": state}


def torch_reference(row: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    q, k, v = (tensors[name].squeeze(1).float() for name in ("q", "k", "v"))
    if row.scalars["l2norm"]:
        q, k = (x * (x.square().sum(-1, keepdim=True) + _EPS).rsqrt() for x in (q, k))
    per_key = v.shape[1] // q.shape[1]
    q, k = (x.repeat_interleave(per_key, dim=1) for x in (q, k))
    x = tensors["a"].squeeze(1).float() + tensors["dt_bias"].float()
    softplus = x.clamp(min=0) + (-x.abs()).exp().log1p()
    g = (-tensors["a_log"].exp() * softplus).exp()
    beta = tensors["b"].squeeze(1).float().sigmoid()
    old = tensors["state"] if "state" in tensors else tensors["state_out"]
    state = old * g[..., None, None]
    delta = beta[..., None] * (v - (state * k[:, :, None, :]).sum(-1))
    state = state + delta[..., None] * k[:, :, None, :]
    o = row.scalars["scale"] * (state * q[:, :, None, :]).sum(-1)
    return {"o": o[:, None].to(tensors["q"].dtype), "state_out": state}
