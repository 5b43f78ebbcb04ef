"""Both sides of norm_scale_shift on the CPU: every row that it can do, and the same bits in any order of threads."""

import pytest

from amk.tasks.workloads import read_task
from kernels_on_cpu import (
    TASKS,
    assert_order_of_threads_does_not_matter,
    assert_right,
    needs_compiler,
    regression_rows,
    resized,
    shortest_production_row,
    side_fixture,
)

TASK = read_task(TASKS / "norm_scale_shift")
pytestmark = needs_compiler
side = side_fixture(TASK.name)


def test_every_regression_row(side):
    rows = regression_rows(TASK, 1 << 21 if side.rounds_once else 16384)  # the baseline has one path for all lengths
    assert len(rows) > 250
    assert_right(rows, side)


def test_the_shortest_production_row(side):
    assert_right([shortest_production_row(TASK)], side)


def test_the_order_of_threads_does_not_matter(side):
    assert_order_of_threads_does_not_matter(regression_rows(TASK, 1 << 15, rejects=False)[::7], side)


def test_plans_of_the_solution_that_no_small_row_reaches(side):
    """Of the dispatch table in docs/dispatch.md; narrower than production, so that some threads have no vector."""
    if not side.rounds_once:
        pytest.skip("the baseline has one path for all lengths")
    named = {row.name: row for row in TASK.rows}
    plain, gated = named["1x19x3072_11D_bf16"], named["1x19x3072_11D_bf16_gated"]
    gated_f32 = named["1x37800x5120_11D_f32_gated"]
    rows = [resized(plain, 1057, 3080)]
    rows += [resized(gated, 265, columns) for columns in (1032, 3080, 4104)]
    rows += [resized(gated_f32, rows, columns) for rows, columns in ((3, 3080), (265, 2056), (265, 3080))]
    assert_right(rows, side)


@pytest.mark.parametrize("memory_bits", [5120, 6144])
def test_one_modulation_for_many_rows(side, memory_bits):
    """On the memory of an H100 and an H200: the first number of rows that gets its plans, exactly as wide as they are.

    A ring goes round many times.
    """
    if not side.rounds_once:
        pytest.skip("the baseline has one path for all lengths")
    named = {row.name: row for row in TASK.rows}
    shapes = [(529, 3072), (529, 4096)] if memory_bits == 5120 else [(1057, 4096)]
    rows = [resized(named["1x19x3072_11D_bf16"], *shape) for shape in shapes]
    rows += [resized(named[f"1x37800x5120_11D_{kind}"], 529, 5120) for kind in ("bf16", "f32", "f32_gated")]
    side.on_memory_of(memory_bits)
    assert_right(rows, side)
    assert_order_of_threads_does_not_matter(rows[-1:], side)
