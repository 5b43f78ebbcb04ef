"""amk.gdn_decode on a GPU against the host: `pytest -m gpu`. Skipped without a device, a failure with
AMK_REQUIRE_GPU=1."""

import ctypes
import os

import numpy as np
import pytest

import amk
from amk.dlpack import Tensor, row_major
from amk.megakernel import device_count
from gdn_model import assert_close, sample, sizes, wide

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def _gpu():
    try:
        device_count()
    except amk.Unavailable as reason:
        if os.environ.get("AMK_REQUIRE_GPU") == "1":
            pytest.fail(f"no GPU: {reason}")
        pytest.skip(f"no GPU: {reason}")


class Device:
    """Memory of GPU 0, by the driver's own calls."""

    def __init__(self) -> None:
        self.cuda = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self.cuda, name)(*arguments)
        assert status == 0, f"{name} returned {status}"

    def put(self, array: np.ndarray) -> Tensor:
        address = ctypes.c_uint64()
        array = np.ascontiguousarray(array)
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(array.nbytes))
        self.call("cuMemcpyHtoD_v2", address, ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))
        dtype = {"float32": "F32", "float16": "F16", "uint16": "BF16"}[array.dtype.name]
        return Tensor(address.value, dtype, array.shape, row_major(array.shape), device=0)

    def get(self, tensor: Tensor, like: np.ndarray) -> np.ndarray:
        out = np.empty_like(like)
        self.call("cuCtxSynchronize")
        address = ctypes.c_uint64(tensor.address)
        self.call("cuMemcpyDtoH_v2", ctypes.c_void_p(out.ctypes.data), address, ctypes.c_size_t(out.nbytes))
        return out


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(("batch", "heads"), [(1, (4, 8)), (8, (4, 8)), (32, (4, 8)), (64, (16, 32)), (3, (1, 5))])
def test_the_gpu_computes_what_the_host_does(batch, heads, dtype):
    device = Device()
    arrays = sample(np.random.default_rng(batch), batch, *heads, dtype, dtype, "f32")
    on_gpu = {name: device.put(x) for name, x in arrays.items()}
    out = device.put(np.zeros_like(arrays["v"]))
    terms = sizes(arrays, 0.1, True)
    want_out, want_state = amk.gdn_decode(**arrays, scale=0.1, l2norm=True, state_out=np.empty_like(arrays["state"]))
    amk.gdn_decode(**on_gpu, scale=0.1, l2norm=True, out=out)  # in place
    assert_close(device.get(on_gpu["state"], arrays["state"]), wide(want_state), "f32", terms[0])
    assert_close(device.get(out, arrays["v"]), wide(want_out), dtype, terms[1])
