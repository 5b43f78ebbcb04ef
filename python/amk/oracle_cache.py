"""The oracle's logits on disk: a question that was answered once is not worked out again.

In: a model, a question. Out: float64 logits, from a file or computed and kept. A damaged file is no file.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import oracle, oracle_delta
from .oracle import F64, inverse_frequencies

__all__ = ["OracleCache"]

# What the logits depend on besides weights, question and frequencies: every field of the model that the oracle reads.
_SHAPE = """
    hidden layers n_heads n_kv_heads head_dim ffn vocab eps dtype tied qkv_bias o_bias mlp_bias qk_norm rotary_dim
    full_attention_interval linear_key_heads linear_value_heads linear_head_dim conv_width attention_gate norm_plus_one
"""


class OracleCache:
    """Float64 logits as .npy files in one directory, each followed by its SHA-256, which readers of .npy ignore.

    A file that is missing, damaged or of another shape counts as absent and is rewritten. A directory that cannot be
    written disables the cache and nothing else. At most `max_entries` files are kept, the newest.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, *, max_entries: int = 64) -> None:
        if directory is None:
            base = os.environ.get("XDG_CACHE_HOME", "")
            directory = (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "amk"
        self.directory = Path(directory)
        self.max_entries = max_entries

    @staticmethod
    def key(
        config: Any, weight_digest: str, tokens: Sequence[int], positions: Sequence[int], kv_seed: int, kind: str
    ) -> str:
        """Covers everything the logits depend on: the model, the question, and the text of the oracle."""
        shape = {name: str(getattr(config, name)) for name in _SHAPE.split()}
        question = (weight_digest, [int(t) for t in tokens], [int(p) for p in positions], int(kv_seed), kind)
        text = hashlib.sha256(repr((shape, question)).encode())
        text.update(inverse_frequencies(config).tobytes())
        for part in (oracle, oracle_delta):
            text.update(Path(str(part.__file__)).read_bytes())
        return text.hexdigest()

    def fetch(self, key: str, shape: tuple[int, ...], compute: Callable[[], F64]) -> F64:
        """The logits stored under `key`, or `compute()`, which is then stored."""
        path = self.directory / f"oracle-{key}.npy"
        found = self._load(path, shape)
        if found is not None:
            return found
        logits = np.ascontiguousarray(compute(), dtype=np.float64)
        if logits.shape != shape:
            raise ValueError(f"oracle gave logits of shape {logits.shape}, expected {shape}")
        self._store(path, logits)
        return logits

    def _load(self, path: Path, shape: tuple[int, ...]) -> F64 | None:
        try:
            if not path.is_file() or path.stat().st_size > 8 * math.prod(shape) + 4096:  # NOTE: a FIFO would block
                return None
            data = path.read_bytes()
            if hashlib.sha256(data[:-32]).digest() != data[-32:]:
                return None
            logits = np.load(io.BytesIO(data[:-32]), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return logits if logits.shape == shape and logits.dtype == np.float64 else None

    def _store(self, path: Path, logits: F64) -> None:
        buffer = io.BytesIO()
        np.save(buffer, logits, allow_pickle=False)
        data = buffer.getvalue()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix="oracle-", suffix=".tmp", dir=self.directory)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data + hashlib.sha256(data).digest())
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            # An abandoned temporary file of a killed process ages out with the entries.
            aged = sorted(self.directory.glob("oracle-*"), key=lambda p: (p != path, -p.lstat().st_mtime_ns))
            for old in aged[self.max_entries :]:
                old.unlink(missing_ok=True)
        except OSError:
            return
