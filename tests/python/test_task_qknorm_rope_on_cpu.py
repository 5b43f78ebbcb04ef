"""Both sides of qknorm_rope on the CPU: every row that it can do, and the same bits in any order of threads."""

import numpy as np

from amk.tasks.workloads import read_task
from kernels_on_cpu import (
    TASKS,
    assert_order_of_threads_does_not_matter,
    assert_right,
    drawn_operands,
    needs_compiler,
    regression_rows,
    shortest_production_row,
    side_fixture,
)

TASK = read_task(TASKS / "qknorm_rope")
pytestmark = needs_compiler
side = side_fixture(TASK.name)


def test_every_regression_row(side):
    rows = regression_rows(TASK, 1 << 21 if side.rounds_once else 131072)  # the baseline has one path for all lengths
    assert len(rows) > 70
    assert_right(rows, side)


def test_the_shortest_production_row(side):
    assert_right([shortest_production_row(TASK)], side)


def test_the_order_of_threads_does_not_matter(side):
    assert_order_of_threads_does_not_matter(regression_rows(TASK, 1 << 15, rejects=False)[::7], side)


def test_a_position_outside_the_cache_makes_its_token_nan(side):
    """Neither side reads there, and no other token notices."""
    row = next(row for row in TASK.rows if row.name == "f32_neox_i64_7x5x3")
    operands, inputs = drawn_operands(row, side)
    operands["positions"].view[[2, 5]] = [-1, row.inputs["cos_sin_cache"].shape[0]]
    assert side(row, operands) == 0
    want = side.oracle.reference(row, inputs)
    for name in row.outputs:
        got = operands[name].values()
        assert np.isnan(got[[2, 5]]).all()
        others = [0, 1, 3, 4, 6]
        np.testing.assert_allclose(got[others], want[name][others], atol=1e-5, rtol=1e-5)
