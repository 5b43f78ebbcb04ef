"""A strict reader of safetensors files (format: 8-byte little-endian header length, JSON header, tensor bytes).

In: a path. Out: a table of entries that tile the data exactly, and reads of tensor bytes straight into the caller's
memory. The whole header is checked before the first entry is handed out; sizes are checked products, and an unknown
dtype is refused before its offsets are looked at. Reads use pread, never mmap: a file truncated while it is being read
is an `InputError`, not a SIGBUS. A FIFO or a device is refused without blocking on it.
"""

from __future__ import annotations

import os
import stat
import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from .errors import InputError
from .strict_json import parse_strict_json

MAX_HEADER_BYTES = 64 << 20
MAX_TENSORS = 200_000
MAX_RANK = 4

# Every dtype of the format, in bits. Whether AMK can compute with one is the business of whoever asks for the tensor.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

_READ_BYTES = 1 << 30  # Linux moves at most 2^31 - 4096 bytes in one call


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; `offset` counts bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def open_regular(path: str | os.PathLike[str]) -> tuple[int, os.stat_result]:
    """Opens a regular file for reading (symbolic links are followed) and returns its descriptor and status."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{os.fspath(path)!r}: expected a readable file, got: {reason}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{os.fspath(path)!r}: expected a regular file, got {_kind_of_file(status.st_mode)}")
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def read_regular_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The whole content of a small regular file."""
    fd, status = open_regular(path)
    try:
        if status.st_size > max_bytes:
            raise InputError(f"{os.fspath(path)!r}: expected at most {max_bytes} bytes, got {status.st_size}")
        content = bytearray(status.st_size)
        pread_exactly(fd, memoryview(content), 0, str(path))
        return bytes(content)
    finally:
        os.close(fd)


def pread_exactly(fd: int, buffer: memoryview, offset: int, where: str) -> None:
    """Fills `buffer` from `offset`; a file that ends first is an InputError. EINTR is retried by Python itself."""
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(fd, [buffer[done : done + _READ_BYTES]], offset + done)
        except OSError as error:
            raise InputError(f"{where}: read of {len(buffer)} bytes at {offset} failed: {error.strerror}") from error
        if count == 0:
            raise InputError(f"{where}: expected {len(buffer)} bytes at {offset}, got {done}: the file was truncated")
        done += count


class SafetensorsFile:
    """An open, fully checked safetensors file. `tensors` maps names to entries in the order of their data."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd, status = open_regular(path)
        self._finalizer = weakref.finalize(self, os.close, self._fd)
        self._identity = (status.st_size, status.st_mtime_ns)
        self.file_bytes = status.st_size
        try:
            self.tensors: dict[str, TensorEntry] = self._read_header()
        except BaseException:
            self.close()
            raise

    def read_into(self, name: str, buffer: memoryview | np.ndarray, *, start_byte: int = 0) -> None:
        """Fills `buffer` with the bytes of tensor `name` from `start_byte` on; the buffer must be C-contiguous."""
        entry = self.tensors.get(name)
        if entry is None:
            raise InputError(f"{self.path}: no tensor is called {name!r}")
        if not self._finalizer.alive:
            raise InputError(f"{self.path}: tensor {name!r} was asked for after the file was closed")
        view = _byte_view(buffer)
        if view.readonly or start_byte < 0 or start_byte + len(view) > entry.nbytes:
            raise InputError(
                f"{self.path}: tensor {name!r}: expected a writable buffer within its {entry.nbytes} bytes, "
                f"got {len(view)} bytes at {start_byte}"
            )
        pread_exactly(self._fd, view, entry.offset + start_byte, f"{self.path}: tensor {name!r}")

    def check_unchanged(self) -> None:
        """Raises if the file was resized or rewritten since it was opened; call it after the last read."""
        if not self._finalizer.alive:
            raise InputError(f"{self.path}: the file is closed")
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) != self._identity:
            raise InputError(
                f"{self.path}: expected the {self._identity[0]} bytes that were opened, got a file of "
                f"{status.st_size} bytes that was written to while being read"
            )

    def close(self) -> None:
        self._finalizer()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_header(self) -> dict[str, TensorEntry]:
        if self.file_bytes < 8:
            raise InputError(f"{self.path}: expected at least 8 bytes, got {self.file_bytes}")
        prefix = bytearray(8)
        pread_exactly(self._fd, memoryview(prefix), 0, self.path)
        header_bytes = int.from_bytes(prefix, "little")
        limit = min(MAX_HEADER_BYTES, self.file_bytes - 8)
        if header_bytes > limit:
            raise InputError(f"{self.path}: expected a header of at most {limit} bytes, got {header_bytes}")
        header = bytearray(header_bytes)
        pread_exactly(self._fd, memoryview(header), 8, self.path)
        return parse_header(bytes(header), 8 + header_bytes, self.file_bytes, self.path)


def parse_header(header: bytes, data_start: int, file_bytes: int, where: str) -> dict[str, TensorEntry]:
    """Checks a header against the size of its file and returns the entries, ordered by offset."""
    if header[:1] != b"{":
        raise InputError(f"{where}: expected a header that starts with '{{', got {header[:1]!r}")
    table = parse_strict_json(header, f"{where}: header")
    _check_metadata(table.pop("__metadata__", {}), where)
    if len(table) > MAX_TENSORS:
        raise InputError(f"{where}: expected at most {MAX_TENSORS} tensors, got {len(table)}")
    entries = [_parse_entry(name, value, data_start, where) for name, value in table.items()]
    entries.sort(key=lambda entry: entry.offset)
    end = data_start
    for entry in entries:
        if entry.offset != end:
            what = "overlaps the tensor before it" if entry.offset < end else "leaves a gap before it"
            raise InputError(
                f"{where}: tensor {entry.name!r}: expected its data at offset {end - data_start}, "
                f"got {entry.offset - data_start}: it {what}"
            )
        end += entry.nbytes
    if end != file_bytes:
        raise InputError(f"{where}: expected the data to end with the file at byte {file_bytes}, got {end}")
    return {entry.name: entry for entry in entries}


def _check_metadata(metadata: Any, where: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{where}: header: expected __metadata__ to map strings to strings, got something else")


def _parse_entry(name: str, value: Any, data_start: int, where: str) -> TensorEntry:
    where = f"{where}: tensor {name[:200]!r}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        got = sorted(value)[:8] if isinstance(value, dict) else type(value).__name__
        raise InputError(f"{where}: expected the keys dtype, shape and data_offsets, got {got}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise InputError(f"{where}: expected a known dtype, got {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(type(dim) is int and dim > 0 for dim in shape):
        raise InputError(f"{where}: expected a shape of at most {MAX_RANK} positive integers, got {str(shape)[:120]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(x) is int and x >= 0 for x in offsets):
        raise InputError(f"{where}: expected data_offsets of two non-negative integers, got {str(offsets)[:120]}")
    total_bits = bits
    for dim in shape:
        total_bits *= dim  # Python integers do not overflow
    if total_bits % 8 or offsets[1] - offsets[0] != total_bits // 8:
        raise InputError(
            f"{where}: expected {total_bits} bits for {dtype} {shape}, got data_offsets {offsets} "
            f"of {offsets[1] - offsets[0]} bytes"
        )
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], total_bits // 8)


def _byte_view(buffer: memoryview | np.ndarray) -> memoryview:
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise InputError("expected a C-contiguous buffer to read a tensor into, got a strided one")
    return view.cast("B")


def _kind_of_file(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
