"""`amk.gdn_decode`: one decode step of a gated delta net (Yang et al. 2024, arXiv:2412.06464), on a GPU or the host.

In: q, k [B, 1, Hq, 128], v [B, 1, Hv, 128], a state f32 [B, Hv, 128 (of v), 128 (of k)], gates a, b [B, 1, Hv] and
a_log, dt_bias [Hv]; the axis of one token may be left out. Any strides, where the last axis of a state is contiguous.
Out: o in `out` and the new state in `state_out`, or in `state` itself; both are returned as they were passed.
Arrays are numpy's (uint16 holds the bits of bfloat16), DLPack's, or `amk.dlpack.Tensor` for bare pointers; all on one
device. The host computes before the call returns; a GPU's work is enqueued and the call returns.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import _lib
from ._lib import ffi, lib
from .dlpack import HOST, Tensor, borrow, row_major
from .errors import InputError, show
from .streams import LEGACY_STREAM, stream_handle

__all__ = ["gdn_decode"]

_DTYPES = {name: number for number, name in _lib.enum_names("amk_dtype", "AMK_DTYPE_").items()}


def gdn_decode(
    q: Any,
    k: Any,
    v: Any,
    state: Any,
    a_log: Any,
    a: Any,
    dt_bias: Any,
    b: Any,
    *,
    scale: float | None = None,
    l2norm: bool = False,
    out: Any = None,
    state_out: Any = None,
    stream: Any = None,
) -> tuple[Any, Any]:
    """One step for every batch row: g = exp(-exp(a_log) * softplus(a + dt_bias)), beta = sigmoid(b), S <- g S,
    S <- S + beta (v - S k) k^T, o = scale * S q; q and k are divided by sqrt(sum(x^2) + 1e-6) first with l2norm.

    scale: default 1 / sqrt(128). out: default a new array like v (numpy and torch; other libraries pass one).
    state_out: default `state`, in place. stream: a cudaStream_t or an object that has one, which then orders the work;
    default the legacy default stream, which waits for what the owners of the arrays have enqueued.
    """
    handle = stream_handle(stream)
    order = LEGACY_STREAM if stream is None else None  # a caller who names a stream orders it
    if out is None:
        out = _empty_like(v)
    if state_out is None:
        state_out = state
    given = {
        **{"q": q, "k": k, "v": v, "a": a, "b": b, "a_log": a_log, "dt_bias": dt_bias, "state": state},
        **{"state_out": state_out, "out": out},
    }
    tensors = {name: borrow(name, array, order) for name, array in given.items()}
    for name in ("out", "state_out"):
        if tensors[name].read_only:
            raise InputError(f"{name}: expected memory that may be written, got a read-only array")
    args = _arguments(tensors)
    args.scale, args.l2norm = _number("scale", 1 / math.sqrt(args.head_dim) if scale is None else scale), bool(l2norm)
    _lib.check(lib.amk_gdn_decode(args, ffi.cast("void *", handle)))
    return out, state_out


def _arguments(tensors: dict[str, Tensor]) -> Any:
    """The struct of the C call; what it cannot express is refused here, everything else there."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        raise InputError(f"expected all arrays on one device, got {devices} ({HOST} is the host)")
    for group in (("q", "k", "v", "out"), ("a", "b"), ("a_log", "state", "state_out")):
        expected = "F32" if "state" in group else tensors[group[0]].dtype
        for name in group:
            if tensors[name].dtype != expected:
                raise InputError(f"{name}: expected {expected}, got {tensors[name].dtype}")
    state = tensors["state"]
    if len(state.shape) != 4:
        raise InputError(f"state: expected a shape [batch, value heads, 128, 128], got {list(state.shape)}")
    batch, value_heads, _, dim = state.shape
    key_heads = tensors["q"].shape[-2] if len(tensors["q"].shape) >= 2 else 0
    for name in ("key_heads", "value_heads", "batch", "head_dim"):
        extent = {"key_heads": key_heads, "value_heads": value_heads, "batch": batch, "head_dim": dim}[name]
        if not 1 <= extent < 1 << 31:
            raise InputError(f"{name}: expected 1 or more, got {extent}")
    shapes = {
        **dict.fromkeys(("q", "k"), (batch, key_heads, dim)),
        **dict.fromkeys(("v", "out"), (batch, value_heads, dim)),
        **dict.fromkeys(("a", "b"), (batch, value_heads)),
        **dict.fromkeys(("a_log", "dt_bias"), (value_heads,)),
        **dict.fromkeys(("state", "state_out"), (batch, value_heads, dim, dim)),
    }
    args = ffi.new("amk_gdn_decode_t *")
    args.struct_size = ffi.sizeof("amk_gdn_decode_t")
    args.device, args.batch, args.key_heads, args.value_heads = state.device, batch, key_heads, value_heads
    args.head_dim = dim
    args.dtype, args.gate_dtype = _DTYPES[tensors["q"].dtype], _DTYPES[tensors["a"].dtype]
    args.bias_dtype = _DTYPES[tensors["dt_bias"].dtype]
    for name, tensor in tensors.items():
        strides = _strides(name, tensor, shapes[name])
        field = "state_in" if name == "state" else name
        setattr(args, field, ffi.cast("void *", tensor.address))
        contiguous = {"a_log": 1, "dt_bias": 1, "state": 4, "state_out": 4}.get(name)
        if contiguous:
            if strides[-1] != 1:
                raise InputError(f"{name}: expected a contiguous last axis, got a stride of {strides[-1]} elements")
            strides = strides[:-1]
        if strides:
            setattr(args, field + "_stride", strides)
    return args


def _strides(name: str, tensor: Tensor, shape: tuple[int, ...]) -> list[int]:
    """Strides of the axes of `shape`; the axis of one token, where there is one, is dropped. An axis of one entry gets
    the stride of a contiguous array: libraries leave anything there."""
    found, strides = tensor.shape, tensor.strides
    if len(shape) in (2, 3) and len(found) == len(shape) + 1 and found[1] == 1:
        found, strides = (found[0], *found[2:]), (strides[0], *strides[2:])
    if found != shape:
        raise InputError(f"{name}: expected a shape of {list(shape)}, got {list(tensor.shape)}")
    return [
        contiguous if extent == 1 else stride
        for extent, stride, contiguous in zip(shape, strides, row_major(shape), strict=True)
    ]


def _empty_like(v: Any) -> Any:
    if isinstance(v, np.ndarray):
        return np.empty(v.shape, v.dtype)
    if hasattr(v, "new_empty"):  # torch
        return v.new_empty(tuple(v.shape))
    raise InputError(f"out: expected a destination, because none can be made like {show(v)}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):  # type: ignore[arg-type]
        raise InputError(f"{name}: expected a finite number, got {show(value)}")
    if abs(value) > float(np.finfo(np.float32).max):  # type: ignore[arg-type, operator]
        raise InputError(f"{name}: expected a number that float32 holds, got {show(value)}")
    return float(value)  # type: ignore[arg-type]
