"""Arrays of any library, borrowed: numpy arrays, and whatever speaks DLPack (torch, cupy, jax), on the host or a GPU.

In: an array. Out: a `Tensor`: address, dtype, shape, strides, device. Nothing is copied and nothing is imported; the
memory stays its owner's, who must outlive the `Tensor`. bfloat16 comes as DLPack's own type, or as a numpy array of
uint16 that holds the bits (numpy has no bfloat16).
The structs are those of dlpack.h (https://dmlc.github.io/dlpack/latest/c_api.html), which keeps them stable.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError, show

__all__ = ["HOST", "Tensor", "borrow", "row_major"]

HOST = -1  # the device of host memory

_CPU, _CUDA, _CUDA_HOST = 1, 2, 3  # DLDeviceType
_DTYPES = {(2, 32): "F32", (2, 16): "F16", (4, 16): "BF16"}  # (DLDataTypeCode, bits)
_NUMPY = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_UNSYNCHRONISED = -1  # to a producer: the caller orders the streams


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Tensor:
    """Borrowed memory. `strides` count elements; `dtype` is a name of amk_dtype; `device` is an index, or HOST."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device: int = HOST
    read_only: bool = False
    owner: object = None


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous array."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def borrow(name: str, array: Any, stream: int | None = None) -> Tensor:
    """`array` as a `Tensor`; `name` is for the message. stream: of the consumer, that a producer's work on a GPU is
    ordered before; None leaves the order to the caller."""
    if isinstance(array, Tensor):
        return array
    if isinstance(array, np.ndarray):
        return _from_numpy(name, array)
    if not hasattr(array, "__dlpack__") or not hasattr(array, "__dlpack_device__"):
        raise InputError(f"{name}: expected a numpy array, an object with __dlpack__, or a Tensor, got {show(array)}")
    try:
        kind, _ = array.__dlpack_device__()
        on_gpu = int(kind) == _CUDA
        order = {"stream": _UNSYNCHRONISED if stream is None else stream} if on_gpu else {}
        capsule = array.__dlpack__(**order)
    except Exception as error:  # a producer raises what it likes: BufferError, RuntimeError, ...
        raise InputError(f"{name}: its owner does not lend it: {error}") from error
    return _from_capsule(name, capsule)


def _from_numpy(name: str, array: np.ndarray) -> Tensor:
    dtype = _NUMPY.get(array.dtype.name) if array.dtype.isnative else None
    if dtype is None:
        raise InputError(f"{name}: expected float32, float16, or uint16 for the bits of bfloat16, got {array.dtype}")
    if any(stride % array.itemsize for stride in array.strides):
        raise InputError(f"{name}: expected strides of whole elements, got {array.strides} bytes")
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return Tensor(array.ctypes.data, dtype, array.shape, strides, HOST, not array.flags.writeable, array)


def _from_capsule(name: str, capsule: object) -> Tensor:
    """The capsule is kept, never consumed: with it goes the loan."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    try:
        tensor = _DLTensor.from_address(get_pointer(capsule, b"dltensor"))
    except ValueError as error:
        raise InputError(f"{name}: expected a DLPack capsule, got {show(capsule)}") from error
    dtype = _DTYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None:
        raise InputError(
            f"{name}: expected float32, float16 or bfloat16, got DLPack type code {tensor.code} of {tensor.bits} bits"
        )
    if tensor.device_type not in (_CPU, _CUDA, _CUDA_HOST):
        raise InputError(
            f"{name}: expected memory of the host or a CUDA device, got DLPack device {tensor.device_type}"
        )
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else row_major(shape)
    device = tensor.device_id if tensor.device_type == _CUDA else HOST
    return Tensor((tensor.data or 0) + tensor.byte_offset, dtype, shape, strides, device, False, capsule)
