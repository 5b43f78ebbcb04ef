"""Hybrid checkpoints: which configurations are understood or refused by name, and where each row of a tensor goes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import Qwen3NextConfig  # noqa: E402
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet  # noqa: E402

from amk.checkpoint import FILE_DTYPES, STORAGE, Checkpoint, WeightSource  # noqa: E402
from amk.errors import InputError, UnsupportedModel  # noqa: E402
from amk.model_config import ModelConfig, head_runs, parse_config, rope_inv_freq  # noqa: E402
from amk.safetensors import TensorEntry  # noqa: E402
from amk.weight_plan import operand_shape, weight_plan  # noqa: E402
from families import build_checkpoint  # noqa: E402

# The config.json of Qwen3-Next-80B-A3B-Instruct, as Transformers 4 wrote it, but for its number of experts and layers.
QWEN3_NEXT: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "full_attention_interval": 4,
    "head_dim": 256, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    "linear_value_head_dim": 128, "max_position_embeddings": 262144, "mlp_only_layers": [], "model_type": "qwen3_next",
    "moe_intermediate_size": 512, "norm_topk_prob": True, "num_attention_heads": 16, "num_experts": 0,
    "num_experts_per_tok": 10, "num_hidden_layers": 8, "num_key_value_heads": 2, "output_router_logits": False,
    "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 512, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.57.0.dev0", "use_cache": True, "vocab_size": 151936,
}  # fmt: skip


def parse(without: tuple[str, ...] = (), **changes: Any) -> ModelConfig:
    table = {**QWEN3_NEXT, **changes}
    for key in without:
        del table[key]
    return parse_config(json.dumps(table).encode(), "config.json")


def test_reads_the_published_keys() -> None:
    config = parse()
    assert (config.family, config.layers, config.head_dim, config.rotary_dim) == ("qwen3_next", 8, 256, 64)
    assert (config.linear_key_heads, config.linear_value_heads, config.linear_head_dim) == (16, 32, 128)
    assert (config.conv_width, config.full_attention_interval, config.linear_channels) == (4, 4, 8192)
    assert config.attention_gate and config.norm_plus_one and config.qk_norm and not config.qkv_bias
    assert [config.is_linear(layer) for layer in range(8)] == [True, True, True, False] * 2
    frequencies = rope_inv_freq(config)
    assert frequencies.shape == (128,) and np.count_nonzero(frequencies) == 32
    np.testing.assert_allclose(frequencies[:32], 1e7 ** (-np.arange(32) / 32), rtol=1e-6)


def test_defaults_are_those_of_transformers() -> None:
    linear = [key for key in QWEN3_NEXT if key.startswith("linear_")]
    bare = parse(without=(*linear, "full_attention_interval", "partial_rotary_factor", "head_dim", "rope_theta"))
    truth = Qwen3NextConfig(num_hidden_layers=8, num_experts=0)
    assert (bare.linear_key_heads, bare.linear_value_heads) == (
        truth.linear_num_key_heads,
        truth.linear_num_value_heads,
    )
    assert bare.linear_head_dim == truth.linear_key_head_dim == truth.linear_value_head_dim
    assert bare.conv_width == truth.linear_conv_kernel_dim and bare.head_dim == truth.head_dim
    assert [bare.is_linear(i) for i in range(8)] == [kind == "linear_attention" for kind in truth.layer_types]
    assert bare.rotary_dim == truth.head_dim * truth.rope_parameters["partial_rotary_factor"]
    assert bare.rope_theta == truth.rope_parameters["rope_theta"]


def test_spellings_of_one_thing() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    old = ("partial_rotary_factor", "rope_theta", "rope_scaling")
    assert parse(without=old, rope_parameters=rope) == parse()
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    assert parse(without=("full_attention_interval",), layer_types=kinds * 2) == parse(layer_types=kinds * 2) == parse()
    assert parse(num_experts=512, mlp_only_layers=list(range(8))) == parse()
    assert parse(num_experts=512, decoder_sparse_step=9) == parse()
    assert parse(num_experts=512, decoder_sparse_step=4, mlp_only_layers=[7, 3]) == parse()
    assert parse(partial_rotary_factor=1).rotary_dim == 0
    every = parse(full_attention_interval=1)
    assert not any(every.is_linear(layer) for layer in range(8))
    assert not replace(every, full_attention_interval=0).is_linear(0)


FULL, LINEAR = "full_attention", "linear_attention"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("num_experts", {"num_experts": 512}),
        ("num_experts", {"num_experts": None}),  # the default of Transformers is 512
        ("num_experts", {"num_experts": 8, "mlp_only_layers": [0, 1, 2, 3, 4, 5, 6]}),
        ("num_experts", {"num_experts": 8, "decoder_sparse_step": 8}),
        ("n_routed_experts", {"n_routed_experts": 8}),
        ("quantization_config", {"quantization_config": {"quant_method": "fp8"}}),
        ("layer_types", {"layer_types": [FULL] + [LINEAR] * 7}),
        ("layer_types", {"layer_types": ([LINEAR, FULL] * 4)[:7] + [LINEAR]}),
        ("layer_types", {"layer_types": [LINEAR] * 8}),
        ("layer_types", {"layer_types": ([LINEAR] * 3 + [FULL]) * 3}),
        ("layer_types", {"layer_types": ([LINEAR] * 3 + ["sliding_attention"]) * 2}),
        ("layer_types", {"layer_types": "full_attention"}),
        ("full_attention_interval", {"layer_types": [LINEAR, FULL] * 4}),
        ("num_hidden_layers", {"num_hidden_layers": 3, "full_attention_interval": None}),
        ("linear_value_head_dim", {"linear_value_head_dim": 256}),
        ("partial_rotary_factor", {"partial_rotary_factor": 0.001}),
        ("partial_rotary_factor", {"partial_rotary_factor": 1.5}),
        ("partial_rotary_factor", {"head_dim": 40, "partial_rotary_factor": 0.125}),
        ("rope_scaling.partial_rotary_factor", {"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}}),
        ("rope_scaling.rope_type", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("sliding_window", {"sliding_window": 4096}),
        ("hidden_act", {"hidden_act": "gelu"}),
        ("mlp_bias", {"mlp_bias": True}),
        ("linear_conv_bias", {"linear_conv_bias": True}),
        ("attn_output_gate", {"attn_output_gate": True}),
        ("architectures", {"architectures": ["Qwen3NextForSequenceClassification"]}),
    ],
)
def test_refusals_name_the_key(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        parse(**changes)
    assert caught.value.key == key and "expected" in str(caught.value) and "got" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts", -1),
        ("num_experts", True),
        ("decoder_sparse_step", 0),
        ("mlp_only_layers", 3),
        ("mlp_only_layers", [0.0]),
        ("linear_num_value_heads", 24),
        ("linear_num_value_heads", 0),
        ("linear_num_key_heads", 1.0),
        ("linear_conv_kernel_dim", 1),
        ("linear_conv_kernel_dim", 9),
        ("full_attention_interval", 0),
        ("full_attention_interval", 9),
        ("partial_rotary_factor", 0),
        ("partial_rotary_factor", "0.25"),
        ("partial_rotary_factor", True),
    ],
)
def test_values_out_of_domain(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=key):
        parse(**{key: value})


def test_heads_that_are_no_whole_vectors() -> None:
    with pytest.raises(InputError, match="linear_key_head_dim"):
        parse(linear_key_head_dim=12, linear_value_head_dim=12)


@pytest.mark.parametrize("key", ["num_experts", "full_attention_interval", "linear_num_key_heads"])
def test_dense_families_know_none_of_it(key: str) -> None:
    dense = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128, key: 4}
    table = {key: value for key, value in QWEN3_NEXT.items() if not key.startswith(("linear_", "num_experts", "full_"))}
    with pytest.raises(UnsupportedModel) as caught:
        parse_config({**table, **dense, "mlp_only_layers": None}, "config.json")
    assert caught.value.key in (key, "decoder_sparse_step", "partial_rotary_factor")


class InMemory(WeightSource):
    """Tensors whose elements are all different, so that a row in a wrong place shows."""

    name = "in memory"

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        shapes = {part.tensor: part.shape for parts in weight_plan(config).values() for part in parts}
        rng = np.random.default_rng(0)
        self.tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    def tensor_names(self) -> tuple[str, ...]:
        return tuple(sorted(self.tensors))

    def tensor_entry(self, name: str) -> TensorEntry:
        return TensorEntry(name, "F32", self.tensors[name].shape, 0, self.tensors[name].nbytes)

    def _read_range(self, name: str, start: int, out: np.ndarray) -> None:
        out[:] = self.tensors[name].reshape(-1)[start : start + out.size]


@st.composite
def configs(draw: Any) -> ModelConfig:
    interval = draw(st.integers(1, 4))
    kv_heads, key_heads = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    head_dim = 8 * draw(st.integers(1, 4))
    return replace(
        parse(),
        hidden=8 * draw(st.integers(1, 3)), layers=interval * draw(st.integers(1, 2)), ffn=16, vocab=16, dtype="f32",
        n_kv_heads=kv_heads, n_heads=kv_heads * draw(st.integers(1, 3)), head_dim=head_dim,
        rotary_dim=draw(st.sampled_from([0, *range(2, head_dim, 2)])), full_attention_interval=interval,
        linear_key_heads=key_heads, linear_value_heads=key_heads * draw(st.integers(1, 4)),
        linear_head_dim=8 * draw(st.integers(1, 3)), conv_width=draw(st.integers(2, 5)),
        qkv_bias=draw(st.booleans()), tied=draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(configs())
def test_every_row_of_every_tensor_is_used_once(config: ModelConfig) -> None:
    plan = weight_plan(config)
    rows: dict[str, list[int]] = {}
    for parts in plan.values():
        assert len({part.shape[1:] for part in parts}) == 1 and len({part.is_widened for part in parts}) == 1
        for part in parts:
            for first, count in part.row_runs:
                assert 0 <= first and count > 0 and first + count <= part.shape[0]
                rows.setdefault(part.tensor, []).extend(range(first, first + count))
        assert operand_shape(parts)[0] == sum(count for part in parts for _, count in part.row_runs)
    shapes = {part.tensor: part.shape for parts in plan.values() for part in parts}
    assert {name: sorted(used) for name, used in rows.items()} == {n: [*range(s[0])] for n, s in shapes.items()}


@settings(max_examples=25, deadline=None)
@given(configs())
def test_rows_of_a_gated_delta_net_are_what_transformers_takes_them_for(config: ModelConfig) -> None:
    source = InMemory(config)
    weights, hidden = source.weights(), config.hidden
    peer = Qwen3NextGatedDeltaNet(
        Qwen3NextConfig(
            hidden_size=hidden, linear_num_key_heads=config.linear_key_heads,
            linear_num_value_heads=config.linear_value_heads, linear_key_head_dim=config.linear_head_dim,
            linear_value_head_dim=config.linear_head_dim, linear_conv_kernel_dim=config.conv_width,
        ),
        0,
    )  # fmt: skip
    x = np.random.default_rng(1).standard_normal(hidden).astype(np.float32)
    for layer in filter(config.is_linear, range(config.layers)):
        at = f"model.layers.{layer}.linear_attn."
        mixed = [
            torch.from_numpy(source.tensors[at + name] @ x)[None, None]
            for name in ("in_proj_qkvz.weight", "in_proj_ba.weight")
        ]
        parts = peer.fix_query_key_value_ordering(*mixed)
        expected = np.concatenate([part.reshape(-1).numpy() for part in parts])  # q, k, v, z, b, a
        np.testing.assert_allclose(weights[f"layers.{layer}.w_gdn_in"] @ x, expected, rtol=1e-3, atol=1e-3)
        assert weights[f"layers.{layer}.conv_w"].shape == (peer.conv_dim, config.conv_width)
        assert np.array_equal(weights[f"layers.{layer}.conv_w"], source.tensors[at + "conv1d.weight"][:, 0])
        for name, tensor in (("a_log", "A_log"), ("dt_bias", "dt_bias"), ("gdn_norm", "norm.weight")):
            assert np.array_equal(weights[f"layers.{layer}.{name}"], source.tensors[at + tensor])


@settings(max_examples=25, deadline=None)
@given(configs(), st.integers(0, 500))
def test_reordered_heads_have_the_scores_of_the_checkpoint(config: ModelConfig, pos: int) -> None:
    """q, k, their norms and the rotation, once as transformers orders a head and once as AMK does; the gate beside."""
    source = InMemory(config)
    weights, dim = source.weights(), config.head_dim
    layer = config.full_attention_interval - 1
    at, mine = f"model.layers.{layer}.self_attn.", f"layers.{layer}."
    x = np.random.default_rng(1).standard_normal(config.hidden).astype(np.float32)
    theirs = {name: source.tensors[f"{at}{name}_proj.weight"] @ x for name in "qkv"}
    if config.qkv_bias:
        theirs = {name: value + source.tensors[f"{at}{name}_proj.bias"] for name, value in theirs.items()}
    query, gate = np.split(theirs["q"].reshape(config.n_heads, 2 * dim), 2, axis=1)
    key = theirs["k"].reshape(config.n_kv_heads, dim)
    got = weights[mine + "wqkv"] @ x + (weights[mine + "bqkv"] if config.qkv_bias else 0.0)
    q_width, kv_width = config.n_heads * dim, config.n_kv_heads * dim
    my_query, my_key, my_value, my_gate = np.split(got, np.cumsum([q_width, kv_width, kv_width]))
    np.testing.assert_allclose(my_value, theirs["v"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(my_gate, gate.reshape(-1), rtol=1e-3, atol=1e-3)

    def turn(heads: np.ndarray, weight: np.ndarray, half: int, frequencies: np.ndarray) -> np.ndarray:
        heads = heads / np.sqrt(np.mean(heads * heads, axis=1, keepdims=True)) * (1.0 + weight)
        a, b, rest = np.split(heads, [half, 2 * half], axis=1)
        cos, sin = np.cos(pos * frequencies), np.sin(pos * frequencies)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=1)

    half, frequencies = (config.rotary_dim or dim) // 2, rope_inv_freq(config)
    norms = [source.tensors[f"{at}{name}_norm.weight"] for name in "qk"]
    pair = [turn(heads, weight, half, frequencies[:half]) for heads, weight in zip((query, key), norms, strict=True)]
    expected = pair[0] @ pair[1].T
    my_norms = [weights[f"{mine}{name}_norm"] for name in "qk"]
    my_heads = (my_query.reshape(-1, dim), my_key.reshape(-1, dim))
    pair = [turn(heads, weight, dim // 2, frequencies) for heads, weight in zip(my_heads, my_norms, strict=True)]
    np.testing.assert_allclose(pair[0] @ pair[1].T, expected, rtol=2e-3, atol=2e-3 * math.sqrt(dim))
    assert sorted(i for first, n in head_runs(config) for i in range(first, first + n)) == [*range(dim)]


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_checkpoints_keep_two_vectors_in_f32(dtype: Any, sharded: bool, tmp_path: Path) -> None:
    model = build_checkpoint(tmp_path, "qwen3next", dtype=dtype, sharded=sharded)
    with Checkpoint.open(tmp_path) as checkpoint:
        weights = checkpoint.weights()
    for layer in (0, 1, 2):
        for name, tensor in (("a_log", "A_log"), ("dt_bias", "dt_bias")):
            got = weights[f"layers.{layer}.{name}"]
            theirs = getattr(model.model.layers[layer].linear_attn, tensor).detach().float().numpy()
            assert got.dtype == np.float32 and np.array_equal(got, theirs)
    assert weights["layers.0.w_gdn_in"].dtype == STORAGE[weights.dtype]


def test_the_two_vectors_may_be_stored_in_f32(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    build_checkpoint(tmp_path, "qwen3next", dtype=torch.bfloat16)
    with Checkpoint.open(tmp_path) as checkpoint:
        digest = checkpoint.weights().digest
    tensors = load_file(tmp_path / "model.safetensors")
    wide = {name: t.float() if name.endswith(("A_log", "dt_bias")) else t for name, t in tensors.items()}
    save_file(wide, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        entry = checkpoint.tensor_entry("model.layers.0.linear_attn.A_log")
        assert FILE_DTYPES[entry.dtype] == "f32" and checkpoint.config.dtype == "bf16"
        assert checkpoint.weights().digest == digest  # the same numbers
        assert checkpoint.raw("model.layers.0.linear_attn.A_log").dtype == np.float32
    wide["model.layers.0.linear_attn.norm.weight"] = wide["model.layers.0.linear_attn.norm.weight"].float()
    save_file(wide, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"linear_attn.norm.weight.*expected bf16 \[16\], got F32"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("tensor", ["A_log", "conv1d.weight", "in_proj_ba.weight"])
def test_a_number_that_is_none_names_its_tensor(tensor: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    build_checkpoint(tmp_path, "qwen3next", dtype=torch.bfloat16)
    tensors, name = load_file(tmp_path / "model.safetensors"), f"model.layers.1.linear_attn.{tensor}"
    tensors[name].view(-1)[3] = -math.inf
    save_file(tensors, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(InputError, match=f"{name}.*flat index 3"):
        checkpoint.weights()
