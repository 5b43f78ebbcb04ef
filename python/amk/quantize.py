"""A model with its matrices as 8-bit integers, and what that loses.

In: a `WeightSource`. Out: one that binds `layers.*.wqkv, wo, w_gate_up, w_down` and `lm_head` as int8 with a scale per
output row and group of `group` elements, and gives the values that these stand for to whoever asks for a tensor. The
quantiser is symmetric rounding to nearest: scale = max|w| / 127 of the group, rounded to the model's dtype, and
q = w / scale, rounded to nearest even and held within 127. Weights are quantised chunk by chunk while they are read.
A tied head becomes a matrix of its own; the embedding keeps the model's dtype, as one of its rows is read per token.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from .checkpoint import STORAGE, Sink, Weights, WeightSource
from .errors import InputError, UnsupportedModel, show
from .safetensors import TensorEntry
from .weight_plan import weight_plan

__all__ = ["GROUPS", "SCHEMES", "QuantizedSource", "check_scheme", "dequantize", "loss_of", "quantize"]

SCHEMES = ("int8",)
GROUPS = (64, 128)
DEFAULT_GROUP = 128
_MATRICES = ("wqkv", "wo", "w_gdn_in", "w_gdn_out", "w_gate_up", "w_down", "lm_head")
_MOST = 127  # -128 has no positive counterpart
_QUANTIZER = "int8, symmetric, to nearest even, scale max / 127"  # part of the digest: another one makes other weights
_CHUNK_ELEMENTS = 1 << 20


def check_scheme(quantize: Any, group: Any = None) -> tuple[str, int] | None:
    """("int8", group) as asked for; None where nothing was."""
    if quantize is None:
        if group is not None:
            raise InputError(f"group: expected it together with quantize, got {show(group)} alone")
        return None
    if quantize not in SCHEMES:
        raise InputError(f"quantize: expected {' or '.join(SCHEMES)}, or nothing, got {show(quantize)}")
    if group is None:
        return quantize, DEFAULT_GROUP
    if type(group) is not int or group not in GROUPS:
        raise InputError(f"group: expected {' or '.join(map(str, GROUPS))}, got {show(group)}")
    return quantize, group


def quantize(values: np.ndarray, dtype: str, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat values in storage dtype, whole groups -> (int8, scales in storage dtype)."""
    wide = _widen(values, dtype).reshape(-1, group)
    scales = _narrow(np.abs(wide).max(axis=1) / np.float32(_MOST), dtype)
    divisor = _widen(scales, dtype)[:, None]
    # A group too small for a scale is zero.
    ratio = np.divide(wide, divisor, out=np.zeros_like(wide), where=divisor != 0)
    np.rint(ratio, out=ratio)
    np.clip(ratio, -_MOST, _MOST, out=ratio)  # a scale that was rounded down
    return ratio.astype(np.int8).reshape(-1), scales


def dequantize(q: np.ndarray, scales: np.ndarray, dtype: str, group: int) -> np.ndarray:
    """The values that they stand for, exactly: float32, or float64 for a model in f32."""
    exact: type[np.floating[Any]] = np.float64 if dtype == "f32" else np.float32  # 7 bits times the 24, 11 or 8 of T
    return (q.reshape(-1, group).astype(exact) * _widen(scales, dtype).astype(exact)[:, None]).reshape(-1)


class QuantizedSource(WeightSource):
    """Another source's model, quantised at load."""

    def __init__(self, base: WeightSource, scheme: str = "int8", group: int = DEFAULT_GROUP) -> None:
        self.base = base
        self.scheme = f"{scheme}-g{group}"
        self.name = f"{base.name}+{self.scheme}"
        self.path = getattr(base, "path", None)
        self.group = group
        self.config = replace(base.config, tied=False, weight_group=group)
        for what, columns in (
            ("hidden_size", self.config.hidden),
            ("num_attention_heads times head_dim", self.config.n_heads * self.config.head_dim),
            ("intermediate_size", self.config.ffn),
            ("linear_num_value_heads times linear_value_head_dim", self.config.linear_values),
        ):
            if columns % group:
                raise UnsupportedModel(
                    f"{base.name}: quantize: expected rows of whole groups of {group}, got {what} = {columns}", what
                )
        plan = weight_plan(self.config)
        self._quantized = {part.tensor for name in plan if _is_matrix(name) for part in plan[name]}

    def tensor_names(self) -> tuple[str, ...]:
        return tuple(sorted({*self.base.tensor_names(), "lm_head.weight"}))

    def tensor_entry(self, name: str) -> TensorEntry:
        return self.base.tensor_entry(self._stored(name))

    def raw(self, name: str) -> np.ndarray:
        """As the base gives it; of a quantised matrix the values that its integers stand for."""
        plain = self.base.raw(self._stored(name))
        if name not in self._quantized:
            return plain
        dtype, flat = self.config.dtype, plain.reshape(-1)
        out = np.empty(flat.size, np.float64 if dtype == "f32" else np.float32)
        for first in range(0, flat.size, _CHUNK_ELEMENTS):
            part = slice(first, first + _CHUNK_ELEMENTS)
            out[part] = dequantize(*quantize(flat[part], dtype, self.group), dtype, self.group)
        return out.reshape(plain.shape)

    def weights(self, *, check_finite: bool = True, hashed: bool = True) -> Weights:
        """The digest is that of what was read, and how it was quantised."""
        plain = super().weights(check_finite=check_finite, hashed=hashed)
        if self.base.config.tied and "lm_head.weight" in self.base.tensor_names():
            self.base._require_tied_head(plain["embed"].reshape(-1))
        self.base._check_unchanged()
        if not hashed:
            return Weights(dict(plain), plain.dtype, None)
        text = f"{plain.digest} {self.scheme} {_QUANTIZER}".encode()
        digest = hashlib.blake2b(text, digest_size=32).hexdigest()
        return Weights(dict(plain), plain.dtype, digest, plain_digest=plain.digest)

    def _sink(self, name: str, shape: tuple[int, ...], dtype: str, arrays: dict[str, np.ndarray]) -> Sink:
        if not _is_matrix(name):
            return super()._sink(name, shape, dtype, arrays)
        rows, columns = shape
        arrays[name] = np.empty(shape, np.int8)
        arrays[name + "_scale"] = np.empty((rows, columns // self.group), STORAGE[dtype])
        return _QuantizingSink(arrays[name], arrays[name + "_scale"], dtype, self.group)

    def _read_range(self, name: str, start: int, out: np.ndarray) -> None:
        self.base._read_range(self._stored(name), start, out)

    def _stored(self, name: str) -> str:
        """Under which name the base holds a tensor."""
        return "model.embed_tokens.weight" if name == "lm_head.weight" and self.base.config.tied else name


class _QuantizingSink(Sink):
    """Chunks of the reader are whole groups: they are powers of two, and parts of an operand whole rows."""

    def __init__(self, q: np.ndarray, scales: np.ndarray, dtype: str, group: int) -> None:
        super().__init__(q)
        self._scales = scales.reshape(-1)
        self._dtype, self._group = dtype, group

    def take(self, start: int, count: int) -> np.ndarray:
        return np.empty(count, STORAGE[self._dtype])

    def put(self, start: int, chunk: np.ndarray) -> None:
        q, scales = quantize(chunk, self._dtype, self._group)
        self._flat[start : start + q.size] = q
        first = start // self._group
        self._scales[first : first + scales.size] = scales


def loss_of(plain: np.ndarray, quantized: np.ndarray) -> dict[str, Any]:
    """What quantising does to the reference's own logits [n, V], step by step: no machine has a part in it.

    `rel_err`: largest difference over the largest plain logit; `kl`: Kullback-Leibler divergence of the quantised
    model's next-token distribution from the plain one's, in nats; `top1_agreement`: share of steps with one choice.
    """
    error = np.abs(quantized - plain).max(axis=-1) / np.abs(plain).max(axis=-1)
    p, q = _log_softmax(plain), _log_softmax(quantized)
    kl = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    return {
        "steps": len(plain),
        "rel_err_mean": float(error.mean()),
        "rel_err_max": float(error.max()),
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        "top1_agreement": float(np.mean(plain.argmax(axis=-1) == quantized.argmax(axis=-1))),
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _is_matrix(name: str) -> bool:
    return name.rpartition(".")[2] in _MATRICES


def _widen(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32, exactly."""
    if dtype == "bf16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def _narrow(values: np.ndarray, dtype: str) -> np.ndarray:
    """Finite float32 values, not negative, to storage dtype, to nearest even."""
    if dtype != "bf16":
        return values.astype(STORAGE[dtype])
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
