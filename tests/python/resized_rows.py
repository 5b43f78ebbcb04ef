"""Rows of a task's workloads with other sizes: as few elements, or as many rows, as a test needs."""

import dataclasses

from amk.tasks.workloads import TensorSpec, contiguous


def resized(row, rows, columns):
    """A row whose operands are [1, S or 1, C], with other S and C; broadcast axes are kept."""

    def change(spec):
        shape = (1, 1 if spec.shape[1] == 1 else rows, columns)
        return TensorSpec(shape, spec.dtype, contiguous(shape))

    return dataclasses.replace(
        row,
        name=f"{row.name} as {rows}x{columns}",
        inputs={operand: change(spec) for operand, spec in row.inputs.items()},
        outputs={operand: change(spec) for operand, spec in row.outputs.items()},
    )
