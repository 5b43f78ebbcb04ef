"""Prompts in blocks: the same tokens as one by one, on scripted machines, embedded models and a checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amk
from amk.errors import InputError, Rejected
from amk.prompt import Fed, feed_blocks

MOST = 16
PROMPT = [int(token) for token in np.random.default_rng(0).integers(0, 256, 60)]


class Scripted:
    """A machine of blocks that remembers what it was told."""

    def __init__(self, batch: int, max_seq: int) -> None:
        self.batch, self.max_seq, self.told = batch, max_seq, []

    def decode_batch(self, tokens: Any, pos: int) -> np.ndarray:
        assert len(tokens) == self.batch and 0 <= pos and pos + self.batch <= self.max_seq
        self.told.append((pos, list(tokens)))
        return np.arange(100 + pos, 100 + pos + self.batch, dtype=np.int32)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, MOST), st.integers(1, 70), st.integers(0, 20))
def test_blocks_hold_every_token_at_its_position(batch: int, count: int, spare: int) -> None:
    machine = Scripted(batch, count + spare)
    prompt = list(range(count))
    fed = feed_blocks(machine, prompt)
    rows: dict[int, int] = {}
    for pos, tokens in machine.told:
        rows |= {pos + t: token for t, token in enumerate(tokens)}
    assert [rows[pos] for pos in range(fed.count)] == prompt[: fed.count]
    assert fed == Fed() or fed.choice == 100 + fed.count - 1
    left = count - fed.count
    # What is left is one token, or lies where no block fits.
    assert left in (0, 1) or fed.count + batch > machine.max_seq
    assert len(machine.told) <= -(-count // batch)


@pytest.mark.parametrize("model", ["toy", "toy-gqa", "toy-qwen3"])
def test_the_same_tokens_as_one_by_one(model: str) -> None:
    source = amk.open_model(model)
    schedule = amk.ScheduleConfig.default()
    images = {n: amk.lower(source.config, schedule, "h200", 64, n).pack() for n in (1, 3, MOST)}
    with amk.ReferenceVM(images[1], source.weights()) as machine:
        three, most = machine.beside(images[3]), machine.beside(images[MOST])
        for count in (1, 2, 3, 4, 15, 16, 17, 18, 32, 33, 48, 49, 57, 60):
            options: dict[str, Any] = {"machine": machine, "stop_at_eos": False, "max_new_tokens": 12}
            expected = list(amk.generate(model, PROMPT[:count], **options))
            for blocks in (three, most):
                generation = amk.generate(model, PROMPT[:count], prompt_machine=blocks, **options)
                assert generation.prompt_block == blocks.batch
                found = list(generation)
                assert [token.token for token in found] == [token.token for token in expected]
                assert [token.logprob for token in found] == pytest.approx([t.logprob for t in expected], abs=1e-4)
            sampled = [
                [t.token for t in amk.generate(model, PROMPT[:count], temperature=1.2, seed=3, logprobs=False, **more)]
                for more in (options, {**options, "prompt_machine": most})
            ]
            greedy = amk.generate(model, PROMPT[:count], logprobs=False, prompt_machine=most, **options)
            assert sampled[0] == sampled[1]
            assert [token.token for token in greedy] == [token.token for token in expected]


@pytest.mark.parametrize("family", ["llama3", "qwen2"])
def test_a_prompt_in_blocks_equals_transformers_token_for_token(family: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from families import build_checkpoint

    model = build_checkpoint(tmp_path, family, seed=3)
    with torch.no_grad():
        ids = torch.tensor([PROMPT])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, eos_token_id=None,
            pad_token_id=0,
        )[0].tolist()  # fmt: skip
    options: dict[str, Any] = {"device": "cpu", "gpu": "h200", "max_new_tokens": 24, "stop_at_eos": False}
    found = {}
    for block in (None, 1, 5):
        generation = amk.generate(tmp_path, PROMPT, prompt_block=block, **options)
        found[generation.prompt_block] = [token.token for token in generation]
    assert set(found) == {MOST, 1, 5}
    assert all(PROMPT + tokens == expected for tokens in found.values())


def test_blocks_are_for_prompts_longer_than_one_and_models_without_state() -> None:
    for model, count, block in (("toy", MOST, 1), ("toy", MOST + 1, MOST), ("toy-gdn", 30, 1)):
        generation = amk.generate(model, PROMPT[:count], device="cpu", gpu="h200", max_new_tokens=3, stop_at_eos=False)
        assert generation.prompt_block == block and len(list(generation)) == 3
    with amk.generate("toy", [5], prompt_block=4, device="cpu", gpu="h200") as generation:
        assert generation.prompt_block == 1  # there is nothing to put in a block


@pytest.mark.parametrize("block", [0, 17, -1, True, 2.0, "4"])
def test_what_is_no_block_is_refused(block: Any) -> None:
    with pytest.raises(InputError, match=r"prompt_block: expected None or an integer in 1\.\.16"):
        amk.generate("toy", PROMPT, prompt_block=block, device="cpu")


def test_misuse_is_said_by_the_call() -> None:
    with pytest.raises(InputError, match="prompt_block.*linear layers"):
        amk.generate("toy-gdn", PROMPT, prompt_block=2, device="cpu")
    source = amk.open_model("toy")
    images = [amk.lower(source.config, amk.ScheduleConfig.default(), "h200", 64, n).pack() for n in (1, 4)]
    with amk.ReferenceVM(images[0], source.weights()) as one, amk.ReferenceVM(images[1], source.weights()) as other:
        for machine in (None, one):  # it has a cache of its own
            with pytest.raises(InputError, match="prompt_machine"):
                amk.generate("toy", PROMPT, machine=machine, prompt_machine=other)


def test_a_schedule_without_blocks_takes_tokens_one_by_one_and_says_so() -> None:
    """An explicit map of tasks belongs to one program."""
    source, said = amk.open_model("toy"), []
    tasks = amk.lower(source.config, amk.ScheduleConfig.default(), "h200", 256).tables().tasks
    config = {"sm_assignment": {str(task): int(sm) for task, sm in enumerate(tasks["sm"])}}
    options: dict[str, Any] = {"config": config, "gpu": "h200", "device": "cpu", "max_new_tokens": 4}
    generation = amk.generate("toy", PROMPT, progress=said.append, **options)
    expected = [token.token for token in amk.generate("toy", PROMPT, gpu="h200", device="cpu", max_new_tokens=4)]
    assert generation.prompt_block == 1 and [token.token for token in generation] == expected
    assert any("one token at a time" in text and "sm_assignment" in text for text in said)
    with pytest.raises(Rejected, match="sm_assignment"):
        amk.generate("toy", PROMPT, prompt_block=MOST, **options)


def test_what_was_opened_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    module, opened = sys.modules["amk.generate"], []
    plain = module.open_machine

    def spy(*arguments: Any) -> Any:
        opened.append(plain(*arguments))
        return opened[-1]

    monkeypatch.setattr(module, "open_machine", spy)
    with amk.generate("toy", PROMPT, device="cpu", gpu="h200", max_new_tokens=4) as generation:
        next(generation)
    assert generation.prompt_block == MOST
    with pytest.raises(InputError, match="closed"):
        opened[0].step(1, 0)


def test_the_command_line_says_the_block_and_the_time_to_the_first_token(capfd: pytest.CaptureFixture[str]) -> None:
    from amk.cli import main

    ids = ",".join(map(str, PROMPT))
    base = ["generate", "toy", "--device", "cpu", "--gpu", "h200", "--ids", ids, "--max-new-tokens", "5", "--json"]
    found = []
    for more in ([], ["--prompt-block", "1"]):
        assert main([*base, *more]) == 0
        out, err = capfd.readouterr()
        found.append(json.loads(out))
        assert ("in blocks of 16" in err) == (not more)
    assert [record["prompt_block"] for record in found] == [MOST, 1]
    assert found[0]["tokens"] == found[1]["tokens"]
    assert all(record["timings"]["first_token_s"] > 0 for record in found)
    assert main([*base, "--prompt-block", "17"]) == 2
    assert json.loads(capfd.readouterr().out)["error"]["message"].startswith("prompt_block")
