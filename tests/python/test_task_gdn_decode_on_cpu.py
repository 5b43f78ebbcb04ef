"""Both sides of gdn_decode on the CPU: regression rows of small batches, and the smallest production rows."""

import pytest

from amk.tasks.workloads import read_task
from kernels_on_cpu import TASKS, build, faults_of, needs_compiler, outputs_of

TASK = read_task(TASKS / "gdn_decode")
SMALL = [row for row in TASK.rows if row.outputs["o"].shape[0] <= 3 and row.outputs["o"].shape[2] <= 8]
REGRESSION = [row for row in SMALL if row.kind == "regression"]
pytestmark = needs_compiler


@pytest.fixture(scope="module", params=["baseline", "solution"])
def side(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    side = build(folder, TASK.name, request.param, "gdn/check.cpp", "base/error.cpp")
    side.rounds_once = False  # sums of 128 terms: the rows' own tolerances hold
    return side


def test_regression_rows(side):
    wrong = [fault for i, row in enumerate(REGRESSION) if row.rejects or i % 5 == 0 for fault in faults_of(row, side)]
    assert not wrong, f"{len(wrong)}: " + "; ".join(wrong[:8])


def test_the_smallest_production_rows(side):
    rows = [row for row in SMALL if row.name.startswith("b1_")]
    assert len(rows) == 6
    assert [fault for row in rows for fault in faults_of(row, side)] == []


def test_a_row_of_each_grid_that_takes_more_heads(side):
    named = {row.name: row for row in TASK.rows}
    if side.entry.__name__.endswith("_baseline"):
        pytest.skip("one grid for all")
    assert [fault for name in ("b8_normal", "b16_long_lived") for fault in faults_of(named[name], side)] == []


def test_the_order_of_threads_does_not_matter(side):
    row = next(row for row in SMALL if row.name == "b1_normal")
    assert outputs_of(row, side, backwards=0) == outputs_of(row, side, backwards=1)
