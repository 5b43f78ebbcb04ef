"""Small models made on the spot, and the one door to a model of either kind.

In: a name. Out: the same `WeightSource` a checkpoint directory gives, so nothing downstream can tell them apart.
Weights come from a counter-based generator written here, so they are the same on every machine and numpy version.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import replace

import numpy as np

from .checkpoint import FILE_DTYPES, Checkpoint, WeightSource, weight_plan
from .errors import InputError
from .model_config import ModelConfig
from .safetensors import TensorEntry

__all__ = ["EMBEDDED", "EmbeddedModel", "open_model"]

_TOY = ModelConfig(
    family="llama",
    hidden=64,
    layers=1,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    ffn=128,
    vocab=256,
    eps=1e-5,
    dtype="f32",
    tied=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
    rope_theta=10000.0,
    rope_scaling=None,
    max_position=256,
    bos_token_id=1,
    eos_token_ids=(2,),
)

EMBEDDED: dict[str, ModelConfig] = {
    "toy": _TOY,
    "toy-2L": replace(_TOY, layers=2),
    "toy-gqa": replace(_TOY, hidden=128, layers=2, n_kv_heads=2, head_dim=32, ffn=256, vocab=512, dtype="bf16"),
    "toy-qwen3": replace(
        _TOY, family="qwen3", layers=2, n_kv_heads=2, head_dim=32, eps=1e-6, dtype="bf16", tied=True, qk_norm=True
    ),
}

_FILE_DTYPE = {dtype: name for name, dtype in FILE_DTYPES.items()}


class EmbeddedModel(WeightSource):
    """A deterministic random model: matrices of variance 1/fan_in, so that activations keep about unit scale."""

    def __init__(self, name: str) -> None:
        if name not in EMBEDDED:
            raise InputError(f"embedded model: expected one of {', '.join(EMBEDDED)}, got {name!r}")
        self.name = name
        self.path = None
        self.config = EMBEDDED[name]
        self._shapes = {tensor: shape for parts in weight_plan(self.config).values() for tensor, shape in parts}

    def tensor_names(self) -> tuple[str, ...]:
        return tuple(sorted(self._shapes))

    def tensor_entry(self, name: str) -> TensorEntry:
        shape = self._shapes.get(name)
        if shape is None:
            raise InputError(f"{self.name}: no tensor is called {name!r}")
        nbytes = math.prod(shape) * (4 if self.config.dtype == "f32" else 2)
        return TensorEntry(name, _FILE_DTYPE[self.config.dtype], shape, 0, nbytes)

    def _read_range(self, name: str, start: int, out: np.ndarray) -> None:
        shape = self._shapes[name]
        noise = _uniform(f"{self.name}/{name}", start, out.size)  # [-1, 1), variance 1/3
        if name.endswith("norm.weight"):
            values = 1.0 + 0.25 * noise
        elif name == "model.embed_tokens.weight" and not self.config.tied:
            values = math.sqrt(3.0) * noise
        else:
            values = math.sqrt(3.0 / shape[-1]) * noise
        _store(values, self.config.dtype, out)


def open_model(name_or_path: str | os.PathLike[str]) -> WeightSource:
    """An embedded model by name, or a checkpoint by directory; `./toy` is always a directory."""
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputError(f"model: expected a name or a path, got {type(name_or_path).__name__}")
    name = os.fsdecode(name_or_path)
    if name in EMBEDDED:
        return EmbeddedModel(name)
    if not os.path.isdir(name):
        raise InputError(f"model: expected a checkpoint directory or one of {', '.join(EMBEDDED)}, got {name!r}")
    return Checkpoint.open(name)


def _uniform(key: str, start: int, count: int) -> np.ndarray:
    """Element i is a function of (key, start + i) alone: float64 in [-1, 1) with 24 random bits.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, figure 17) used as a counter: only integer operations and exact
    scaling, so every platform agrees bit for bit.
    """
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    counter = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    z = np.uint64(seed) + counter * np.uint64(0x9E3779B97F4A7C15)  # arrays wrap modulo 2^64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0


def _store(values: np.ndarray, dtype: str, out: np.ndarray) -> None:
    """Rounds to nearest even into the storage dtype; the values are finite and small."""
    if dtype != "bf16":
        out[:] = values
        return
    bits = values.astype(np.float32).view(np.uint32)
    out[:] = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
