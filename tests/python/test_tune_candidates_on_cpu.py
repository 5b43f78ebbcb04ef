"""Plans that the tuners time, on the CPU: right, and the same bits in any order of threads.

So a tuner's run on a GPU only has to say which is the fastest.
"""

import dataclasses

import pytest

from amk.tasks.workloads import read_task
from kernels_on_cpu import (
    TASKS,
    assert_order_of_threads_does_not_matter,
    assert_right,
    build_candidates,
    needs_compiler,
)
from resized_rows import resized

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return build_candidates(tmp_path_factory.mktemp("kernels"), "qknorm_rope")


@pytest.fixture(scope="module")
def norm(tmp_path_factory):
    return build_candidates(tmp_path_factory.mktemp("kernels"), "norm_scale_shift")


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    return build_candidates(tmp_path_factory.mktemp("kernels"), "residual_gate_add")


@pytest.mark.parametrize("candidate", range(6))
def test_candidates_of_qknorm_rope(heads, candidate):
    """Among the rows: positions that are not the token's number, outside the guess, and shared by tokens."""
    heads.choose(candidate)
    named = {row.name: row for row in read_task(TASKS / "qknorm_rope").rows}
    rows = [named[f"{dtype}_{name}"] for dtype in ("f32", "bf16") for name in (
        "neox_i32_7x5x3", "interleaved_i64_7x5x3", "neox_fused_projection", "repeated_positions", "long_token_2x65x1",
        "neox_many_tokens_523x2x1")]  # fmt: skip
    assert_right(rows, heads)
    assert_order_of_threads_does_not_matter(rows[:2], heads)


@pytest.mark.parametrize("candidate", range(6))
def test_candidates_of_norm_scale_shift(norm, candidate):
    """As many rows as let a ring go round, and one; both norms, both types of modulation, with a gate."""
    norm.choose(candidate)
    named = {row.name: row for row in read_task(TASKS / "norm_scale_shift").rows}
    kinds = ("1x19x3072_11D_bf16", "1x19x3072_11D_bf16_gated", "1x37800x5120_11D_f32", "1x37800x5120_11D_f32_gated")
    rows = [resized(named[kind], count, 3072) for kind in kinds for count in (1, 67)]
    rows += [dataclasses.replace(rows[3], name="as RMS norm", scalars={**rows[3].scalars, "rms": 1})]
    assert_right(rows, norm)
    assert_order_of_threads_does_not_matter(rows[2:4], norm)


@pytest.mark.parametrize("candidate", range(4))
def test_candidates_of_residual_gate_add(gate, candidate):
    """Both kinds of gate, f32 gates among them; fewer vectors than a block has, and a last block that is not full."""
    gate.choose(candidate)
    named = {row.name: row for row in read_task(TASKS / "residual_gate_add").rows}
    rows = [named[f"{dtype}_{name}"] for dtype in ("f32", "bf16") for name in (
        "BSD_2x24x128", "11D_2x24x128", "D_2x24x128", "BSD_long_1x1031x264")]  # fmt: skip
    rows += [named["bf16_BSD_f32_gate"], named["bf16_11D_f32_gate"], resized(named["bf16_11D_2x24x128"], 1, 8)]
    assert_right(rows, gate)
    assert_order_of_threads_does_not_matter(rows[:2], gate)
