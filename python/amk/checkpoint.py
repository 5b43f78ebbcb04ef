"""A Hugging Face checkpoint directory -> `ModelConfig` and the weight table under AMK's canonical names.

In: config.json with model.safetensors, or with shards and model.safetensors.index.json. Out: numpy arrays in the
storage dtype (bf16 as uint16), operands of one fused instruction concatenated. Every tensor is accounted for when the
directory is opened; each byte is then read once, straight into its final place, where it is scanned for NaN and
infinity and hashed while it is hot, on several threads. This file must never convert a weight or keep a second copy of
one, but for the few numbers per layer that AMK keeps in f32 whatever the checkpoint's dtype; who does (quantize.py)
takes the chunks through a `Sink` of its own.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .errors import InputError, OutOfMemory, UnsupportedModel
from .model_config import ModelConfig, parse_config, rope_inv_freq
from .safetensors import MAX_TENSORS, SafetensorsFile, TensorEntry, read_regular_file
from .strict_json import parse_strict_json
from .weight_plan import Part, operand_shape, weight_plan

__all__ = ["STORAGE", "Checkpoint", "Sink", "WeightSource", "Weights"]

STORAGE = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "bf16": np.dtype("<u2")}
FILE_DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}

# NaN and infinity have every exponent bit set: (unsigned view, mask) per dtype.
_EXPONENT = {"f32": (np.uint32, 0x7F800000), "f16": (np.uint16, 0x7C00), "bf16": (np.uint16, 0x7F80)}

_CHUNK_BYTES = 2 << 20  # one read, one scan, one leaf of the digest: part of its definition
# More than the processors, as some wait for the disk. One blake2b runs at about 0.6 GB/s, without the GIL.
_READERS = min(8, 2 * (os.cpu_count() or 1))
_MAX_CONFIG_BYTES = 16 << 20
_MAX_INDEX_BYTES = 64 << 20
_MAX_SHARDS = 4096

_SHARD_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f]{1,243}\.safetensors")
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # recomputed; in old Llama files


class Weights(Mapping[str, np.ndarray]):
    """Canonical name -> array in storage dtype. `digest` covers names, dtypes, shapes and bytes; asking for it is an
    error where it was not computed."""

    def __init__(
        self, arrays: dict[str, np.ndarray], dtype: str, digest: str | None, *, plain_digest: str | None = None
    ) -> None:
        self._arrays = arrays
        self.plain_digest = plain_digest  # of quantised weights: of what they were made from, where it was hashed
        self.dtype = dtype
        self._digest = digest
        self.nbytes = sum(array.nbytes for array in arrays.values())

    @property
    def digest(self) -> str:
        if self._digest is None:
            raise InputError("weights: expected hashed=True where they were read, because the digest is asked for")
        return self._digest

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class Sink:
    """Takes the elements of one operand a chunk at a time, in any order, from several threads."""

    def __init__(self, array: np.ndarray) -> None:
        self._flat = array.reshape(-1)

    def take(self, start: int, count: int) -> np.ndarray:
        """Room for elements [start, start + count), one-dimensional, in storage dtype."""
        return self._flat[start : start + count]

    def put(self, start: int, chunk: np.ndarray) -> None:
        """The room that `take` gave is filled."""


class WeightSource(ABC):
    """What files and embedded models share: a configuration, tensors by Hugging Face name, and the weight table."""

    name: str
    config: ModelConfig

    @abstractmethod
    def tensor_names(self) -> tuple[str, ...]:
        """Hugging Face names of all tensors, sorted."""

    @abstractmethod
    def tensor_entry(self, name: str) -> TensorEntry:
        """Dtype and shape of one tensor; InputError if there is none of that name."""

    @abstractmethod
    def _read_range(self, name: str, start: int, out: np.ndarray) -> None:
        """Fills `out` (one-dimensional, storage dtype) with elements `start ...` of the tensor."""

    def raw(self, name: str) -> np.ndarray:
        """A fresh copy of one tensor under its Hugging Face name, in storage dtype (bf16 as uint16)."""
        entry = self.tensor_entry(name)
        if entry.dtype not in FILE_DTYPES:
            raise InputError(f"{self.name}: tensor {name!r}: expected dtype F32, F16 or BF16, got {entry.dtype}")
        array = _allocate(entry.shape, STORAGE[FILE_DTYPES[entry.dtype]], name)
        self._read_range(name, 0, array.reshape(-1))
        return array

    def weights(self, *, check_finite: bool = True, hashed: bool = True) -> Weights:
        """Reads the whole model: each tensor once, directly into its rows of the operand that it belongs to.

        Of several defects the first in the order of the plan is the one reported. hashed=False leaves out the digest,
        which takes more time than the rest, for a caller that names the weights in no record.
        """
        dtype = self.config.dtype
        arrays: dict[str, np.ndarray] = {}
        leaves: list[bytes | Future[bytes]] = []  # of a two-level digest, in plan order: labels, and chunks of tensors
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="amk-read")
        try:
            for name, parts in weight_plan(self.config).items():
                shape, kept = operand_shape(parts), "f32" if parts[0].is_widened else dtype
                sink = self._sink(name, shape, kept, arrays)
                leaves.append(_label(name, kept, shape))
                start, row, step = 0, math.prod(shape[1:]), _CHUNK_BYTES // STORAGE[kept].itemsize
                for tensor, (first_row, count) in ((part.tensor, run) for part in parts for run in part.row_runs):
                    size = count * row
                    for first in range(0, size, step):
                        at, span = first_row * row + first, (start + first, min(step, size - first))
                        leaves.append(pool.submit(self._read_chunk, tensor, at, sink, span, check_finite, hashed))
                    start += size
            frequencies = arrays["rope_inv_freq"] = rope_inv_freq(self.config)
            leaves += [_label("rope_inv_freq", "f32", frequencies.shape), _leaf_digest(frequencies)]
            root = hashlib.blake2b(digest_size=32)
            for leaf in leaves:
                root.update(leaf if isinstance(leaf, bytes) else leaf.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if self.config.tied and "lm_head.weight" in self.tensor_names():
            self._require_tied_head(arrays["embed"].reshape(-1))
        return Weights(arrays, dtype, root.hexdigest() if hashed else None)

    def _sink(self, name: str, shape: tuple[int, ...], dtype: str, arrays: dict[str, np.ndarray]) -> Sink:
        """Where one operand goes; its arrays are in `arrays` from now on."""
        arrays[name] = _allocate(shape, STORAGE[dtype], name)
        return Sink(arrays[name])

    def _read_chunk(
        self, tensor: str, start: int, sink: Sink, span: tuple[int, int], check_finite: bool, hashed: bool
    ) -> bytes:
        """Elements of a tensor from `start` on go into `span` of an operand; their digest, if it is wanted."""
        chunk = sink.take(*span)
        dtype = FILE_DTYPES[self.tensor_entry(tensor).dtype]
        stored = chunk if chunk.dtype == STORAGE[dtype] else np.empty(chunk.size, STORAGE[dtype])
        self._read_range(tensor, start, stored)
        if check_finite:
            view, mask = _EXPONENT[dtype]
            exponents = np.bitwise_and(stored.view(view), view(mask), out=_scratch(stored.size, view))
            if exponents.max() == mask:
                index = start + int(np.argmax(exponents == mask))
                raise InputError(
                    f"{self.name}: tensor {tensor!r}: expected finite values, got NaN or infinity at flat index {index}"
                )
        if stored is not chunk:
            chunk[:] = _widened(stored, dtype)
        digest = _leaf_digest(chunk) if hashed else b""
        sink.put(span[0], chunk)
        return digest

    def _check_unchanged(self) -> None:
        """InputError where what was read from has changed since it was opened."""
        return

    def _require_tied_head(self, embed: np.ndarray) -> None:
        head = np.empty(min(_CHUNK_BYTES // embed.itemsize, embed.size), dtype=embed.dtype)
        for start in range(0, embed.size, head.size):
            chunk = head[: embed.size - start]
            self._read_range("lm_head.weight", start, chunk)
            if not np.array_equal(chunk.view(np.uint8), embed[start : start + chunk.size].view(np.uint8)):
                raise UnsupportedModel(
                    f"{self.name}: tie_word_embeddings: expected lm_head.weight to equal model.embed_tokens.weight "
                    f"byte for byte, got a different one: set the key to false to use it",
                    "tie_word_embeddings",
                )


class Checkpoint(WeightSource):
    """An open checkpoint directory whose tensors are known to be exactly those that its configuration implies."""

    def __init__(self, path: Path, config: ModelConfig, files: list[SafetensorsFile]) -> None:
        """Use `Checkpoint.open`."""
        self.path = path
        self.name = path.resolve().name
        self.config = config
        self._files = files
        self._where = {name: file for file in files for name in file.tensors}

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Checkpoint:
        """Opens and checks configuration, shards and headers; reads no tensor data yet."""
        path = Path(directory)
        if not os.path.isdir(path):
            raise InputError(f"{str(path)!r}: expected a checkpoint directory, got none of that name")
        config_path = path / "config.json"
        unknown = ""  # a config without a dtype takes that of the tensors
        config = parse_config(read_regular_file(config_path, _MAX_CONFIG_BYTES), str(config_path), unknown)
        files = _open_files(path)
        try:
            if config.dtype == unknown:
                config = replace(config, dtype=_stored_dtype(files))
            checkpoint = cls(path, config, files)
            checkpoint._check_tensors()
        except BaseException:
            _close_all(files)
            raise
        return checkpoint

    def tensor_names(self) -> tuple[str, ...]:
        return tuple(sorted(self._where))

    def tensor_entry(self, name: str) -> TensorEntry:
        if name not in self._where:
            raise InputError(f"{self.path}: no tensor is called {name!r}")
        return self._where[name].tensors[name]

    def close(self) -> None:
        _close_all(self._files)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_range(self, name: str, start: int, out: np.ndarray) -> None:
        self._where[name].read_into(name, out, start_byte=start * out.itemsize)

    def weights(self, *, check_finite: bool = True, hashed: bool = True) -> Weights:
        weights = super().weights(check_finite=check_finite, hashed=hashed)
        self._check_unchanged()
        return weights

    def _check_unchanged(self) -> None:
        for file in self._files:
            file.check_unchanged()

    def _check_tensors(self) -> None:
        """Names, shapes and dtypes against the configuration: nothing missing, nothing left over."""
        expected = {part.tensor: part for parts in weight_plan(self.config).values() for part in parts}
        missing = sorted(expected.keys() - self._where.keys())
        if missing:
            hint = " (is tie_word_embeddings meant to be true?)" if missing == ["lm_head.weight"] else ""
            raise InputError(f"{self.path}: expected {len(expected)} tensors, missing {_listing(missing)}{hint}")
        if self.config.tied and "lm_head.weight" in self._where:
            shape = expected["model.embed_tokens.weight"].shape
            expected["lm_head.weight"] = Part("lm_head.weight", shape)  # compared with the other when read
        extra = sorted(name for name in self._where.keys() - expected.keys() if not _IGNORED.fullmatch(name))
        if extra:
            raise InputError(f"{self.path}: expected {len(expected)} tensors, found besides: {_listing(extra)}")
        for name, part in expected.items():
            entry = self.tensor_entry(name)
            dtypes = {self.config.dtype, "f32"} if part.is_widened else {self.config.dtype}
            if FILE_DTYPES.get(entry.dtype) not in dtypes or entry.shape != part.shape:
                raise InputError(
                    f"{self._where[name].path}: tensor {name!r}: expected {' or '.join(sorted(dtypes))} "
                    f"{list(part.shape)}, got {entry.dtype} {list(entry.shape)}"
                )


def _label(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    return f"{name} {dtype} {list(shape)}\n".encode()


def _leaf_digest(chunk: np.ndarray) -> bytes:
    return hashlib.blake2b(chunk.view(np.uint8), digest_size=32).digest()


def _widened(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 with the same values."""
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else values.astype(np.float32)


_of_thread = threading.local()


def _scratch(count: int, dtype: type[np.unsignedinteger[Any]]) -> np.ndarray:
    """A buffer of this thread's own, which the next call takes again."""
    kept = getattr(_of_thread, "scratch", None)
    if kept is None or kept.dtype != dtype or kept.size < count:
        kept = _of_thread.scratch = np.empty(count, dtype=dtype)
    return kept[:count]


def _open_files(path: Path) -> list[SafetensorsFile]:
    """The single file if there is one (as Transformers chooses), else the shards of the index."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if os.path.lexists(single):
        return [SafetensorsFile(single)]
    if not os.path.lexists(index):
        raise InputError(f"{str(path)!r}: expected {single.name} or {index.name}, got neither")
    weight_map, total_bytes = _read_index(index)
    files: list[SafetensorsFile] = []
    try:
        for shard in sorted(set(weight_map.values())):
            file = SafetensorsFile(path / shard)
            files.append(file)
            listed = {name for name, where in weight_map.items() if where == shard}
            if differing := sorted(listed ^ file.tensors.keys()):
                raise InputError(
                    f"{file.path}: expected the {len(listed)} tensors that {index.name} lists for it, "
                    f"differs in {_listing(differing)}"
                )
        found_bytes = sum(entry.nbytes for file in files for entry in file.tensors.values())
        if total_bytes is not None and total_bytes != found_bytes:
            raise InputError(f"{index}: metadata.total_size: expected {found_bytes}, got {total_bytes}")
    except BaseException:
        _close_all(files)
        raise
    return files


def _read_index(index: Path) -> tuple[dict[str, str], int | None]:
    table = parse_strict_json(read_regular_file(index, _MAX_INDEX_BYTES), str(index))
    weight_map = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(weight_map, dict) or not 1 <= len(weight_map) <= MAX_TENSORS:
        raise InputError(f"{index}: weight_map: expected an object of 1 to {MAX_TENSORS} tensors, got something else")
    shards = {shard if isinstance(shard, str) else repr(shard) for shard in weight_map.values()}
    for shard in shards:
        if not _SHARD_NAME.fullmatch(shard):
            raise InputError(f"{index}: weight_map: expected plain file names *.safetensors, got {shard[:200]!r}")
    if len(shards) > _MAX_SHARDS:
        raise InputError(f"{index}: weight_map: expected at most {_MAX_SHARDS} shards, got {len(shards)}")
    metadata = table.get("metadata") or {}
    total_bytes = metadata.get("total_size") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or (total_bytes is not None and type(total_bytes) is not int):
        raise InputError(f"{index}: metadata.total_size: expected an integer, got {str(total_bytes)[:80]}")
    return weight_map, total_bytes


def _stored_dtype(files: list[SafetensorsFile]) -> str:
    found = {entry.dtype for file in files for entry in file.tensors.values() if not _IGNORED.fullmatch(entry.name)}
    if len(found) != 1 or not found <= FILE_DTYPES.keys():
        raise InputError(f"{files[0].path}: expected one dtype of F32, F16, BF16 throughout, got {sorted(found)}")
    return FILE_DTYPES[found.pop()]


def _close_all(files: list[SafetensorsFile]) -> None:
    for file in files:
        file.close()


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> np.ndarray:
    try:
        return np.empty(shape, dtype=dtype)
    except MemoryError as error:
        wanted = math.prod(shape) * dtype.itemsize
        raise OutOfMemory(f"tensor {name!r}: expected room for {wanted} bytes {list(shape)}, got none") from error


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(repr(name[:200]) for name in names[:8]) + more
