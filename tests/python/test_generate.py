"""Generation: the loop against scripted machines, the embedded models, and transformers token for token."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amk
from amk import generate as generate_function
from amk.errors import InputError, NonFinite, Rejected, Unavailable, UnsupportedModel

VOCAB = 256  # of the embedded toy


class Scripted:
    """A machine that says which token comes next, and remembers what it was told."""

    def __init__(self, answers: dict[int, int] | None = None, max_seq: int = 64, vocab: int = VOCAB) -> None:
        self.answers, self.max_seq, self.vocab = answers or {}, max_seq, vocab
        self.told: list[tuple[int, int]] = []
        self.closed = False

    def step(self, token: int, pos: int) -> np.ndarray:
        self.told.append((token, pos))
        logits = np.zeros(self.vocab, np.float32)
        logits[self.answers.get(pos, 100 + pos)] = 9.0
        return logits

    def close(self) -> None:
        self.closed = True


def test_the_loop_feeds_each_token_at_its_position() -> None:
    machine = Scripted()
    generation = amk.generate("toy", [5, 6, 7], machine=machine, max_new_tokens=3)
    assert generation.prompt_tokens == (5, 6, 7) and machine.told == [] and generation.finish_reason is None
    tokens = list(generation)
    assert [token.token for token in tokens] == [102, 103, 104] and [token.index for token in tokens] == [0, 1, 2]
    assert machine.told == [(5, 0), (6, 1), (7, 2), (102, 3), (103, 4)]
    assert generation.finish_reason == "length" and next(generation, None) is None and not machine.closed
    assert all(token.text == "" and token.logprob == pytest.approx(-np.log1p(255 * np.exp(-9.0))) for token in tokens)


class Decoding(Scripted):
    """One that can also choose by itself."""

    def decode(self, token: int, pos: int) -> int:
        return int(Scripted.step(self, token, pos).argmax())

    def step(self, token: int, pos: int) -> np.ndarray:
        raise AssertionError("the logits are nobody's business")


def test_a_greedy_choice_without_logprobs_leaves_the_logits_where_they_are() -> None:
    told = []
    for kind in (Scripted, Decoding):  # the first has nothing but `step`
        machine = kind()
        tokens = list(amk.generate("toy", [5, 6, 7], machine=machine, max_new_tokens=3, logprobs=False))
        assert [token.token for token in tokens] == [102, 103, 104] and {token.logprob for token in tokens} == {None}
        told.append(machine.told)
    assert told[0] == told[1] == [(5, 0), (6, 1), (7, 2), (102, 3), (103, 4)]
    for arguments in ({}, {"temperature": 1.0, "logprobs": False}):
        with pytest.raises(AssertionError, match="nobody's business"):
            list(amk.generate("toy", [7], machine=Decoding(), max_new_tokens=1, **arguments))


@pytest.mark.parametrize("model", ["toy", "toy-qwen3"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_k": 20, "seed": 3}])
def test_the_same_tokens_with_and_without_logprobs(model: str, sampling: dict[str, Any]) -> None:
    found = [
        list(amk.generate(model, [5, 6, 7], device="cpu", max_new_tokens=12, logprobs=wanted, **sampling))
        for wanted in (True, False)
    ]
    assert [token.token for token in found[0]] == [token.token for token in found[1]]
    assert all(token.logprob <= 0 for token in found[0]) and all(token.logprob is None for token in found[1])


@pytest.mark.parametrize(
    ("arguments", "count", "reason"),
    [
        ({}, 3, "eos"),
        ({"stop_at_eos": False}, 5, "length"),
        ({"stop_tokens": [103]}, 2, "stop"),
        ({"stop_tokens": np.array([103])}, 2, "stop"),
        ({"stop_tokens": [2]}, 3, "eos"),
        ({"max_new_tokens": 3}, 3, "eos"),
        ({"max_new_tokens": 2}, 2, "length"),
        ({"stop_at_eos": False, "max_new_tokens": 500}, 17, "capacity"),
        ({"stop_at_eos": False, "max_new_tokens": 17}, 17, "length"),
    ],
    ids=str,
)
def test_how_it_ends(arguments: dict[str, Any], count: int, reason: str) -> None:
    machine = Scripted({4: 2}, max_seq=20)  # 2 is the end of the toy
    with amk.generate("toy", [1, 2, 3], machine=machine, **{"max_new_tokens": 5, **arguments}) as generation:
        assert len(list(generation)) == count and generation.finish_reason == reason
    assert len(machine.told) == 3 + count - 1


def test_prompt_and_capacity() -> None:
    with pytest.raises(InputError, match="prompt: expected at most 19 tokens"):
        amk.generate("toy", [1] * 20, machine=Scripted(max_seq=20))
    generation = amk.generate("toy", [1] * 19, machine=Scripted(max_seq=20))
    assert len(list(generation)) == 1 and generation.finish_reason == "capacity"


def test_a_long_prompt_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["amk.generate"]

    def fail(*_: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(module, "lower_and_pack", fail)
    for max_seq in (None, 256, 12):
        with pytest.raises(InputError, match="prompt"):
            amk.generate("toy", [1] * (max_seq or 256), max_seq=max_seq, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"prompt": [1, 256]}, InputError, r"prompt\[1\].*0..255"),
        ({"prompt": [-1]}, InputError, r"prompt\[0\]"),
        ({"prompt": [2**80]}, InputError, r"prompt\[0\]"),
        ({"prompt": [True]}, InputError, r"prompt\[0\]"),
        ({"prompt": [1.0]}, InputError, r"prompt\[0\]"),
        ({"prompt": ["a"]}, InputError, r"prompt\[0\]"),
        ({"prompt": []}, InputError, "at least one"),
        ({"prompt": 7}, InputError, "token ids"),
        ({"prompt": b"hello"}, InputError, "token ids"),
        ({"prompt": np.zeros((2, 2), int)}, InputError, "token ids"),
        ({"prompt": "hello"}, InputError, "no tokenizer"),
        ({"prompt": [{"role": "user", "content": "hi"}]}, InputError, "no tokenizer"),
        ({"prompt": [{"role": "user"}]}, InputError, r"messages\[0\].*role and content"),
        ({"prompt": [{"role": "user", "content": "a"}, 4]}, InputError, r"messages\[1\]"),
        ({"prompt": [{"role": "user", "content": 4}]}, InputError, r"messages\[0\].content"),
        ({"max_new_tokens": 0}, InputError, "max_new_tokens"),
        ({"max_new_tokens": True}, InputError, "max_new_tokens"),
        ({"max_new_tokens": 2**40}, InputError, "max_new_tokens"),
        ({"max_seq": 0}, InputError, "max_seq"),
        ({"max_seq": 257}, InputError, "max_seq"),
        ({"max_seq": 64, "machine": Scripted()}, InputError, "max_seq"),
        ({"temperature": float("nan")}, InputError, "temperature"),
        ({"top_p": 0}, InputError, "top_p"),
        ({"top_k": 1.5}, InputError, "top_k"),
        ({"seed": -1}, InputError, "seed"),
        ({"stop_tokens": [256]}, InputError, r"stop_tokens\[0\]"),
        ({"stop_tokens": 5}, InputError, "stop_tokens"),
        ({"logprobs": 1}, InputError, "logprobs"),
        ({"device": "cuda"}, Unavailable, "CUDA"),
        ({"device": "cuda:1"}, Unavailable, "CUDA"),
        ({"device": "tpu"}, InputError, "device"),
        ({"gpu": "h9000"}, InputError, "h9000"),
        ({"model": "no-such-model"}, InputError, "no-such-model"),
        ({"config": {"tiling": {"gemv": {"N_tile": 17}}}}, Rejected, "N_tile"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_misuse_is_said_by_the_call(arguments: dict[str, Any], error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        generate_function(**{"model": "toy", "prompt": [1], **arguments})


def test_the_embedded_models_on_the_reference_machine() -> None:
    for model in ("toy", "toy-gqa", "toy-qwen3", "toy-gdn"):
        with amk.generate(model, device="cpu", gpu="h200", max_seq=24, stop_at_eos=False) as generation:
            assert generation.prompt_tokens == (1,) and generation.max_seq == 24 and not generation.has_text
            tokens = list(generation)
        assert len(tokens) == 23 and generation.finish_reason == "capacity"
        source = amk.open_model(model)
        image = amk.lower(source.config, amk.ScheduleConfig.default(), "h200", 24).pack()
        with amk.ReferenceVM(image, source.weights()) as machine:
            fed = [1] + [token.token for token in tokens]
            for pos, token in enumerate(tokens):
                logits = machine.step(fed[pos], pos).astype(np.float64)
                assert token.token == machine.next_token
                assert token.logprob == pytest.approx(logits.max() - np.log(np.exp(logits).sum()), abs=1e-6)
            again = amk.generate(model, [1], machine=machine, stop_at_eos=False, max_new_tokens=100)
            assert list(again) == tokens
            sampled = [
                [token.token for token in amk.generate(model, [1], machine=machine, temperature=1.5, seed=seed)]
                for seed in (1, 2, 1)
            ]
            assert sampled[0] == sampled[2] != sampled[1]


def test_the_cache_grows_with_the_request() -> None:
    from amk.generate import _capacity

    source = amk.open_model("toy")
    assert [_capacity(source, None, wanted) for wanted in (1, 1024, 5000)] == [256, 256, 256]
    source.config = amk.open_model("toy").config.__class__(**{**vars(source.config), "max_position": 8192})
    assert [_capacity(source, None, n) for n in (1, 1024, 1025, 5000, 9000)] == [1024, 1024, 2048, 5120, 8192]
    assert _capacity(source, 100, 5000) == 100


def test_a_failed_step_ends_the_generation_and_closes_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Scripted()
    module = sys.modules["amk.generate"]
    monkeypatch.setattr(module, "open_machine", lambda *_: machine)
    monkeypatch.setattr(machine, "step", lambda token, pos: np.full(VOCAB, np.nan, np.float32))
    generation = amk.generate("toy", [1], gpu="h200")
    with pytest.raises(NonFinite):
        next(generation)
    assert machine.closed and generation.finish_reason is None and list(generation) == []


def test_what_was_opened_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["amk.generate"]
    for leave_early in (False, True):
        machine = Scripted()
        monkeypatch.setattr(module, "open_machine", lambda *_, machine=machine: machine)
        with amk.generate("toy", [1], gpu="h200", max_new_tokens=4) as generation:
            next(generation)
            if not leave_early:
                list(generation)
                assert machine.closed
        assert machine.closed and next(generation, None) is None


def test_greedy_equals_the_oracle_token_for_token() -> None:
    from amk.oracle import error_limit
    from greedy_oracle import greedy_tokens

    source, prompt = amk.open_model("toy"), [3, 141, 59]
    tokens, lead = greedy_tokens(source, prompt, 64)
    assert lead > 2 * error_limit("f32", source.config, position=80) and len(set(tokens)) > 16
    generation = amk.generate("toy", prompt, device="cpu", max_new_tokens=64, stop_at_eos=False)
    assert [token.token for token in generation] == tokens


# ---- checkpoints ---------------------------------------------------------------------------------------------------

NEW_TOKENS = 32


@pytest.mark.parametrize("family", ["llama3", "qwen2"])
def test_greedy_equals_transformers_token_for_token(family: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from families import build_checkpoint

    model = build_checkpoint(tmp_path, family, seed=3)
    prompt = [3, 141, 59, 26]
    with torch.no_grad():
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None,
            pad_token_id=0,
        )[0].tolist()  # fmt: skip
    generation = amk.generate(tmp_path, prompt, device="cpu", max_new_tokens=NEW_TOKENS, max_seq=64, stop_at_eos=False)
    tokens = [token.token for token in generation]
    assert prompt + tokens == expected and len(tokens) == NEW_TOKENS and len(set(tokens)) > 8


def test_eos_of_generation_config_comes_first(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from families import build_checkpoint

    build_checkpoint(tmp_path, "llama3", seed=3)
    reason = {}
    for value in (2, [7, 102], None):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        generation = amk.generate(tmp_path, [1, 2, 3], machine=Scripted(), max_new_tokens=4)
        reason[str(value)] = (len(list(generation)), generation.finish_reason)
    assert reason == {"2": (4, "length"), "[7, 102]": (1, "eos"), "None": (4, "length")}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "two"}')
    with pytest.raises(InputError, match="generation_config.json: eos_token_id"):
        amk.generate(tmp_path, [1], machine=Scripted())
    config = json.loads((tmp_path / "config.json").read_text()) | {"bos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(InputError, match="bos_token_id"):
        amk.generate(tmp_path, machine=Scripted())


def test_an_unsupported_model_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mixtral", "num_local_experts": 8}')
    with pytest.raises(UnsupportedModel):
        amk.generate(tmp_path, [1])
