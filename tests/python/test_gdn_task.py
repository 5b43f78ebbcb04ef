"""The task gdn_decode: its frozen rows, and that the oracle, torch and the library's host code agree on them."""

from pathlib import Path

import numpy as np
import pytest

import amk
from amk.tasks.operands import stored, values_of
from amk.tasks.oracles import gdn_decode as oracle
from amk.tasks.workloads import DTYPES, check_operands, read_task

TASK = read_task(Path(__file__).resolve().parents[2] / "benchmarks/tasks/gdn_decode")
PRODUCTION = [row for row in TASK.rows if row.kind == "production"]
# Some of the small ones: all of them, and large batches, are for a GPU.
SMALL = [row for row in TASK.rows if row.outputs["o"].shape[0] <= 3 and row.outputs["o"].shape[2] <= 8]
ROWS = [row for i, row in enumerate(SMALL) if row.rejects or row.name.startswith("b1_") or i % 3 == 0]


def test_the_production_rows_are_nine_batches_in_six_regimes():
    check_operands(TASK, oracle.OPERANDS)
    found = {(row.outputs["o"].shape[0], row.inputs["q"].regime) for row in PRODUCTION}
    assert len(PRODUCTION) == len(found) == 54
    assert {batch for batch, _ in found} == {1, 2, 4, 8, 16, 24, 32, 48, 64}
    assert {regime for _, regime in found} == set(oracle._REGIMES)
    for row in PRODUCTION:
        batch = row.outputs["o"].shape[0]
        assert row.inputs["q"].shape == (batch, 1, 4, 128) and row.inputs["q"].dtype == "bf16"
        assert row.outputs["state_out"].shape == (batch, 8, 128, 128) and "state" in row.inputs


def laid_out(values: np.ndarray, spec) -> np.ndarray:
    """Values at the strides of a spec, NaN or -1 between them."""
    dtype = DTYPES[spec.dtype][0]
    room = np.full(spec.extent * dtype.itemsize + 16, 0xFF, np.uint8)
    start = -room.ctypes.data % 16
    flat = room[start : start + spec.extent * dtype.itemsize].view(dtype)
    steps = [step * dtype.itemsize for step in spec.stride]
    view = np.lib.stride_tricks.as_strided(flat, spec.shape, steps)
    view[...] = values
    return view


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_oracle_torch_and_host_agree(row):
    torch = pytest.importorskip("torch")
    specs = {**row.inputs, **row.outputs}
    values = oracle.make_inputs(row, np.random.default_rng(row.seed))
    raw = {name: stored(value, specs[name].dtype) for name, value in values.items()}
    arrays = {name: laid_out(value, specs[name]) for name, value in raw.items()}
    state = arrays.get("state", arrays.get("state_out"))
    for name in ("o", "state_out"):
        if name not in arrays:
            arrays[name] = laid_out(np.zeros(specs[name].shape, DTYPES[specs[name].dtype][0]), specs[name])
    call = {name: arrays[name] for name in ("q", "k", "v", "a_log", "a", "dt_bias", "b")}
    options = {"scale": row.scalars["scale"], "l2norm": bool(row.scalars["l2norm"])}
    if row.rejects:
        with pytest.raises(amk.AmkError):
            amk.gdn_decode(**call, **options, state=state, out=arrays["o"], state_out=arrays["state_out"])
        return
    rounded = {name: values_of(laid_out(raw[name], specs[name]), specs[name].dtype) for name in raw}
    want = oracle.reference(row, rounded)
    tensors = {name: torch.tensor(value.astype(np.float32)) for name, value in rounded.items()}
    kinds = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    tensors = {name: tensor.to(kinds[specs[name].dtype]) for name, tensor in tensors.items()}
    eager = oracle.torch_reference(row, tensors)
    amk.gdn_decode(**call, **options, state=state, out=arrays["o"], state_out=arrays["state_out"])
    for name in ("o", "state_out"):
        limit = row.tolerance[name]
        got = values_of(np.ascontiguousarray(arrays[name]), specs[name].dtype)
        np.testing.assert_allclose(got, want[name], atol=limit.atol, rtol=limit.rtol)
        np.testing.assert_allclose(eager[name].double().numpy(), want[name], atol=limit.atol, rtol=limit.rtol)
        if name == "o" or "state" in row.inputs:  # neither zeros nor what lay there would pass
            assert np.any(np.abs(want[name]) > limit.atol + limit.rtol * np.abs(want[name]))
        else:
            assert not np.allclose(rounded["state_out"], want[name], atol=limit.atol, rtol=limit.rtol)
