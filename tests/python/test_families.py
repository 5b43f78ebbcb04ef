"""The whole chain against transformers: a checkpoint that it saved, lowered, proved, packed and run on the CPU.

Small random checkpoints of every family; transformers is the judge of tokens (f32) and of logits (bf16, f16).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import amk  # noqa: E402
from amk.exam import Answers, Questions, grade, noise_of  # noqa: E402
from amk.oracle import error_limit, logit_error  # noqa: E402
from families import FAMILIES, build_checkpoint, wholly_in_float64  # noqa: E402

TOKENS = 64
PROMPT = (3, 141, 59)
MAX_SEQ = 96
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMK_CACHE_DIR", str(tmp_path / "cache"))


def open_machine(directory: Path, **options: Any) -> tuple[amk.ReferenceVM, Any]:
    source = amk.open_model(directory)
    program = amk.lower(source.config, amk.ScheduleConfig.default(), amk.TARGETS["h200"], MAX_SEQ)
    assert program.validate().ok
    return amk.ReferenceVM(program.pack(), source.weights(), **options), source.config


def decode(machine: amk.ReferenceVM) -> tuple[list[int], np.ndarray]:
    """Greedy: the tokens that were fed or chosen, and the logits after each one that was fed."""
    tokens, logits = list(PROMPT), []
    for pos in range(len(PROMPT) + TOKENS - 1):
        logits.append(machine.step(tokens[pos], pos))
        if pos + 1 == len(tokens):
            assert machine.next_token == int(np.argmax(logits[-1]))
            tokens.append(machine.next_token)
    return tokens, np.array(logits)


def unit_gain(family: str) -> float:
    """The deviation of weights that keeps a rounding error its size, which is what `error_limit` assumes of a model.

    NOTE: at 1.8 times this (smollm with the 0.15 of families.py) attention is so peaked that bf16 steps leave the limit
    now and then, those of transformers in bf16 more often than ours. The judge then asks for the noise (`noise_of`).
    """
    return FAMILIES[family][2]["hidden_size"] ** -0.5


def peer_logits(model: Any, tokens: list[int]) -> np.ndarray:
    """[n, V] of the same weights in float64."""
    with torch.no_grad(), wholly_in_float64(model):
        return model(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_equals_transformers_token_for_token(family: str, tmp_path: Path) -> None:
    model = build_checkpoint(tmp_path / "model", family, sharded=family in ("llama3", "qwen2"), seed=1)
    machine, _ = open_machine(tmp_path / "model")
    got, _ = decode(machine)
    expected = list(PROMPT)
    with torch.no_grad():
        while len(expected) < len(PROMPT) + TOKENS:
            logits = model(torch.tensor([expected])).logits[0, -1]
            expected.append(int(torch.argmax(logits)))
    assert got == expected
    assert len(set(got)) > 8, "a decode that repeats itself tests little"


@pytest.mark.parametrize(
    ("family", "dtype"), [(family, dtype) for family in FAMILIES for dtype in ("f32", "bf16")] + [("qwen3", "f16")]
)
def test_logits_stay_within_the_limit_at_every_step(family: str, dtype: str, tmp_path: Path) -> None:
    rounded = {"dtype": DTYPES[dtype], "initializer_range": unit_gain(family)}
    model = build_checkpoint(tmp_path / "model", family, sharded=family == "mistral", seed=2, **rounded)
    machine, config = open_machine(tmp_path / "model", threads=2)
    assert config.dtype == dtype
    tokens, got = decode(machine)
    reference = peer_logits(model, tokens[: len(got)])
    if config.has_state:  # a step can be as unsteady as only the noise of its weights tells
        asked = Questions(0, MAX_SEQ, (), (), tuple(tokens[: len(got)]))
        truth, raw = Answers(reference), amk.open_model(tmp_path / "model").raw
        mark = grade(config, asked, Answers(got), truth, lambda: noise_of(config, raw, asked, truth, lambda _: None))
        assert mark.correct, mark.notes
        return
    for pos, (mine, theirs) in enumerate(zip(got, reference, strict=True)):
        assert logit_error(mine.astype(np.float64), theirs) <= error_limit(dtype, config, position=pos), pos


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluate_is_right_about_every_family(family: str, tmp_path: Path) -> None:
    rounded = {"dtype": torch.bfloat16, "initializer_range": unit_gain(family)}
    build_checkpoint(tmp_path / "model", family, seed=3, **rounded)
    verdict = amk.evaluate(tmp_path / "model", "h100", max_seq=200)
    assert verdict.correct, verdict.notes
    assert verdict.latency_kind == "predicted" and verdict.latency_us > verdict.bound_us


def test_a_cache_longer_than_the_tiles_of_one_split(tmp_path: Path) -> None:
    """Every split count and block edge up to 300 rows, over a history that transformers computed."""
    model = build_checkpoint(tmp_path / "model", "llama3", seed=4).double()
    source = amk.open_model(tmp_path / "model")
    weights, generator = source.weights(), np.random.default_rng(0)
    tokens = generator.integers(0, source.config.vocab, 300).tolist()
    with torch.no_grad():
        out = model(torch.tensor([tokens]), use_cache=True)
    for kv_block in (16, 64, 256):
        config, _ = amk.ScheduleConfig.from_dict({"tiling": {"attention": {"kv_block": kv_block}}})
        image = amk.lower(source.config, config, amk.TARGETS["l40s"], 300).pack()
        with amk.ReferenceVM(image, weights) as machine:
            for layer, rows in enumerate(out.past_key_values.layers):
                k, v = (np.ascontiguousarray(x[0].numpy(), dtype=np.float32) for x in (rows.keys, rows.values))
                machine.set_kv(layer, k, v)
            for pos in (299, 256, 255, 128, 65, 64, 63, 17, 16, 15, 1, 0):
                theirs = out.logits[0, pos].numpy()
                got = machine.step(tokens[pos], pos).astype(np.float64)
                assert logit_error(got, theirs) <= error_limit("f32", source.config, position=pos), (kv_block, pos)
