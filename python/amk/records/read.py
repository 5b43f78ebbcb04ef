"""Readers of the three logs: total, whatever is in them.

In: a path. Out: the records whose line is exactly what a writer writes, and a `Tally` of what was skipped. A line with
a wrong CRC, an unknown shape or a broken rule is counted and never shown; a last line without its LF is not read at
all. What can raise, as one typed error, is a file that is no log: absent, a directory, a FIFO, empty, or with another
header.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import AmkError, InputError
from .calls import FileCalls
from .entries import Entry, corpus_id, end_id, read_corpus_line, read_entry
from .lines import CORPUS_HEADER, JOURNAL_HEADER, MAX_LINE_BYTES, TSV_HEADER, read_row, row_id
from .trial import Trial

__all__ = ["Log", "Tally", "journal_beside", "read_corpus", "read_trials", "read_trials_tallied"]

_KINDS = {JOURNAL_HEADER: "journal", CORPUS_HEADER: "corpus", TSV_HEADER: "results"}


@dataclass
class Tally:
    """What a reader skipped."""

    bad_lines: int = 0
    torn_bytes: int = 0  # after the last LF: an append that did not finish
    duplicates: int = 0  # of a trial already read: the first stands
    unbacked: int = 0  # rows of results.tsv that the journal beside it does not hold

    def __bool__(self) -> bool:
        return any(vars(self).values())


class Log:
    """One log, opened for reading: its kind, and its lines after the header, one at a time."""

    def __init__(
        self,
        path: str,
        *,
        kind: str | None = None,
        calls: FileCalls | None = None,
        trouble: type[AmkError] = InputError,
    ) -> None:
        """InputError: not a log of AMK, or one of another kind; `trouble`: it cannot be read."""
        self.path = path
        self._trouble = trouble
        self.tally = Tally()
        calls = calls or FileCalls()
        try:
            handle = calls.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            raw = _Raw(calls, handle)
            if not stat.S_ISREG(calls.fstat(handle).st_mode):
                raise InputError(f"{path}: expected a regular file, got something else")
            self._stream = io.BufferedReader(raw, 1 << 18)
            first = self._stream.readline(MAX_LINE_BYTES)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise trouble(f"{path!r}: expected a file that can be read: {why}") from error
        self.kind = _KINDS.get(first, "")
        if not self.kind or (kind is not None and self.kind != kind):
            expected = f"a {kind} file" if kind else "a results, journal or corpus file"
            what = "an empty file" if not first else f"a {self.kind} file" if self.kind else f"{first[:40]!r}"
            raise InputError(f"{path}: expected {expected} of AMK, got {what}")

    def __iter__(self) -> Iterator[bytes]:
        """The lines without their LF; one over 64 KiB is counted as bad."""
        while line := self._readline():
            if line.endswith(b"\n"):
                yield line[:-1]
                continue
            skipped = len(line)
            while line and not line.endswith(b"\n"):
                line = self._readline()
                skipped += len(line)
            if line:
                self.tally.bad_lines += 1
            else:
                self.tally.torn_bytes = skipped

    def _readline(self) -> bytes:
        try:
            return self._stream.readline(MAX_LINE_BYTES)
        except OSError as error:
            raise self._trouble(f"{self.path!r}: expected a file that can be read: {error.strerror}") from error

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()

    def entries(self, *, repeats: bool = False, without: Container[str] = ()) -> Iterator[Entry]:
        """The records of a journal, each end once unless `repeats`, and none of the trials in `without`."""
        seen: set[str] = set()
        for line in self:
            if without and end_id(line) in without:
                continue
            entry = read_entry(line)
            if entry is None:
                self.tally.bad_lines += 1
            elif entry.trial is None or self._is_new(entry.trial, seen) or repeats:
                yield entry

    def intact_ids(self) -> Iterator[str]:
        """The trials of a results or corpus file whose line has the right CRC: much cheaper than the trials."""
        for line in self:
            name = row_id(line) if self.kind == "results" else corpus_id(line)
            if name is not None:
                yield name

    def trials(self, without: Container[str] = ()) -> Iterator[Trial]:
        """The trials of a log of any kind, each once; of a journal, only those whose id is not in `without`."""
        if self.kind == "journal":
            yield from (entry.trial for entry in self.entries(without=without) if entry.trial is not None)
            return
        read = read_row if self.kind == "results" else read_corpus_line
        seen: set[str] = set()
        for line in self:
            trial = read(line)
            if trial is None:
                self.tally.bad_lines += 1
            elif self._is_new(trial, seen):
                yield trial

    def _is_new(self, trial: Trial, seen: set[str]) -> bool:
        if trial.trial_id in seen:
            self.tally.duplicates += 1
            return False
        seen.add(trial.trial_id)
        return True


class _Raw(io.RawIOBase):
    """A file that is read through the calls of the logs."""

    def __init__(self, calls: FileCalls, handle: int) -> None:
        self._calls, self._handle = calls, handle

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._calls.read(self._handle, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._calls.close(self._handle)


def journal_beside(results_path: str) -> str:
    """Where the journal of a results file is, unless it was put elsewhere: its suffix replaced by .journal.jsonl."""
    stem, _ = os.path.splitext(results_path)
    return stem + ".journal.jsonl"


def read_trials_tallied(path: str, journal_path: str | None = None) -> tuple[list[Trial], Tally]:
    """The trials of any log. Beside results.tsv its journal is read too, where there is one: it was written first and
    holds everything, so a row that it does not hold is counted and not shown."""
    with Log(path) as log:
        trials = list(log.trials())
    journal_path = journal_path or journal_beside(path)
    if log.kind != "results" or not os.path.lexists(journal_path):
        return trials, log.tally
    with Log(journal_path, kind="journal") as journal:  # after the rows: a row that was read is in it by now
        backed = list(journal.trials())
    known = {trial.trial_id for trial in backed}
    total = journal.tally
    total.bad_lines += log.tally.bad_lines
    total.torn_bytes += log.tally.torn_bytes
    total.duplicates += log.tally.duplicates
    total.unbacked = sum(trial.trial_id not in known for trial in trials)
    return backed, total


def read_trials(results_or_journal_path: str | os.PathLike[str]) -> list[Trial]:
    """The trials of a results or journal file, oldest first. InputError where the file is no log at all."""
    return read_trials_tallied(os.fspath(results_or_journal_path))[0]


def read_corpus(corpus_path: str | os.PathLike[str]) -> list[Trial]:
    """The kept trials of a corpus; none where there is no such file."""
    path = os.fspath(corpus_path)
    if not os.path.lexists(path):
        return []
    with Log(path, kind="corpus") as log:
        return list(log.trials())
