"""Kernel tasks on a GPU: `pytest -m gpu`. The harness sees what a real stream, graph and launch do, frauds included.

A fraud is an entry written in Python: the harness calls it as it calls a kernel's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import amk
from amk.errors import AmkError, Rejected
from amk.tasks.check import SIDES, call_at, check_row, make_trial
from amk.tasks.cubins import prove
from amk.tasks.device import HarnessDevice
from amk.tasks.judge import Refused
from amk.tasks.measure import load_oracle
from amk.tasks.operands import Block
from amk.tasks.run import run_kernel_bench
from amk.tasks.time_row import bytes_moved
from amk.tasks.workloads import load_task, task_names

pytestmark = pytest.mark.gpu
TASK = "residual_gate_add"


@pytest.fixture(autouse=True, scope="module")
def _gpu() -> None:
    try:
        assert HarnessDevice.count() > 0
    except AmkError as reason:
        if os.environ.get("AMK_REQUIRE_GPU") == "1":
            pytest.fail(str(reason))
        pytest.skip(f"no GPU, or no library of tasks: {reason}")


class PlantedDevice(HarnessDevice):
    """The solution is a Python function: (real entry, harness, the arguments of an amk_task_fn) -> status."""

    def __init__(self, fraud: Callable[..., int]) -> None:
        super().__init__(0)
        real = super().entry(TASK, "solution")

        def call(*arguments: Any) -> int:
            return fraud(self, real, *arguments)

        self._planted = self._library.ffi.callback("amk_task_fn", call)

    def entry(self, task: str, side: str) -> Any:
        return self._planted if side == "solution" else super().entry(task, side)


def honest(device: Any, real: Any, *arguments: Any) -> int:
    return real(*arguments)


def wrong_stream(device: Any, real: Any, *arguments: Any) -> int:
    return real(*arguments[:-1], device._library.ffi.NULL)


def nothing(device: Any, real: Any, *arguments: Any) -> int:
    return 0


def synchronises(device: Any, real: Any, *arguments: Any) -> int:
    status = real(*arguments)
    y = arguments[4][0]
    device._library.lib.amk_harness_download(device._harness, device._library.ffi.new("char[1]"), y.data, 1)
    return status


def half(device: Any, real: Any, *arguments: Any) -> int:
    """Only the first rows, by lying to the kernel about the shapes."""
    inputs, outputs = arguments[0], arguments[4]
    shapes = [inputs[0].shape, inputs[1].shape, outputs[0].shape]
    kept = shapes[0][1]
    for shape in shapes:
        shape[1] = kept // 2
    status = real(*arguments)
    for shape in shapes:
        shape[1] = kept
    return status


def row_of(name: str) -> Any:
    return next(row for row in load_task(TASK).rows if row.name == name)


def check(device: HarnessDevice, name: str = "bf16_11D_2x24x128") -> dict[str, Any]:
    task = load_task(TASK)
    device.open()
    try:
        return check_row(device, TASK, row_of(name), load_oracle(task))
    finally:
        device.close()


def test_the_real_entry_through_python_is_honest() -> None:
    found = check(PlantedDevice(honest))
    assert set(found["errors"]) == set(SIDES) and found["errors"]["solution"]["y"] < 0.05


@pytest.mark.parametrize(
    ("fraud", "reason"),
    [(wrong_stream, "wrong-stream"), (nothing, "stale-output"), (half, "stale-output"),
     (synchronises, "synchronises")],
)  # fmt: skip
def test_a_fraud_on_a_real_stream_is_refused(fraud: Any, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        check(PlantedDevice(fraud))
    assert caught.value.reason == reason, str(caught.value)


def test_what_puts_nothing_on_the_stream_has_no_graph() -> None:
    device = PlantedDevice(nothing)
    row = row_of("bf16_11D_2x24x128")
    block = Block(row, load_oracle(load_task(TASK)).OPERANDS)
    device.open()
    address = device.allocate(block.nbytes)
    with pytest.raises(Rejected, match="put 0 nodes"):
        device.graph(device.entry(TASK, "solution"), [call_at(block, address)], 1)
    device.free(address)
    device.close()


def test_both_sides_of_every_task_are_right_on_every_regression_row() -> None:
    device = HarnessDevice(0)
    device.open()
    failed = {}
    for name in task_names():
        task = load_task(name)
        oracle = load_oracle(task)
        for row in task.rows:
            if row.kind == "regression" and bytes_moved(row, oracle) < 1 << 24:
                try:
                    check_row(device, name, row, oracle)
                except Refused as refusal:
                    failed[f"{name}, {row.name}"] = f"{refusal.reason}: {refusal}"
    device.close()
    assert not failed, failed


def test_the_kernels_that_ran_are_in_the_library() -> None:
    found = check(HarnessDevice(0))
    library = HarnessDevice(0).facts_of_library()
    for side, count in (("baseline", 2), ("solution", 1)):
        kernels = found["kernels"][side]
        assert len(kernels) == count and all(kernel["launches"] == 1 for kernel in kernels)
        proofs = prove(kernels, library["cubins"], [f"sm_{arch}" for arch in library["build"]["architectures"]])
        assert isinstance(proofs, list) and len(proofs) == count, proofs


def test_every_way_of_copying_copies() -> None:
    from amk.tasks.device import Call, Tensor
    from amk.tasks.workloads import TensorSpec

    device = HarnessDevice(0)
    device.open()
    for nbytes in (16, 4096, 16 * 1000 * 1000 + 48):
        spec = TensorSpec((nbytes,), "u8", (1,))
        memory = device.allocate(2 * nbytes + 512)
        to = memory + nbytes + (-nbytes) % 256
        data = np.random.default_rng(0).integers(0, 256, nbytes).astype(np.uint8)
        device.upload(memory, data)
        for name, entry in device.copies():
            device.fill(to, 0, nbytes)
            assert device.run(entry, Call((Tensor(memory, spec),), (), (Tensor(to, spec),))) == 0
            np.testing.assert_array_equal(device.download(to, nbytes), data, err_msg=name)
        device.free(memory)
    device.close()


def test_what_is_copied_is_what_was_there_also_when_the_staging_memory_grows() -> None:
    device = HarnessDevice(0)
    device.open()
    memory = device.allocate(24_000_000)
    rng = np.random.default_rng(1)
    for nbytes in (1, 1000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_003, 23_999_999, 3_000_000):
        data = rng.integers(0, 256, nbytes).astype(np.uint8)
        device.upload(memory, data)
        small = device.download(memory, min(nbytes, 1000))
        seen = device.download(memory, nbytes)
        np.testing.assert_array_equal(seen, data, err_msg=str(nbytes))
        assert not seen.flags.writeable or nbytes <= 1 << 20
        np.testing.assert_array_equal(small, data[:1000])  # a copy: the next download left it alone
    device.free(memory)
    device.close()


def test_a_graph_takes_as_long_as_its_launches() -> None:
    """Twice the replays, about twice the time; the wait that hides the host's gaps is not in it."""
    device = HarnessDevice(0)
    row = row_of("1x512x3072_11D")
    oracle = load_oracle(load_task(TASK))
    block = Block(row, oracle.OPERANDS)
    device.open()
    address = device.allocate(block.nbytes)
    device.upload(address, make_trial(block, oracle, 0).image)
    graph = device.graph(device.entry(TASK, "solution"), [call_at(block, address)], 50)
    graph.time(4)
    once, twice = (float(np.median([graph.time(n) for _ in range(9)])) for n in (20, 40))
    graph.close()
    device.free(address)
    device.close()
    assert 1.7 < twice / once < 2.3


def test_the_quick_stage_of_one_task() -> None:
    assert TASK in task_names()
    (record,) = run_kernel_bench(TASK, stage="quick", device="cuda:0")
    assert record["valid"], record["reasons"]
    assert not record["counts"] and record["headline"]["rows"] == 3
    assert amk.build_info()["cuda"]["enabled"] and record["proofs"]["solution"]


def raises(row: Any, tensors: Any) -> Any:
    raise ValueError("not today")


def test_several_baselines_through_torch() -> None:
    """Ours and torch's through equal wrappers; one that raises is its own affair alone."""
    pytest.importorskip("torch")
    baselines = ["in-repo", "torch", f"{__name__}:raises"]
    ours, torchs, fails = run_kernel_bench(TASK, stage="quick", baselines=baselines, device="cuda:0")
    assert ours["valid"] and torchs["valid"], ours["reasons"] + torchs["reasons"]
    assert ours["proofs"]["baseline"] and ours["proofs"]["solution"] and list(torchs["proofs"]) == ["solution"]
    for one, other in zip(ours["rows"], torchs["rows"], strict=True):
        assert one["cold"]["solution"] == other["cold"]["solution"] and one["warm"]["copy"] == other["warm"]["copy"]
    assert not fails["valid"] and {entry["reason"] for entry in fails["reasons"]} == {"failed"}
    assert "ValueError: not today" in fails["reasons"][0]["message"]
