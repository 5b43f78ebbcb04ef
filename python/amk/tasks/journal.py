"""What a run has measured so far, kept in a file, so that one that was cut short goes on where it was.

In: a path, and what the run is (task, rows, device, library, settings, baselines). Out: the facts of workers that have
already answered. One JSON line says what the run is, then there is one per worker, written when it has answered. A
journal of another run is refused, and so is one that cannot be read; a last line without its end, of a process that was
killed while it wrote, is measured again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, show

__all__ = ["Journal"]

_SCHEMA = {"schema": "amk.kernel_bench.journal", "schema_version": 1}


class Journal:
    """`identity` is plain JSON: whatever must be the same for two runs to be one."""

    def __init__(self, path: str, identity: Mapping[str, Any], began: str) -> None:
        self._path = Path(path)
        self._facts: dict[tuple[str, ...], dict[str, Any]] = {}
        self.began = began  # of the first of its runs
        self.continued = False
        head = json.loads(json.dumps({**_SCHEMA, "began": began, "identity": identity}))
        lines = self._read()
        if not lines:
            self._write(head, "w")
            return
        self._require_same(lines[0], head)
        self.began, self.continued = lines[0]["began"], True
        for line in lines[1:]:
            self._facts[tuple(line["rows"])] = line["facts"]

    def find(self, names: Sequence[str]) -> dict[str, Any] | None:
        """What the worker of just these rows answered, or None."""
        return self._facts.get(tuple(names))

    def add(self, names: Sequence[str], facts: Mapping[str, Any]) -> None:
        self._write({"rows": list(names), "facts": facts}, "a")

    def _read(self) -> list[dict[str, Any]]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"journal {self._path}: expected a file that can be read: {error.strerror}") from error
        whole, newline, rest = data.rpartition(b"\n")
        if rest:
            with self._open("r+b") as file:
                file.truncate(len(whole) + len(newline))
        lines = []
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                line = json.loads(text)
                known = {"schema", "began", "identity"} if number == 1 else {"rows", "facts"}
                if not known <= line.keys():
                    raise ValueError(f"it lacks {', '.join(sorted(known - line.keys()))}")
            except (ValueError, AttributeError) as error:
                raise InputError(
                    f"journal {self._path}: expected a line of a journal, got line {number}: {error}"
                ) from error
            lines.append(line)
        return lines

    def _require_same(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for name in ("schema", "schema_version"):
            if found.get(name) != wanted[name]:
                raise InputError(f"journal {self._path}: {name}: expected {wanted[name]}, got {show(found.get(name))}")
        for name, value in wanted["identity"].items():
            if found["identity"].get(name) != value:
                raise InputError(
                    f"journal {self._path}: it is of another run: {name}: expected {show(value)}, "
                    f"got {show(found['identity'].get(name))}"
                )

    def _write(self, line: Mapping[str, Any], mode: str) -> None:
        with self._open(mode + "b") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _open(self, mode: str) -> Any:
        try:
            return open(self._path, mode)
        except OSError as error:
            raise InputError(f"journal {self._path}: expected a file that can be written: {error.strerror}") from error
