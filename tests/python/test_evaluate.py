"""The judge: right about right machines, total on schedules, and silent about speed unless the answer is right."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import amk
from amk import exam, program
from amk.errors import AmkError, InputError, InternalError, Rejected, Unavailable
from amk.oracle import Oracle
from amk.verdict import Verdict

MODELS = ["toy", "toy-2L", "toy-gqa", "toy-qwen3", "toy-gdn"]


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Reference logits are the same for every machine, so the tests of one run share them; none outlive it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


# --- a right machine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_an_embedded_model_is_correct(model: str) -> None:
    verdict = amk.evaluate(model, "h200")
    assert verdict.valid and verdict.correct and verdict.status == "PASSED"
    assert 0 < verdict.rel_err <= verdict.err_limit and 0 < verdict.max_abs_err < math.inf
    assert verdict.top1_agreement > 0.8
    assert verdict.latency_kind == "predicted" and verdict.latency_us > verdict.bound_us > 0
    assert verdict.pct_of_roofline == pytest.approx(100 * verdict.bound_us / verdict.latency_us)
    assert {0, 1, 15, 16, 17, 128, 255} <= set(verdict.positions) and verdict.decode_steps == 8
    assert verdict["schedule_id"] == amk.ScheduleConfig.default().schedule_id
    assert verdict.schedule_config == amk.ScheduleConfig.default().to_dict()
    assert verdict.provenance["image_hash"] and verdict.provenance["library_build_id"]
    assert verdict.provenance["weights_digest"] == amk.open_model(model).weights().digest
    assert any("not a measurement" in note for note in verdict.notes)
    again = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert again["model"] == model and again["correct"] is True
    with pytest.raises(KeyError):
        verdict["speed"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("turns", [True, False])
def test_attention_that_writes_its_heads_is_correct(model: str, turns: bool) -> None:
    """One split holds every row: no combining task, and the oracle is met at every position all the same."""
    names = [*amk.ScheduleConfig.default().fusion_grouping, "attention+combine"]
    fused = {"fusion_grouping": [name for name in names if turns or name != "rope+attention"]}
    source = amk.open_model(model)
    for kv_block, direct in ((256, True), (16384, True), (128, False)):
        config = fused | {"tiling": {"attention": {"kv_block": kv_block}}}
        verdict = amk.evaluate(model, "h200", config)
        assert verdict.correct, verdict.notes
        lowered = amk.lower(source.config, amk.ScheduleConfig.from_dict(config)[0], amk.TARGETS["h200"], 256)
        ops = [task["op"] for task in lowered.to_dict()["tasks"]]
        assert ("ATTENTION_COMBINE" in ops) is not direct
        again = amk.Program.from_dict(lowered.to_dict())
        assert again.to_dict() == lowered.to_dict() and again.pack().hash == lowered.pack().hash
        assert amk.Image.from_bytes(lowered.pack().bytes).program().to_dict()["tasks"] == lowered.to_dict()["tasks"]


def test_the_same_question_gets_the_same_verdict() -> None:
    assert amk.evaluate("toy-gqa", "b200", seed=3) == amk.evaluate("toy-gqa", "b200", seed=3)
    assert amk.evaluate("toy-gqa", "b200", seed=3).rel_err != amk.evaluate("toy-gqa", "b200", seed=4).rel_err


@pytest.mark.parametrize("max_seq", [1, 2, 17, 64, 65, 256])
def test_every_capacity_is_judged(max_seq: int) -> None:
    verdict = amk.evaluate("toy", "l40s", max_seq=max_seq)
    assert verdict.correct, verdict.notes
    assert max(verdict.positions) == max_seq - 1 and verdict.max_seq == max_seq


@pytest.mark.parametrize("target", sorted(amk.TARGETS))
def test_every_target_is_judged(target: str) -> None:
    verdict = amk.evaluate("toy-gqa", target, position=200)
    assert verdict.correct and verdict.gpu == target and verdict.latency_position == 200


def test_all_forms_of_a_schedule() -> None:
    default = amk.ScheduleConfig.default()
    as_given = [amk.evaluate("toy", "h200", config) for config in (None, default, default.to_dict(), {})]
    assert all(verdict == as_given[0] for verdict in as_given)


def test_an_explicit_map_belongs_to_its_tiling() -> None:
    source = amk.open_model("toy")
    tasks = amk.lower(source.config, amk.ScheduleConfig.default(), amk.TARGETS["h200"], 256).tables().tasks
    sms = {str(task): int(sm) for task, sm in enumerate(tasks["sm"])}
    swapped = sms | {"0": 5, "1": 5}
    assert amk.evaluate("toy", "h200", {"sm_assignment": swapped}).correct
    del swapped["3"]
    verdict = amk.evaluate("toy", "h200", {"sm_assignment": swapped})
    assert not verdict.valid and "sm_assignment" in verdict.rejected_reason


def test_the_reference_is_computed_once_per_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMK_CACHE_DIR", str(tmp_path))
    first = amk.evaluate("toy", "h200", seed=11)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(Oracle, "probe", fail)
    monkeypatch.setattr(Oracle, "prefill", fail)
    assert amk.evaluate("toy", "h200", seed=11) == first
    with pytest.raises(AssertionError, match="asked again"):
        amk.evaluate("toy", "h200", seed=12)


def test_a_key_from_the_future_is_named_and_has_no_effect() -> None:
    config = amk.ScheduleConfig.default().to_dict() | {"warp_magic": 3}
    verdict = amk.evaluate("toy", "h200", config)
    assert verdict.correct and verdict.schedule_id == amk.ScheduleConfig.default().schedule_id
    assert any("warp_magic" in note for note in verdict.notes)
    strict = amk.evaluate("toy", "h200", config, strict=True)
    assert not strict.valid and "warp_magic" in strict.rejected_reason


# --- a bad schedule is an answer, misuse is an error ----------------------------------------------------------------

BAD_CONFIGS = [
    ({"tiling": {"gemv": {"N_tile": 17}}}, "tiling.gemv.N_tile"),
    ({"tiling": {"gemv": {"N_tile": -8}}}, "tiling.gemv.N_tile"),
    ({"tiling": {"gemv": {"N_tile": "8"}}}, "tiling.gemv.N_tile"),
    ({"tiling": {"gemv": {"N_tile": True}}}, "tiling.gemv.N_tile"),
    ({"tiling": {"gemv": {"N_tile": 1 << 70}}}, "tiling.gemv.N_tile"),
    ({"tiling": {"attention": {"kv_block": 7}}}, "tiling.attention.kv_block"),
    ({"tiling": []}, "tiling"),
    ({"fusion_grouping": "qkv"}, "fusion_grouping"),
    ({"fusion_grouping": ["qkv", "magic"]}, "fusion_grouping"),
    ({"sm_assignment": "random"}, "sm_assignment"),
    ({"sm_assignment": {"0": 999}}, "sm_assignment"),
    ({"page_allocation": None}, "page_allocation"),
    ({"pipelining_depth": "deep"}, "pipelining_depth"),
    ({"pipelining_depth": 65}, "pipelining_depth"),
    ({"threads_per_block": math.inf}, "threads_per_block"),
    ({"kernel_knobs": {"cpasync": 2}}, "kernel_knobs.cpasync"),
    ({"smem_bytes_per_block": math.nan}, "smem_bytes_per_block"),
    ("deep", "config"),
    ([], "config"),
    (17, "config"),
]


@pytest.mark.parametrize(("config", "named"), BAD_CONFIGS, ids=str)
def test_a_bad_schedule_is_rejected_by_name(config: Any, named: str) -> None:
    verdict = amk.evaluate("toy", "h200", config)
    assert not verdict.valid and verdict.status == "REJECTED"
    assert named in verdict.rejected_reason
    assert verdict.correct is None and verdict.latency_us is None and verdict.max_abs_err is None
    assert "REJECTED" in verdict.to_text()
    json.dumps(verdict.to_dict(), allow_nan=False)


MISUSE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": "no-such-model"}, InputError, "model"),
    ({"model": 3}, InputError, "model"),
    ({"gpu": "h9000"}, InputError, "gpu"),
    ({"gpu": None}, InputError, "gpu"),
    ({"device": "cuda"}, Unavailable, "CUDA"),
    ({"device": "cuda:0"}, Unavailable, "CUDA"),
    ({"device": "tpu"}, InputError, "device"),
    ({"device": None}, InputError, "device"),
    ({"token": -1}, InputError, "token"),
    ({"token": 256}, InputError, "token"),
    ({"token": "7"}, InputError, "token"),
    ({"token": True}, InputError, "token"),
    ({"token": 2**63}, InputError, "token"),
    ({"max_seq": 0}, InputError, "max_seq"),
    ({"max_seq": 257}, InputError, "max_seq"),
    ({"max_seq": 10**5000}, InputError, "max_seq"),
    ({"position": 256}, InputError, "position"),
    ({"position": -1}, InputError, "position"),
    ({"seed": -1}, InputError, "seed"),
    ({"seed": 0.5}, InputError, "seed"),
]


@pytest.mark.parametrize(("change", "error", "named"), MISUSE)
def test_misuse_is_a_typed_error(change: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        amk.evaluate(**{"model": "toy", "gpu": "h200", **change})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "tiling", "fusion_grouping", "sm_assignment", "pipelining_depth", "page_allocation", "threads_per_block",
    "smem_bytes_per_block", "kernel_knobs",
]  # fmt: skip


def test_the_local_gpu_is_there_or_said_not_to_be() -> None:
    try:
        name = amk.resolve_target("local").name
    except Unavailable:
        with pytest.raises(Unavailable, match="local"):
            amk.evaluate("toy", "local")
    else:
        assert amk.evaluate("toy", "local").gpu == name


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON_VALUES | st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=4), st.booleans())
def test_no_schedule_whatever_makes_evaluate_raise(config: Any, strict: bool) -> None:
    verdict = amk.evaluate("toy", "h200", config, strict=strict, max_seq=8)
    assert verdict.valid == (verdict.rejected_reason is None)
    assert verdict.correct or not verdict.valid
    json.dumps(verdict.to_dict(), allow_nan=False)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["model", "gpu", "device", "token", "batch", "max_seq", "position", "seed"]),
        JSON_VALUES,
        min_size=1,
        max_size=2,
    )
)
def test_whatever_the_arguments_the_outcome_is_a_verdict_or_a_typed_error(arguments: dict[str, Any]) -> None:
    try:
        verdict = amk.evaluate(**{"model": "toy", "gpu": "h200", "max_seq": 4, **arguments})
    except AmkError:
        return
    assert verdict.correct or not verdict.valid


# --- a vacuous examination ------------------------------------------------------------------------------------------


def ask(model: str = "toy") -> tuple[Any, exam.Questions, np.ndarray]:
    config = amk.open_model(model).config
    questions = exam.make_questions(config, token=7, kv_block=64, max_seq=256, seed=0)
    logits = np.random.default_rng(0).standard_normal((len(questions.steps), config.vocab))
    return config, questions, logits


def test_the_right_answers_pass() -> None:
    config, questions, logits = ask()
    mark = exam.grade(config, questions, exam.Answers(logits.astype(np.float32)), exam.Answers(logits))
    assert mark.correct and mark.top1_agreement == 1 and not mark.notes


def test_questions_that_cannot_be_told_apart_prove_nothing() -> None:
    config, questions, logits = ask()
    logits[2] = logits[1] * (1 + 1e-9)
    mark = exam.grade(config, questions, exam.Answers(logits.astype(np.float32)), exam.Answers(logits))
    assert not mark.correct and any("vacuous" in note for note in mark.notes)


def test_a_machine_that_repeats_itself_is_wrong_even_within_the_limit() -> None:
    config, questions, logits = ask("toy-gqa")
    logits[2] = logits[1] + 0.05 * np.abs(logits[1]).max()
    got = logits.astype(np.float32)
    got[1] = got[2] = (logits[1] + logits[2]) / 2
    mark = exam.grade(config, questions, exam.Answers(got), exam.Answers(logits))
    assert mark.rel_err <= mark.err_limit and not mark.correct and any("stale" in note for note in mark.notes)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_one_bad_number_anywhere_fails(bad: float) -> None:
    config, questions, logits = ask()
    for row in range(len(logits)):
        got = logits.astype(np.float32)
        got[row, 200] = bad
        assert not exam.grade(config, questions, exam.Answers(got), exam.Answers(logits)).correct


def test_questions() -> None:
    config, questions, _ = ask()
    assert list(questions.probe_positions) == sorted(set(questions.probe_positions), reverse=True)
    assert questions.decode_tokens[0] == 7 and 7 in questions.probe_tokens
    assert all(0 <= token < config.vocab and 0 <= pos < 256 for token, pos in questions.steps)
    assert len(set(questions.probe_tokens)) == len(questions.probe_tokens)
    other = exam.make_questions(config, token=7, kv_block=64, max_seq=256, seed=1)
    assert other.probe_tokens[1:] != questions.probe_tokens[1:]


# --- the record -----------------------------------------------------------------------------------------------------

HONEST: dict[str, Any] = {
    "model": "toy", "gpu": "h200", "device": "cpu", "schedule_id": "0", "schedule_config": {}, "valid": True,
    "correct": True, "rel_err": 1e-6, "err_limit": 1e-5, "latency_us": 2.0, "latency_kind": "predicted",
    "bound_us": 1.0, "pct_of_roofline": 50.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"valid": False},
        {"valid": False, "rejected_reason": "no"},
        {"rejected_reason": "no"},
        {"correct": None},
        {"correct": False},
        {"rel_err": math.nan},
        {"rel_err": 1e-4},
        {"latency_us": 0.5},
        {"latency_us": math.nan},
        {"latency_us": math.inf},
        {"latency_us": -1.0},
        {"latency_us": None},
        {"latency_kind": None},
        {"latency_kind": "guessed"},
        {"bound_us": None},
        {"pct_of_roofline": None},
    ],
    ids=str,
)
def test_a_dishonest_record_cannot_be_made(change: dict[str, Any]) -> None:
    Verdict(**HONEST)
    with pytest.raises(InternalError):
        Verdict(**{**HONEST, **change})


def test_a_latency_below_the_floor_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    real = program.Program.cost

    def too_fast(self: Any, pos: int) -> Any:
        cost = real(self, pos)
        return program.Cost(**{**vars(cost), "latency_us": cost.bound_us / 2})

    monkeypatch.setattr(program.Program, "cost", too_fast)
    verdict = amk.evaluate("toy", "h200")
    assert verdict.correct and verdict.latency_us is None and verdict.bound_us > 0
    assert any("withheld" in note for note in verdict.notes)


def test_a_program_that_fails_its_proof_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise Rejected("the program is not valid: V9: a cycle")

    monkeypatch.setattr(program.Program, "pack", refuse)
    verdict = amk.evaluate("toy", "h200")
    assert not verdict.valid and "V9" in verdict.rejected_reason
