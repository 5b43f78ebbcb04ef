"""Which rows of which Hugging Face tensor make which operand of AMK: the one home of that correspondence.

In: a `ModelConfig`. Out: canonical operand names, in order, each with the parts that are stacked to make it. An operand
that one fused instruction reads is one; rows whose order differs between a checkpoint and AMK are runs of rows. This
file reads nothing.
Names: the modeling_<model_type>.py of Transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .model_config import ModelConfig, head_runs

__all__ = ["Part", "Plan", "operand_shape", "weight_plan"]

Runs = tuple[tuple[int, int], ...]  # (first row, count), in the order in which AMK has them


@dataclass(frozen=True)
class Part:
    """Rows of one tensor. `runs` None: all of them, in their order."""

    tensor: str  # its Hugging Face name
    shape: tuple[int, ...]  # of the whole tensor
    runs: Runs | None = None
    is_widened: bool = False  # kept in f32, whatever a checkpoint stores

    @property
    def row_runs(self) -> Runs:
        return ((0, self.shape[0]),) if self.runs is None else self.runs


Plan = dict[str, tuple[Part, ...]]  # canonical name -> the parts whose rows are stacked, in order


def operand_shape(parts: tuple[Part, ...]) -> tuple[int, ...]:
    """All rows of all parts; dimensions of 1 inside a row are dropped."""
    rows = sum(count for part in parts for _, count in part.row_runs)
    return (rows, *(size for size in parts[0].shape[1:] if size != 1))


def weight_plan(config: ModelConfig) -> Plan:
    """Every tensor the model is made of. L layers, H hidden, Q query heads, G kv heads, D head dim, F ffn, V vocab."""
    h, f, v = config.hidden, config.ffn, config.vocab
    plan: Plan = {"embed": (Part("model.embed_tokens.weight", (v, h)),)}
    for i in range(config.layers):
        layer, hf = f"layers.{i}.", f"model.layers.{i}."
        mlp = hf + "mlp."
        plan[layer + "attn_norm"] = (Part(hf + "input_layernorm.weight", (h,)),)
        plan |= _linear_part(config, layer, hf) if config.is_linear(i) else _attention_part(config, layer, hf)
        plan[layer + "mlp_norm"] = (Part(hf + "post_attention_layernorm.weight", (h,)),)
        plan[layer + "w_gate_up"] = (Part(mlp + "gate_proj.weight", (f, h)), Part(mlp + "up_proj.weight", (f, h)))
        if config.mlp_bias:
            plan[layer + "b_gate_up"] = (Part(mlp + "gate_proj.bias", (f,)), Part(mlp + "up_proj.bias", (f,)))
        plan[layer + "w_down"] = (Part(mlp + "down_proj.weight", (h, f)),)
        if config.mlp_bias:
            plan[layer + "b_down"] = (Part(mlp + "down_proj.bias", (h,)),)
    plan["final_norm"] = (Part("model.norm.weight", (h,)),)
    if not config.tied:
        plan["lm_head"] = (Part("lm_head.weight", (v, h)),)
    return plan


def _attention_part(config: ModelConfig, layer: str, hf: str) -> Plan:
    h, dim, attn = config.hidden, config.head_dim, hf + "self_attn."
    q, kv = config.n_heads * dim, config.n_kv_heads * dim
    order = head_runs(config)
    # With a gate, a head of q_proj is its query and then its gate.
    stride = 2 * dim if config.attention_gate else dim
    q_runs = _of_heads(config.n_heads, stride, order) if config.attention_gate or len(order) > 1 else None
    k_runs = _of_heads(config.n_kv_heads, dim, order) if len(order) > 1 else None
    norm_runs = order if len(order) > 1 else None

    def stacked(kind: str, *row: int) -> tuple[Part, ...]:
        q_shape = (config.n_heads * stride, *row)
        parts = [
            Part(f"{attn}q_proj.{kind}", q_shape, q_runs),
            Part(f"{attn}k_proj.{kind}", (kv, *row), k_runs),
            Part(f"{attn}v_proj.{kind}", (kv, *row)),
        ]
        if config.attention_gate:
            parts.append(Part(f"{attn}q_proj.{kind}", q_shape, _of_heads(config.n_heads, stride, [(dim, dim)])))
        return tuple(parts)

    plan = {layer + "wqkv": stacked("weight", h)}
    if config.qkv_bias:
        plan[layer + "bqkv"] = stacked("bias")
    if config.qk_norm:
        plan[layer + "q_norm"] = (Part(attn + "q_norm.weight", (dim,), norm_runs),)
        plan[layer + "k_norm"] = (Part(attn + "k_norm.weight", (dim,), norm_runs),)
    plan[layer + "wo"] = (Part(attn + "o_proj.weight", (h, q)),)
    if config.o_bias:
        plan[layer + "bo"] = (Part(attn + "o_proj.bias", (h,)),)
    return plan


def _linear_part(config: ModelConfig, layer: str, hf: str) -> Plan:
    """A gated delta net. The checkpoint groups the rows of its projections by key head: q, k, v, z of one, then of the
    next; b and a likewise. AMK has all q rows, then all k, v, z, b and a rows."""
    h, dim, attn = config.hidden, config.linear_head_dim, hf + "linear_attn."
    heads, values = config.linear_key_heads, config.linear_value_heads
    per_key = values // heads
    wide = per_key * dim
    qkvz, ba = attn + "in_proj_qkvz.weight", attn + "in_proj_ba.weight"
    block, small = 2 * dim + 2 * wide, 2 * per_key
    parts = [
        Part(qkvz, (heads * block, h), _of_heads(heads, block, [run]))
        for run in ((0, dim), (dim, dim), (2 * dim, wide), (2 * dim + wide, wide))
    ]
    parts += [
        Part(ba, (heads * small, h), _of_heads(heads, small, [run])) for run in ((0, per_key), (per_key, per_key))
    ]
    return {
        layer + "w_gdn_in": tuple(parts),
        layer + "conv_w": (Part(attn + "conv1d.weight", (config.linear_channels, 1, config.conv_width)),),
        layer + "a_log": (Part(attn + "A_log", (values,), is_widened=True),),
        layer + "dt_bias": (Part(attn + "dt_bias", (values,), is_widened=True),),
        layer + "gdn_norm": (Part(attn + "norm.weight", (dim,)),),
        layer + "w_gdn_out": (Part(attn + "out_proj.weight", (h, values * dim)),),
    }


def _of_heads(heads: int, stride: int, runs: Iterable[tuple[int, int]]) -> Runs:
    """The runs of one head, repeated for every head."""
    runs = tuple(runs)
    return tuple((head * stride + first, count) for head in range(heads) for first, count in runs)
