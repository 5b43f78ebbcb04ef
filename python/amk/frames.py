"""What a worker and its parent say to each other: frames on a pipe, each a JSON object and named arrays or bytes.

In: an object and arrays. Out: bytes, and the same back. Nothing is trusted: a frame of another shape, an array that is
no plain array, or a size over the limit is an `InputError`, and nothing is ever unpickled.
Layout: magic, length of the JSON (u32), length of the rest (u64), both little-endian; then the JSON, whose "parts"
lists [name, "npy" or "raw", bytes]; then the parts.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import InputError, show

__all__ = ["Frame", "FrameReader", "encode"]

_MAGIC = b"AMK\x01"
_HEAD = struct.Struct("<4sIQ")
_MAX_JSON_BYTES = 64 << 20
_MAX_PARTS_BYTES = 8 << 30

Frame = tuple[dict[str, Any], dict[str, Any]]


def encode(message: Mapping[str, Any], parts: Mapping[str, np.ndarray | bytes] | None = None) -> bytes:
    """One frame. An array must hold plain numbers."""
    listing, blobs = [], []
    for name, part in (parts or {}).items():
        if isinstance(part, np.ndarray):
            buffer = io.BytesIO()
            np.save(buffer, part, allow_pickle=False)
            kind, blob = "npy", buffer.getvalue()
        else:
            kind, blob = "raw", bytes(part)
        listing.append([name, kind, len(blob)])
        blobs.append(blob)
    text = json.dumps({**message, "parts": listing}).encode()
    return b"".join([_HEAD.pack(_MAGIC, len(text), sum(map(len, blobs))), text, *blobs])


class FrameReader:
    """Bytes in, as they come; whole frames out."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that became complete. InputError as soon as the bytes cannot be one."""
        self._pending += data
        frames = []
        while (frame := self._take()) is not None:
            frames.append(frame)
        return frames

    def _take(self) -> Frame | None:
        pending = self._pending
        if not _MAGIC.startswith(bytes(pending[: len(_MAGIC)])):
            raise InputError(f"pipe: expected a frame, got {show(bytes(pending[:16]))}")
        if len(pending) < _HEAD.size:
            return None
        _, n_text, n_parts = _HEAD.unpack_from(pending)
        if n_text > _MAX_JSON_BYTES or n_parts > _MAX_PARTS_BYTES:
            raise InputError(f"pipe: a frame claims {n_text} bytes of JSON and {n_parts} of arrays")
        end = _HEAD.size + n_text + n_parts
        if len(pending) < end:
            return None
        text, body = bytes(pending[_HEAD.size : _HEAD.size + n_text]), bytes(pending[_HEAD.size + n_text : end])
        del pending[:end]
        try:
            message = json.loads(text)
            return message, _split(message.pop("parts"), body)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"pipe: a damaged frame: {type(error).__name__}: {error}") from error


def _split(listing: Any, body: bytes) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    start = 0
    for name, kind, size in listing:
        blob = body[start : start + size]
        if type(size) is not int or size < 0 or len(blob) != size:
            raise ValueError(f"part {show(name)} of {show(size)} bytes")
        parts[name] = blob if kind == "raw" else np.load(io.BytesIO(blob), allow_pickle=False)
        start += size
    if start != len(body):
        raise ValueError(f"{len(body) - start} bytes belong to no part")
    return parts
