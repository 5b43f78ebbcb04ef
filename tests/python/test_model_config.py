"""config.json: what is understood, what is refused by name, and what is malformed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, SmolLM3Config

from amk.errors import InputError, UnsupportedModel
from amk.model_config import ModelConfig, RopeScaling, parse_config, rope_inv_freq
from families import FAMILIES, build_model, rewrite_config_in_v4_style

# The config.json of Llama 3.2 1B, as Transformers 4 wrote it.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}

# SmolLM2 carries keys of its own trainer; Qwen2.5 names a window that is switched off.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
    "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 49152,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
}  # fmt: skip
QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32768,
}  # fmt: skip


def parse(base: dict[str, Any] = LLAMA, without: tuple[str, ...] = (), **changes: Any) -> ModelConfig:
    table = {**base, **changes}
    for key in without:
        del table[key]
    return parse_config(json.dumps(table).encode(), "config.json")


def test_reads_published_configurations() -> None:
    assert parse() == ModelConfig(
        family="llama",
        hidden=2048,
        layers=16,
        n_heads=32,
        n_kv_heads=8,
        head_dim=64,
        ffn=8192,
        vocab=128256,
        eps=1e-5,
        dtype="bf16",
        tied=True,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        rope_theta=500000.0,
        rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
        max_position=131072,
        bos_token_id=128000,
        eos_token_ids=(128001, 128008, 128009),
    )
    assert parse(SMOLLM2).head_dim == 64 and parse(SMOLLM2).rope_theta == 100000.0
    assert parse(QWEN25).qkv_bias and not parse(QWEN25).o_bias
    assert parse(MISTRAL).family == "mistral" and parse(MISTRAL).n_kv_heads == 8


@pytest.mark.parametrize("style", ["v4", "v5"])
@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_transformers(family: str, style: str, tmp_path: Path) -> None:
    model = build_model(family)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "bfloat16"
    model.config.save_pretrained(tmp_path)
    if style == "v4":
        rewrite_config_in_v4_style(tmp_path)
    config = parse_config((tmp_path / "config.json").read_bytes(), "config.json")
    truth = AutoConfig.from_pretrained(tmp_path)
    assert config.hidden == truth.hidden_size
    assert config.layers == truth.num_hidden_layers
    assert (config.n_heads, config.n_kv_heads) == (truth.num_attention_heads, truth.num_key_value_heads)
    attention = model.model.layers[-1].self_attn
    assert config.head_dim == attention.head_dim
    assert (config.ffn, config.vocab) == (truth.intermediate_size, truth.vocab_size)
    assert config.eps == truth.rms_norm_eps
    assert config.tied == truth.tie_word_embeddings
    assert config.qkv_bias == (attention.q_proj.bias is not None)
    assert config.o_bias == (attention.o_proj.bias is not None)
    assert config.qk_norm == hasattr(attention, "q_norm")
    assert config.dtype == "bf16"
    expected = model.model.rotary_emb.inv_freq.numpy()
    found = rope_inv_freq(config)
    assert found.dtype == np.float32 and found.shape == (config.head_dim // 2,)
    np.testing.assert_allclose(found[: len(expected)], expected, rtol=4e-7)
    assert not found[len(expected) :].any()  # what does not rotate
    assert model.model.rotary_emb.attention_scaling == 1.0


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"type": "linear", "factor": 2.5},
        {**LLAMA["rope_scaling"]},
        {**LLAMA["rope_scaling"], "factor": 8.0, "low_freq_factor": 0.5},
    ],
)
def test_rope_kinds_agree_with_transformers(rope: dict[str, Any]) -> None:
    found = rope_inv_freq(parse(rope_scaling=rope))
    small = {"num_hidden_layers": 1, "hidden_size": 256, "num_attention_heads": 4, "head_dim": 64, "vocab_size": 8}
    parameters = {"rope_theta": 500000.0, "rope_type": rope.get("type", "default"), **rope}
    model = build_model("llama2", **small, max_position_embeddings=131072, rope_parameters=parameters)
    np.testing.assert_allclose(found, model.model.rotary_emb.inv_freq.numpy(), rtol=4e-7)
    assert np.array_equal(
        found, rope_inv_freq(parse(without=("rope_scaling", "rope_theta"), rope_parameters=parameters))
    )


def test_family_defaults_of_absent_keys() -> None:
    bare = {key: MISTRAL[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")}
    bare |= {"num_hidden_layers": 2, "torch_dtype": "float16"}
    llama = parse(bare, model_type="llama")
    assert (llama.n_kv_heads, llama.eps, llama.rope_theta, llama.tied) == (32, 1e-6, 10000.0, False)
    assert (llama.max_position, llama.dtype, llama.bos_token_id, llama.eos_token_ids) == (2048, "f16", None, ())
    assert parse(bare, model_type="qwen3").head_dim == 128
    assert parse(bare, architectures=["Qwen2ForCausalLM"]).family == "qwen2"
    null = parse(bare, model_type="qwen3", head_dim=None, num_key_value_heads=None, num_attention_heads=16)
    assert (null.head_dim, null.n_kv_heads) == (4096 // 16, 16)
    with pytest.raises(UnsupportedModel, match="sliding_window"):  # the class default of Mistral is a window of 4096
        parse(bare, model_type="mistral")
    undated = json.dumps({**LLAMA, "torch_dtype": None}).encode()
    assert parse_config(undated, "config.json", "f32").dtype == "f32"
    with pytest.raises(InputError, match="dtype"):
        parse_config(undated, "config.json")


def test_biases_and_windows_that_are_modelled() -> None:
    biased = parse(attention_bias=True, mlp_bias=True)
    assert biased.qkv_bias and biased.o_bias and biased.mlp_bias
    assert parse(MISTRAL, sliding_window=32768).family == "mistral"
    assert parse(QWEN25, sliding_window=128, layer_types=["full_attention"] * 24).family == "qwen2"
    assert parse(QWEN25, sliding_window=None).max_position == 32768


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("model_type", LLAMA, {"model_type": "mixtral"}),
    ("model_type", LLAMA, {"model_type": "deepseek_v3"}),
    ("model_type", LLAMA, {"model_type": None, "architectures": None}),
    ("model_type", LLAMA, {"model_type": None, "architectures": ["GPT2LMHeadModel"]}),
    ("architectures", LLAMA, {"architectures": ["LlamaForSequenceClassification"]}),
    ("architectures", LLAMA, {"architectures": ["MistralForCausalLM"]}),
    ("architectures", LLAMA, {"architectures": "LlamaForCausalLM"}),
    ("sliding_window", MISTRAL, {"sliding_window": 4096}),
    ("sliding_window", MISTRAL, {"sliding_window": 32767}),
    ("sliding_window", MISTRAL, {"sliding_window": 0}),
    ("sliding_window", LLAMA, {"sliding_window": 4096}),
    ("use_sliding_window", QWEN25, {"use_sliding_window": True}),
    ("layer_types", QWEN25, {"layer_types": ["full_attention"] * 23 + ["sliding_attention"]}),
    ("layer_types", QWEN25, {"layer_types": ["full_attention"] * 23}),
    ("layer_types", QWEN25, {"layer_types": 3}),
    ("num_local_experts", LLAMA, {"num_local_experts": 8}),
    ("num_experts", LLAMA, {"num_experts": 8}),
    ("kv_lora_rank", LLAMA, {"kv_lora_rank": 512}),
    ("quantization_config", LLAMA, {"quantization_config": {"quant_method": "awq"}}),
    ("hidden_act", LLAMA, {"hidden_act": "gelu"}),
    ("hidden_act", LLAMA, {"hidden_act": ["silu"]}),
    ("pretraining_tp", LLAMA, {"pretraining_tp": 2}),
    ("pretraining_tp", LLAMA, {"pretraining_tp": True}),
    ("partial_rotary_factor", LLAMA, {"partial_rotary_factor": 0.5}),
    ("pruned_heads", LLAMA, {"pruned_heads": {"0": [1]}}),
    ("rope_interleaved", SMOLLM2, {"rope_interleaved": True}),
    ("attention_bias", QWEN25, {"attention_bias": True}),
    ("mlp_bias", MISTRAL, {"mlp_bias": True}),
    ("attention_multiplier", LLAMA, {"attention_multiplier": 0.1}),
    ("final_logit_softcapping", LLAMA, {"final_logit_softcapping": 30.0}),
    ("num_key_value_heads_per_layer", LLAMA, {"num_key_value_heads_per_layer": [1, 2]}),
    ("is_encoder_decoder", LLAMA, {"is_encoder_decoder": True}),
    ("anything", LLAMA, {"anything": 0}),
    ("torch_dtype", LLAMA, {"torch_dtype": "float8_e4m3fn"}),
    ("torch_dtype", LLAMA, {"dtype": "float32"}),
    ("rope_scaling.rope_type", LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ("rope_scaling.rope_type", LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    ("rope_parameters.rope_type", MISTRAL, {"rope_parameters": {"rope_type": "longrope"}}),
    ("rope_scaling.type", LLAMA, {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}),
    ("rope_scaling.attention_factor", LLAMA, {"rope_scaling": {"type": "linear", "factor": 2, "attention_factor": 2}}),
    ("rope_scaling.mrope_section", LLAMA, {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}}),
    ("rope_scaling.partial_rotary_factor", LLAMA, {"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}}),
    ("rope_parameters.rope_theta", MISTRAL, {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}),
    ("rope_parameters.full_attention", MISTRAL, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
    ("rope_scaling", LLAMA, {"rope_parameters": {"rope_type": "default"}}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "base", "changes"), REFUSED)
def test_refusals_name_the_key(key: str, base: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        parse(base, **changes)
    assert caught.value.key == key
    assert key in str(caught.value) and "expected" in str(caught.value) and "got" in str(caught.value)


def test_smollm3_only_if_every_layer_rotates(tmp_path: Path) -> None:
    SmolLM3Config(num_hidden_layers=4, dtype="bfloat16").save_pretrained(tmp_path)
    table = json.loads((tmp_path / "config.json").read_bytes())
    with pytest.raises(UnsupportedModel, match="no_rope_layers"):
        parse(table)
    with pytest.raises(UnsupportedModel, match="no_rope_layer_interval"):
        parse(table, no_rope_layers=None)
    config = parse(table, no_rope_layers=[1, 1, 1, 1])
    assert config.family == "llama" and config.tied and config.rope_theta == 2e6


INTEGER_KEYS = [
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "max_position_embeddings",
]  # fmt: skip


@pytest.mark.parametrize("value", [0, -8, 2**31, 2**63, 2**64, 64.0, 1e300, True, "64", [64], {}])
@pytest.mark.parametrize("key", INTEGER_KEYS)
def test_integers_out_of_domain(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=key):
        parse(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 1025),
        ("hidden_size", (1 << 20) + 8),
        ("vocab_size", (1 << 22) + 1),
        ("max_position_embeddings", (1 << 24) + 1),
        ("hidden_size", 2052),
        ("intermediate_size", 8196),
        ("head_dim", 63),
        ("head_dim", 4),
        ("num_key_value_heads", 5),
        ("num_key_value_heads", 64),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", True),
        ("rope_theta", 0),
        ("rope_theta", -1.0),
        ("rope_theta", False),
        ("rope_theta", 1e-300),
        ("rope_scaling", "linear"),
        ("rope_scaling", {"rope_type": 3}),
        ("rope_scaling", {"rope_type": "linear"}),
        ("rope_scaling", {"rope_type": "linear", "factor": 0.0}),
        ("rope_scaling", {**LLAMA["rope_scaling"], "high_freq_factor": 1.0}),
        ("rope_scaling", {**LLAMA["rope_scaling"], "low_freq_factor": 0}),
        ("rope_scaling", {**LLAMA["rope_scaling"], "original_max_position_embeddings": 8192.0}),
        ("tie_word_embeddings", 1),
        ("attention_bias", "false"),
        ("bos_token_id", -1),
        ("bos_token_id", 1.0),
        ("eos_token_id", [1, True]),
        ("eos_token_id", "2"),
        ("torch_dtype", 16),
        ("model_type", 7),
    ],
)
def test_values_out_of_domain(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=key):
        parse(**{key: value})


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"])
def test_missing_keys(key: str) -> None:
    with pytest.raises(InputError, match=f"{key}.*missing"):
        parse(without=(key,))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"{", b'{"model_type":"llama","model_type":"llama"}', b'{"a":NaN}', b'{"a":1e400}',
        b'{"a":' + b"1" * 5000 + b"}", b"\xff\xfe{}", b'\xef\xbb\xbf{"a":1}', b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
    ],
)  # fmt: skip
def test_malformed_files(content: bytes) -> None:
    with pytest.raises(InputError, match="config"):
        parse_config(content, "config.json")


def test_config_is_frozen_and_hashable() -> None:
    assert hash(parse()) == hash(parse())
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().hidden = 1  # type: ignore[misc]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(LLAMA)) | st.text(max_size=4), values, max_size=4))
def test_any_change_is_understood_or_refused(changes: dict[str, Any]) -> None:
    try:
        config = parse_config({**LLAMA, **changes}, "config.json", "f32")
    except (InputError, UnsupportedModel):
        return
    assert config.hidden % 8 == 0 and config.n_heads % config.n_kv_heads == 0
    assert np.isfinite(rope_inv_freq(config)).all()
