"""Both sides of norm_scale_shift on the CPU: every row that it can do, and the same bits in any order of threads."""

import pytest

from amk.tasks.workloads import read_task
from kernels_on_cpu import (
    TASKS,
    assert_order_of_threads_does_not_matter,
    assert_right,
    needs_compiler,
    regression_rows,
    shortest_production_row,
    side_fixture,
)
from resized_rows import resized

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


def test_one_modulation_for_many_rows(side):
    """The first numbers of rows that get each way of sharing them, exactly as wide as the plans: rings go round."""
    if not side.rounds_once:
        pytest.skip("the baseline has one path for all lengths")
    named = {row.name: row for row in TASK.rows}
    plain, gated = named["1x19x3072_11D_bf16"], named["1x19x3072_11D_bf16_gated"]
    rows = [resized(plain, count, 3072) for count in (529, 4225, 8449)]
    rows += [resized(gated, count, 3072) for count in (529, 2641)]
    rows += [resized(row, 529, 4096) for row in (plain, gated)]
    longest = [named[f"1x37800x5120_11D_{kind}"] for kind in ("bf16", "f32", "bf16_gated", "f32_gated")]
    rows += [resized(row, 529, 5120) for row in longest]
    rows += [resized(gated, 2641, 4096), resized(longest[-1], 2641, 5120)]
    assert_right(rows, side)
    assert_order_of_threads_does_not_matter([rows[0], rows[3]], side)
