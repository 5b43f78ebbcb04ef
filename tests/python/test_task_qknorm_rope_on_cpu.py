"""Both sides of qknorm_rope on the CPU: every row that it can do, and the same bits in any order of threads."""

import numpy as np
import pytest

from amk.tasks.workloads import read_task
from kernels_on_cpu import TASKS, build, drawn_operands, elements, faults_of, needs_compiler, outputs_of

TASK = read_task(TASKS / "qknorm_rope")
pytestmark = needs_compiler


@pytest.fixture(scope="module", params=["baseline", "solution"])
def side(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp("kernels"), TASK.name, request.param)


def test_every_regression_row(side):
    most = 1 << 21 if side.rounds_once else 131072  # the baseline has one path for all lengths
    rows = [row for row in TASK.rows if row.kind == "regression" and elements(row) <= most]
    assert len(rows) > 70
    wrong = [fault for row in rows for fault in faults_of(row, side)]
    assert not wrong, f"{len(wrong)}: " + "; ".join(wrong[:8])


def test_the_shortest_production_row(side):
    row = min((row for row in TASK.rows if row.kind == "production"), key=elements)
    assert faults_of(row, side) == []


def test_the_order_of_threads_does_not_matter(side):
    """A missing barrier shows here: the threads of a block run one after another, in two orders."""
    rows = [row for row in TASK.rows if row.kind == "regression" and not row.rejects and elements(row) <= 1 << 15]
    for row in rows[::7]:
        assert outputs_of(row, side, backwards=0) == outputs_of(row, side, backwards=1), row.name


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
