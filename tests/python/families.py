"""Small random checkpoints of every supported family, written by `transformers` itself.

Weights are large enough that attention scores matter, norms differ from one and biases from zero, so that a reader or
a kernel that drops or swaps an operand cannot go unnoticed. Test code only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)
from transformers.models.qwen3_next import modeling_qwen3_next

COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# name -> (config class, model class, its own keys)
FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama2": (
        LlamaConfig,
        LlamaForCausalLM,
        {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 4},
    ),
    "llama3": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_theta": 500000.0, **LLAMA3_SCALING},
        },
    ),
    "mistral": (
        MistralConfig,
        MistralForCausalLM,
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 24,
            "sliding_window": None,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        },
    ),
    "qwen2": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
    ),
    "qwen3": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        },
    ),
    "qwen3next": (  # three gated delta nets and one attention layer, two value heads to a key head
        Qwen3NextConfig,
        Qwen3NextForCausalLM,
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "num_experts": 0,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default", "partial_rotary_factor": 0.25},
        },
    ),
    "smollm": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "hidden_size": 144,
            "intermediate_size": 256,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
}

SHARD_BYTES = 48 << 10

torch.set_num_threads(1)  # models this small are slower on more


def build_model(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A random `transformers` model of the family, in eval mode; `overrides` are config keys."""
    config_class, model_class, keys = FAMILIES[family]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**COMMON, **keys, **overrides}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = torch.randn_like(parameter)
            if name.endswith("norm.weight"):  # of qwen3_next all but the one inside a gated delta net act as 1 + w
                centre = 0.0 if family == "qwen3next" and "linear_attn" not in name else 1.0
                parameter.copy_(centre + 0.2 * random)
            elif name.endswith(".bias"):
                parameter.copy_(0.3 * random)
            elif name.endswith((".A_log", ".dt_bias")):  # decays from almost none to almost all
                parameter.copy_(random - 1.0)
            elif name.endswith("conv1d.weight"):
                parameter.copy_(0.5 * random)
    return model.to(dtype).eval()


def build_checkpoint(
    directory: Path,
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    sharded: bool = False,
    seed: int = 0,
    **overrides: Any,
) -> Any:
    """Writes the model to `directory` and returns it, so that the caller can ask it for the truth."""
    model = build_model(family, dtype=dtype, seed=seed, **overrides)
    model.save_pretrained(directory, max_shard_size=SHARD_BYTES if sharded else "5GB")
    assert (directory / "model.safetensors.index.json").exists() == sharded
    return model


@contextmanager
def wholly_in_float64(model: Any) -> Iterator[Any]:
    """The model in float64, also where the code of qwen3_next asks for float32 whatever the dtype of its weights."""

    class Wide:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, "float64" if name in ("float", "float32") else name)

    model.double()
    if model.config.model_type != "qwen3_next":
        yield model
        return
    rope = model.config.rope_parameters
    rotary = model.model.rotary_emb
    width = 2 * len(rotary.inv_freq)
    turns = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width) / rope.get("factor", 1.0)
    torch.testing.assert_close(rotary.inv_freq, turns, rtol=2**-8, atol=1e-6)  # it was cast to the model's dtype
    rotary.inv_freq = turns
    with (
        mock.patch.object(modeling_qwen3_next, "torch", Wide()),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield model


def rewrite_config_in_v4_style(directory: Path) -> None:
    """Turns the config.json of Transformers 5 into what Transformers 4 wrote for the same model."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    path.write_text(json.dumps(config))
