"""`ProgramTables`: the POD tables of one program as numpy arrays, whole tables at a time.

In: arrays laid out as the header's structs, or a library program to copy them out of. Out: the amk_program_tables_t
that crosses the border. Judges nothing: any bytes are welcome, the validator says what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from . import _lib
from ._lib import ffi, lib
from .errors import InputError

__all__ = ["ProgramTables", "StringTable"]


@dataclass(frozen=True, eq=False)
class StringTable:
    """Strings back to back: string i is data[offset[i]:offset[i + 1]]."""

    data: bytes
    offset: np.ndarray  # uint64 [n + 1]

    @classmethod
    def of(cls, strings: Iterable[str]) -> StringTable:
        encoded = [text.encode() for text in strings]
        ends = accumulate(map(len, encoded), initial=0)
        return cls(b"".join(encoded), np.fromiter(ends, np.uint64, len(encoded) + 1))

    def strings(self) -> list[str]:
        """As text; bytes that are no UTF-8 (a table may hold any) are shown as escapes."""
        ends = self.offset.tolist()
        return [self.data[start:end].decode("utf-8", "backslashreplace") for start, end in pairwise(ends)]


@dataclass(frozen=True, eq=False)
class ProgramTables:
    """One array per table; launch and target are arrays of one record."""

    buffers: np.ndarray
    bindings: np.ndarray
    counter_init: np.ndarray
    tasks: np.ndarray
    pages: np.ndarray
    buffer_name: StringTable
    buffer_source: StringTable
    task_label: StringTable
    launch: np.ndarray
    target: np.ndarray

    def __post_init__(self) -> None:
        for name, ctype in _RECORDS.items():
            table = getattr(self, name)
            dtype = _lib.table_dtype(ctype)
            if not isinstance(table, np.ndarray) or table.dtype != dtype or table.ndim != 1:
                raise InputError(f"tables.{name}: expected a one-dimensional array of {ctype} records")
            object.__setattr__(self, name, np.ascontiguousarray(table))
        for name, count in (
            ("bindings", len(self.buffers)),
            ("launch", 1),
            ("target", 1),
        ):
            if len(getattr(self, name)) != count:
                raise InputError(f"tables.{name}: expected {count} records, got {len(getattr(self, name))}")
        for name, count in self._string_counts():
            strings: StringTable = getattr(self, name)
            if strings.offset.shape != (count + 1,) or strings.offset[-1] != len(strings.data):
                raise InputError(f"tables.{name}: expected {count + 1} offsets that end at {len(strings.data)} bytes")

    def _string_counts(self) -> tuple[tuple[str, int], ...]:
        buffers = len(self.buffers)
        return ("buffer_name", buffers), ("buffer_source", buffers), ("task_label", len(self.tasks))

    def equals(self, other: ProgramTables) -> bool:
        """Byte for byte."""
        return all(_bytes(getattr(self, name.name)) == _bytes(getattr(other, name.name)) for name in fields(self))

    def to_c(self) -> tuple[Any, object]:
        """(amk_program_tables_t *, what it borrows): keep both while C reads it."""
        out = ffi.new("amk_program_tables_t *")
        out.struct_size = ffi.sizeof("amk_program_tables_t")
        alive: list[object] = [self]
        for name, ctype in _RECORDS.items():
            table = getattr(self, name)
            if name in ("launch", "target"):
                ffi.buffer(ffi.addressof(out, name))[:] = table.tobytes()
                continue
            borrowed = _lib.pointer(ctype, table)
            setattr(out, name, borrowed)
            alive.append(borrowed)
        out.n_buffers, out.n_counters = len(self.buffers), len(self.counter_init)
        out.n_tasks, out.n_pages = len(self.tasks), len(self.pages)
        for name, _ in self._string_counts():
            strings: StringTable = getattr(self, name)
            if not strings.data:  # every string is empty: NULL says so
                continue
            text, offset = ffi.from_buffer(strings.data), np.ascontiguousarray(strings.offset, np.uint64)
            borrowed = _lib.pointer("uint64_t", offset)
            view = getattr(out, name)
            view.bytes, view.offset = text, borrowed
            alive += [text, offset, borrowed]
        return out, alive

    @classmethod
    def of_program(cls, handle: Any) -> ProgramTables:
        """Copies the tables out of an amk_program."""
        view = view_of(handle)
        counts = {
            "buffers": view.n_buffers,
            "bindings": view.n_buffers,
            "counter_init": view.n_counters,
            "tasks": view.n_tasks,
            "pages": view.n_pages,
        }
        tables = {name: _lib.read_table(_RECORDS[name], getattr(view, name), n) for name, n in counts.items()}
        for name in ("launch", "target"):
            tables[name] = _lib.read_table(_RECORDS[name], ffi.addressof(view, name), 1)
        return cls(
            **tables,
            buffer_name=_strings_of(view.buffer_name, view.n_buffers),
            buffer_source=_strings_of(view.buffer_source, view.n_buffers),
            task_label=_strings_of(view.task_label, view.n_tasks),
        )


_RECORDS = {
    "buffers": "amk_buffer_t",
    "bindings": "amk_binding_t",
    "counter_init": "amk_counter_t",
    "tasks": "amk_instruction_t",
    "pages": "amk_page_t",
    "launch": "amk_launch_t",
    "target": "amk_target_t",
}


def view_of(handle: Any) -> Any:
    """The amk_program_tables_t of a library program: borrowed, so `handle` must outlive it."""
    view = ffi.new("amk_program_tables_t *")
    view.struct_size = ffi.sizeof("amk_program_tables_t")
    _lib.check(lib.amk_program_tables(handle, view))
    return view


def _strings_of(strings: Any, count: int) -> StringTable:
    if strings.offset == ffi.NULL:
        return StringTable(b"", np.zeros(count + 1, np.uint64))
    offset = np.frombuffer(ffi.buffer(strings.offset, (count + 1) * 8), np.uint64).copy()
    total = int(offset[-1])
    return StringTable(bytes(ffi.buffer(strings.bytes, total)) if total else b"", offset)


def _bytes(part: np.ndarray | StringTable) -> bytes:
    if isinstance(part, StringTable):
        return part.offset.tobytes() + part.data
    return part.tobytes()
