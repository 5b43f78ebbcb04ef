"""The oracles of qknorm_rope and norm_scale_shift against torch in float64, written another way; their rows against the
list of shapes that diffusion transformers run.
"""

import numpy as np
import pytest

from amk.tasks.oracles import norm_scale_shift, qknorm_rope
from amk.tasks.workloads import check_operands, read_task
from kernels_on_cpu import TASKS, elements

torch = pytest.importorskip("torch")
QK, NORM = read_task(TASKS / "qknorm_rope"), read_task(TASKS / "norm_scale_shift")


def small_rows(task):
    return [row for row in task.rows if row.kind == "regression" and not row.rejects and elements(row) <= 1 << 16]


def drawn(oracle, row):
    """Inputs that are exact in f32; how they are rounded to the row's dtypes does not matter to an oracle."""
    inputs = oracle.make_inputs(row, np.random.default_rng(row.seed))
    shapes = {name: spec.shape for name, spec in {**row.inputs, **row.outputs}.items()}
    for name, values in inputs.items():
        assert values.shape == shapes[name], (row.name, name)
    assert set(row.inputs) <= set(inputs)
    return inputs


def in_float64(inputs):
    return {
        name: torch.from_numpy(v).double() if v.dtype.kind == "f" else torch.from_numpy(v) for name, v in inputs.items()
    }


def rotated(x, turn, interleaved):
    """The rotary embedding as a product of complex numbers."""
    pairs = x.unflatten(-1, (64, 2)) if interleaved else x.unflatten(-1, (2, 64)).transpose(-1, -2)
    product = torch.view_as_complex(pairs.contiguous()) * turn[:, None, :]
    back = torch.view_as_real(product)
    return (back if interleaved else back.transpose(-1, -2)).flatten(-2)


def test_qknorm_rope():
    for row in small_rows(QK):
        inputs = drawn(qknorm_rope, row)
        t = in_float64(inputs)
        turn = torch.complex(t["cos_sin_cache"][:, :64], t["cos_sin_cache"][:, 64:])[t["positions"]]
        got = qknorm_rope.reference(row, inputs)
        for name in ("q", "k"):
            x = t[name]
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            unit = x / torch.sqrt(length**2 / 128 + row.scalars["eps"])
            want = rotated(unit * t[f"{name}_weight"], turn, row.scalars["interleaved"])
            np.testing.assert_allclose(got[name], want.numpy(), rtol=1e-12, atol=1e-12, err_msg=row.name)


def test_qknorm_rope_keeps_the_length_of_a_unit_weighted_head():
    """A rotation changes no length, so with weights of one every head has the root mean square 1."""
    row = next(row for row in QK.rows if row.name == "f32_interleaved_i64_7x5x3")
    inputs = drawn(qknorm_rope, row)
    inputs["q_weight"] = np.ones(128, np.float32)
    got = qknorm_rope.reference(row, inputs)["q"]
    np.testing.assert_allclose(np.sqrt(np.mean(got**2, axis=-1)), 1.0, atol=1e-4)  # eps is 1e-6


def broadcast(values, shape):
    """gate, scale or shift as [B, S, C], written out element by element of the leading dimensions."""
    b, s, c = shape
    out = torch.empty(shape, dtype=torch.float64)
    for i in range(b):
        for j in range(s):
            if values.ndim == 1:
                at = values
            elif values.ndim == 2:
                at = values[i % values.shape[0]]
            elif values.ndim == 3:
                at = values[i % values.shape[0], j % values.shape[1]]
            else:
                at = values[i % values.shape[0], j * values.shape[1] // s, 0]
            out[i, j] = at
    return out


def test_norm_scale_shift():
    functional = torch.nn.functional
    for row in small_rows(NORM):
        inputs = drawn(norm_scale_shift, row)
        t = in_float64(inputs)
        got = norm_scale_shift.reference(row, inputs)
        h, shape = t["x"], t["x"].shape
        if "residual" in t:
            gate = broadcast(t["gate"], shape) if "gate" in t else torch.tensor(1.0, dtype=torch.float64)
            h = torch.addcmul(t["residual"], gate, h)
            np.testing.assert_allclose(got["residual_out"], h.numpy(), rtol=1e-12, atol=1e-12, err_msg=row.name)
        assert ("residual_out" in got) == ("residual" in t)
        width, eps = shape[-1:], row.scalars["eps"]
        if row.scalars["rms"]:
            y = functional.rms_norm(h, width, t.get("weight"), eps) + t.get("bias", 0)
        else:
            y = functional.layer_norm(h, width, t.get("weight"), t.get("bias"), eps)
        want = torch.addcmul(broadcast(t["shift"], shape), y, broadcast(t["scale"], shape) + 1)
        np.testing.assert_allclose(got["y"], want.numpy(), rtol=1e-10, atol=1e-10, err_msg=row.name)


def test_chunks_of_rows_meet():
    """More rows than one chunk, in two batches, with frames that a chunk cuts through."""
    row = next(row for row in NORM.rows if row.name == "f32_layer_BF1D_gated_2x12x64")
    shape, frames = (2, 12 * 1024, 64), (2, 4, 1, 64)
    rng = np.random.default_rng(5)
    names = ("x", "residual", "gate", "scale", "shift")
    inputs = {n: rng.standard_normal(shape if n in names[:2] else frames).astype(np.float32) for n in names}
    got = norm_scale_shift.reference(row, inputs)
    at = np.repeat(np.arange(4), shape[1] // 4)
    wide = {n: v.astype(np.float64) if n in names[:2] else v[:, at, 0].astype(np.float64) for n, v in inputs.items()}
    h = wide["residual"] + wide["gate"] * wide["x"]
    np.testing.assert_allclose(got["residual_out"], h, rtol=1e-13)
    unit = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + row.scalars["eps"])
    np.testing.assert_allclose(got["y"], unit * (1 + wide["scale"]) + wide["shift"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("task", "oracle"), [(QK, qknorm_rope), (NORM, norm_scale_shift)], ids=["qknorm", "norm"])
def test_the_eager_code_is_the_same_function(task, oracle):
    """The external baseline, in float64 here: it must agree far beyond any tolerance of a row."""
    for row in small_rows(task)[::5]:
        inputs = drawn(oracle, row)
        got, want = oracle.torch_reference(row, in_float64(inputs)), oracle.reference(row, inputs)
        assert set(got) == set(want)
        for name, values in want.items():
            np.testing.assert_allclose(got[name].numpy(), values, rtol=1e-9, atol=1e-9, err_msg=row.name)


def test_rows_hold_their_tasks_operands():
    check_operands(QK, qknorm_rope.OPERANDS)
    check_operands(NORM, norm_scale_shift.OPERANDS)


def test_production_rows_of_qknorm_rope():
    found = {(*row.outputs["q"].shape[:2], row.scalars["eps"]) for row in QK.rows if row.kind == "production"}
    want = {(s, 24, 1e-6) for s in (19, 47, 4096, 189, 195, 8424)} | {(s, 30, 1e-5) for s in (32, 4096, 4128)}
    assert found == want | {(7904, 32, 1e-6)}
    for row in QK.rows:
        if row.kind == "production":
            assert row.outputs["q"] == row.outputs["k"] and row.outputs["q"].dtype == "bf16"
            tokens = row.outputs["q"].shape[0]
            cache, positions = row.inputs["cos_sin_cache"], row.inputs["positions"]
            assert (cache.shape, cache.dtype, positions.dtype) == ((tokens, 128), "f32", "i64")
            tolerance = row.tolerance["q"]
            assert (tolerance.atol, tolerance.rtol) == (8e-2, 1e-2)
            heads = row.outputs["q"].shape[1]
            assert qknorm_rope.bytes_moved(row) == 4 * tokens * heads * 256 + 2 * 256 + tokens * (512 + 8)


def test_production_rows_of_norm_scale_shift():
    plain = [row for row in NORM.rows if row.kind == "production" and "residual" not in row.inputs]
    found = {(*row.inputs["x"].shape, row.inputs["scale"].shape[1], row.inputs["scale"].dtype) for row in plain}
    want = {(1, s, 3072, 1, "bf16") for s in (19, 47, 189, 195, 4096, 8424, 55, 27030, 27085)}
    want |= {(1, s, 4096, 1, "bf16") for s in (997, 1004, 7904)}
    want |= {(1, 18144, 3072, 18144, dtype) for dtype in ("f32", "bf16")}
    want |= {(1, s, 5120, 1, dtype) for s in (37800, 75600, 37044, 74088) for dtype in ("f32", "bf16")}
    want |= {(1, 8640, 5120, 8640, "bf16"), (1, 11040, 5120, 11040, "f32"), (1, 101, 1536, 1, "bf16")}
    assert found == want and len(plain) == len(want)
    gated = [row for row in NORM.rows if row.kind == "production" and "residual" in row.inputs]
    assert {row.inputs["x"].shape[2] for row in gated} == {1536, 3072, 4096, 5120}
    for row in (*plain, *gated):
        assert row.inputs["x"].dtype == row.outputs["y"].dtype == "bf16"
        assert row.tolerance["y"].atol == row.tolerance["y"].rtol == 5e-2


def test_regression_grids_cover_what_they_promise():
    rows = [row for row in QK.rows if row.kind == "regression" and not row.rejects]
    kinds = {(r.outputs["q"].dtype, r.scalars["interleaved"], r.inputs["positions"].dtype) for r in rows}
    assert len(kinds) == 3 * 2 * 2
    assert any(row.outputs["q"].stride[-1] != 1 for row in rows)
    rows = [row for row in NORM.rows if row.kind == "regression" and not row.rejects]
    kinds = {(r.inputs["x"].dtype, r.scalars["rms"], len({"weight", "bias"} & set(r.inputs)),
              len({"residual", "gate"} & set(r.inputs))) for r in rows}  # fmt: skip
    assert len(kinds) == 3 * 2 * 3 * 3
    layouts = {(row.inputs["x"].dtype, row.scalars["rms"], row.inputs["gate"].shape)
               for row in rows if "_gated_2x12x64" in row.name}  # fmt: skip
    assert len(layouts) == 3 * 2 * 9
    for task, refused in ((QK, 11), (NORM, 15)):
        assert sum(row.rejects is not None for row in task.rows) == refused
