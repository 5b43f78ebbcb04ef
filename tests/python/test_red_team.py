"""Cheats: what an agent that edits schedules, or files, could try in order to look faster than it is. All are caught.

Tier 1 submits configs; tier 2 also writes files and processes as the same user. What needs no GPU is tried here, with
other devices in the GPU's place; wrong machines of every kind are in test_wrong_machines.py, dishonest verdicts and
devices one by one in test_gpu_worker.py. Each case names the row of the list of self-deceptions that it belongs to.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amk
import loop_jobs
from amk import gpu_trial, vm
from amk.errors import AmkError, BuildMismatch, InputError, InternalError
from amk.records import RecordStore, Trial, read_corpus, read_trials
from amk.search.pairs import paired_gain
from amk.verdict import Verdict
from test_loop import rewrite
from test_loop_measured import FASTER, TILED, plan_of

RUN = "amk.search.run"
EVALUATE = sys.modules["amk.evaluate"]


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A short loop on the reference machine, with a judge of the cheat's own making if one is given."""

    def call(budget: int = 3, judge: Any = None, **options: Any) -> amk.LoopResult:
        if judge is not None:
            monkeypatch.setattr(sys.modules[__name__], "_judge", judge)
            monkeypatch.setattr(f"{RUN}._JUDGE", f"{__name__}:call_judge")
        known = {
            "results_path": tmp_path / "results.tsv", "corpus_path": tmp_path / "corpus.jsonl", "engine": "inline",
        }  # fmt: skip
        return amk.loop("toy", "h200", budget, "cpu", **known | options)

    return call


def call_judge(arguments: dict[str, Any], say: Any) -> Any:
    return _judge(arguments, say)


def _judge(arguments: dict[str, Any], say: Any) -> Any:
    raise AssertionError("a test puts its own here")


def answer_with(**lie: Any) -> Any:
    """A worker that judges honestly and then changes its answer, for every schedule but the default."""

    def judge(arguments: dict[str, Any], say: Any) -> Any:
        answer = loop_jobs.jobs.judge(arguments, say)
        if arguments["schedule_config"] != amk.ScheduleConfig.default().to_dict():
            answer["verdict"] |= lie
        return answer

    return judge


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """amk.evaluate as if a device of this kind were there."""

    def call(kind: str, config: Any = None) -> Verdict:
        monkeypatch.setattr(gpu_trial, "_DEVICE_CLASS", f"fake_devices:{kind}")
        monkeypatch.setattr(EVALUATE, "pick_device", lambda *_: ("cuda:0", []))
        return amk.evaluate("toy", "h200", config, "cuda")

    return call


def caught(verdict: Verdict) -> bool:
    return verdict.latency_us is None and (verdict.correct is not True or any("withheld" in n for n in verdict.notes))


# --- 1, 3, 4, 7: work that is not done, or done once ----------------------------------------------------------------


@pytest.mark.parametrize(
    "device",
    ["NoWorkWhenTimed", "WrongPositionWhenTimed", "ReplaysWhenTimed", "OnceThenCached", "SkipsAfterWarmUp",
     "WrongAfter", "OtherBitsAfter"],
)  # fmt: skip
def test_work_that_is_not_done_when_it_is_timed(on_device: Any, device: str) -> None:
    assert caught(on_device(device)), device


@pytest.mark.parametrize("device", ["NoWorkWhenTimed", "ReplaysWhenTimed", "SkipsAfterWarmUp"])
def test_nor_in_a_comparison(device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOOP_JOBS_DIR", str(tmp_path))
    monkeypatch.setenv("LOOP_JOBS_PAIR_DEVICE", device)
    for place, name in ((gpu_trial, "_DEVICE_CLASS"), (gpu_trial, "STEP_S"), (EVALUATE, "pick_device")):
        monkeypatch.setattr(place, name, getattr(place, name))
    found = loop_jobs.compare_on_fake_gpu(plan_of().asked(incumbent={}, candidate=TILED, seed=3), lambda text: None)
    assert found["us"] is None and found["wrong"] == ["candidate", "incumbent"]


# --- 2: right only where it is expected to be looked at -------------------------------------------------------------


class RightAtTheStart(vm.ReferenceVM):
    """Position 0 and the first ones are right; nobody would look further, would they."""

    def step(self, token: int, pos: int) -> np.ndarray:
        logits = super().step(token, pos)
        return logits if pos < 17 else np.roll(logits, 1)


class RightAboutTheWinner(vm.ReferenceVM):
    """The largest logit is right; the others are made up."""

    def step(self, token: int, pos: int) -> np.ndarray:
        logits = super().step(token, pos)
        out = np.full_like(logits, logits.min() - 1)
        out[int(np.argmax(logits))] = logits.max()
        return out


class AlmostRight(vm.ReferenceVM):
    """1 % off, which looks like rounding."""

    def step(self, token: int, pos: int) -> np.ndarray:
        return super().step(token, pos) * np.float32(1.01)


@pytest.mark.parametrize("machine", [RightAtTheStart, RightAboutTheWinner, AlmostRight])
def test_right_only_for_the_probe(machine: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "ReferenceVM", machine)
    assert caught(amk.evaluate("toy-2L", "h200"))


def test_the_questions_do_not_depend_on_what_is_asked_of_them(search: Any) -> None:
    """The seed of the questions is the loop's, and no key of a schedule can set it."""
    for key in ("seed", "token", "positions", "err_limit", "questions"):
        verdict = amk.evaluate("toy", "h200", {key: 1}, strict=True)
        assert not verdict.valid and key in verdict.rejected_reason


# --- 5, 6, 9, 13: clocks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["TooFast", "TooSlow", "NotANumber", "MemoryErrors", "NegativeTime", "InfiniteTime"])
def test_clocks_that_cannot_be(on_device: Any, device: str) -> None:
    verdict = on_device(device)
    assert verdict.correct and caught(verdict), verdict


@pytest.mark.parametrize("latency", [1e-9, 0.0, -1.0, math.nan, math.inf, "18.0", True, [18.0]])
def test_a_worker_that_names_its_own_latency(search: Any, latency: Any) -> None:
    result = search(judge=answer_with(latency_us=latency))
    assert [t.tag for t in result.trials[1:]] == ["crash"] * 2 and result.best == result.trials[0]


# --- 10, 20: numbers that are none ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"rel_err": math.nan}, {"err_limit": math.nan}, {"err_limit": 1e-12}, {"rel_err": None}, {"err_limit": None},
        {"correct": None}, {"valid": False}, {"rejected_reason": "but it is"},
    ],
    ids=str,
)  # fmt: skip
def test_an_error_that_is_no_number_is_no_pass(search: Any, lie: dict[str, Any]) -> None:
    result = search(judge=answer_with(**lie))
    assert [t.tag for t in result.trials[1:]] == ["crash"] * 2 and all(t.latency_us is None for t in result.trials[1:])


# --- 12: predicted sold as measured ---------------------------------------------------------------------------------


def test_a_prediction_is_not_sold_as_a_measurement(search: Any) -> None:
    measured = {"latency_kind": "measured-gpu", "latency_p10_us": 1.0, "latency_p90_us": 99.0}
    for lie in ({"latency_kind": "measured-gpu"}, measured, measured | {"device": "cuda:0"}):
        result = search(2, judge=answer_with(**lie))
        assert result.trials[1].tag == "crash" and result.trials[1].latency_us is None


def test_nor_kept_by_a_loop_that_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU loop whose worker answers with what the reference machine predicted."""
    monkeypatch.setenv("LOOP_JOBS_DIR", str(tmp_path))
    monkeypatch.setenv("LOOP_JOBS_UUID", f"GPU-red-{os.getpid()}")
    monkeypatch.setattr("amk.machine.pick_device", lambda *_: ("cuda:0", []))
    monkeypatch.setattr(f"{RUN}._PROBE", "loop_jobs:probe")
    monkeypatch.setattr(sys.modules["amk.propose"], "search_space", lambda target: FASTER)

    def predicts(arguments: dict[str, Any], say: Any) -> Any:
        return loop_jobs.jobs.judge(arguments | {"device": "cpu"}, say)

    monkeypatch.setattr(sys.modules[__name__], "_judge", predicts)
    monkeypatch.setattr(f"{RUN}._JUDGE", f"{__name__}:call_judge")
    result = amk.loop("toy", "h200", 2, "cuda", results_path=tmp_path / "r.tsv", corpus_path=None, engine="inline")
    assert [t.tag for t in result.trials] == ["crash"] * 2 and result.best is None
    assert "something else than it was asked" in result.trials[0].description


# --- 14: mining noise -----------------------------------------------------------------------------------------------


def test_many_tries_with_noise_alone_keep_nothing() -> None:
    """300 comparisons of a config with itself, under noise of 2 %: no bound lies above 1 %."""
    rng = np.random.default_rng(0)
    lows = [paired_gain(800 * np.exp(0.02 * rng.standard_normal((100, 2))), i).low for i in range(300)]
    assert max(lows) < 0.01


def test_the_lucky_one_of_many_samples_counts_for_nothing() -> None:
    us = 800 * np.exp(0.001 * np.random.default_rng(1).standard_normal((100, 2)))
    us[::10, 1] = 100.0
    assert paired_gain(us, 1).low < 0.01


# --- 16: another problem than the one asked -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"model": "toy-2L"}, {"gpu": "b200"}, {"schedule_id": "0" * 16}, {"schedule_config": {}}, {"seed": 99},
        {"max_seq": 16}, {"latency_position": 0}, {"device": "cuda:0"},
    ],
    ids=str,
)  # fmt: skip
def test_an_answer_to_another_question(search: Any, lie: dict[str, Any]) -> None:
    result = search(judge=answer_with(**lie))
    assert [t.tag for t in result.trials[1:]] == ["crash"] * 2 and result.best == result.trials[0]


def test_one_good_answer_handed_out_for_every_schedule(search: Any) -> None:
    first: list[Any] = []

    def judge(arguments: dict[str, Any], say: Any) -> Any:
        first.append(loop_jobs.jobs.judge(arguments, say) if not first else first[0])
        return first[0]

    result = search(judge=judge)
    assert [t.tag for t in result.trials] == ["kept", "crash", "crash"]


# --- 17: another library, an edited log -----------------------------------------------------------------------------


def test_results_of_another_library_build(search: Any, tmp_path: Path) -> None:
    with pytest.raises(BuildMismatch, match="another build"):
        search(judge=answer_with(provenance={"library_build_id": "f" * 64}))
    tags = [t.tag for t in read_trials(tmp_path / "results.journal.jsonl")]
    assert tags == ["kept", "crash"], "and the record says where it ended"


def test_a_log_of_another_build_is_evaluated_again(search: Any, tmp_path: Path) -> None:
    result = search()
    rewrite(
        tmp_path / "results.journal.jsonl", lambda e: e["facts"]["conditions"].update(kernel_id="f" * 64), "loop"
    )  # fmt: skip
    again = search(resume=True)
    assert again.loop != result.loop and "evaluated again" in again.trials[0].description


def edited(search: Any, tmp_path: Path, change: Any) -> None:
    search(3)
    rewrite(tmp_path / "results.journal.jsonl", lambda entry: change(entry["trial"]), "end")


def test_an_edited_journal_with_a_right_checksum(search: Any, tmp_path: Path) -> None:
    def change(trial: dict[str, Any]) -> None:
        if trial["tag"] == "kept":
            trial["latency_us"] = trial["verdict"]["latency_us"] = 1.0

    edited(search, tmp_path, change)
    with pytest.raises(InputError, match="edited"):
        search(6, resume=True)


def test_a_row_whose_schedule_is_not_the_one_it_names(search: Any, tmp_path: Path) -> None:
    edited(search, tmp_path, lambda trial: trial.update(schedule_id="0" * 16))
    with pytest.raises(InputError):
        search(6, resume=True)


def test_an_edited_line_without_a_right_checksum(search: Any, tmp_path: Path) -> None:
    result = search(3)
    path = tmp_path / "results.journal.jsonl"
    latency = str(result.best.latency_us)
    assert latency in path.read_text()
    path.write_text(path.read_text().replace(latency, "1.5"))
    assert all(t.latency_us != 1.5 for t in read_trials(path))
    again = search(6, resume=True)
    assert again.trials[0].tag == "crash" and again.trials[0].comparison["interrupted"], "a row that nobody vouches for"
    assert again.best is not None and again.best.latency_us > 1.5 and len(again.trials) == 6


def test_a_row_written_by_hand_into_the_table(search: Any, tmp_path: Path) -> None:
    result = search(3)
    path = tmp_path / "results.tsv"
    header, first, *rest = path.read_text().splitlines(keepends=True)
    fields = first.split("\t")
    fields[header.split("\t").index("latency_us")] = "1.5"
    path.write_text("".join([header, first, *rest, "\t".join(fields)]))
    assert all(t.latency_us != 1.5 for t in read_trials(path))
    assert len(search(5, resume=True).trials) == 5 and result.best.latency_us > 1.5


def test_a_field_that_would_be_a_row(tmp_path: Path) -> None:
    """Text with line ends, tabs and a whole row in it is text."""
    trial = some_trial(description="fine\n1\tkept\tx\ttoy\th200\tmeasured-gpu\tPASS\t1.0\r\0")
    with RecordStore(tmp_path / "r.tsv") as store:
        store.end(trial)
    assert read_trials(tmp_path / "r.tsv") == [trial] == read_trials(tmp_path / "r.journal.jsonl")
    assert (tmp_path / "r.tsv").read_bytes().count(b"\n") == 2


def some_trial(**change: Any) -> Trial:
    fields = {
        "trial_id": "0" * 12 + "-000000", "loop": "0" * 12, "experiment": 0, "tag": "kept", "model": "toy",
        "gpu": "h200", "regime": "predicted", "correctness": "PASS", "latency_us": 10.0, "pct_of_roofline": 1.0,
        "schedule_id": "s", "kernel_id": "k", "description": "", "schedule_config": {}, "verdict": {},
        "comparison": {}, "shape": {}, "time_utc": "2026-01-01T00:00:00Z", "duration_s": 0.0,
    }  # fmt: skip
    return Trial(**fields | change)


@pytest.mark.parametrize(
    "change",
    [
        {"correctness": "FAIL"}, {"correctness": "REJECTED"}, {"correctness": "CRASH"}, {"latency_us": math.nan},
        {"latency_us": -1.0}, {"latency_us": 0.0}, {"tag": "best"}, {"tag": "crash"}, {"regime": "measured"},
        {"latency_us": None}, {"verdict": {"latency_kind": "measured-gpu"}}, {"trial_id": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_dishonest_trial_cannot_be_recorded(change: dict[str, Any]) -> None:
    some_trial()
    with pytest.raises(AmkError):
        some_trial(**change)


def test_a_verdict_made_by_hand() -> None:
    verdict = amk.evaluate("toy", "h200")
    with pytest.raises(InternalError, match="floor"):
        replace(verdict, latency_us=verdict.bound_us / 2)
    with pytest.raises(InternalError, match="measurement"):
        replace(verdict, latency_kind="measured-gpu", latency_p10_us=1.0, latency_p90_us=99.0)
    with pytest.raises(InternalError, match="correct"):
        replace(verdict, correct=False)
    with pytest.raises(AttributeError):
        verdict.latency_us = 1.0  # type: ignore[misc]


# --- a corpus is advice, not evidence -------------------------------------------------------------------------------


def test_a_poisoned_corpus_only_costs_a_trial(search: Any, tmp_path: Path) -> None:
    shape = search(1).trials[0].shape
    slow = amk.ScheduleConfig.from_dict({"fusion_grouping": []})[0]
    (tmp_path / "corpus.jsonl").unlink()
    with RecordStore(tmp_path / "poison.tsv", tmp_path / "corpus.jsonl") as store:
        store.end(
            some_trial(latency_us=0.001, schedule_id=slow.schedule_id, schedule_config=slow.to_dict(), shape=shape)
        )
        store.end(some_trial(loop="1" * 12, trial_id="1" * 12 + "-000000", schedule_config={"magic": 1}, shape=shape))
    assert len(read_corpus(tmp_path / "corpus.jsonl")) == 2
    result = search(4)
    assert result.trials[1].schedule_id == slow.schedule_id and result.trials[1].tag == "tried"
    assert result.best == result.trials[0] and min(t.latency_us for t in result.trials) > 1


# --- 18: a crash as a way out ---------------------------------------------------------------------------------------


def test_a_crash_is_counted_and_shown(search: Any, tmp_path: Path) -> None:
    def judge(arguments: dict[str, Any], say: Any) -> Any:
        if arguments["schedule_config"] != amk.ScheduleConfig.default().to_dict():
            raise ZeroDivisionError("I would rather not be judged")
        return loop_jobs.jobs.judge(arguments, say)

    result = search(4, judge=judge)
    assert result.counts == {"kept": 1, "tried": 0, "revert": 0, "rejected": 0, "crash": 3}
    assert len(read_trials(tmp_path / "results.tsv")) == 4 and "3 crash" in result.to_text()


# --- knobs that do nothing, or too much -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"turbo": True}, {"kernel_knobs": {"cpasync": 7}}, {"threads_per_block": 1024}, {"pipelining_depth": 99},
        {"smem_bytes_per_block": 1 << 30}, {"sm_assignment": {"0": 10_000}}, {"fusion_grouping": ["everything"]},
        {"tiling": {"gemv": {"N_tile": 1e9}}}, {"tiling": {"attention": {"kv_block": 0}}}, "fast please", 1e400,
    ],
    ids=str,
)  # fmt: skip
def test_a_knob_that_the_build_ignores_is_refused(config: Any) -> None:
    verdict = amk.evaluate("toy", "h200", config, strict=True)
    assert not verdict.valid and verdict.correct is None and verdict.latency_us is None and verdict.rejected_reason


def test_an_unknown_knob_makes_no_new_schedule() -> None:
    """A config that only looks different is the same point, and says so."""
    verdict = amk.evaluate("toy", "h200", {"turbo": True})
    assert verdict.schedule_id == amk.ScheduleConfig.default().schedule_id
    assert any("turbo" in note for note in verdict.notes)
    assert "turbo" not in json.dumps(verdict.to_dict()["schedule_config"])


# --- 19: reading the expected outputs -------------------------------------------------------------------------------


def test_a_forged_reference_in_the_cache_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers put into the cache's files without their checksum are computed again."""
    monkeypatch.setenv("AMK_CACHE_DIR", str(tmp_path))
    assert amk.evaluate("toy", "h200").correct
    for path in tmp_path.glob("oracle-*.npy"):
        data = bytearray(path.read_bytes())
        data[200] ^= 0xFF
        path.write_bytes(data)
    assert amk.evaluate("toy", "h200").correct
    monkeypatch.setattr(vm, "ReferenceVM", AlmostRight)
    assert amk.evaluate("toy", "h200").correct is False
