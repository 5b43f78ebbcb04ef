"""What a run has measured so far, kept in a file, so that one that was cut short goes on where it was.

In: a path, and what the run is (task, rows, device, library, settings, baselines). Out: the facts of workers that have
already answered. Behind its header a line says what the run is, then there is one per worker, on the disk when it has
answered. A journal of another run is refused, and so is one that cannot be read; a line that a killed process did not
end is put aside by the log, and measured again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError, show
from ..records.append_log import AppendLog
from ..records.calls import FileCalls
from ..strict_json import parse_strict_json

__all__ = ["HEADER", "Journal"]

HEADER = b'{"schema": "amk.kernel_bench.journal", "schema_version": 1}\n'


class Journal:
    """`identity` is plain JSON: whatever must be the same for two runs to be one. StoreError where the file cannot be
    kept, InputError where it is no journal of this run."""

    def __init__(self, path: str, identity: Mapping[str, Any], began: str) -> None:
        self._path = path
        self._log = AppendLog(path, HEADER, FileCalls())
        self._facts: dict[tuple[str, ...], dict[str, Any]] = {}
        self.began = began  # of the first of its runs
        self.continued = False
        with self._log.locked():
            self._log.prepare()
            self._log.check_writable()
            lines = self._lines()
            if not lines:
                self._append({"began": began, "identity": identity})
                return
        self._require_same(lines[0]["identity"], json.loads(json.dumps(identity)))
        self.began, self.continued = lines[0]["began"], True
        self._facts = {tuple(line["rows"]): line["facts"] for line in lines[1:]}

    def find(self, names: Sequence[str]) -> dict[str, Any] | None:
        """What the worker of just these rows answered, or None."""
        return self._facts.get(tuple(names))

    def add(self, names: Sequence[str], facts: Mapping[str, Any]) -> None:
        with self._log.locked():
            self._append({"rows": list(names), "facts": facts})

    def _append(self, line: Mapping[str, Any]) -> None:
        self._log.append(json.dumps(line, allow_nan=False).encode() + b"\n")

    def _lines(self) -> list[dict[str, Any]]:
        data, size, inode = self._log.read_from(0, -1)
        while len(data) < size:
            data += self._log.read_from(len(data), inode)[0]
        lines = []
        for number, text in enumerate(data[len(HEADER) :].splitlines(), 2):
            where = f"journal {self._path}: line {number}"
            line = parse_strict_json(text, where)
            wanted = {"began": str, "identity": dict} if number == 2 else {"rows": list, "facts": dict}
            for name, kind in wanted.items():
                if not isinstance(line, dict) or not isinstance(line.get(name), kind):
                    raise InputError(f"{where}: expected an object with {name}, a {kind.__name__}, got {show(line)}")
            lines.append(line)
        return lines

    def _require_same(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for name, value in wanted.items():
            if found.get(name) != value:
                raise InputError(
                    f"journal {self._path}: it is of another run: {name}: expected {show(value)}, "
                    f"got {show(found.get(name))}"
                )
