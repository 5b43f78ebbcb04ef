"""Columns of a program file: lists of objects -> numpy columns, with every value that does not fit refused by name.

In: plain data of any kind. Out: whole columns (a refused value leaves a zero behind) and the rejections, each with the
JSON path it is about. Fast where all is well: a column is checked at once, and looked at one by one only when the check
fails. Knows nothing of what the columns mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from . import _lib
from .errors import show

__all__ = ["INT32", "INT64", "MISSING", "UINT32", "Anything", "Columns", "Groups", "Rejection", "is_text"]

_MAX_REPORTED = _lib.limit("MAX_REPORTED")

INT32 = (-(1 << 31), (1 << 31) - 1)
UINT32 = (0, (1 << 32) - 1)
INT64 = (-(1 << 63), (1 << 63) - 1)
MISSING = object()  # stands for an absent key until the column that needs it reports it


@dataclass(frozen=True)
class Rejection:
    """One refusal: the obligation that failed ("V9"), the ids it is about (-1: none) and a sentence."""

    code: str
    task: int
    buffer: int
    counter: int
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


class Columns:
    """Collects rejections while it fills columns."""

    def __init__(self) -> None:
        self.rejections: list[Rejection] = []
        self.count = 0

    def reject(self, code: str, text: str, task: int = -1, buffer: int = -1, counter: int = -1) -> None:
        self.count += 1
        if len(self.rejections) < _MAX_REPORTED:
            self.rejections.append(Rejection(code, task, buffer, counter, text))

    def records(self, value: object, path: str, cap: str, keys: set[str]) -> list[dict]:
        """A list of objects; an element that is none is reported and read as an empty object."""
        if not isinstance(value, list | tuple):
            self.reject("V1", f"{path}: expected a list, got {show(value)}")
            return []
        if len(value) > _lib.limit(cap):
            self.reject("V1", f"{path}: expected at most {_lib.limit(cap)} entries, got {len(value)}")
            return []
        records = list(value)
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                self.reject("V1", f"{path}[{index}]: expected an object, got {show(record)}")
                records[index] = Anything()
        self.unknown_keys(records, keys, lambda index: f"{path}[{index}]")
        return records

    def unknown_keys(self, records: Iterable[dict], keys: set[str], where: Callable[[int], str]) -> None:
        for index, record in enumerate(records):
            if not record.keys() <= keys:
                unknown = next(key for key in record if key not in keys)
                self.reject("V3", f"{where(index)}: unknown key {show(unknown)}")

    def integers(
        self,
        values: list,
        where: Callable[[int], str],
        code: str,
        domain: tuple[int, int] = INT32,
        ids: Callable[[int], dict[str, int]] = lambda index: {},
        what: str = "an integer",
    ) -> np.ndarray:
        """int64 [n]; whatever is no integer of the domain (bool is none) is reported and read as 0."""
        if set(map(type, values)) <= {int}:
            try:
                column = np.array(values, np.int64)
                if not column.size or (column.min() >= domain[0] and column.max() <= domain[1]):
                    return column
            except OverflowError:
                pass
        column = np.zeros(len(values), np.int64)
        for index, value in enumerate(values):
            if value is MISSING:
                self.reject("V1", f"{where(index)}: expected this key, but it is missing", **ids(index))
            elif type(value) is not int:
                self.reject(code, f"{where(index)}: expected {what}, got {show(value)}", **ids(index))
            elif not domain[0] <= value <= domain[1]:
                text = f"{where(index)}: expected {what} in [{domain[0]}, {domain[1]}], got {show(value)}"
                self.reject(code, text, **ids(index))
            else:
                column[index] = value
        return column

    def ids(self, records: list[dict], path: str, kind: str) -> None:
        """Ids are dense: entry i has id i, which also makes them unique."""
        values = [i if isinstance(r, Anything) else r.get("id", MISSING) for i, r in enumerate(records)]
        self.integers(values, lambda i: f"{path}[{i}].id", "V1", INT64, lambda i: {kind: i} if kind else {})
        if set(map(type, values)) <= {int} and values == list(range(len(values))):
            return
        for index, value in enumerate(values):
            if type(value) is int and value != index:
                text = f"{path}[{index}].id: expected {index} (ids are dense and in list order), got {show(value)}"
                self.reject("V1", text, **({kind: index} if kind else {}))

    def enums(self, records: list[dict], key: str, names: dict[int, str], path: str, kind: str = "") -> np.ndarray:
        numbers = {name: number for number, name in names.items()}
        numbers |= {name.lower(): number for number, name in names.items()}
        values = [record.get(key, MISSING) for record in records]
        values = [numbers.get(value, value) if type(value) is str else value for value in values]
        what = f"the name or number of one of {', '.join(names.values())}"
        ids = (lambda i: {kind: i}) if kind else (lambda i: {})
        return self.integers(values, lambda i: f"{path}[{i}].{key}", "V3", INT32, ids, what)

    def strings(self, records: list[dict], key: str, path: str, kind: str) -> list[str]:
        values = [record.get(key, "") for record in records]
        if all(type(value) is str and value.isascii() and "\0" not in value for value in values):
            return values
        for index, value in enumerate(values):
            if not is_text(value):
                text = f"{path}[{index}].{key}: expected Unicode text without NUL, got {show(value)}"
                self.reject("V3", text, **{kind: index})
                values[index] = ""
        return values

    def groups(
        self, records: list[dict], key: str, cap: int, path: str, kind: str, default: object = MISSING
    ) -> Groups:
        """The lists under `key`, flat, with the record and the slot each element came from."""
        ids = lambda index: {kind: index}  # noqa: E731
        values = [() if isinstance(record, Anything) else record.get(key, default) for record in records]
        if set(map(type, values)) <= {list, tuple} and max(map(len, values), default=0) <= cap:
            return Groups(values, f"{path}[{{}}].{key}")
        for index, value in enumerate(values):
            if value is MISSING:
                self.reject("V1", f"{path}[{index}].{key}: expected this key, but it is missing", **ids(index))
                values[index] = ()
            elif not isinstance(value, list | tuple):
                self.reject("V1", f"{path}[{index}].{key}: expected a list, got {show(value)}", **ids(index))
                values[index] = ()
            elif len(value) > cap:
                text = f"{path}[{index}].{key}: expected at most {cap} entries, got {len(value)}"
                self.reject("V1", text, **ids(index))
                values[index] = value[:cap]
        return Groups(values, f"{path}[{{}}].{key}")


class Anything(dict):
    """Stands for a record that was refused as a whole: has every key, so that nothing else is said about it."""

    def get(self, key: str, default: object = None) -> Any:
        return 0 if default is MISSING else default


class Groups:
    """Lists of lists, flattened: element k is flat[k], entry `slot[k]` of record `owner[k]`."""

    def __init__(self, lists: list, path: str) -> None:
        self.flat = list(chain.from_iterable(lists))
        self.counts = np.fromiter(map(len, lists), np.int64, len(lists))
        self.owner = np.repeat(np.arange(len(lists)), self.counts)
        starts = np.cumsum(self.counts) - self.counts
        self.slot = np.arange(len(self.flat)) - np.repeat(starts, self.counts)
        self._path = path

    def where(self, k: int) -> str:
        return f"{self._path.format(self.owner[k])}[{self.slot[k]}]"

    def ids(self, kind: str) -> Callable[[int], dict[str, int]]:
        return lambda k: {kind: int(self.owner[k])}


def is_text(value: object) -> bool:
    if type(value) is not str or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
