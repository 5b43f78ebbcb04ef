"""`amk.loop` with a GPU, another device standing in for it: pairs, faults, a device that is lost, one at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import amk
import loop_jobs
from amk import gpu_trial
from amk.errors import DeviceBusy, InputError, Unavailable
from amk.gpu_lock import gpu_lock
from amk.search.executor import InlineExecutor
from amk.search.plan import Plan

RUN = "amk.search.run"
EVALUATE = sys.modules["amk.evaluate"]
FUSIONS = list(amk.ScheduleConfig.default().fusion_grouping)
FASTER = {"tiling.gemv.N_tile": [0, 64]}  # fewer tasks, which is what counts on a device of this test
EQUAL = {"page_allocation": ["linear", "none"]}
SIMPLER = {"fusion_grouping": [FUSIONS, [name for name in FUSIONS if name != "qkv"]]}
TILED = {"tiling": {"gemv": {"N_tile": 64}}}
SLOWER = {"fusion_grouping": [FUSIONS, [name for name in FUSIONS if name != "gate+up+silu"]]}  # more tasks


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """amk.loop as if a GPU were there."""
    monkeypatch.setenv("LOOP_JOBS_DIR", str(tmp_path))
    monkeypatch.setenv("LOOP_JOBS_UUID", f"GPU-fake-loop-{os.getpid()}")
    monkeypatch.setattr("amk.machine.pick_device", lambda *_: ("cuda:0", []))
    monkeypatch.setattr(f"{RUN}._JUDGE", "loop_jobs:on_fake_gpu")
    monkeypatch.setattr(f"{RUN}._COMPARE", "loop_jobs:compare_on_fake_gpu")
    monkeypatch.setattr(f"{RUN}._PROBE", "loop_jobs:probe")
    monkeypatch.setattr(f"{RUN}.LOSS_PAUSE_S", 0.01)
    for place, name in ((gpu_trial, "_DEVICE_CLASS"), (gpu_trial, "STEP_S"), (EVALUATE, "pick_device")):
        monkeypatch.setattr(place, name, getattr(place, name))  # loop_jobs change them, here too if inline

    def call(space: Any, budget: int = 2, **options: Any) -> amk.LoopResult:
        for name in ("device", "pair_device", "alive"):
            if name in options:
                monkeypatch.setenv(f"LOOP_JOBS_{name.upper()}", str(options.pop(name)))
        monkeypatch.setattr(sys.modules["amk.propose"], "search_space", lambda target: space)
        known = {
            "results_path": tmp_path / "results.tsv",
            "corpus_path": None,
            "explore_fraction": 0.0,
            "engine": "inline",
        }
        return amk.loop("toy", "h200", budget, "cuda", **known | options)

    return call


def plan_of() -> Plan:
    toy = amk.open_model("toy")
    options = {"seed": 0, "explore_fraction": 0.0, "cold": True, "sampler": "builtin", "engine": "inline", "workers": 1}
    return Plan.make(
        toy,
        amk.TARGETS["h200"],
        model="toy",
        device="cuda:0",
        budget=2,
        max_seq=256,
        position=128,
        timeout_s=60.0,
        **options,
    )


# --- pairs ----------------------------------------------------------------------------------------------------------


def test_a_faster_one_is_kept_after_a_second_process_says_so(search: Any, tmp_path: Path) -> None:
    result = search(FASTER, engine="process")
    first, second = result.trials
    assert result.regime == "measured-gpu" and first.tag == second.tag == "kept", second
    assert first.comparison == {"slack": 0.0} and result.best == second
    assert second.verdict["latency_kind"] == "measured-gpu" and second.latency_us < first.latency_us
    compared, confirmed = second.comparison["rounds"]
    true = 1 - (300 + 2 * 85) / (300 + 2 * 162)
    for found in (compared, confirmed):
        assert found["trouble"] is None and found["pairs"] == 100
        assert 0.01 < found["gain_low"] <= found["gain"] == pytest.approx(true, abs=0.02)
    assert compared["seed"] != confirmed["seed"]
    assert (tmp_path / "compare").stat().st_size == 2, "each in a process of its own"
    assert "%) faster" in second.description and "95 % bound" in second.description


@pytest.mark.parametrize(
    ("space", "tag", "why"),
    [(EQUAL, "revert", "no simpler"), (SIMPLER, "kept", "simpler"), (SLOWER, "revert", "slower")],
    ids=["equal", "simpler", "slower"],
)
def test_pairs_decide(search: Any, space: Any, tag: str, why: str) -> None:
    trial = search(space).trials[1]
    assert trial.tag == tag and why in trial.description and trial.correctness == "PASS", trial
    assert trial.latency_us is not None


def test_a_gain_that_does_not_show_again_is_not_kept(search: Any, tmp_path: Path) -> None:
    trial = search(FASTER, pair_device="FasterOnce").trials[1]
    assert trial.tag == "revert" and "in a fresh process" in trial.description, trial
    assert [found["gain_low"] > 0.01 for found in trial.comparison["rounds"]] == [True, False]


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("NoWorkWhenTimed", "wrong while it was timed"),
        ("WrongPositionWhenTimed", "wrong while it was timed"),
        ("TooFast", "below the floor"),
        ("TooSlow", "the host's"),
        ("NotANumber", "positive times"),
        ("MemoryErrors", "memory errors"),
        ("Busy", "contended"),
        ("Full", "both do not fit"),
    ],
)
def test_pairs_that_do_not_count(search: Any, device: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOP_JOBS_PAIR_DEVICE", device)
    found = loop_jobs.compare_on_fake_gpu(plan_of().asked(incumbent={}, candidate=TILED, seed=3), lambda text: None)
    assert why in found["trouble"] and not found.get("us"), found
    assert found.get("wrong", []) == (["candidate", "incumbent"] if "wrong" in why else [])


@pytest.mark.parametrize(
    ("device", "tag", "correctness"), [("WrongWhenFewTasks", "revert", "FAIL"), ("Busy", "revert", "PASS")]
)
def test_what_such_pairs_make_of_a_trial(search: Any, device: str, tag: str, correctness: str) -> None:
    trial = search(FASTER, pair_device=device).trials[1]
    assert (trial.tag, trial.correctness) == (tag, correctness), trial
    assert (trial.latency_us is None) is (correctness == "FAIL")
    assert "us" not in trial.comparison["rounds"][0] and "gain" not in trial.comparison["rounds"][0]


@pytest.mark.parametrize("device", ["FaultWhenTimed", "Exit"])
def test_a_fault_in_a_pair_is_a_crash(search: Any, device: str) -> None:
    result = search(FASTER, pair_device=device)
    assert [t.tag for t in result.trials] == ["kept", "crash"] and result.best == result.trials[0]


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "tag", "correctness", "why"),
    [
        ("Crash", "crash", "CRASH", "SIGSEGV"),
        ("HangInStep", "crash", "CRASH", "silent for too long"),
        ("FaultWhenTimed", "crash", "CRASH", "no progress"),
        ("FaultInExam", "crash", "CRASH", "timeout"),
        ("Gone", "crash", "CRASH", "no machine code"),
        ("Full", "crash", "CRASH", "9 bytes asked"),
        ("Wrong", "tried", "FAIL", "exceeds"),
        ("NotANumber", "tried", "PASS", "withheld"),
        ("Refuses", "rejected", "REJECTED", "V10"),
    ],
)
def test_a_trial_that_goes_wrong_is_one_row(search: Any, device: str, tag: str, correctness: str, why: str) -> None:
    result = search(FASTER, 1, device=device)
    (trial,) = result.trials
    assert (trial.tag, trial.correctness, trial.latency_us) == (tag, correctness, None), trial
    assert why in trial.description and result.best is None and result.stopped is None


def test_three_losses_of_the_device_stop_the_loop(search: Any) -> None:
    said: list[str] = []
    result = search({"tiling.gemv.N_tile": [0, 64, 128, 256]}, 9, device="Gone", alive=1, progress=said.append)
    assert len(result.trials) == 3 and all(t.tag == "crash" for t in result.trials)
    assert "lost 3 times in a row" in result.stopped and "cuda:0" in result.stopped
    assert sum("does not answer" in text for text in said) == 3


class TwoDevices:
    """Two workers in turns, in this process; the device of worker 1 is gone after its first look."""

    def __init__(self) -> None:
        self.workers, self.inline, self.ran_on, self.looks = 2, InlineExecutor(), {}, [0, 0]

    def submit(self, job: Any, say: Any) -> int:
        ticket = self.inline.submit(job, say)
        self.ran_on[ticket] = ticket % 2
        return ticket

    def wait(self, ticket: int) -> Any:
        return self.inline.wait(ticket)

    def probe(self, ticket: int, job: Any) -> Any:
        worker = self.ran_on[ticket]
        self.looks[worker] += 1
        return worker, Unavailable("it is gone") if worker and self.looks[1] > 1 else None

    def close(self) -> None:
        self.inline.close()


def test_each_worker_has_a_device_of_its_own(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of one are not undone by the good health of another."""
    executor, said = TwoDevices(), []
    monkeypatch.setattr(f"{RUN}.open_executor", lambda *_, **__: executor)
    space = {"tiling.gemv.N_tile": [0, 8, 16, 32, 64, 128], "tiling.attention.kv_block": [16, 32, 64]}
    result = search(space, 16, device="CrashAtOpen", engine="ray", workers=2, progress=said.append)
    assert "lost 3 times in a row" in result.stopped and "of worker 1" in result.stopped
    assert executor.looks[1] == 4 and executor.looks[0] in (3, 4) and len(result.trials) in (8, 9)
    assert sum("of worker 1 does not answer" in text for text in said) == 3


@pytest.mark.slow
@pytest.mark.parametrize("alive", [1, 1000])
def test_losses_under_ray(search: Any, monkeypatch: pytest.MonkeyPatch, alive: int) -> None:
    """One Ray worker with what Ray takes for a GPU, a device of the tests in its place, and looks at it after each
    trial."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name, value in (("DEVICE", "Gone"), ("ALIVE", str(alive))):  # inherited by Ray's processes
        monkeypatch.setenv(f"LOOP_JOBS_{name}", value)
    ray.init(num_cpus=2, num_gpus=1, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    try:
        said: list[str] = []
        result = search({"tiling.gemv.N_tile": [0, 64, 128, 256]}, 6, engine="ray", progress=said.append)
    finally:
        ray.shutdown()
    lost = [text for text in said if "of worker 0 does not answer" in text]
    if alive == 1:
        assert "lost 3 times in a row" in result.stopped and "of worker 0" in result.stopped
        assert len(result.trials) == 4 and len(lost) == 3
    else:
        assert not lost and all(trial.tag == "crash" for trial in result.trials) and "nothing new" in result.stopped


def test_a_crash_of_a_device_that_answers_is_no_loss(search: Any) -> None:
    result = search({"tiling.gemv.N_tile": [0, 64, 128, 256]}, 4, device="CrashAtOpen")
    assert [t.tag for t in result.trials] == ["crash"] * 4 and result.stopped is None


# --- one at a time --------------------------------------------------------------------------------------------------


@contextmanager
def held_elsewhere(name: str) -> Iterator[int]:
    """Another process times this device."""
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from amk.gpu_lock import gpu_lock\n"
        "with gpu_lock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, name, str(Path(amk.__file__).parents[1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        yield other.pid
        other.stdin.close()  # type: ignore[union-attr]


def test_two_loops_never_time_one_device(search: Any) -> None:
    with held_elsewhere(os.environ["LOOP_JOBS_UUID"]) as pid, pytest.raises(DeviceBusy, match=f"process {pid}"):
        search(FASTER)
    assert len(search(FASTER, 1).trials) == 1
    with pytest.raises(InputError, match="time each other"):
        search(FASTER, workers=2)


def test_evaluate_waits_for_a_device_and_then_says_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_trial, "_DEVICE_CLASS", "fake_devices:Faithful")
    monkeypatch.setattr(sys.modules["amk.evaluate"], "pick_device", lambda *_: ("cuda:0", []))
    monkeypatch.setenv("FAKE_LOCK_WAIT_S", "0.5")
    uuid = f"GPU-fake-{os.getpid()}"
    for device in ("cuda", "auto"):
        with held_elsewhere(uuid) as pid, pytest.raises(DeviceBusy, match=f"process {pid}"):
            amk.evaluate("toy", "h200", device=device)
    with gpu_lock(uuid):  # a worker may use what the process that started it holds
        assert amk.evaluate("toy", "h200", device="cuda").latency_kind == "measured-gpu"


def test_a_resumed_measurement_is_made_again(search: Any, tmp_path: Path) -> None:
    from test_loop import rewrite

    search(FASTER, 1)
    assert len(search(FASTER, 2, resume=True).trials) == 2
    path = tmp_path / "results.journal.jsonl"

    def lie(entry: Any) -> None:
        entry["trial"]["latency_us"] = entry["trial"]["verdict"]["latency_us"] = 50.0

    rewrite(path, lie, "end")
    with pytest.raises(InputError, match="edited"):
        search(FASTER, 3, resume=True)
