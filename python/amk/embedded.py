"""Models made on the spot, and the one door to a model of every kind.

In: a name. Out: the same `WeightSource` a checkpoint directory gives, so nothing downstream can tell them apart.
Weights come from a counter-based generator written here, so they are the same on every machine and numpy version.
The small ones (`EMBEDDED`) are for trying things, the full-size ones (`SHAPES`) for timing them without a download.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import replace
from functools import lru_cache

import numpy as np

from .checkpoint import FILE_DTYPES, STORAGE, Checkpoint, WeightSource
from .errors import InputError
from .model_config import ModelConfig, RopeScaling
from .safetensors import TensorEntry
from .weight_plan import weight_plan

__all__ = ["EMBEDDED", "SHAPES", "EmbeddedModel", "ShapeModel", "open_model"]

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
    "toy-gdn": replace(
        _TOY, family="qwen3_next", layers=4, n_kv_heads=2, head_dim=32, rotary_dim=8, eps=1e-6, tied=True,
        qk_norm=True, full_attention_interval=4, linear_key_heads=2, linear_value_heads=4, linear_head_dim=32,
        conv_width=4, attention_gate=True, norm_plus_one=True,
    ),
}  # fmt: skip

_BF16 = replace(_TOY, dtype="bf16", tied=True)
_LLAMA_3 = replace(
    _BF16, rope_theta=500000.0, rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192), vocab=128256,
    max_position=131072, bos_token_id=128000, eos_token_ids=(128001,), n_heads=32, n_kv_heads=8,
)  # fmt: skip

SHAPES: dict[str, ModelConfig] = {
    "0.6B": replace(  # Qwen3-0.6B
        _BF16, family="qwen3", hidden=1024, layers=28, n_heads=16, n_kv_heads=8, head_dim=128, ffn=3072, vocab=151936,
        eps=1e-6, qk_norm=True, rope_theta=1e6, max_position=40960, bos_token_id=151643, eos_token_ids=(151645,),
    ),
    "1B": replace(_LLAMA_3, hidden=2048, layers=16, head_dim=64, ffn=8192),  # Llama-3.2-1B
    "8B": replace(  # Llama-3.1-8B
        _LLAMA_3, hidden=4096, layers=32, head_dim=128, ffn=14336, tied=False,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
    ),
}  # fmt: skip

_POOL_ELEMS = (1 << 22) - 3  # a prime: no row or tile of a matrix falls into step with it

_FILE_DTYPE = {dtype: name for name, dtype in FILE_DTYPES.items()}


class EmbeddedModel(WeightSource):
    """A deterministic random model: matrices of variance 1/fan_in, so that activations keep about unit scale."""

    table = EMBEDDED

    def __init__(self, name: str) -> None:
        if name not in self.table:
            raise InputError(f"embedded model: expected one of {', '.join(self.table)}, got {name!r}")
        self.name = name
        self.path = None
        self.config = self.table[name]
        self._shapes = {part.tensor: part.shape for parts in weight_plan(self.config).values() for part in parts}

    def tensor_names(self) -> tuple[str, ...]:
        return tuple(sorted(self._shapes))

    def tensor_entry(self, name: str) -> TensorEntry:
        shape = self._shapes.get(name)
        if shape is None:
            raise InputError(f"{self.name}: no tensor is called {name!r}")
        nbytes = math.prod(shape) * (4 if self.config.dtype == "f32" else 2)
        return TensorEntry(name, _FILE_DTYPE[self.config.dtype], shape, 0, nbytes)

    def _read_range(self, name: str, start: int, out: np.ndarray) -> None:
        centre, spread = self._spread(name)
        _store(centre + spread * _uniform(f"{self.name}/{name}", start, out.size), self.config.dtype, out)

    def _spread(self, name: str) -> tuple[float, float]:
        """A tensor's values are centre + spread * [-1, 1), whose variance is spread^2 / 3."""
        if name.endswith("norm.weight"):
            return (0.0 if self.config.norm_plus_one and ".linear_attn." not in name else 1.0), 0.25
        if name.endswith((".A_log", ".dt_bias")):  # heads that forget at once, and heads that remember long
            return -1.0, 1.5
        if name == "model.embed_tokens.weight" and not self.config.tied:
            return 0.0, math.sqrt(3.0)
        return 0.0, math.sqrt(3.0 / self._shapes[name][-1])


class ShapeModel(EmbeddedModel):
    """The shape of a public model at full size, with random weights: it knows nothing, and costs what that one does.

    A tensor is a window, beginning where its name says, onto one endless repetition of a pool of random numbers: 16 GB
    of weights are made at the speed of a copy.
    """

    table = SHAPES

    def _read_range(self, name: str, start: int, out: np.ndarray) -> None:
        pool = _pool(*self._spread(name), self.config.dtype)
        key = hashlib.blake2b(f"{self.name}/{name}".encode(), digest_size=8).digest()
        at = (int.from_bytes(key, "little") + start) % _POOL_ELEMS
        done = 0
        while done < out.size:
            piece = pool[at : at + out.size - done]
            out[done : done + piece.size] = piece
            done, at = done + piece.size, 0


def open_model(
    name_or_path: str | os.PathLike[str], quantize: str | None = None, group: int | None = None
) -> WeightSource:
    """A model made on the spot by name, or a checkpoint by directory; `./toy` is always a directory. With `quantize`
    ("int8") its matrices are quantised at load, with a scale per `group` (64 or 128, the default) elements of a row."""
    from .quantize import QuantizedSource, check_scheme

    scheme = check_scheme(quantize, group)
    source = _open_plain(name_or_path)
    return source if scheme is None else QuantizedSource(source, *scheme)


def _open_plain(name_or_path: str | os.PathLike[str]) -> WeightSource:
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputError(f"model: expected a name or a path, got {type(name_or_path).__name__}")
    name = os.fsdecode(name_or_path)
    if name in EMBEDDED:
        return EmbeddedModel(name)
    if name in SHAPES:
        return ShapeModel(name)
    if not os.path.isdir(name):
        names = ", ".join((*EMBEDDED, *SHAPES))
        raise InputError(f"model: expected a checkpoint directory or one of {names}, got {name!r}")
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


@lru_cache(maxsize=8)
def _pool(centre: float, spread: float, dtype: str) -> np.ndarray:
    """Random numbers in storage dtype, the same for every model that asks for them."""
    out = np.empty(_POOL_ELEMS, STORAGE[dtype])
    _store(centre + spread * _uniform("pool", 0, _POOL_ELEMS), dtype, out)
    out.flags.writeable = False
    return out


def _store(values: np.ndarray, dtype: str, out: np.ndarray) -> None:
    """Rounds to nearest even into the storage dtype; the values are finite and small."""
    if dtype != "bf16":
        out[:] = values
        return
    bits = values.astype(np.float32).view(np.uint32)
    out[:] = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
