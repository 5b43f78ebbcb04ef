"""The machine code inside a library, read from its bytes: which kernels there are for which architecture.

In: the bytes of a shared library built by nvcc with --no-compress. Out: one `Cubin` per architecture and translation
unit. No tool of the CUDA toolkit is needed, and nothing is run. A library whose code cannot be read proves nothing, and
is an error.
Layouts: System V ABI, chapter 4 (ELF); the fat binary's by inspection of what nvcc 13 writes. An architecture is what
ptxas wrote of its own command line into the cubin's note.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BuildMismatch

__all__ = ["Cubin", "prove", "read_cubins", "without_path"]

_ELF = b"\x7fELF"
_FATBIN_MAGIC = 0xBA55ED50
_KIND_ELF = 2
_SYMBOL_FUNCTION = 2  # STT_FUNC
_CUDA_ENTRY = 0x10  # of st_other: a kernel, not a function that kernels call
_SHT_SYMTAB, _SHT_NOTE = 2, 7
_ARCH = re.compile(rb"-arch (sm_\d+[a-z]?)\b")


@dataclass(frozen=True)
class Cubin:
    arch: str  # as sm_90a
    sha256: str
    kernels: tuple[str, ...]  # mangled, sorted

    def to_dict(self) -> dict[str, Any]:
        return {"arch": self.arch, "sha256": self.sha256, "kernels": list(self.kernels)}


def read_cubins(library: bytes, where: str) -> list[Cubin]:
    """Those that hold a kernel."""
    try:
        sections = [data for name, _, data in _sections(library) if name == ".nv_fatbin"]
        found = [_read_cubin(cubin, where) for section in sections for cubin in _elves(section)]
    except (struct.error, IndexError, ValueError) as error:
        raise BuildMismatch(f"{where}: expected a shared library with readable CUDA code, got {error}") from error
    return [cubin for cubin in found if cubin.kernels]


def without_path(kernel: str) -> str:
    """A mangled name less the hash of its file, by which an anonymous namespace differs between architectures."""
    return re.sub(r"_GLOBAL__N__\w+?_\d+_(\w+?)_cu_[0-9a-f]{8}", r"\1", kernel)


def prove(
    kernels: Sequence[Mapping[str, Any]], cubins: Sequence[Mapping[str, Any]], targets: Sequence[str]
) -> list[dict[str, Any]] | str:
    """For each kernel that ran, the cubin it ran from and those for every target; or why that cannot be said."""
    out = []
    if not kernels:
        return "no kernel was seen to run"
    for kernel in kernels:
        name, version = kernel["name"], kernel["binary_version"]
        if name.startswith("("):
            continue  # a copy or a fill by the driver has no code of ours
        by_arch = {
            cubin["arch"]: cubin["sha256"]
            for cubin in cubins
            if without_path(name) in {without_path(other) for other in cubin["kernels"]}
        }
        missing = [target for target in targets if target not in by_arch]
        if missing:
            return f"the library holds no {', '.join(missing)} cubin of {name}, only {', '.join(by_arch) or 'none'}"
        ran = [arch for arch in by_arch if re.fullmatch(rf"sm_{version}[a-z]?", arch)]
        if not ran:
            return f"{name} ran machine code of version {version}, and the library holds {', '.join(by_arch)}"
        out.append({"kernel": name, "ran": ran[0], "ran_sha256": by_arch[ran[0]], "cubins": by_arch})
    return out or "no kernel was seen to run"


def _read_cubin(data: bytes, where: str) -> Cubin:
    arch = None
    kernels: set[str] = set()
    sections = list(_sections(data))
    for _, kind, content in sections:
        if kind == _SHT_NOTE and (said := _ARCH.search(content)):
            arch = said[1].decode()
    for kind, content, names in _symbol_tables(data):
        if kind != _SHT_SYMTAB:
            continue
        for at in range(0, len(content) - 23, 24):
            name, info, other = struct.unpack_from("<IBB", content, at)
            if info & 15 == _SYMBOL_FUNCTION and other & _CUDA_ENTRY:
                kernels.add(_string(names, name))
    if arch is None and kernels:
        raise BuildMismatch(f"{where}: a cubin does not say its architecture")
    return Cubin(arch or "", hashlib.sha256(data).hexdigest(), tuple(sorted(kernels)))


def _elves(section: bytes) -> Iterator[bytes]:
    """The ELF payloads of every fat binary in a section."""
    at = 0
    while at + 16 <= len(section):
        magic, _, header_bytes, nbytes = struct.unpack_from("<IHHQ", section, at)
        if magic != _FATBIN_MAGIC:
            at += 8  # padding between two of them
            continue
        entry, end = at + header_bytes, at + header_bytes + nbytes
        if end > len(section):
            raise ValueError("a fat binary that ends outside its section")
        while entry < end:
            kind, _, entry_header, payload = struct.unpack_from("<HHIQ", section, entry)
            if entry_header < 16 or entry + entry_header + payload > end:
                raise ValueError("an entry of a fat binary that ends outside of it")
            data = section[entry + entry_header : entry + entry_header + payload]
            if kind == _KIND_ELF:
                if not data.startswith(_ELF):
                    raise ValueError("a compressed cubin: build with --no-compress")
                yield data
            entry += entry_header + payload
        at = end


def _headers(data: bytes) -> tuple[list[tuple[int, ...]], int]:
    if not data.startswith(_ELF) or data[4:6] != b"\x02\x01":
        raise ValueError("no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    if size < 64 or table + size * count > len(data):
        raise ValueError("a section table outside the file")
    return [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)], names


def _content(data: bytes, header: tuple[int, ...]) -> bytes:
    kind, at, nbytes = header[1], header[4], header[5]
    if kind == 8:  # SHT_NOBITS
        return b""
    if at + nbytes > len(data):
        raise ValueError("a section outside the file")
    return data[at : at + nbytes]


def _sections(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    headers, names_at = _headers(data)
    names = _content(data, headers[names_at])
    for header in headers:
        yield _string(names, header[0]), header[1], _content(data, header)


def _symbol_tables(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    headers, _ = _headers(data)
    for header in headers:
        if header[1] == _SHT_SYMTAB:
            yield header[1], _content(data, header), _content(data, headers[header[6]])


def _string(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode("utf-8", "backslashreplace")
