"""The worker that a GPU run happens in, with other devices in the GPU's place: right answers, wrong ones, and none.

What is judged here is the parent: it never hangs, never crashes, and never lets a number pass that it should not.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amk
from amk import gpu_trial, supervisor
from amk.errors import BuildMismatch, InternalError, OutOfMemory, Unavailable, WorkerDied
from amk.frames import FrameReader, encode
from amk.timing import CHECKED_STEPS, TIMED_STEPS, WARM_UP_STEPS, make_plan
from amk.verdict import Verdict

EVALUATE = sys.modules["amk.evaluate"]
HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """amk.evaluate as if a device of this kind were there."""

    def call(kind: str, model: str = "toy", /, **options: Any) -> Verdict:
        monkeypatch.setattr(gpu_trial, "_DEVICE_CLASS", f"fake_devices:{kind}")
        monkeypatch.setattr(EVALUATE, "pick_device", lambda *_: ("cuda:0", []))
        monkeypatch.syspath_prepend(str(HERE))
        return amk.evaluate(model, "h200", **{"device": "cuda", **options})

    return call


# --- a right device -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["toy", "toy-gqa", "toy-qwen3", "toy-gdn"])
def test_a_right_device_is_measured(judge: Any, model: str) -> None:
    said: list[str] = []
    verdict = judge("Faithful", model, progress=said.append)
    assert verdict.correct, verdict.notes
    assert verdict.latency_kind == "measured-gpu" and verdict.device == "cuda:0"
    assert verdict.bound_us < verdict.latency_p10_us <= verdict.latency_us <= verdict.latency_p90_us
    assert verdict.pct_of_roofline == pytest.approx(100 * verdict.bound_us / verdict.latency_us)
    source = amk.open_model(model)
    program = amk.lower(source.config, amk.ScheduleConfig.default(), amk.TARGETS["h200"], 256)
    assert verdict.bound_us == pytest.approx(program.cost(verdict.latency_position).streamed_bytes / 4e6, rel=0.02)
    found = verdict.provenance
    assert (found["driver"], found["device_name"], found["read_gb_per_s"]) == ("1.2.3", "Fake device", [4000, 4000])
    assert len(found["clocks"]) == 2 and found["image_hash"] == program.pack().hash
    assert any("cuda:0" in text for text in said)
    text = verdict.to_text()
    assert "measured-gpu (p10" in text and "4000 GB/s read in this run" in text and "on cuda:0" in text
    json.dumps(verdict.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("max_seq", "position"), [(1, 0), (2, 1), (17, 16), (256, 0), (256, 255)])
def test_every_capacity_can_be_timed(judge: Any, max_seq: int, position: int) -> None:
    verdict = judge("Faithful", max_seq=max_seq, position=position)
    assert verdict.correct and verdict.latency_us > 0, verdict.notes
    assert verdict.latency_position == position


def test_noise_on_stdout_is_no_answer(judge: Any) -> None:
    assert judge("Noisy").latency_kind == "measured-gpu"


def test_what_disturbed_the_timing_is_said(judge: Any) -> None:
    verdict = judge("Busy")
    assert verdict.latency_us and any("contended" in note for note in verdict.notes)
    assert any("hw_slowdown" in note for note in verdict.notes)


# --- wrong answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "when"),
    [
        ("Wrong", "before the timing"),
        ("WrongAfter", "after the timing"),
        ("OtherBitsAfter", "other bits"),
        ("NoWorkWhenTimed", "during the timing"),
        ("WrongPositionWhenTimed", "during the timing"),
        ("FaultWhenTimed", "no progress"),
        ("FaultInExam", "no progress"),
    ],
)
def test_a_wrong_device_is_not_correct_and_has_no_latency(judge: Any, device: str, when: str) -> None:
    verdict = judge(device)
    assert verdict.valid and verdict.correct is False and verdict.status == "INCORRECT_NUMERICAL"
    assert verdict.latency_us is None and verdict.latency_kind is None and verdict.bound_us is None
    assert any(when in note for note in verdict.notes), verdict.notes
    assert not any("predict" in note for note in verdict.notes)
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_wrong_reference_machine_is_not_correct_either(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = amk.ReferenceVM.step
    monkeypatch.setattr(amk.ReferenceVM, "step", lambda self, token, pos: step(self, token, pos) * 1.5)
    verdict = judge("Faithful")
    assert verdict.correct is False and any("reference machine" in note for note in verdict.notes)


@pytest.mark.parametrize(
    ("device", "why"),
    [("TooFast", "below the floor"), ("TooSlow", "host's"), ("NotANumber", "steps gave"), ("MemoryErrors", "memory")],
)
def test_a_doubtful_time_is_withheld(judge: Any, device: str, why: str) -> None:
    verdict = judge(device)
    assert verdict.correct and verdict.latency_us is None and verdict.latency_kind is None and verdict.bound_us > 0
    assert any("withheld" in note and why in note for note in verdict.notes), verdict.notes


# --- no answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("Crash", "SIGSEGV"),
        ("CrashAtOpen", "SIGSEGV"),
        ("Exit", "exit status 7): last words"),
        ("Garbage", "no answer"),
        ("HalfAFrame", "exit status 0"),
        ("Bug", "a bug in the worker"),
    ],
)
def test_a_dead_worker_is_a_note(judge: Any, device: str, why: str) -> None:
    verdict = judge(device)
    assert verdict.valid and verdict.correct is False and verdict.latency_us is None
    assert any("GPU worker" in note and why in note for note in verdict.notes), verdict.notes


@pytest.mark.parametrize("device", ["HangInStep", "HangDeaf"])
def test_a_hang_ends_at_the_deadline(judge: Any, device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_trial, "STEP_S", 1.0)
    monkeypatch.setenv("FAKE_DEVICE_PID_FILE", str(tmp_path / "pid"))
    verdict = judge(device)
    assert verdict.correct is False and any("silent for too long" in note for note in verdict.notes)
    assert is_gone(int((tmp_path / "pid").read_text()), 2.0)


def test_a_closed_pipe_is_no_hang(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GOODBYE_S", 0.5)
    assert any("closed its pipe" in note for note in judge("ClosedPipe").notes)


def test_what_the_live_device_refuses_is_rejected(judge: Any) -> None:
    verdict = judge("Refuses")
    assert not verdict.valid and "V10" in verdict.rejected_reason and verdict.correct is None


def test_what_is_not_the_schedules_fault_is_an_error(judge: Any) -> None:
    with pytest.raises(Unavailable, match="no machine code"):
        judge("Gone")
    with pytest.raises(OutOfMemory, match="9 bytes asked"):
        judge("Full")


def test_auto_falls_back_to_the_cpu_and_says_why(judge: Any) -> None:
    verdict = judge("Gone", device="auto")
    assert verdict.correct and verdict.device == "cpu" and verdict.latency_kind == "predicted"
    assert any("no machine code" in note for note in verdict.notes)


def test_weights_that_change_meanwhile_are_noticed(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpu_trial.run_job

    def other(job: Any, *arguments: Any, **options: Any) -> Any:
        return real({**job, "weights_digest": "other"}, *arguments, **options)

    monkeypatch.setattr(gpu_trial, "run_job", other)
    with pytest.raises(BuildMismatch, match="changed"):
        judge("Faithful")


# --- nobody is left behind ------------------------------------------------------------------------------------------


def is_gone(pid: int, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def wait_for(path: Path) -> int:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(path.read_text())


@pytest.mark.parametrize("device", ["HangInStep", "HangDeaf"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_worker_ends_with_its_parent(device: str, how: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import amk; from amk import gpu_trial\n"
        f"gpu_trial._DEVICE_CLASS = 'fake_devices:{device}'\n"
        "sys.modules['amk.evaluate'].pick_device = lambda *_: ('cuda:0', [])\n"
        "amk.evaluate('toy', 'h200', device='cuda')"
    )
    environment = {**os.environ, "FAKE_DEVICE_PID_FILE": str(tmp_path / "pid")}
    command = [sys.executable, "-c", code, str(HERE), os.path.dirname(os.path.dirname(amk.__file__))]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        worker = wait_for(tmp_path / "pid")
        parent.send_signal(how)
        parent.wait(10)
    finally:
        parent.kill()
        parent.wait()
    assert is_gone(worker, 2.0)


def test_the_worker_ends_with_its_stdin(tmp_path: Path) -> None:
    command = [sys.executable, "-c", supervisor._BOOTSTRAP, str(os.getpid()), *sys.path]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    child.stdin.write(encode({"nothing": 1})[:-3])
    child.stdin.close()
    assert child.wait(30) == 1


# --- frames ---------------------------------------------------------------------------------------------------------


def test_frames_survive_any_cut() -> None:
    parts = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": b"\0raw", "c": np.array([np.nan])}
    data = encode({"kind": "x", "n": [1, None, "é"]}, parts) * 2
    for size in (1, 7, len(data)):
        reader, frames = FrameReader(), []
        for start in range(0, len(data), size):
            frames += reader.feed(data[start : start + size])
        assert len(frames) == 2
        for message, got in frames:
            assert message == {"kind": "x", "n": [1, None, "é"]}
            assert got["b"] == b"\0raw" and np.array_equal(got["a"], parts["a"]) and math.isnan(got["c"][0])


@pytest.mark.parametrize(
    "data",
    [
        b"A message",
        b"AMK\x02",
        encode({})[:4] + b"\xff" * 12,
        encode({})[:16] + b"x" * (len(encode({})) - 16),
        encode({}, {"a": np.zeros(3)}).replace(b"NUMPY", b"PICKL"),
        encode({}, {"a": b"12345678"}).replace(b'"raw"', b'"npy"'),
        encode({}, {"a": b"12345678"}).replace(b", 8]", b", 9]"),
        encode({}, {"a": b"12345678"}).replace(b", 8]", b", 7]"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(amk.InputError, match="pipe"):
        FrameReader().feed(data)


def test_an_error_keeps_its_type() -> None:
    assert type(supervisor.error_of("timeout", "x")) is amk.errors.DeviceTimeout
    assert type(supervisor.error_of("nonsense", "x")) is WorkerDied


# --- the plan, and the record -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_seq", "position"), [(1, 0), (5, 2), (256, 0), (256, 128), (256, 255), (8192, 8000)])
def test_a_plan(max_seq: int, position: int) -> None:
    config = amk.open_model("toy").config
    plan = make_plan(config, position, max_seq, 3)
    assert plan == make_plan(config, position, max_seq, 3) != make_plan(config, position, max_seq, 4)
    assert len(plan.tokens) == len(plan.positions) == WARM_UP_STEPS + TIMED_STEPS
    assert 0 <= min(plan.positions) and max(plan.positions) < max_seq
    assert min(plan.positions) <= position <= max(plan.positions)
    assert len(plan.checked) == CHECKED_STEPS >= 0.05 * TIMED_STEPS and min(plan.checked) >= WARM_UP_STEPS
    for i in range(1, len(plan.positions)):
        assert i % plan.window == 0 or plan.positions[i] == plan.positions[i - 1] - 1
    assert len({plan.tokens[i] for i in plan.checked}) == len(plan.checked)


MEASURED: dict[str, Any] = {
    "model": "toy", "gpu": "h200", "device": "cuda:0", "schedule_id": "0", "schedule_config": {}, "valid": True,
    "correct": True, "rel_err": 1e-6, "err_limit": 1e-5, "latency_us": 2.0, "latency_kind": "measured-gpu",
    "bound_us": 1.0, "pct_of_roofline": 50.0, "latency_p10_us": 1.5, "latency_p90_us": 3.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"device": "cpu"},
        {"latency_kind": "predicted"},
        {"latency_kind": "predicted", "latency_p10_us": None, "latency_p90_us": None},
        {"latency_p10_us": None},
        {"latency_p90_us": 1.9},
        {"latency_p10_us": math.nan},
        {"latency_us": 0.9},
        {"correct": False},
        {"latency_us": None, "latency_kind": None, "pct_of_roofline": None},
    ],
    ids=str,
)
def test_a_dishonest_measurement_cannot_be_recorded(change: dict[str, Any]) -> None:
    Verdict(**MEASURED)
    with pytest.raises(InternalError):
        Verdict(**{**MEASURED, **change})
