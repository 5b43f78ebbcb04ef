"""The native passes over operands against numpy, bit for bit: judging, comparing bytes, rounding.

Needs no GPU: the host part of the harness is compiled on its own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amk.errors import InputError
from amk.tasks import judge, operands
from amk.tasks.harness_library import Library
from amk.tasks.judge import Refused, judge_in_numpy, same_bytes
from amk.tasks.native import Native
from amk.tasks.operands import stored, values_of
from amk.tasks.workloads import DTYPES, Tolerance
from kernels_on_cpu import COMPILER, ROOT, TASKS, needs_compiler
from test_task_operands import judged

pytestmark = needs_compiler
PIECE = 1 << 18  # that a thread takes
FLOATS = ("f32", "f16", "bf16")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    folder = tmp_path_factory.mktemp("native")
    include = TASKS / "include"
    subprocess.run(
        [COMPILER, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-O2", "-ffp-contract=off", "-fPIC",
         "-shared", "-pthread", f"-I{ROOT / 'csrc'}", f"-I{include}", TASKS / "harness/judge.cpp",
         ROOT / "csrc/base/error.cpp", "-o", folder / "judge.so"],
        check=True,
    )  # fmt: skip
    module = folder / "abi_of_tasks.py"
    headers = [include / "amk_task.h", include / "amk_task_harness.h"]
    subprocess.run([sys.executable, ROOT / "cmake/generate_abi.py", *headers, module], check=True)
    spec = importlib.util.spec_from_file_location("abi_of_tasks", module)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    path = str(folder / "judge.so")
    return Native(Library(made.ffi, made.ffi.dlopen(path), path))


@pytest.fixture(scope="module", autouse=True)
def in_numpy() -> Iterator[None]:
    """The reference, also where a library of tasks is installed."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (judge, operands):
            patch.setattr(module, "native", lambda: None)
        yield


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def operands_of(dtype: str, seed: int, size: int, wild: float) -> tuple[np.ndarray, np.ndarray]:
    """Storage, and the float64 that it is held against: near it, at it, and of `wild` elements anything at all."""
    rng = np.random.default_rng(seed)
    storage = DTYPES[dtype][0]
    if dtype in FLOATS:
        spread = np.float32(10.0) ** rng.integers(-9, 6, size).astype(np.float32)
        got = stored(rng.standard_normal(size).astype(np.float32) * spread, dtype)
    else:
        got = rng.integers(0, 100, size).astype(storage)
    anything = rng.random(size) < wild
    raw = np.frombuffer(rng.bytes(size * storage.itemsize), storage)
    got = np.where(anything, raw, got).astype(storage)
    got[rng.random(size) < wild] = np.frombuffer(b"\xff" * storage.itemsize, storage)[0]
    with np.errstate(all="ignore"):
        value = values_of(got, dtype).astype(np.float64)
        want = np.select(
            [rng.random(size) < 0.3, rng.random(size) < 0.3],
            [value, value * (1 + 0.05 * rng.choice([-1.0, 1.0], size))],  # at the edge of the tolerance
            value + 0.1 * rng.standard_normal(size),
        )
    strange = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 2.2e-308, 1.7e308, -1.0, 255.0, 2.0**63])
    return got, np.where(rng.random(size) < wild, rng.choice(strange, size), want)


SIZES = st.one_of(st.integers(0, 70), st.sampled_from([1023, 1024, 1025, 4099]))
TOLERANCES = st.builds(
    Tolerance, st.sampled_from([0.0, 1e-5, 0.05, 1e300]), st.sampled_from([0.0, 1e-5, 0.05, 1.0, 1e300])
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(DTYPES)), st.integers(0, 2**32), SIZES, st.sampled_from([0.0, 0.02, 0.5]), TOLERANCES)
def test_the_native_judge_is_that_of_numpy(
    native: Native, dtype: str, seed: int, size: int, wild: float, limit: Tolerance
) -> None:
    got, want = operands_of(dtype, seed, size, wild)
    assert native.judge(got, dtype, want, limit.atol, limit.rtol) == judge_in_numpy(got, dtype, want, limit)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_every_value_of_two_bytes_is_widened_as_numpy_does(native: Native, dtype: str) -> None:
    got = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype][0])
    with np.errstate(invalid="ignore"):
        want = values_of(got, dtype).astype(np.float64)
    found = native.judge(got, dtype, want, 0.0, 0.0)
    assert found == judge_in_numpy(got, dtype, want, Tolerance(0.0, 0.0))
    assert found.largest == 0 and found.outside == np.count_nonzero(~np.isfinite(want))
    for shift in (1.0, -1e-30):
        limit = Tolerance(0.5, 0.0)
        assert native.judge(got, dtype, want + shift, 0.5, 0.0) == judge_in_numpy(got, dtype, want + shift, limit)


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 3])
def test_pieces_that_threads_take_leave_nothing_out(native: Native, size: int) -> None:
    got = stored(np.linspace(1, 2, size, dtype=np.float32), "bf16")
    want = values_of(got, "bf16").astype(np.float64)
    assert native.judge(got, "bf16", want, 0.0, 0.0) == (0.0, 0, size, 0, -1, -1)
    rng = np.random.default_rng(size)
    for at in (0, size - 1, *rng.integers(0, size, 3)):
        changed = got.copy()
        changed[at] ^= 1
        found = native.judge(changed, "bf16", want, 0.0, 0.0)
        assert found.outside == 1 and found.largest == abs(values_of(changed[[at]], "bf16")[0] - want[at])
        changed[at] = 0xFFFF
        assert native.judge(changed, "bf16", want, 0.0, 0.0) == (0.0, 1, size, 1, at, -1)
        assert native.count_different(got.view(np.uint8), changed.view(np.uint8)) in (1, 2)
    some = rng.integers(0, size, 1000)
    changed[some] = 0x7F80
    want[rng.integers(0, size, 1000)] = np.nan
    limit = Tolerance(0.01, 0.0)
    assert native.judge(changed, "bf16", want, 0.01, 0.0) == judge_in_numpy(changed, "bf16", want, limit)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_bytes_that_differ_are_counted(native: Native, data: bytes, seed: int) -> None:
    one = np.frombuffer(data, np.uint8)
    other = np.where(np.random.default_rng(seed).random(one.size) < 0.1, 0, one).astype(np.uint8)
    assert native.count_different(one, other) == np.count_nonzero(one != other)
    assert native.count_different(one, one.copy()) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3000))
def test_rounding_to_bf16_is_that_of_numpy(native: Native, seed: int, size: int) -> None:
    values = np.frombuffer(np.random.default_rng(seed).bytes(4 * size), np.float32)
    out, back = np.empty(size, np.uint16), np.empty(size, np.float32)
    native.to_bf16(values, out)
    np.testing.assert_array_equal(out, operands._to_bf16(values))
    native.from_bf16(out, back)
    np.testing.assert_array_equal(bits(back), bits(operands._from_bf16(out)))


def test_what_cannot_be_judged_is_a_typed_error(native: Native) -> None:
    got, want = np.zeros(8, np.float32), np.zeros(8)
    for limits in ((-1.0, 0.0), (0.0, np.nan)):
        with pytest.raises(InputError, match="tolerances"):
            native.judge(got, "f32", want, *limits)
    with pytest.raises(InputError, match="aligned"):
        native.judge(got.view(np.uint8)[1:29], "f32", want[:7], 0.0, 0.0)
    ffi, lib, _ = native._library
    out = ffi.new("amk_harness_judgement_t*")
    address = ffi.cast("void*", got.ctypes.data)
    with pytest.raises(InputError, match="dtype 99"):
        native._library.check(lib.amk_harness_judge(address, 99, ffi.cast("double*", want.ctypes.data), 8, 0, 0, out))
    with pytest.raises(InputError, match="two addresses"):
        native._library.check(lib.amk_harness_count_different(address, ffi.NULL, 8, ffi.new("int64_t*")))


def test_the_refusals_are_the_same_with_the_native_judge(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    good = np.linspace(1, 2, 6).reshape(2, 3)
    cases: list[Any] = [good, good + 1e-4, np.where(good == 2, np.inf, good), np.where(good == 2, np.nan, good)]
    said = []
    for code in (native, None):
        for module in (judge, operands):
            monkeypatch.setattr(module, "native", lambda code=code: code)
        found: list[Any] = []
        for values in cases:
            try:
                found.append(judged(values=values))
            except Refused as refusal:
                found.append((refusal.reason, str(refusal)))
        said.append(found)
        data = np.arange(1 << 20, dtype=np.uint32).view(np.uint8)
        other = data.copy()
        assert same_bytes(data, other) and not same_bytes(data, other[:-1])
        other[-1] ^= 1
        assert not same_bytes(data, other)
    assert said[0] == said[1]
    assert [one if isinstance(one, dict) else one[0] for one in said[0]][1:] == ["wrong-value", *["non-finite"] * 2]
