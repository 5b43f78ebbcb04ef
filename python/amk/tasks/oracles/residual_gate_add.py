"""y = residual + gate * x, with the gate broadcast over [B, S, D].

Layouts of the gate: [1], [D], [1, D], [B, D], [B, 1, D], [1, 1, D], [1, S, D], [B, S, D], and [B, F, 1, D], where frame
f holds S / F rows. A rank-2 gate is one row per batch, never one per position.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["OPERANDS", "make_inputs", "reference", "torch_reference"]

OPERANDS = {"inputs": ("residual", "x", "gate"), "outputs": ("y",), "scalars": ()}


def make_inputs(row: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    made = {}
    for name, spec in row.inputs.items():
        values = rng.standard_normal(spec.shape, np.float32)
        made[name] = np.rint(8 * values) if spec.dtype == "i32" else values  # an integer row is there to be refused
    return made


def reference(row: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    residual, x, gate = (inputs[name] for name in OPERANDS["inputs"])
    batch, rows, width = x.shape
    if gate.ndim == 4:
        gate = np.repeat(gate[:, :, 0], rows // gate.shape[1], axis=1)
    elif gate.ndim == 2:
        gate = gate[:, None, :]
    y = np.multiply(gate, x, dtype=np.float64)  # each operand widened first
    y += residual
    return {"y": y}


def torch_reference(row: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    residual, x, gate = (tensors[name] for name in OPERANDS["inputs"])
    batch, rows, width = x.shape
    if gate.ndim == 4:
        gate = gate.expand(batch, gate.shape[1], rows // gate.shape[1], width).reshape(batch, rows, width)
    elif gate.ndim == 2:
        gate = gate[:, None, :]
    return {"y": residual + gate * x}
