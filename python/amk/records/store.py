"""`RecordStore`: the writer's side of the logs.

In: loops, starts and finished trials. Out: a journal that holds all of them, results.tsv with a row a trial, and a
corpus of the kept ones; what a call acknowledged survives kill -9 and loss of power. The journal comes first: what a
crash kept from the other two is appended to them when the store is opened again. Many processes may have the same store
open.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InputError, InternalError, StoreError, show
from .append_log import AppendLog
from .calls import FileCalls
from .entries import corpus_entry, end_entry, ended_ids, loop_entry, start_entry
from .lines import CORPUS_HEADER, JOURNAL_HEADER, TSV_HEADER, json_line, row_line
from .read import Log, journal_beside
from .trial import Trial

__all__ = ["RecordStore"]

_BATCH_BYTES = 1 << 20  # of rows repaired with one write
_WRITER_BYTES = 8


class RecordStore:
    """One writer of many. What a call that returns wrote is on the disk; StoreError leaves the old rows as they were.

    single_writer: for a file system without flock, where the caller promises that no other process writes.
    calls: a stand-in for the operating system, for tests.
    """

    def __init__(
        self,
        results_path: str | os.PathLike[str],
        corpus_path: str | os.PathLike[str] | None = None,
        journal_path: str | os.PathLike[str] | None = None,
        *,
        single_writer: bool = False,
        calls: FileCalls | None = None,
    ) -> None:
        self.results_path = _path(results_path, "results_path")
        self.corpus_path = None if corpus_path is None else _path(corpus_path, "corpus_path")
        beside = journal_beside(self.results_path)
        self.journal_path = beside if journal_path is None else _path(journal_path, "journal_path")
        self._calls = calls or FileCalls()

        def log(path: str, header: bytes) -> AppendLog:
            return AppendLog(path, header, self._calls, single_writer=single_writer)

        self._journal = log(self.journal_path, JOURNAL_HEADER)
        self._results = log(self.results_path, TSV_HEADER)
        self._corpus = None if self.corpus_path is None else log(self.corpus_path, CORPUS_HEADER)
        paths = [os.path.realpath(one.path) for one in self._logs()]
        if len(set(paths)) != len(paths):
            raise InputError(f"store: expected results, corpus and journal in files of their own, got {paths}")
        self._mutex = threading.RLock()
        self._closed = False
        self._behind = False  # the journal may hold an end that the other logs do not
        self._ended: set[str] = set()  # ids that the journal seems to hold, up to _known_bytes of the file _inode
        self._known_bytes, self._inode = 0, -1
        self._renew_writer()
        self._open()

    # ---- opening and closing ----

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is pending: every call was finished when it returned."""
        self._closed = True

    def _logs(self) -> list[AppendLog]:
        return [log for log in (self._journal, self._results, self._corpus) if log is not None]

    def _open(self) -> None:
        with self._journal.locked():
            for log in self._logs():
                with contextlib.nullcontext() if log is self._journal else log.locked():
                    log.prove_lock()
                    log.prepare()
            self._catch_up()

    def _catch_up(self) -> None:
        """With the journal's lock held: every end of the journal is in results.tsv and, if kept, in the corpus."""
        logs: list[tuple[AppendLog, Callable[[Trial], bytes], Callable[[Trial], bool]]]
        logs = [(self._results, row_line, lambda trial: True)]
        if self._corpus is not None:
            logs.append((self._corpus, _corpus_line, lambda trial: trial.in_corpus))
        for log, line, wanted in logs:
            with log.locked():
                with self._reader(log.path) as found:
                    present = set(found.intact_ids())
                batch = b""
                with self._reader(self.journal_path) as journal:
                    for trial in journal.trials(without=present):
                        if wanted(trial):
                            batch += line(trial)
                        if len(batch) >= _BATCH_BYTES:
                            log.append(batch)
                            batch = b""
                if batch:
                    log.append(batch)
        self._behind = False

    # ---- writing ----

    def check_writable(self) -> None:
        """Before a trial, so that no GPU time is spent on what cannot be recorded. StoreError says why not."""
        self._require_open()
        for log in self._logs():
            log.check_writable()

    def begin_loop(self, loop: str, facts: Mapping[str, Any]) -> None:
        """Records that a loop began, with what it needs to be resumed."""
        self._record("loop", loop_entry(loop, facts))

    def start(
        self, trial_id: str, loop: str, experiment: int, schedule_id: str, schedule_config: Mapping[str, Any]
    ) -> None:
        """Records what is about to run, before it does: a crash of the machine then has a culprit."""
        self._record("start", start_entry(trial_id, loop, experiment, schedule_id, schedule_config))

    def end(self, trial: Trial) -> None:
        """Records a finished trial in all logs. A trial_id that is already recorded stays as it was recorded first."""
        if not isinstance(trial, Trial):
            raise InternalError(f"store: expected a Trial, got {show(trial)}")
        entry, row = end_entry(trial), row_line(trial)
        kept = _corpus_line(trial) if self._corpus is not None and trial.in_corpus else None
        with self._mutex:
            line = self._numbered("end", entry)  # every line is made, and so found to fit, before one is written
            with self._journal.locked():
                if self._behind:
                    self._catch_up()
                if self._is_recorded(trial.trial_id):
                    self._catch_up()
                    return
                self._behind = True
                self._append_to_journal(line)
                with self._results.locked():
                    self._results.append(row)
                if kept is not None and self._corpus is not None:
                    with self._corpus.locked():
                        self._corpus.append(kept)
                self._behind = False

    def _record(self, kind: str, entry: Mapping[str, Any]) -> None:
        with self._mutex:
            line = self._numbered(kind, entry)
            with self._journal.locked():
                self._append_to_journal(line)

    def _numbered(self, kind: str, entry: Mapping[str, Any]) -> bytes:
        self._require_open()
        for log in self._logs():
            log.require_sound()
        if os.getpid() != self._pid:  # a fork copied the store: its child is a writer of its own
            self._renew_writer()
        return json_line({"kind": kind, "writer": self._writer, "seq": self._seq, **entry})

    def _append_to_journal(self, line: bytes) -> None:
        try:
            self._journal.append(line)
        except BaseException:  # nobody knows whether this number was written: another series begins
            self._renew_writer()
            raise
        self._seq += 1

    def _renew_writer(self) -> None:
        self._pid, self._writer, self._seq = os.getpid(), os.urandom(_WRITER_BYTES).hex(), 0

    def _is_recorded(self, trial_id: str) -> bool:
        """Is there such an end? Only what others appended since is looked at; what is found there is then read."""
        at = self._known_bytes
        while True:
            data, size, inode = self._journal.read_from(at, self._inode)
            if inode != self._inode or size < at:
                self._ended.clear()
                at, self._known_bytes, self._inode = 0, 0, inode
            lines = data.rfind(b"\n") + 1
            self._ended |= ended_ids(data[:lines])
            at += lines or len(data)
            if lines:  # never past the last line: the next append cuts off a torn tail, and its own line begins there
                self._known_bytes = at
            if at >= size:
                break
        return trial_id in self._ended and any(trial.trial_id == trial_id for trial in self._read_trials())

    def _require_open(self) -> None:
        if self._closed:
            raise InternalError(f"{self.results_path}: the store was closed")

    # ---- reading ----

    def loops(self) -> list[dict[str, Any]]:
        """The loops that began, oldest first: {"kind": "loop", "loop": id, and its facts}."""
        return [dict(entry.facts) for entry in self._entries() if entry.kind == "loop"]

    def trials(self, loop: str | None = None) -> list[Trial]:
        """The finished trials of one loop or of all, oldest first."""
        return [trial for trial in self._read_trials() if loop in (None, trial.loop)]

    def interrupted(self) -> list[dict[str, Any]]:
        """What was started and has no end, each trial once, oldest first; `starts` counts how often it was started.

        Another process may be running one of them right now: a loop looks for its own id.
        """
        open_starts: dict[str, dict[str, Any]] = {}
        for entry in self._entries():
            if entry.kind == "start":
                name = entry.facts["trial_id"]
                starts = open_starts[name]["starts"] if name in open_starts else 0
                open_starts[name] = {**entry.facts, "starts": starts + 1}
            elif entry.trial is not None:
                open_starts.pop(entry.trial.trial_id, None)
        return list(open_starts.values())

    def _entries(self) -> list[Any]:
        self._require_open()
        with self._reader(self.journal_path) as log:
            return list(log.entries())

    def _reader(self, path: str) -> Log:
        return Log(path, calls=self._calls, trouble=StoreError)

    def _read_trials(self) -> list[Trial]:
        return [entry.trial for entry in self._entries() if entry.trial is not None]


def _corpus_line(trial: Trial) -> bytes:
    return json_line(corpus_entry(trial))


def _path(given: str | os.PathLike[str], name: str) -> str:
    try:
        path = os.fspath(given)
    except TypeError:
        path = None
    if not isinstance(path, str) or not path or "\0" in path or os.path.isdir(path):
        raise InputError(f"{name}: expected the path of a file, got {show(given)}")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise InputError(f"{name}: expected a file in a directory that exists, got {show(given)}")
    return path
