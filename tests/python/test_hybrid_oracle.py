"""The float64 decoder of hybrid models against transformers: prefill, single steps from any state, and their states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from amk.checkpoint import Checkpoint  # noqa: E402
from amk.oracle import Oracle, Rows, error_limit, logit_error, synthetic_kv, synthetic_state  # noqa: E402
from amk.oracle_cache import OracleCache  # noqa: E402
from families import build_checkpoint, wholly_in_float64  # noqa: E402

EXACT_LIMIT = 1e-9
# Transformers takes norms, rotary angles and the delta rule through float32, whatever the dtype of the model.
F32_LIMIT = 5e-5
TOKENS = 70  # more than one chunk of transformers' prefill
SHAPES: dict[str, dict[str, Any]] = {
    "two value heads": {},
    "equal heads": {"linear_num_value_heads": 2},
    "four value heads": {"linear_num_key_heads": 1, "linear_key_head_dim": 24, "linear_value_head_dim": 24},
    "short convolution": {
        "linear_conv_kernel_dim": 2, "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    },
    "every second": {"layer_types": ["linear_attention", "full_attention"] * 2, "attention_bias": True},
    "whole rotary": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0}},
    "scaled rotary": {
        "rope_parameters": {
            "rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5
        }
    },
}  # fmt: skip


def build(directory: Path, **changes: Any) -> tuple[Any, Checkpoint]:
    model = build_checkpoint(directory, "qwen3next", seed=6, **changes)
    return model.double(), Checkpoint.open(directory)


def ask(model: Any, tokens: np.ndarray) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)[None], use_cache=True)


def test_prefill_matches_transformers_as_it_is(tmp_path: Path) -> None:
    model, checkpoint = build(tmp_path)
    tokens = np.random.default_rng(4).integers(0, checkpoint.config.vocab, TOKENS)
    got = Oracle(checkpoint.config, checkpoint.raw).prefill(tokens.tolist())
    assert logit_error(got, ask(model, tokens).logits[0].numpy()) < F32_LIMIT


@pytest.mark.parametrize("shape", SHAPES)
def test_prefill_and_its_states_match_transformers(shape: str, tmp_path: Path) -> None:
    model, checkpoint = build(tmp_path, **SHAPES[shape])
    config, rows = checkpoint.config, []
    tokens = np.random.default_rng(5).integers(0, config.vocab, TOKENS)
    got = Oracle(config, checkpoint.raw).prefill(tokens.tolist(), rows=rows)
    with wholly_in_float64(model):
        out = ask(model, tokens)
    assert logit_error(got, out.logits[0].numpy()) < EXACT_LIMIT
    for layer, ((first, second), theirs) in enumerate(zip(rows, out.past_key_values.layers, strict=True)):
        if config.is_linear(layer):
            pairs = [(first[-1], theirs.conv_states[0][0, :, 1:])]  # transformers keeps one input more
            pairs.append((second[-1].swapaxes(1, 2), theirs.recurrent_states[0][0]))
        else:
            pairs = [(first.swapaxes(0, 1), theirs.keys[0]), (second.swapaxes(0, 1), theirs.values[0])]
        for mine, his in pairs:
            np.testing.assert_allclose(mine, his.numpy(), atol=EXACT_LIMIT)
    assert len({config.is_linear(layer) for layer in range(config.layers)}) == 2


def test_steps_from_the_states_of_a_prefill_give_its_logits(tmp_path: Path) -> None:
    """Every position of a decode, each asked alone, from the cache rows and the state that the prefill had there."""
    _, checkpoint = build(tmp_path)
    config, rows = checkpoint.config, []
    tokens = np.random.default_rng(6).integers(0, config.vocab, 40).tolist()
    oracle = Oracle(config, checkpoint.raw)
    whole = oracle.prefill(tokens, rows=rows)
    kv, state = sources(config, rows)
    last: Rows = []
    alone = oracle.probe(tokens, range(len(tokens)), kv, state, rows=last)
    assert logit_error(alone, whole) < 1e-12
    for mine, theirs in zip(last, rows, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


def sources(config: Any, rows: Rows) -> tuple[Any, Any]:
    """(kv, state) for steps at positions 0, 1, ... of the decode that left `rows`: the state before each of them."""

    def before(after: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros_like(after[:1]), after[:-1]])

    return (
        lambda layer: tuple(part.swapaxes(0, 1) for part in rows[layer]),
        lambda layer: tuple(before(part) for part in rows[layer]),
    )


def test_a_step_from_any_state_matches_transformers(tmp_path: Path) -> None:
    """Random states and cache rows, which no prefill made: what an examination gives to a machine."""
    model, checkpoint = build(tmp_path)
    config, pos = checkpoint.config, 21
    with wholly_in_float64(model):
        cache = ask(model, np.arange(pos)).past_key_values
    for layer, theirs in enumerate(cache.layers):
        if config.is_linear(layer):
            past, memory = synthetic_state(config, 3, layer)
            theirs.conv_states[0][0, :, 1:] = torch.from_numpy(past)
            theirs.recurrent_states[0][0] = torch.from_numpy(memory).transpose(1, 2)
        else:
            theirs.keys[0], theirs.values[0] = (torch.from_numpy(part) for part in synthetic_kv(config, pos, 3, layer))
    with torch.no_grad(), wholly_in_float64(model):
        out = model(torch.tensor([[77]]), past_key_values=cache, use_cache=True)
    rows: Rows = []
    kv = lambda layer: synthetic_kv(config, pos, 3, layer)  # noqa: E731
    state = lambda layer: synthetic_state(config, 3, layer)  # noqa: E731
    got = Oracle(config, checkpoint.raw).probe([77], [pos], kv, state, rows=rows)
    assert logit_error(got, out.logits[0].numpy()) < EXACT_LIMIT
    for layer, theirs in enumerate(cache.layers):
        if config.is_linear(layer):
            memory = theirs.recurrent_states[0][0].transpose(1, 2).numpy()
            np.testing.assert_allclose(rows[layer][1][0], memory, atol=EXACT_LIMIT)


def test_the_state_decides_the_logits_and_must_be_given(tmp_path: Path) -> None:
    """Each part of the state of each linear layer moves the answer beyond what a machine may be off by."""
    _, checkpoint = build(tmp_path)
    config, oracle = checkpoint.config, Oracle(checkpoint.config, checkpoint.raw)
    kv = lambda layer: synthetic_kv(config, 5, 0, layer)  # noqa: E731
    right = oracle.probe([9], [5], kv, lambda layer: synthetic_state(config, 0, layer))
    limit = error_limit("f32", config, position=5)
    for layer in (0, 1, 2):
        for part in (0, 1):

            def other(asked: int, layer: int = layer, part: int = part) -> tuple[Any, Any]:
                state = list(synthetic_state(config, 0, asked))
                if asked == layer:
                    state[part] = np.zeros_like(state[part])
                return tuple(state)

            assert logit_error(oracle.probe([9], [5], kv, other), right) > 100 * limit
    with pytest.raises(ValueError, match="state"):
        oracle.probe([9], [5], kv)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_synthetic_states_are_stored_exactly_and_differ(dtype: str, tmp_path: Path) -> None:
    from amk.oracle import round_to, to_float64

    config = replace(build(tmp_path)[1].config, dtype=dtype)
    past, memory = synthetic_state(config, 4, 1)
    assert past.shape == (config.linear_channels, config.conv_width - 1) and past.dtype == np.float32
    assert memory.shape == (config.linear_value_heads, config.linear_head_dim, config.linear_head_dim)
    assert np.array_equal(to_float64(round_to(past, dtype), dtype), past)
    assert abs(past.std() - 1.0) < 0.1 and abs(memory.std() - 0.5) < 0.05
    for other in (synthetic_state(config, 4, 2), synthetic_state(config, 5, 1)):
        assert not np.array_equal(past, other[0]) and not np.array_equal(memory, other[1])


def test_noisy_copies_of_a_decode_are_chains_of_their_own(tmp_path: Path) -> None:
    _, checkpoint = build(tmp_path)
    config, tokens = checkpoint.config, [3, 1, 4, 1, 5, 9]
    exact = Oracle(config, checkpoint.raw).prefill(tokens)
    copies = Oracle(config, checkpoint.raw).prefill(tokens, copies=3).reshape(3, *exact.shape)
    assert all(logit_error(copy, exact) < 1e-12 for copy in copies)
    rounded = replace(config, dtype="bf16")
    noisy = Oracle(rounded, checkpoint.raw, noise=np.random.default_rng(0)).prefill(tokens, copies=8)
    errors = [logit_error(copy, exact) for copy in noisy.reshape(8, *exact.shape)]
    assert len(set(errors)) == 8 and min(errors) > 0.05 * error_limit("bf16", rounded, position=5)


def test_the_cache_key_covers_the_hybrid_fields(tmp_path: Path) -> None:
    config = build(tmp_path)[1].config
    changes = [
        {"rotary_dim": 16}, {"full_attention_interval": 2}, {"linear_key_heads": 4}, {"linear_value_heads": 2},
        {"linear_head_dim": 8}, {"conv_width": 3}, {"attention_gate": False}, {"norm_plus_one": False},
    ]  # fmt: skip
    keys = {OracleCache.key(replace(config, **change), "w", [1], [0], 0, "probe") for change in ({}, *changes)}
    assert len(keys) == len(changes) + 1
