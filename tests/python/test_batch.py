"""A batch: consecutive tokens of one sequence in a step, from the oracle's chains to the judge and the machines."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import amk
from amk import exam, gpu_trial, vm
from amk.errors import InputError, InternalError, NonFinite, UnsupportedModel
from amk.oracle import Oracle, logit_error
from amk.timing import CHECKED_STEPS, TIMED_STEPS, WARM_UP_STEPS, make_plan
from amk.verdict import Verdict

MOST = 16


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


# --- the reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["toy", "toy-qwen3"])
@pytest.mark.parametrize("batch", [2, 5])
def test_a_chain_of_the_oracle_continues_a_decode(model: str, batch: int) -> None:
    """Probes over the rows that a decode left say what that decode says, wherever the chains are cut."""
    source = amk.open_model(model)
    oracle = Oracle(source.config, source.raw)
    tokens, rows = [3, 141, 59, 26, 5, 35, 89, 79, 32, 38], []
    whole = oracle.prefill(tokens, rows=rows)

    def kv(layer: int) -> Any:  # [G, S, D]; a history rounds, so it is compared at f32's precision
        return tuple(np.ascontiguousarray(part.transpose(1, 0, 2)).astype(np.float32) for part in rows[layer])

    starts = [s for s in (0, 3, 5) if s + batch <= len(tokens)]
    positions = [start + t for start in starts for t in range(batch)]
    chained = oracle.probe([tokens[pos] for pos in positions], positions, kv, chain=batch)
    assert logit_error(chained, whole[positions]) < 1e-6
    later = [*tokens[: batch - 1], 7]  # the last token of the first chain is another
    changed = oracle.probe(later, list(range(batch)), kv, chain=batch)
    assert logit_error(changed[:-1], whole[: batch - 1]) < 1e-6 < 1e-3 < logit_error(changed[-1], whole[batch - 1])


@pytest.mark.parametrize("positions", [[0, 1, 2], [0, 2], [1, 0], [0, 1, 1, 3]])
def test_chains_that_do_not_follow_one_another_are_refused(positions: list[int]) -> None:
    source = amk.open_model("toy")
    with pytest.raises(ValueError, match="chains of 2"):
        Oracle(source.config, source.raw).probe([1] * len(positions), positions, lambda _: None, chain=2)


# --- questions and plans ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, MOST), st.integers(1, 300), st.sampled_from([16, 64]), st.integers(0, 1 << 64 - 1), st.booleans())
def test_questions_and_plans_of_a_batch(batch: int, max_seq: int, kv_block: int, seed: int, tiny: bool) -> None:
    max_seq = max(max_seq, batch)
    config = amk.open_model("toy").config
    if tiny:
        config = config.__class__(**{**vars(config), "vocab": 8})
    asked = exam.make_questions(config, 7, kv_block, max_seq, seed, batch)
    starts = asked.probe_starts
    assert list(starts) == sorted(set(starts), reverse=True) and {0, max_seq - batch} <= set(starts)
    assert list(asked.probe_positions) == [start + t for start in starts for t in range(batch)]
    assert len(asked.probe_tokens) == len(asked.probe_positions) and len(asked.decode_tokens) % batch == 0
    assert batch <= len(asked.decode_tokens) <= max_seq and asked.decode_tokens[0] == 7
    if max_seq >= 2 * batch:  # one step reads what another wrote
        assert len(asked.decode_tokens) >= 2 * batch
    if batch > 1 and max_seq > kv_block + batch:
        assert any(start < kv_block < start + batch for start in starts)
    assert all(0 <= token < config.vocab and 0 <= pos < max_seq for token, pos in asked.steps)

    plan = make_plan(config, max_seq // 2, max_seq, seed, batch)
    assert len(plan.tokens) == batch * len(plan.positions) == batch * (WARM_UP_STEPS + TIMED_STEPS)
    assert 0 <= min(plan.positions) and max(plan.positions) + batch <= max_seq
    assert 1 <= len(plan.checked) <= CHECKED_STEPS and min(plan.checked) >= WARM_UP_STEPS
    checked = plan.as_questions
    assert checked.batch == batch and len(checked.steps) == batch * len(plan.checked)
    if not tiny:
        assert len(set(checked.probe_tokens)) == len(checked.probe_tokens)


def test_a_batch_of_one_asks_what_was_always_asked() -> None:
    config = amk.open_model("toy").config
    assert exam.make_questions(config, 7, 64, 256, 3) == exam.make_questions(config, 7, 64, 256, 3, 1)
    plan = make_plan(config, 128, 256, 3)
    assert plan.tokens == tuple(exam.draw(3, "timed token", i, config.vocab) for i in range(len(plan.positions)))


# --- the judge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "batch"), [("toy", 5), ("toy", MOST), ("toy-2L", 2), ("toy-gqa", 4), ("toy-qwen3", MOST)]
)
def test_a_batch_is_judged_token_by_token(model: str, batch: int) -> None:
    verdict = amk.evaluate(model, "h200", batch=batch)
    assert verdict.correct, verdict.notes
    assert verdict.batch == batch and verdict.top1_agreement > 0.8 and {0, 256 - batch} <= set(verdict.positions)
    assert verdict.decode_steps >= 2 * batch
    assert verdict.latency_per_token_us == pytest.approx(verdict.latency_us / batch)
    assert f"a step of {batch} tokens" in verdict.to_text()
    one = amk.evaluate(model, "h200", position=verdict.latency_position)
    assert one.batch == 1 and one.latency_per_token_us == one.latency_us
    # The weights are read once, so that a step costs much less than its tokens one by one, and moves hardly more.
    assert verdict.bound_us < 1.5 * one.bound_us and verdict.latency_per_token_us < one.latency_us
    json.dumps(verdict.to_dict(), allow_nan=False)


@pytest.mark.parametrize("max_seq", [MOST, MOST + 1, 33])
def test_every_capacity_that_holds_a_batch(max_seq: int) -> None:
    verdict = amk.evaluate("toy-gqa", "l40s", batch=MOST, max_seq=max_seq)
    assert verdict.correct and max(verdict.positions) == max_seq - MOST, verdict.notes
    with pytest.raises(InputError, match="position"):
        amk.evaluate("toy-gqa", "l40s", batch=MOST, max_seq=max_seq, position=max_seq - MOST + 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_batch_of_a_checkpoint(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from families import build_checkpoint

    build_checkpoint(tmp_path, "qwen3", seed=2, dtype=getattr(torch, dtype))
    verdict = amk.evaluate(tmp_path, "h200", device="cpu", batch=MOST)
    assert verdict.correct and verdict.batch == MOST, verdict.notes


def test_a_quantised_batch() -> None:
    verdict = amk.evaluate("toy-gqa", "h200", batch=4, quantize="int8", group=64)
    assert verdict.correct and verdict.quantize_loss["steps"] > 8, verdict.notes


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(max_size=4)
    | st.integers(max_value=0)
    | st.integers(min_value=MOST + 1)
    | st.lists(st.integers(), max_size=2)
)
def test_what_is_no_batch_is_refused_by_name(batch: Any) -> None:
    verdict = amk.evaluate("toy", "h200", batch=batch)
    assert not verdict.valid and verdict.status == "REJECTED" and verdict.batch == 1
    for word in ("batch", "1 to 16", "one sequence", "independent sequences are not modelled"):
        assert word in verdict.rejected_reason
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_batch_that_cannot_be_is_refused_by_name() -> None:
    assert "linear layers" in amk.evaluate("toy-gdn", "h200", batch=2).rejected_reason
    assert amk.evaluate("toy-gdn", "h200", batch=1, max_seq=32).correct
    assert "max_seq, which is 8" in amk.evaluate("toy", "h200", batch=9, max_seq=8).rejected_reason
    config = amk.open_model("toy-gdn").config
    with pytest.raises(UnsupportedModel, match="batch"):
        amk.lower(config, amk.ScheduleConfig.default(), "h200", 64, 2)
    for batch in (-1, MOST + 1):
        with pytest.raises(UnsupportedModel, match="batch"):
            amk.lower(amk.open_model("toy").config, amk.ScheduleConfig.default(), "h200", 64, batch)
    with pytest.raises(InputError, match="batch"):
        amk.lower(amk.open_model("toy").config, amk.ScheduleConfig.default(), "h200", 64, "2")  # type: ignore[arg-type]


def test_a_program_knows_its_batch() -> None:
    source = amk.open_model("toy")
    program = amk.lower(source.config, amk.ScheduleConfig.default(), "h200", 64, 4)
    assert program.batch == 4 and program.meta["model"]["batch"] == 4
    assert program.validate(source.config).ok and program.validate(source.config, 64, 4).ok
    report = program.validate(source.config, 64, 1)
    assert not report.ok and {found.code for found in report.rejections} == {"V17"}
    again = amk.Program.from_json(program.to_json())
    assert again.batch == 4 and again.pack().hash == program.pack().hash
    one = amk.lower(source.config, amk.ScheduleConfig.default(), "h200", 64)
    assert one.batch == 1 and "batch" not in one.meta["model"]
    assert one.pack().hash == amk.lower(source.config, amk.ScheduleConfig.default(), "h200", 64, 1).pack().hash


# --- machines that are wrong about a batch ----------------------------------------------------------------------------


class SeesTheFuture(vm.ReferenceVM):
    """The last token of a step is seen by the first: its logits are those of a step with the last two swapped."""

    def step_batch(self, tokens: Any, pos: int) -> np.ndarray:
        other = super().step_batch([tokens[-1], *tokens[1:-1], tokens[0]], pos)
        logits = super().step_batch(tokens, pos)
        logits[0] = (logits[0] + other[0]) / 2
        return logits


class RowsSwapped(vm.ReferenceVM):
    def step_batch(self, tokens: Any, pos: int) -> np.ndarray:
        logits = super().step_batch(tokens, pos)
        return logits[::-1].copy()


class LastRowStale(vm.ReferenceVM):
    def step_batch(self, tokens: Any, pos: int) -> np.ndarray:
        logits = super().step_batch(tokens, pos)
        logits[-1] = logits[-2]
        return logits


class OnePosition(vm.ReferenceVM):
    """Each token is decoded alone at the position of the first."""

    def step_batch(self, tokens: Any, pos: int) -> np.ndarray:
        return np.stack([super(OnePosition, self).step_batch([t] * len(tokens), pos)[0] for t in tokens])


class LosesRows(vm.ReferenceVM):
    """Right about every step, but the row of its last token is gone by the next one."""

    def step_batch(self, tokens: Any, pos: int) -> np.ndarray:
        logits = super().step_batch(tokens, pos)
        k, v = self.get_kv(0, pos + len(tokens))
        k[:, -1] = v[:, -1] = 0
        self.set_kv(0, k, v)
        return logits


class LastChoiceWrong(vm.ReferenceVM):
    @property
    def next_tokens(self) -> list[int]:
        said = super().next_tokens
        return [*said[:-1], said[-1] ^ 1]


class OneRefused(vm.ReferenceVM):
    def step_batch(self, tokens: Any, pos: int) -> np.ndarray:
        if pos == 1:
            raise NonFinite("logits[3]: NaN")
        return super().step_batch(tokens, pos)


WRONG = [SeesTheFuture, RowsSwapped, LastRowStale, OnePosition, LosesRows, LastChoiceWrong, OneRefused]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("model", ["toy-2L", "toy-gqa"])
def test_a_machine_that_is_wrong_about_a_batch_is_caught(
    wrong: type, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "ReferenceVM", wrong)
    verdict = amk.evaluate(model, "h200", batch=4)
    assert verdict.valid and verdict.correct is False and verdict.latency_us is None, verdict.notes


def test_a_batch_on_a_device_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_trial, "_DEVICE_CLASS", "fake_devices:Faithful")
    monkeypatch.setattr(sys.modules["amk.evaluate"], "pick_device", lambda *_: ("cuda:0", []))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    verdict = amk.evaluate("toy-gqa", "h200", device="cuda", batch=4)
    assert verdict.correct and verdict.latency_kind == "measured-gpu", verdict.notes
    assert verdict.latency_per_token_us == pytest.approx(verdict.latency_us / 4)
    assert any("4 tokens of its own" in note for note in verdict.notes)
    monkeypatch.setattr(gpu_trial, "_DEVICE_CLASS", "fake_devices:WrongPositionWhenTimed")
    verdict = amk.evaluate("toy-gqa", "h200", device="cuda", batch=4)
    assert verdict.correct is False and verdict.latency_us is None


HONEST: dict[str, Any] = {
    "model": "toy", "gpu": "h200", "device": "cpu", "schedule_id": "0", "schedule_config": {}, "valid": True,
    "correct": True, "rel_err": 1e-6, "err_limit": 1e-5, "latency_us": 8.0, "latency_kind": "predicted",
    "bound_us": 1.0, "pct_of_roofline": 12.5, "batch": 4, "latency_per_token_us": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 0}, {"batch": None}, {"batch": 2}, {"latency_per_token_us": 8.0}, {"latency_per_token_us": math.nan},
        {"latency_us": None, "latency_kind": None, "pct_of_roofline": None},
    ],
    ids=str,
)  # fmt: skip
def test_the_time_of_a_token_is_that_of_its_step_over_the_batch(change: dict[str, Any]) -> None:
    Verdict(**HONEST)
    with pytest.raises(InternalError):
        Verdict(**{**HONEST, **change})


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_takes_a_batch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from amk.cli import main

    base = ["toy", "--gpu", "h200", "--json", "--quiet", "--batch"]
    assert main(["eval", *base, "4", "--device", "cpu"]) == 0
    verdict = json.loads(capfd.readouterr().out)
    assert (verdict["batch"], verdict["correct"]) == (4, True)
    assert main(["compile", *base, "4", "--output", str(tmp_path / "four")]) == 0
    report = json.loads(capfd.readouterr().out)
    image = amk.Image.from_bytes((tmp_path / "four" / "image.amk").read_bytes())
    assert report["batch"] == image.program().batch == 4 and image.hash == verdict["provenance"]["image_hash"]
    assert main(["validate", *base, "16"]) == 0
    capfd.readouterr()
    for verb, more, code in (("eval", (), 1), ("validate", (), 3), ("compile", ("--output", str(tmp_path / "x")), 3)):
        assert main([verb, *base, "17", *more]) == code
        out = json.loads(capfd.readouterr().out)
        assert "batch" in (out.get("rejected_reason") or out["error"]["message"])
    assert not (tmp_path / "x").exists()
