"""Both sides of residual_gate_add on the CPU: every regression row, and production rows small enough."""

import pytest

from amk.tasks.workloads import read_task
from kernels_on_cpu import TASKS, build, elements, faults_of, needs_compiler, outputs_of

TASK = read_task(TASKS / "residual_gate_add")
pytestmark = needs_compiler


@pytest.fixture(scope="module", params=["baseline", "solution"])
def side(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp("kernels"), TASK.name, request.param)


def test_every_regression_row(side):
    rows = [row for row in TASK.rows if row.kind == "regression"]
    assert len(rows) > 90
    wrong = [fault for row in rows for fault in faults_of(row, side)]
    assert not wrong, f"{len(wrong)}: " + "; ".join(wrong[:8])


def test_the_smallest_production_row(side):
    row = min((row for row in TASK.rows if row.kind == "production"), key=elements)
    assert faults_of(row, side) == []


def test_the_order_of_threads_does_not_matter(side):
    rows = [row for row in TASK.rows if row.kind == "regression" and not row.rejects]
    for row in rows[::9]:
        assert outputs_of(row, side, backwards=0) == outputs_of(row, side, backwards=1), row.name
