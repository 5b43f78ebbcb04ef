"""config.json of a Hugging Face decoder -> `ModelConfig`, or a typed refusal that names the key.

Models are recognised by what the configuration says, never by a list of names. Every key must be modelled, known to
change nothing, or null/false; anything else is `UnsupportedModel`. A value of the wrong type or out of its domain is
`InputError`. Both spellings of Transformers are read: 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5
(`rope_parameters`, `dtype`, `layer_types`); defaults of absent keys are those of the family's config class.
This file knows nothing of tensors and must never guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config_hybrid import HYBRID_ROTARY_FACTOR, take_hybrid
from .config_keys import Keys, short
from .errors import InputError
from .strict_json import parse_strict_json

__all__ = ["ModelConfig", "RopeScaling", "head_runs", "parse_config", "rope_inv_freq"]

MAX_LAYERS = 1024
MAX_HIDDEN = 1 << 20
MAX_FFN = 1 << 24
MAX_HEADS = 1 << 16
MAX_HEAD_DIM = 1 << 12
MAX_VOCAB = 1 << 22
MAX_POSITION = 1 << 24
MAX_TOKEN_ID = (1 << 31) - 1

DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies differ from theta^(-2i/D); the last three fields belong to rope_type "llama3"."""

    rope_type: str  # "linear" | "llama3"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position_embeddings: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """All that the graph needs to know of a decoder besides its weights."""

    family: str  # "llama" | "mistral" | "qwen2" | "qwen3" | "qwen3_next"
    hidden: int
    layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    eps: float
    dtype: str  # "f32" | "f16" | "bf16"
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    rotary_dim: int = 0  # dimensions of a head that rotate, the first ones of the checkpoint; 0: all
    # A hybrid: every n-th layer is attention, the others are gated delta nets. All 0: every layer is attention.
    full_attention_interval: int = 0
    linear_key_heads: int = 0
    linear_value_heads: int = 0
    linear_head_dim: int = 0  # of keys and of values
    conv_width: int = 0
    attention_gate: bool = False  # the output of attention is multiplied by sigmoid(gate), the gate projected with q
    norm_plus_one: bool = False  # norm weights w act as 1 + w, but for the norm inside a gated delta net
    weight_group: int = 0  # elements of a row that share a scale in a quantised model (quantize.py); 0: none is

    @property
    def linear_channels(self) -> int:
        """What the short convolution of a gated delta net runs over: q, k and v, back to back."""
        return (2 * self.linear_key_heads + self.linear_value_heads) * self.linear_head_dim

    @property
    def linear_values(self) -> int:
        """What a gated delta net gives, before its last projection."""
        return self.linear_value_heads * self.linear_head_dim

    @property
    def has_state(self) -> bool:
        """Whether a step leaves more to the next one than rows of a cache."""
        return any(self.is_linear(layer) for layer in range(self.layers))

    def is_linear(self, layer: int) -> bool:
        """Whether the layer is a gated delta net."""
        return self.full_attention_interval > 0 and (layer + 1) % self.full_attention_interval != 0


@dataclass(frozen=True)
class _Family:
    """What a `model_type` implies when its keys are absent, and which optional keys it honours."""

    family: str
    architecture: str
    kv_heads: int | None  # None: as many as query heads
    max_position: int
    theta: float = 10000.0
    head_dim: int | None = None  # None: hidden / heads
    tied: bool = False
    sliding_window: int | None = None
    has_window_switch: bool = False  # a window acts only under `use_sliding_window`
    has_attention_bias: bool = False  # honours `attention_bias`, on q, k, v and o alike
    has_mlp_bias: bool = False
    always_qkv_bias: bool = False
    qk_norm: bool = False
    is_hybrid: bool = False


# Defaults: the configuration_<model_type>.py of Transformers 5.24.
_FAMILIES = {
    "llama": _Family("llama", "LlamaForCausalLM", None, 2048, has_attention_bias=True, has_mlp_bias=True),
    "mistral": _Family("mistral", "MistralForCausalLM", 8, 131072, sliding_window=4096),
    "qwen2": _Family("qwen2", "Qwen2ForCausalLM", 32, 32768, always_qkv_bias=True, has_window_switch=True),
    "qwen3": _Family(
        *("qwen3", "Qwen3ForCausalLM", 32, 32768),
        head_dim=128,
        has_window_switch=True,
        has_attention_bias=True,
        qk_norm=True,
    ),
    "qwen3_next": _Family(
        *("qwen3_next", "Qwen3NextForCausalLM", 2, 32768),
        head_dim=256,
        has_attention_bias=True,
        qk_norm=True,
        is_hybrid=True,
    ),
    "smollm3": _Family(
        *("llama", "SmolLM3ForCausalLM", 4, 32768),
        theta=2e6,
        tied=True,
        has_window_switch=True,
        has_attention_bias=True,
        has_mlp_bias=True,
    ),
}

# Keys that do not change the function computed for one sequence at inference: bookkeeping, training, generation.
_INERT_NAMES = """
    _name_or_path _commit_hash transformers_version transformers.js_config is_llama_config tokenizer_class
    unsloth_version unsloth_fixed task_specific_params problem_type finetuning_task id2label label2id num_labels prefix
    initializer_range attention_dropout use_cache output_attentions output_hidden_states return_dict
    return_dict_in_generate torchscript use_bfloat16 chunk_size_feed_forward max_sequence_length max_window_layers
    attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled
    pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
    max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size num_return_sequences output_scores bad_words_ids begin_suppress_tokens
    suppress_tokens remove_invalid_values exponential_decay_length_penalty
"""
_INERT_KEYS = frozenset(_INERT_NAMES.split())

# Keys accepted with one value only: any other changes the function (or the order of its sums).
_FIXED_KEYS: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_activation": "silu",
    "pretraining_tp": 1,
    "pruned_heads": {},
}


def parse_config(source: bytes | Mapping[str, Any], where: str, stored_dtype: str | None = None) -> ModelConfig:
    """Checks a config.json (its bytes, or the parsed object); `stored_dtype` stands in if it names no dtype."""
    table = parse_strict_json(source, where) if isinstance(source, bytes) else source
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: expected a JSON object, got {short(table)}")
    keys = Keys(table, where)
    family = _take_family(keys)
    layers = keys.integer("num_hidden_layers", 1, MAX_LAYERS)
    hybrid = take_hybrid(keys, layers) if family.is_hybrid else {}
    # A quantized or mixture model has foreign keys everywhere; name the one that says so.
    for key in ("quantization_config", "num_local_experts", "num_experts", "n_routed_experts", "kv_lora_rank"):
        if (value := keys.take(key, False)) is not False:
            raise keys.unsupported(key, "a dense, unquantized model without this key", value)

    hidden = keys.integer("hidden_size", 1, MAX_HIDDEN)
    n_heads = keys.integer("num_attention_heads", 1, MAX_HEADS)
    n_kv_heads = keys.integer(
        "num_key_value_heads", 1, MAX_HEADS, keys.or_null("num_key_value_heads", family.kv_heads) or n_heads
    )
    head_dim = keys.integer("head_dim", 1, MAX_HEAD_DIM, keys.or_null("head_dim", family.head_dim))
    ffn = keys.integer("intermediate_size", 1, MAX_FFN)
    vocab = keys.integer("vocab_size", 1, MAX_VOCAB)
    max_position = keys.integer("max_position_embeddings", 1, MAX_POSITION, family.max_position)
    if n_heads % n_kv_heads:
        raise InputError(f"{where}: num_key_value_heads: expected a divisor of {n_heads} heads, got {n_kv_heads}")
    if head_dim is None:
        if hidden % n_heads:
            raise InputError(f"{where}: num_attention_heads: expected a divisor of hidden {hidden}, got {n_heads}")
        head_dim = hidden // n_heads
    for key, value in (("hidden_size", hidden), ("head_dim", head_dim), ("intermediate_size", ffn)):
        if value % 8:
            raise InputError(f"{where}: {key}: expected a multiple of 8 (16-byte loads of weights), got {value}")
    _refuse_windows(keys, family, layers, max_position)
    theta, scaling, partial = _take_rope(keys, where, family)
    attention_bias = family.has_attention_bias and keys.boolean("attention_bias", False)
    config = ModelConfig(
        family=family.family,
        hidden=hidden,
        layers=layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocab=vocab,
        eps=keys.number("rms_norm_eps", 0.0, 1e-6, exclusive=True),
        dtype=_take_dtype(keys, where, stored_dtype),
        tied=keys.boolean("tie_word_embeddings", family.tied),
        qkv_bias=family.always_qkv_bias or attention_bias,
        o_bias=attention_bias,
        mlp_bias=family.has_mlp_bias and keys.boolean("mlp_bias", False),
        qk_norm=family.qk_norm,
        rope_theta=theta,
        rope_scaling=scaling,
        max_position=max_position,
        bos_token_id=keys.integer("bos_token_id", 0, MAX_TOKEN_ID, None),
        eos_token_ids=_take_eos(keys, where),
        rotary_dim=_rotary_dim(keys, head_dim, partial),
        **hybrid,
    )
    for key, expected in _FIXED_KEYS.items():
        if (value := keys.take(key, expected)) != expected or type(value) is bool:
            raise keys.unsupported(key, f"{expected!r}, the only value AMK models", value)
    for key in _INERT_KEYS:
        keys.take(key)
    keys.finish()
    if not np.isfinite(rope_inv_freq(config)).all():
        raise InputError(f"{where}: rope_theta: expected finite float32 frequencies, got them from {theta:g}")
    return config


def rope_inv_freq(config: ModelConfig) -> np.ndarray:
    """Rotary frequencies, radians per position: float32 [D/2], worked out in float64 and rounded once. Pairs of
    dimensions that do not rotate (`rotary_dim`) come last and have 0.

    Sources: default, Su et al., RoFormer, arXiv:2104.09864, section 3.2.2; linear, Chen et al., arXiv:2306.15595
    (positions divided by a factor); llama3, the Llama 3.1 reference code (`apply_scaling` in meta-llama/llama-models,
    llama3/reference_impl/model.py): long waves are slowed by the factor, short ones kept, those between blended.
    """
    rotary_dim = config.rotary_dim or config.head_dim
    exponent = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    frequency = np.float64(config.rope_theta) ** -exponent
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type == "linear":
        frequency = frequency / scaling.factor
    elif scaling is not None:
        turns = (
            scaling.original_max_position_embeddings * frequency / (2.0 * math.pi)
        )  # full turns in the original context
        keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        frequency = keep * frequency + (1.0 - keep) * frequency / scaling.factor
    still = np.zeros((config.head_dim - rotary_dim) // 2)
    with np.errstate(over="ignore"):
        return np.concatenate([frequency, still]).astype(np.float32)


def head_runs(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """Which dimensions of a checkpoint's query or key head stand where in AMK's: runs (first, count), in AMK's order.

    A checkpoint pairs dimension i with i + rotary_dim / 2 and leaves those past rotary_dim alone; AMK pairs i with
    i + D / 2 throughout. So the second rotary half moves up to D / 2, and scores, sums over the head, stay the same.
    """
    whole, half = config.head_dim, config.rotary_dim // 2
    if config.rotary_dim in (0, whole):
        return ((0, whole),)
    rest = (whole - config.rotary_dim) // 2
    return (0, half), (config.rotary_dim, rest), (half, half), (config.rotary_dim + rest, rest)


def _take_family(keys: Keys) -> _Family:
    model_type = keys.string("model_type")
    architectures = keys.take("architectures")
    known = ", ".join(sorted(_FAMILIES))
    if model_type is None:  # fall back on the class name
        if not isinstance(architectures, list) or len(architectures) != 1:
            raise keys.unsupported("model_type", f"one of {known}", architectures)
        by_class = {family.architecture: name for name, family in _FAMILIES.items()}
        model_type = by_class.get(str(architectures[0]), str(architectures[0]))
    family = _FAMILIES.get(model_type)
    if family is None:
        raise keys.unsupported("model_type", f"one of {known}", model_type)
    if architectures is not None and architectures != [family.architecture]:
        raise keys.unsupported("architectures", f"[{family.architecture!r}]", architectures)
    return family


def _refuse_windows(keys: Keys, family: _Family, layers: int, max_position: int) -> None:
    """Passes if every layer attends to all positions and rotates; takes the keys that say otherwise."""
    window = keys.integer("sliding_window", 0, 1 << 62, keys.or_null("sliding_window", family.sliding_window))
    slides = keys.boolean("use_sliding_window", False)
    if slides:
        raise keys.unsupported("use_sliding_window", "false", slides)
    if not family.has_window_switch and window is not None and window < max_position:
        raise keys.unsupported("sliding_window", f"null or at least max_position_embeddings {max_position}", window)
    layer_types = keys.take("layer_types")
    if layer_types is not None and layer_types != ["full_attention"] * layers:
        raise keys.unsupported("layer_types", f"{layers} times 'full_attention'", layer_types)
    if family.architecture == "SmolLM3ForCausalLM":
        interval = keys.integer("no_rope_layer_interval", 1, 1 << 62, 4)
        rotates = keys.take("no_rope_layers")
        if rotates is None and interval <= layers:
            raise keys.unsupported("no_rope_layer_interval", f"more than {layers} layers", interval)
        if rotates is not None and (rotates != [1] * layers or not all(type(flag) is int for flag in rotates)):
            raise keys.unsupported("no_rope_layers", f"{layers} times 1 (every layer rotates)", rotates)


def _take_rope(keys: Keys, where: str, family: _Family) -> tuple[float, RopeScaling | None, float]:
    """Theta, scaling and the part of a head that rotates, from `rope_theta` + `rope_scaling` +
    `partial_rotary_factor` (4) or from `rope_parameters` (5)."""
    names = [name for name in ("rope_parameters", "rope_scaling") if keys.has(name)]
    has_top_theta = keys.has("rope_theta")
    top_theta = keys.number("rope_theta", 0.0, family.theta, exclusive=True)
    has_top_partial = keys.has("partial_rotary_factor")
    top_partial = _take_partial(keys, HYBRID_ROTARY_FACTOR if family.is_hybrid else 1, family)
    if not names:
        return top_theta, None, top_partial
    name = names[0]
    table = keys.take(name)
    if not isinstance(table, dict):
        raise InputError(f"{where}: {name}: expected an object or null, got {short(table)}")
    if len(names) == 2 and keys.take(names[1]) != table:
        raise keys.unsupported(names[1], f"nothing beside {name}, or the same content", "something else")

    rope = Keys(table, where, f"{name}.")
    theta = rope.number("rope_theta", 0.0, top_theta, exclusive=True)
    if has_top_theta and theta != top_theta:
        raise rope.unsupported("rope_theta", f"the {top_theta:g} of the top-level rope_theta", theta)
    kind, old_kind = rope.string("rope_type"), rope.string("type")
    if kind is not None and old_kind is not None and kind != old_kind:
        raise rope.unsupported("type", f"the same as rope_type {kind!r}", old_kind)
    kind = kind or old_kind or "default"
    scaling = None
    if kind == "linear":
        scaling = RopeScaling(kind, rope.number("factor", 1.0))
    elif kind == "llama3":
        scaling = RopeScaling(
            kind,
            factor=rope.number("factor", 1.0),
            low_freq_factor=rope.number("low_freq_factor", 0.0, exclusive=True),
            high_freq_factor=rope.number("high_freq_factor", 0.0, exclusive=True),
            original_max_position_embeddings=rope.integer("original_max_position_embeddings", 1, MAX_POSITION),
        )
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise InputError(
                f"{where}: {name}.high_freq_factor: expected more than low_freq_factor "
                f"{scaling.low_freq_factor:g}, got {scaling.high_freq_factor:g}"
            )
    elif kind != "default":
        raise rope.unsupported("rope_type", "one of default, linear, llama3", kind)
    partial = _take_partial(rope, top_partial, family)
    if has_top_partial and partial != top_partial:
        raise rope.unsupported("partial_rotary_factor", f"the {top_partial:g} of the top level", partial)
    rope.finish()
    return theta, scaling, partial


def _take_partial(keys: Keys, default: float, family: _Family) -> float:
    if family.is_hybrid:
        return keys.number("partial_rotary_factor", 0.0, default, exclusive=True)
    if (partial := keys.take("partial_rotary_factor", default)) != 1 or type(partial) is bool:
        raise keys.unsupported("partial_rotary_factor", "1, the only value AMK models here", partial)
    return 1.0


def _rotary_dim(keys: Keys, head_dim: int, partial: float) -> int:
    """How many dimensions of a head rotate, 0 for all of them."""
    if partial == 1.0:
        return 0
    rotary_dim = int(head_dim * partial)  # as Transformers truncates
    if not 2 <= rotary_dim < head_dim or rotary_dim % 2:
        raise keys.unsupported("partial_rotary_factor", f"an even part of the {head_dim} of head_dim, or 1", partial)
    return rotary_dim


def _take_dtype(keys: Keys, where: str, stored_dtype: str | None) -> str:
    names = [name for name in ("dtype", "torch_dtype") if keys.has(name)]
    values = [keys.string(name) for name in names]
    if not values:
        if stored_dtype is None:
            raise InputError(f"{where}: dtype: expected one of {', '.join(DTYPES)}, got nothing: the key is missing")
        return stored_dtype
    for name, value in zip(names, values, strict=True):
        if value not in DTYPES or value != values[0]:
            raise keys.unsupported(name, f"one of {', '.join(DTYPES)}, the same wherever it is given", value)
    return DTYPES[str(values[0])]


def _take_eos(keys: Keys, where: str) -> tuple[int, ...]:
    value = keys.take("eos_token_id", [])
    ids = value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in ids):
        raise InputError(f"{where}: eos_token_id: expected a token id or a list of them, got {short(value)}")
    return tuple(ids)
