"""Both sides of residual_gate_add on the CPU: every regression row, and production rows small enough."""

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

TASK = read_task(TASKS / "residual_gate_add")
pytestmark = needs_compiler
side = side_fixture(TASK.name)


def test_every_regression_row(side):
    rows = regression_rows(TASK)
    assert len(rows) > 90
    assert_right(rows, side)


def test_the_smallest_production_row(side):
    assert_right([shortest_production_row(TASK)], side)


def test_the_order_of_threads_does_not_matter(side):
    assert_order_of_threads_does_not_matter(regression_rows(TASK, rejects=False)[::9], side)
