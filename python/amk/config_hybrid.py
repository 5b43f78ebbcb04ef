"""The keys of a hybrid decoder (gated delta net and attention layers) -> fields of `ModelConfig`.

In: the keys of a `qwen3_next` config.json, and the number of layers. Out: the fields that a dense decoder leaves at 0.
Mixtures of experts, irregular layer patterns and heads of two sizes are refused by name.
Names: configuration_qwen3_next.py of Transformers 5.24, whose defaults stand here too.
"""

from __future__ import annotations

from typing import Any

from .config_keys import Keys

__all__ = ["HYBRID_ROTARY_FACTOR", "take_hybrid"]

HYBRID_ROTARY_FACTOR = 0.25
MAX_LINEAR_HEADS = 1 << 16
MAX_LINEAR_HEAD_DIM = 1 << 10
MAX_CONV_WIDTH = 8
_INTERVAL = 4
_UNBOUNDED = 1 << 62

# Keys that act in sparse layers only.
_EXPERT_KEYS = """
    num_experts_per_tok moe_intermediate_size shared_expert_intermediate_size norm_topk_prob output_router_logits
    router_aux_loss_coef
"""


def take_hybrid(keys: Keys, layers: int) -> dict[str, Any]:
    """Every layer must be dense, every n-th attention and the others gated delta nets with one head size."""
    _refuse_experts(keys, layers)
    key_heads = keys.integer("linear_num_key_heads", 1, MAX_LINEAR_HEADS, 16)
    value_heads = keys.integer("linear_num_value_heads", 1, MAX_LINEAR_HEADS, 32)
    if value_heads % key_heads:
        raise keys.bad("linear_num_value_heads", f"a multiple of the {key_heads} key heads", value_heads)
    key_dim = keys.integer("linear_key_head_dim", 1, MAX_LINEAR_HEAD_DIM, 128)
    value_dim = keys.integer("linear_value_head_dim", 1, MAX_LINEAR_HEAD_DIM, 128)
    if value_dim != key_dim:
        raise keys.unsupported("linear_value_head_dim", f"the {key_dim} of linear_key_head_dim", value_dim)
    if key_dim % 8:
        raise keys.bad("linear_key_head_dim", "a multiple of 8 (16-byte loads of weights)", key_dim)
    return {
        "linear_key_heads": key_heads,
        "linear_value_heads": value_heads,
        "linear_head_dim": key_dim,
        "conv_width": keys.integer("linear_conv_kernel_dim", 2, MAX_CONV_WIDTH, 4),
        "full_attention_interval": _take_interval(keys, layers),
        "attention_gate": True,
        "norm_plus_one": True,
    }


def _refuse_experts(keys: Keys, layers: int) -> None:
    """A layer is sparse when there are experts, its turn has come and it is not listed as dense."""
    experts = keys.integer("num_experts", 0, _UNBOUNDED, 512)
    step = keys.integer("decoder_sparse_step", 1, _UNBOUNDED, 1)
    dense = keys.take("mlp_only_layers", [])
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise keys.bad("mlp_only_layers", "a list of layer numbers", dense)
    sparse = [i for i in range(layers) if experts > 0 and (i + 1) % step == 0 and i not in dense]
    if sparse:
        expected = f"0, or mlp_only_layers that name every layer (AMK models no mixture of experts; layer {sparse[0]})"
        raise keys.unsupported("num_experts", expected, experts)
    for key in _EXPERT_KEYS.split():
        keys.take(key)


def _take_interval(keys: Keys, layers: int) -> int:
    """n, where layer i attends to all positions exactly when n divides i + 1."""
    given = keys.integer("full_attention_interval", 1, layers, None)
    kinds = keys.take("layer_types")
    if kinds is None:
        interval = given or _INTERVAL
        if interval > layers:
            raise keys.unsupported("num_hidden_layers", f"at least {interval}: one full attention layer", layers)
        return interval
    if not isinstance(kinds, list) or "full_attention" not in kinds:
        raise keys.unsupported("layer_types", "a list with at least one 'full_attention'", kinds)
    interval = kinds.index("full_attention") + 1
    regular = ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(layers)]
    if kinds != regular:
        raise keys.unsupported("layer_types", f"'full_attention' at every n-th of {layers} layers", kinds)
    if given not in (None, interval):
        raise keys.unsupported("full_attention_interval", f"the {interval} of layer_types", given)
    return interval
