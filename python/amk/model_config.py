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

from .errors import InputError, UnsupportedModel
from .strict_json import parse_strict_json

__all__ = ["ModelConfig", "RopeScaling", "parse_config", "rope_inv_freq"]

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

    family: str  # "llama" | "mistral" | "qwen2" | "qwen3"
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
    weight_group: int = 0  # elements of a row that share a scale in a quantised model (quantize.py); 0: none is


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


# Defaults: the configuration_<model_type>.py of Transformers 5.23.
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
    "partial_rotary_factor": 1,
    "pruned_heads": {},
}

_MISSING = object()


class _Keys:
    """The keys of one JSON object, taken one by one with their type and domain checked; what is left is unknown."""

    def __init__(self, table: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self._left = dict(table)
        self._where = where
        self._prefix = prefix

    def take(self, key: str, default: Any = None) -> Any:
        """The raw value; null counts as absent."""
        value = self._left.pop(key, None)
        return default if value is None else value

    def has(self, key: str) -> bool:
        return self._left.get(key) is not None

    def or_null(self, key: str, default: int | None) -> int | None:
        """The default to use for `key`: none at all where the file says null in so many words."""
        return None if key in self._left else default

    def integer(self, key: str, low: int, high: int, default: Any = _MISSING) -> Any:
        value = self.take(key, default)
        if value is default and default is not _MISSING:
            return value
        if type(value) is not int or not low <= value <= high:
            raise self._bad(key, f"an integer in {low}..{high}", value)
        return value

    def number(self, key: str, low: float, default: Any = _MISSING, *, exclusive: bool = False) -> float:
        value = self.take(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value < low or (exclusive and value == low):
            raise self._bad(key, f"a finite number {'above' if exclusive else 'of at least'} {low:g}", value)
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._left.pop(key, default)
        if value is None:  # Transformers tests truth
            return False
        if type(value) is not bool:
            raise self._bad(key, "true or false", value)
        return value

    def string(self, key: str) -> str | None:
        value = self.take(key)
        if value is not None and type(value) is not str:
            raise self._bad(key, "a string", value)
        return value

    def finish(self) -> None:
        """Refuses the first key that nobody took, unless it is null or false."""
        for key, value in self._left.items():
            if value is not None and value is not False:
                raise self.unsupported(key, "a key that AMK models, or one known to change nothing", value)

    def unsupported(self, key: str, expected: str, got: Any) -> UnsupportedModel:
        name = self._prefix + key
        return UnsupportedModel(f"{self._where}: {name}: expected {expected}, got {_short(got)}", name)

    def _bad(self, key: str, expected: str, got: Any) -> InputError:
        found = "nothing: the key is missing" if got is _MISSING else _short(got)
        return InputError(f"{self._where}: {self._prefix}{key}: expected {expected}, got {found}")


def parse_config(source: bytes | Mapping[str, Any], where: str, stored_dtype: str | None = None) -> ModelConfig:
    """Checks a config.json (its bytes, or the parsed object); `stored_dtype` stands in if it names no dtype."""
    table = parse_strict_json(source, where) if isinstance(source, bytes) else source
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: expected a JSON object, got {_short(table)}")
    keys = _Keys(table, where)
    family = _take_family(keys)
    # A quantized or mixture model has foreign keys everywhere; name the one that says so.
    for key in ("quantization_config", "num_local_experts", "num_experts", "n_routed_experts", "kv_lora_rank"):
        if (value := keys.take(key, False)) is not False:
            raise keys.unsupported(key, "a dense, unquantized model without this key", value)

    hidden = keys.integer("hidden_size", 1, MAX_HIDDEN)
    layers = keys.integer("num_hidden_layers", 1, MAX_LAYERS)
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
    theta, scaling = _take_rope(keys, where, family.theta)
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
    """Rotary frequencies, radians per position: float32 [D/2], worked out in float64 and rounded once.

    Sources: default, Su et al., RoFormer, arXiv:2104.09864, section 3.2.2; linear, Chen et al., arXiv:2306.15595
    (positions divided by a factor); llama3, the Llama 3.1 reference code (`apply_scaling` in meta-llama/llama-models,
    llama3/reference_impl/model.py): long waves are slowed by the factor, short ones kept, those between blended.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
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
    with np.errstate(over="ignore"):
        return frequency.astype(np.float32)


def _take_family(keys: _Keys) -> _Family:
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


def _refuse_windows(keys: _Keys, family: _Family, layers: int, max_position: int) -> None:
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


def _take_rope(keys: _Keys, where: str, default_theta: float) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_theta` + `rope_scaling` (4) or from `rope_parameters` (5)."""
    names = [name for name in ("rope_parameters", "rope_scaling") if keys.has(name)]
    has_top_theta = keys.has("rope_theta")
    top_theta = keys.number("rope_theta", 0.0, default_theta, exclusive=True)
    if not names:
        return top_theta, None
    name = names[0]
    table = keys.take(name)
    if not isinstance(table, dict):
        raise InputError(f"{where}: {name}: expected an object or null, got {_short(table)}")
    if len(names) == 2 and keys.take(names[1]) != table:
        raise keys.unsupported(names[1], f"nothing beside {name}, or the same content", "something else")

    rope = _Keys(table, where, f"{name}.")
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
    if (partial := rope.take("partial_rotary_factor", 1)) != 1 or type(partial) is bool:
        raise rope.unsupported("partial_rotary_factor", "1, the only value AMK models", partial)
    rope.finish()
    return theta, scaling


def _take_dtype(keys: _Keys, where: str, stored_dtype: str | None) -> str:
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


def _take_eos(keys: _Keys, where: str) -> tuple[int, ...]:
    value = keys.take("eos_token_id", [])
    ids = value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in ids):
        raise InputError(f"{where}: eos_token_id: expected a token id or a list of them, got {_short(value)}")
    return tuple(ids)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
