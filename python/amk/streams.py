"""What callers hand over as a CUDA stream -> the address of a cudaStream_t. Opens nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import InputError, show

__all__ = ["LEGACY_STREAM", "stream_handle"]

LEGACY_STREAM = 1  # cudaStreamLegacy: what a stream handle of 0 means to CUDA


def stream_handle(stream: Any) -> int:
    """The address behind a stream: an integer, an object with `cuda_stream` or `__cuda_stream__`. None is 0; a stream
    whose handle is 0 is the legacy one, by its other name."""
    if stream is None:
        return 0
    handle = stream
    if hasattr(stream, "__cuda_stream__"):  # (version, handle)
        pair = stream.__cuda_stream__
        pair = pair() if callable(pair) else pair
        handle = pair[1] if isinstance(pair, tuple) and len(pair) == 2 else None
    elif hasattr(stream, "cuda_stream"):
        handle = stream.cuda_stream
    if isinstance(handle, bool) or not isinstance(handle, int | np.integer) or not 0 <= handle < 1 << 64:
        raise InputError(f"stream: expected a cudaStream_t or an object that has one, got {show(stream)}")
    return int(handle) or LEGACY_STREAM
