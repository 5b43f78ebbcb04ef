#!/usr/bin/env python3
"""Writes a full-size random checkpoint: Llama-3.2-1B's shape, bf16, sharded, 2.5 GB; or a hybrid's, 2.8 GB.

    python benchmarks/make_checkpoint.py /data/random-1b
    python benchmarks/make_checkpoint.py /data/random-hybrid --shape qwen3-next-dense

In: a directory to create, outside the repository. Out: config.json, shards and their index, as Transformers would save
them. Needs numpy only and streams: memory stays at one piece of one tensor. The weights are random, so the model knows
nothing; what it measures is reading, judging and running a checkpoint of that size. Same seed, same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

SHARD_BYTES = 1 << 30
PIECE_ELEMS = 8 << 20

LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
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
    "vocab_size": 128256,
}
# The layers of Qwen3-Next, 16 of them, with one dense feed-forward each.
QWEN3_NEXT_DENSE = {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "num_attention_heads": 16,
    "num_experts": 0,
    "num_hidden_layers": 16,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
SHAPES = {
    "llama-3.2-1b": LLAMA_3_2_1B,
    "qwen3-next-dense": QWEN3_NEXT_DENSE,
    # The same architecture in 2 MB: to try the script itself.
    "tiny": {
        **LLAMA_3_2_1B,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 4096,
    },
    "tiny-hybrid": {
        **QWEN3_NEXT_DENSE,
        "hidden_size": 256,
        "intermediate_size": 512,
        "head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "vocab_size": 1024,
        "max_position_embeddings": 4096,
    },
}


def tensors(config: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape, in the order of the files."""
    h, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    is_hybrid = config["model_type"] == "qwen3_next"
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, h)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        is_linear = is_hybrid and (i + 1) % config["full_attention_interval"] != 0
        out |= {
            at + "input_layernorm.weight": (h,),
            at + "mlp.down_proj.weight": (h, f),
            at + "mlp.gate_proj.weight": (f, h),
            at + "mlp.up_proj.weight": (f, h),
            at + "post_attention_layernorm.weight": (h,),
        }
        if is_linear:
            out |= linear_tensors(config, at + "linear_attn.")
            continue
        out |= {
            at + "self_attn.k_proj.weight": (kv, h),
            at + "self_attn.o_proj.weight": (h, q),
            at + "self_attn.q_proj.weight": (2 * q if is_hybrid else q, h),  # with the gate of each head
            at + "self_attn.v_proj.weight": (kv, h),
        }
        if is_hybrid:
            out |= {at + f"self_attn.{name}_norm.weight": (config["head_dim"],) for name in "qk"}
    out["model.norm.weight"] = (h,)
    return out


def linear_tensors(config: dict, at: str) -> dict[str, tuple[int, ...]]:
    """Of a gated delta net."""
    h, values, dim = config["hidden_size"], config["linear_num_value_heads"], config["linear_key_head_dim"]
    channels = (2 * config["linear_num_key_heads"] + values) * dim
    return {
        at + "A_log": (values,),
        at + "conv1d.weight": (channels, 1, config["linear_conv_kernel_dim"]),
        at + "dt_bias": (values,),
        at + "in_proj_ba.weight": (2 * values, h),
        at + "in_proj_qkvz.weight": (channels + values * dim, h),
        at + "norm.weight": (dim,),
        at + "out_proj.weight": (h, values * dim),
    }


def pieces(rng: np.random.Generator, name: str, shape: tuple[int, ...], is_hybrid: bool):
    """The tensor as bf16 bits, a piece at a time. Variance 1/fan_in keeps activations at about unit scale."""
    left = math.prod(shape)
    while left:
        count = min(left, PIECE_ELEMS)
        values = rng.standard_normal(count, dtype=np.float32)
        if name.endswith("norm.weight"):  # a hybrid's act as 1 + w, but for those of its gated delta nets
            values = np.float32(0.0 if is_hybrid and ".linear_attn." not in name else 1.0) + np.float32(0.1) * values
        elif name.endswith((".A_log", ".dt_bias")):
            values -= 1.0
        else:
            values *= np.float32(1.0 / math.sqrt(shape[-1]))
        bits = values.view(np.uint32)
        bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # nearest even; the values are finite
        yield (bits >> np.uint32(16)).astype("<u2")
        left -= count


def split(shapes: dict[str, tuple[int, ...]], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        nbytes = 2 * math.prod(shape)
        if shards[-1] and used + nbytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += nbytes
    return shards


def write_shard(path: Path, names: list[str], shapes: dict[str, tuple[int, ...]], seed: int, is_hybrid: bool) -> None:
    header, offset = {}, 0
    for name in names:
        nbytes = 2 * math.prod(shapes[name])
        header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            rng = np.random.default_rng([seed, *name.encode()])
            for piece in pieces(rng, name, shapes[name], is_hybrid):
                file.write(piece)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-1b")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    arguments = parser.parse_args()
    repository, directory = Path(__file__).resolve().parents[1], arguments.directory.resolve()
    if directory.is_relative_to(repository):
        parser.error(f"{directory} lies inside the repository; checkpoints stay outside of it")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        parser.error(f"{directory} exists and is not an empty directory")

    start = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    config = SHAPES[arguments.shape]
    shapes = tensors(config)
    shards = split(shapes, arguments.shard_bytes)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        print(f"{file_name}: {len(names)} tensors", file=sys.stderr)
        write_shard(directory / file_name, names, shapes, arguments.seed, config["model_type"] == "qwen3_next")
        weight_map |= {name: file_name for name in names}
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    # Last, so that a directory with a config is a whole checkpoint.
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    seconds = time.monotonic() - start
    result = {"directory": str(directory), "bytes": total, "shards": len(shards), "seconds": round(seconds, 1)}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
