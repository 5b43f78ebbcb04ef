"""MegakernelVM as far as no device is needed: what it refuses, and how it says that there is none."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import amk
from amk import nvml
from amk.errors import InputError, Unavailable
from amk.machine import choose_device, default_gpu, open_machine, pick_device
from amk.megakernel import device_count, device_uuid, read_bandwidth
from amk.streams import stream_handle
from amk.targets import preset_of, same_device


@pytest.fixture(scope="module")
def toy() -> Any:
    source = amk.open_model("toy")
    return amk.lower(source.config, amk.ScheduleConfig.default(), "h200", 16).pack(), source.weights()


def test_no_device_is_unavailable_with_the_reason(toy: Any) -> None:
    for call in (
        lambda: amk.MegakernelVM(*toy),
        lambda: open_machine("cuda", *toy),
        lambda: read_bandwidth(0),
        lambda: device_uuid(0),
        device_count,
        lambda: choose_device("cuda:3"),
        lambda: amk.evaluate("toy", "h200", device="cuda"),
    ):
        with pytest.raises(Unavailable, match="CUDA"):
            call()


def test_auto_is_the_cpu_and_says_why(toy: Any) -> None:
    device, notes = pick_device("auto")
    assert device == choose_device("auto") == "cpu" and "CUDA" in notes[0]
    assert pick_device("cpu") == ("cpu", [])
    assert default_gpu() == "h200"
    with open_machine("auto", *toy) as machine:
        assert isinstance(machine, amk.ReferenceVM)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:٣", "cuda:99999", "", None, 0, ["cpu"]])
def test_other_names_are_no_device(device: Any) -> None:
    with pytest.raises(InputError, match="device"):
        choose_device(device)


@pytest.mark.parametrize("timeout_s", [0, -1, 1e-9, 1e9, float("nan"), "2", None, True])
def test_a_timeout_is_seconds(toy: Any, timeout_s: Any) -> None:
    with pytest.raises(InputError, match="timeout_s"):
        amk.MegakernelVM(*toy, timeout_s=timeout_s)


def test_a_stream_is_a_handle() -> None:
    assert stream_handle(None) == 0
    assert stream_handle(np.uint64(1 << 47)) == stream_handle(SimpleNamespace(cuda_stream=1 << 47)) == 1 << 47
    assert stream_handle(SimpleNamespace(__cuda_stream__=lambda: (0, 77))) == 77
    assert stream_handle(SimpleNamespace(__cuda_stream__=(0, 77), cuda_stream=5)) == 77
    # CUDA's default stream is 0, and is not the machine's own.
    assert stream_handle(0) == stream_handle(SimpleNamespace(cuda_stream=0)) == 1
    for bad in (-1, 1 << 64, 1.0, "0", True, object(), SimpleNamespace(__cuda_stream__=lambda: 7)):
        with pytest.raises(InputError, match="stream"):
            stream_handle(bad)


def test_relaunch_repeats_the_last_step(toy: Any) -> None:
    with amk.ReferenceVM(*toy, guard=True) as machine:
        with pytest.raises(InputError, match="relaunch"):
            machine.relaunch()
        machine.step(7, 0)
        logits = machine.step(3, 1)
        machine.relaunch()
        assert np.array_equal(machine.read("logits"), logits)
        machine.write("token", np.array([9], np.int32))
        machine.relaunch()
        assert not np.array_equal(machine.read("logits"), logits)


def test_a_live_device_has_the_name_of_its_preset() -> None:
    for name, preset in amk.TARGETS.items():
        live = replace(preset, name="NVIDIA " + name, hbm_bytes=int(1.07 * preset.hbm_bytes))  # as devices report it
        assert preset_of(live) == name and same_device(preset, live)
        assert preset_of(replace(live, hbm_bytes=int(1.3 * preset.hbm_bytes))) != name
        assert preset_of(replace(live, sm_count=preset.sm_count - 1)) is None


def test_a_device_that_is_not_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    h200 = amk.TARGETS["h200"]
    live = replace(h200, name="NVIDIA H200", hbm_bytes=int(1.07 * h200.hbm_bytes))
    monkeypatch.setattr("amk.megakernel.device_count", lambda: 2)
    monkeypatch.setattr("amk.targets.query_device", lambda index: live)
    assert pick_device("auto", h200) == pick_device("auto", live) == pick_device("cuda", h200) == ("cuda:0", [])
    assert pick_device("cuda:1") == ("cuda:1", [])
    device, notes = pick_device("auto", amk.TARGETS["b200"])
    assert device == "cpu" and "NVIDIA H200" in notes[0] and "b200" in notes[0]
    device, notes = pick_device("cuda", amk.TARGETS["h100"])
    assert device == "cuda:0" and "h100" in notes[0] and "NVIDIA H200" in notes[0]
    with pytest.raises(Unavailable, match="cuda:2"):
        pick_device("cuda:2")
    monkeypatch.setattr("amk.targets.resolve_target", lambda name: live)
    assert default_gpu() == "h200"
    monkeypatch.setattr("amk.targets.resolve_target", lambda name: replace(live, sm_count=78))
    assert default_gpu() == "local"


def test_without_a_driver_nothing_is_known_and_nothing_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_LIBRARY", "libnothing-at-all.so.1")
    found = nvml.snapshot("GPU-0")
    assert found and set(found.values()) == {None} and nvml.driver_version() is None
    assert nvml.held_back_by(found, {"throttle_reasons": ["gpu_idle", "hw_slowdown"]}) == ["hw_slowdown"]
    assert nvml._reasons(0x1 | 0x80 | 1 << 40) == ["gpu_idle", "hw_power_brake_slowdown", "0x10000000000"]


def test_exceptions_of_a_worker_are_device_errors() -> None:
    assert issubclass(amk.errors.WorkerDied, amk.DeviceError)
