"""amk.gdn_decode on the host against a float64 model written from the paper: every layout, and every refusal."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import amk
from amk import _lib
from amk.dlpack import HOST, Tensor, row_major
from amk.errors import InputError, UnsupportedModel
from gdn_model import DIM, assert_close, model, sample, sizes


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([(1, 1), (1, 3), (2, 2), (4, 8), (2, 6)]),
    st.sampled_from(["f32", "f16", "bf16"]),
    st.sampled_from(["f32", "f16", "bf16"]),
    st.sampled_from(["f32", "f16", "bf16"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 1.0, -0.5, 0.0]),
    st.sampled_from([1.0, 0.05, 1e-3]),
    st.sampled_from([1.0, 100.0]),
    st.sampled_from([0.0, 20.0, -20.0]),
    st.integers(0, 2**31),
)
@example(1, (1, 1), "f16", "f32", "f32", False, False, None, 1e-3, 1.0, 0.0, 167)  # results that are subnormals of f16
def test_the_host_computes_the_model(
    batch, heads, dtype, gate, bias, l2norm, in_place, scale, size, state_size, shift, seed
):
    arrays = sample(np.random.default_rng(seed), batch, *heads, dtype, gate, bias, size, state_size, shift)
    used = 1 / math.sqrt(DIM) if scale is None else scale
    want_out, want_state = model(**arrays, scale=used, l2norm=l2norm)
    new_terms, out_terms = sizes(arrays, used, l2norm)
    before = arrays["state"].copy()
    state_out = None if in_place else np.full_like(before, np.nan)
    out, state = amk.gdn_decode(**arrays, scale=scale, l2norm=l2norm, state_out=state_out)
    assert out.dtype == arrays["v"].dtype and out.shape == arrays["v"].shape
    assert state is (arrays["state"] if in_place else state_out)
    assert in_place or np.array_equal(arrays["state"], before)
    assert_close(state, want_state, "f32", new_terms)
    assert_close(out, want_out, dtype, out_terms)


@pytest.mark.parametrize(("key_heads", "value_heads", "batch"), [(4, 8, 5), (16, 32, 2), (1, 256, 1), (1, 1, 512)])
def test_the_legal_sizes(key_heads, value_heads, batch):
    arrays = sample(np.random.default_rng(3), batch, key_heads, value_heads)
    want_out, want_state = model(**arrays, scale=0.1, l2norm=True)
    out, state = amk.gdn_decode(**arrays, scale=0.1, l2norm=True)
    terms = sizes({**arrays, "state": want_state.astype(np.float32)}, 0.1, True)
    assert_close(state, want_state, "f32", terms[0])
    assert_close(out, want_out, "bf16", terms[1])


def test_many_steps_stay_on_the_model():
    """Almost no decay: an error would live as long as the state."""
    rng = np.random.default_rng(5)
    start = sample(rng, 1, 1, 2, "f32", "f32", "f32", state_size=0.1)
    state, exact = start["state"].copy(), start["state"].astype(np.float64)
    for _ in range(200):
        arrays = sample(rng, 1, 1, 2, "f32", "f32", "f32") | {"a_log": start["a_log"], "dt_bias": start["dt_bias"]}
        arrays["a"] = arrays["a"] - 12
        want, exact = model(**(arrays | {"state": exact}), scale=1.0, l2norm=True)
        out, _ = amk.gdn_decode(**(arrays | {"state": state}), scale=1.0, l2norm=True)
        np.testing.assert_allclose(out, want, atol=2e-5)
    np.testing.assert_allclose(state, exact, atol=2e-5)


def test_strides_of_every_kind_give_the_same_bytes():
    """Slices of a fused tensor, a transposed one, a broadcast one, a padded state, and outputs with gaps."""
    rng = np.random.default_rng(7)
    arrays = sample(rng, 3, 2, 4, "f16", "f16", "f16")
    want_out, want_state = amk.gdn_decode(**(arrays | {"state": arrays["state"].copy()}))
    fused = np.zeros((3, 1, 8, DIM), np.float16)
    fused[:, :, :2], fused[:, :, 2:4], fused[:, :, 4:] = arrays["q"], arrays["k"], arrays["v"]
    strided = arrays | {"q": fused[:, :, :2], "k": fused[:, :, 2:4]}
    strided["v"] = np.ascontiguousarray(arrays["v"].transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    strided["a"] = np.repeat(arrays["a"], 2, axis=2)[:, :, ::2]
    padded = np.full((3, 5, 130, 132), np.nan, np.float32)
    padded[:, :4, :DIM, :DIM] = arrays["state"]
    strided["state"] = padded[:, :4, :DIM, :DIM]
    out = np.full((3, 4, DIM, 2), np.nan, np.float16)
    amk.gdn_decode(**strided, out=out[..., 0])
    assert np.array_equal(out[..., 0], want_out[:, 0]) and np.isnan(out[..., 1]).all()
    assert np.array_equal(padded[:, :4, :DIM, :DIM], want_state)
    padded[:, :4, :DIM, :DIM] = np.nan
    assert np.isnan(padded).all()

    shared = arrays | {"q": np.broadcast_to(arrays["q"][:1], arrays["q"].shape)}  # a stride of 0
    copied = shared | {"q": shared["q"].copy()}
    results = [amk.gdn_decode(**(x | {"state": x["state"].copy()})) for x in (shared, copied)]
    assert np.array_equal(results[0][0], results[1][0]) and np.array_equal(results[0][1], results[1][1])


def test_dlpack_and_pointers_are_arrays_too():
    torch = pytest.importorskip("torch")
    arrays = sample(np.random.default_rng(11), 2, 2, 4)
    want_out, want_state = amk.gdn_decode(**(arrays | {"state": arrays["state"].copy()}))

    tensors = {
        name: torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == np.uint16 else torch.from_numpy(x)
        for name, x in arrays.items()
    }
    new_state = torch.empty_like(tensors["state"])
    out, state = amk.gdn_decode(**tensors, state_out=new_state)
    assert state is new_state and out.dtype == torch.bfloat16
    assert np.array_equal(out.view(torch.int16).numpy().view(np.uint16), want_out)
    assert np.array_equal(state.numpy(), want_state)

    kinds = {"float32": "F32", "uint16": "BF16"}
    pointers = {
        name: Tensor(x.ctypes.data, kinds[x.dtype.name], x.shape, row_major(x.shape)) for name, x in arrays.items()
    }
    bits = np.zeros_like(want_out)
    amk.gdn_decode(**pointers, out=bits)
    assert np.array_equal(bits, want_out) and np.array_equal(arrays["state"], want_state)
    with pytest.raises(InputError, match="out: expected a destination"):
        amk.gdn_decode(**pointers)
    with pytest.raises(InputError, match="q: its owner does not lend it"):
        amk.gdn_decode(**(tensors | {"q": tensors["q"].float().requires_grad_()}), out=out)


def changed(**changes):
    """One good call with some arguments replaced, by a value or by a function of all of them."""
    arrays = sample(np.random.default_rng(13), 2, 2, 4, "f32", "f32", "f32")
    arrays["out"] = np.empty_like(arrays["v"])
    return arrays | {name: value(arrays) if callable(value) else value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"q": [1.0]}, "q: expected a numpy array"),
        ({"q": lambda x: x["q"].astype(np.float64)}, "q: expected float32"),
        ({"q": lambda x: x["q"].astype(">f4")}, "q: expected float32"),
        ({"k": lambda x: x["k"].astype(np.float16)}, "k: expected F32, got F16"),
        ({"k": lambda x: x["k"][:1]}, r"k: expected a shape of \[2, 2, 128\]"),
        ({"q": lambda x: x["q"][:, :, :0]}, "key_heads: expected 1 or more"),
        ({"v": lambda x: x["v"][..., :64]}, "v: expected a shape"),
        ({"a": lambda x: x["a"][:, 0, :3]}, "a: expected a shape"),
        ({"a": lambda x: x["a"].astype(np.float16)}, "b: expected F16, got F32"),
        ({"a_log": lambda x: np.repeat(x["a_log"], 2)[::2]}, "a_log: expected a contiguous last axis"),
        ({"a_log": lambda x: x["a_log"].astype(np.float16)}, "a_log: expected F32"),
        ({"state": lambda x: x["state"][0]}, "state: expected a shape"),
        ({"state": lambda x: x["state"][..., ::-1]}, "state: expected a contiguous last axis"),
        ({"state": lambda x: x["state"].swapaxes(2, 3)}, "state: expected a contiguous last axis"),
        ({"state_out": lambda x: x["state"][:1]}, "state_out: expected a shape"),
        ({"state_out": lambda x: np.roll(x["state"].ravel(), 1)[:1]}, "state_out: expected a shape"),
        ({"q": lambda x: x["q"][..., ::-1]}, "q: stride 2 is -1, expected 0 or more"),
        ({"out": lambda x: np.broadcast_to(x["out"][:1], x["out"].shape)}, "out: expected memory that may be written"),
        ({"out": lambda x: x["v"]}, "out and v overlap"),
        ({"out": lambda x: x["state"].reshape(-1)[: x["v"].size].reshape(x["v"].shape)}, "overlap"),
        ({"scale": float("nan")}, "scale: expected a finite number"),
        ({"scale": 1e39}, "scale: expected a number that float32 holds"),
        ({"scale": "1"}, "scale: expected a finite number"),
        ({"stream": "s"}, "stream: expected"),
    ],
)
def test_a_bad_argument_is_named(changes, says):
    arguments = changed(**changes)
    before = arguments["state"].copy()
    with pytest.raises(InputError, match=says):
        amk.gdn_decode(**arguments)
    assert np.array_equal(arguments["state"], before)


def test_states_that_overlap_without_being_the_same_are_refused():
    room = np.zeros((3, 4, DIM, DIM), np.float32)
    with pytest.raises(InputError, match="state_out and state_in overlap"):
        amk.gdn_decode(**changed(state=room[:2], state_out=room[1:]))
    odd = np.zeros(2 * 4 * DIM * DIM + 8, np.float32)
    start = next(i for i in range(4) if odd[i:].ctypes.data % 16 != 0)
    with pytest.raises(InputError, match="state_in: expected an address that is a multiple of 16"):
        amk.gdn_decode(**changed(state=odd[start : start + 2 * 4 * DIM * DIM].reshape(2, 4, DIM, DIM)))
    ragged = np.zeros((2, 4, DIM, DIM + 1), np.float32)
    with pytest.raises(InputError, match="multiple of 4 elements"):
        amk.gdn_decode(**changed(state=ragged[..., :DIM]))
    strides = (0, *row_major((2, 4, DIM, DIM))[1:])
    shared = Tensor(room.ctypes.data, "F32", (2, 4, DIM, DIM), strides)
    with pytest.raises(InputError, match="state_out: stride 0 is 0, so elements share memory"):
        amk.gdn_decode(**changed(state_out=shared))


@pytest.mark.parametrize(
    ("field", "value", "error", "says"),
    [
        ("struct_size", 8, InputError, "struct_size is 8"),
        ("batch", 0, InputError, "batch is 0"),
        ("batch", 513, InputError, r"batch is 513, expected 1\.\.512"),
        ("value_heads", 257, InputError, "value_heads is 257"),
        ("key_heads", 3, InputError, "value_heads is 4, expected a multiple of key_heads, which is 3"),
        ("head_dim", 64, UnsupportedModel, "head_dim is 64, expected 128"),
        ("dtype", 5, UnsupportedModel, "dtype is i32"),
        ("gate_dtype", 99, UnsupportedModel, "gate_dtype is unknown dtype"),
        ("bias_dtype", -1, UnsupportedModel, "bias_dtype is unknown dtype"),
        ("l2norm", 2, InputError, "l2norm is 2"),
        ("scale", math.inf, InputError, "scale is inf"),
        ("device", -2, InputError, "device is -2"),
        ("out", _lib.ffi.NULL, InputError, "out is NULL"),
        ("state_in", _lib.ffi.NULL, InputError, "state_in is NULL"),
        ("v_stride", [1 << 62, 1 << 62, 1], InputError, "v: .*leave"),
    ],
)
def test_the_c_call_judges_for_itself(field, value, error, says):
    from amk.gdn import _arguments, borrow

    arrays = changed()
    arrays["state_out"] = np.empty_like(arrays["state"])
    args = _arguments({name: borrow(name, x) for name, x in arrays.items()})
    _lib.check(_lib.lib.amk_gdn_decode(args, _lib.ffi.NULL))
    setattr(args, field, value)
    with pytest.raises(error, match=says):
        _lib.check(_lib.lib.amk_gdn_decode(args, _lib.ffi.NULL))
    with pytest.raises(InputError, match="args is NULL"):
        _lib.check(_lib.lib.amk_gdn_decode(_lib.ffi.NULL, _lib.ffi.NULL))


def test_arrays_of_several_devices_are_refused():
    elsewhere = Tensor(4096, "F32", (2, 2, DIM), row_major((2, 2, DIM)), device=0)
    with pytest.raises(InputError, match="expected all arrays on one device"):
        amk.gdn_decode(**changed(q=elsewhere))
    assert HOST == -1


def test_without_cuda_a_device_is_unavailable():
    if amk.build_info()["cuda"]["enabled"]:
        pytest.skip("this library has CUDA")
    on_gpu = {
        name: Tensor(4096 * (i + 1) << 16, "F32", x.shape, row_major(x.shape), device=0)
        for i, (name, x) in enumerate(changed().items())
    }
    with pytest.raises(amk.Unavailable):
        amk.gdn_decode(**on_gpu)
