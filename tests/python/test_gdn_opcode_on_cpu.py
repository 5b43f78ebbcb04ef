"""The opcode GDN_DECODE of the persistent kernel on the CPU, against the recurrence in float64, for every head size.

f32: the loads of 16-bit types are judged on a GPU (`gpu_ops`).
"""

import ctypes

import numpy as np
import pytest

from kernels_on_cpu import ENUMERATOR, ROOT, compiled, needs_compiler

pytestmark = needs_compiler
GUARD = 64
POISON = np.float32(7e30)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("kernels"), ROOT / "tests/kernels_on_cpu/gdn_opcode.cu", "gdn_opcode")


def guarded(values):
    """The values between guards, on 256 bytes, and the whole."""
    raw = np.full(values.size + 2 * GUARD + 64, POISON, np.float32)
    first = -raw.ctypes.data % 256 // 4
    whole = raw[first : first + values.size + 2 * GUARD]
    whole[GUARD:-GUARD] = values.ravel()
    return whole[GUARD:-GUARD].reshape(values.shape), whole


def addresses(*arrays):
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))


def reference(q, k, v, b, a, a_log, dt_bias, state, scale, eps, l2norm):
    q, k, v, b, a, a_log, dt_bias, state = (np.float64(x) for x in (q, k, v, b, a, a_log, dt_bias, state))
    if l2norm:
        q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + eps) for x in (q, k))
    groups = len(v) // len(q)
    q, k = np.repeat(q, groups, 0), np.repeat(k, groups, 0)
    decayed = np.exp(-np.exp(a_log) * np.logaddexp(0, a + dt_bias))[:, None, None] * state
    delta = (v - np.einsum("hvk,hk->hv", decayed, k)) / (1 + np.exp(-b))[:, None]
    new = decayed + delta[:, :, None] * k[:, None, :]
    return scale * np.einsum("hvk,hk->hv", new, q), new


@pytest.mark.parametrize("l2norm", (0, 1))
@pytest.mark.parametrize("dim", (16, 32, 48, 64, 96, 112, 128))
def test_a_step_is_the_recurrence_and_nothing_else_is_written(library, dim, l2norm):
    rng = np.random.default_rng(dim + l2norm)
    heads, keys, scale, eps = 4, 2, np.float32(dim**-0.5), np.float32(1e-6)
    q, k, v = (rng.normal(size=(n, dim)).astype(np.float32) for n in (keys, keys, heads))
    b, a, a_log, dt_bias = (rng.normal(size=heads).astype(np.float32) for _ in range(4))
    state, state_whole = guarded(rng.normal(size=(heads, dim, dim)).astype(np.float32))
    o, o_whole = guarded(np.full((heads, dim), POISON, np.float32))
    qkv, _ = guarded(np.concatenate([q, k, v]))
    ba, _ = guarded(np.concatenate([b, a]))
    want_o, want_state = reference(q, k, v, b, a, a_log, dt_bias, state, scale, eps, l2norm)
    ins, outs = addresses(qkv, ba, a_log, dt_bias, state), addresses(o, state)  # in place, as in a program
    library.gdn_opcode(
        ENUMERATOR["f32"], dim, heads, keys, l2norm, ctypes.c_float(scale), ctypes.c_float(eps), ins, outs
    )
    np.testing.assert_allclose(o, want_o, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(state, want_state, rtol=2e-5, atol=2e-5)
    for whole in (state_whole, o_whole):
        assert np.all(whole[:GUARD] == POISON) and np.all(whole[-GUARD:] == POISON)
