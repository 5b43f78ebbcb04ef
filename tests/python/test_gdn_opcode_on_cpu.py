"""The opcode GDN_DECODE of the persistent kernel on the CPU, against the recurrence in float64, for every head size.

f32: the loads of 16-bit types are judged on a GPU (`gpu_ops`).
"""

import ctypes

import numpy as np
import pytest

from gdn_model import model
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
    one = (x[None, None] for x in (q, k, v))  # a batch of one token
    want_o, want_state = model(*one, state[None], a_log, a[None, None], dt_bias, b[None, None], scale, l2norm)
    ins, outs = addresses(qkv, ba, a_log, dt_bias, state), addresses(o, state)  # in place, as in a program
    library.gdn_opcode(
        ENUMERATOR["f32"], dim, heads, keys, l2norm, ctypes.c_float(scale), ctypes.c_float(eps), ins, outs
    )
    np.testing.assert_allclose(o, want_o[0, 0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(state, want_state[0], rtol=2e-5, atol=2e-5)
    for whole in (state_whole, o_whole):
        assert np.all(whole[:GUARD] == POISON) and np.all(whole[-GUARD:] == POISON)
