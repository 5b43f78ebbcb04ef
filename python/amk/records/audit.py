"""What is damaged or missing in the logs, and results.tsv and the corpus made again from the journal.

In: the paths of the logs. Out: an `Audit`, which names every loss; or, by `rebuild`, new files in the place of the old
ones, each whole or not at all. The journal is never edited. What a rebuild would drop is kept beside the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import InputError
from .append_log import AppendLog
from .calls import FileCalls
from .entries import corpus_entry
from .lines import CORPUS_HEADER, JOURNAL_HEADER, TSV_HEADER, json_line, read_row, row_line
from .read import Log, Tally
from .trial import Trial

__all__ = ["Audit", "audit", "rebuild"]


@dataclass
class FileState:
    """One log, as it was found."""

    path: str
    present: bool = False
    readable: bool = False  # it begins with the header of its kind
    records: int = 0
    tally: Tally = field(default_factory=Tally)
    missing: int = 0  # the journal holds them, this file does not
    unbacked: int = 0  # this file holds them, the journal does not
    different: int = 0  # both hold them, and not the same
    torn_copies: list[str] = field(default_factory=list)  # tails of appends that did not finish, cut off and kept


@dataclass
class Audit:
    """`problems` are sentences; where there are none, everything that was acknowledged is in every log."""

    journal: FileState
    results: FileState
    corpus: FileState | None
    lost_records: int = 0  # holes in the numbering of a writer
    interrupted: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def audit(results_path: str, corpus_path: str | None, journal_path: str) -> Audit:
    """Reads all of it, and changes nothing. InputError where neither results nor journal is a log."""
    found = Audit(*(_look(journal_path), _look(results_path)), None if corpus_path is None else _look(corpus_path))
    if not (found.journal.present or found.results.present):
        raise InputError(f"{results_path}: expected a results file or, beside it, a journal; found neither")
    rows, row_error = _read(found.results, "results")
    kept, kept_error = _read(found.corpus, "corpus") if found.corpus is not None else ({}, None)
    trials = _read_journal(found)
    if row_error is not None and not trials:
        raise row_error
    if not found.results.present:
        found.problems.append(f"results: {results_path} is missing")
    for name, error in (("results", row_error), ("corpus", kept_error)):
        if error is not None:
            found.problems.append(f"{name}: {error}")
    if found.journal.readable:
        _compare(found.results, rows, trials)
        if found.corpus is not None:
            _compare_corpus(found.corpus, kept, trials)
    _name_problems(found)
    return found


def _look(path: str) -> FileState:
    folder, name = os.path.dirname(path) or ".", os.path.basename(path)
    try:
        beside = sorted(other for other in os.listdir(folder) if other.startswith(f"{name}.torn."))
    except OSError:
        beside = []
    return FileState(path, os.path.lexists(path), torn_copies=[os.path.join(folder, other) for other in beside])


def _read(state: FileState, kind: str) -> tuple[dict[str, Trial], InputError | None]:
    if not state.present:
        return {}, None
    try:
        with Log(state.path, kind=kind) as log:
            trials = {trial.trial_id: trial for trial in log.trials()}
    except InputError as error:
        return {}, error
    state.readable, state.records, state.tally = True, len(trials), log.tally
    return trials, None


def _read_journal(found: Audit) -> dict[str, Trial]:
    """The trials; what was started and not ended, and the holes in the numbering, go to the audit."""
    state = found.journal
    trials: dict[str, Trial] = {}
    if not state.present:
        found.problems.append(f"journal: {state.path} is missing")
        return trials
    numbers: dict[str, set[int]] = {}
    started: dict[str, None] = {}
    try:
        with Log(state.path, kind="journal") as log:
            for entry in log.entries(repeats=True):
                state.records += 1
                numbers.setdefault(entry.writer, set()).add(entry.seq)
                if entry.trial is not None:
                    trials.setdefault(entry.trial.trial_id, entry.trial)
                elif entry.kind == "start":
                    started[entry.facts["trial_id"]] = None
    except InputError as error:
        found.problems.append(f"journal: {error}")
        return trials
    state.readable, state.tally = True, log.tally
    found.interrupted = [name for name in started if name not in trials]
    found.lost_records = sum(max(seen) + 1 - len(seen) for seen in numbers.values())
    return trials


def _compare(state: FileState, rows: dict[str, Trial], trials: dict[str, Trial]) -> None:
    state.missing = sum(name not in rows for name in trials)
    state.unbacked = sum(name not in trials for name in rows)
    both = [(trials[name], row) for name, row in rows.items() if name in trials]
    state.different = sum(read_row(row_line(trial)[:-1]) != row for trial, row in both)


def _compare_corpus(state: FileState, kept: dict[str, Trial], trials: dict[str, Trial]) -> None:
    """Other results may feed the same corpus: what this journal does not hold is none of its business."""
    state.missing = sum(trial.in_corpus and name not in kept for name, trial in trials.items())
    state.different = sum(name in trials and trials[name] != trial for name, trial in kept.items())


def _name_problems(found: Audit) -> None:
    logs = (("journal", found.journal), ("results", found.results), ("corpus", found.corpus))
    for name, state in logs:
        if state is None:
            continue
        counts = (
            (state.tally.bad_lines, "damaged lines"),
            (state.tally.duplicates, "trials recorded twice"),
            (state.missing, "trials of the journal missing"),
            (state.unbacked, "rows that the journal does not hold"),
            (state.different, "rows that differ from the journal"),
        )
        found.problems += [f"{name}: {count} {what}" for count, what in counts if count]
    if found.lost_records:
        found.problems.append(f"journal: {found.lost_records} records lost, by the numbering of their writers")


# ---- rebuild ----


def rebuild(
    results_path: str, corpus_path: str | None, journal_path: str, *, single_writer: bool = False
) -> dict[str, Any]:
    """Replaces results.tsv, and the corpus if one is named, by what the journal holds, under the locks of all three.

    A corpus keeps the intact trials of other journals. Returns, per file, the rows written and, where the old file held
    something that the new one does not, the name under which it was kept. InputError: no journal, or something else
    than a regular file in the way; StoreError: locked, or the disk refused.
    """
    with Log(journal_path, kind="journal"):
        pass  # refused before anything is touched

    def log(path: str, header: bytes) -> AppendLog:
        return AppendLog(path, header, FileCalls(), single_writer=single_writer)

    done: dict[str, Any] = {}
    with log(journal_path, JOURNAL_HEADER).locked():
        with Log(journal_path, kind="journal") as journal:
            trials = {trial.trial_id: trial for trial in journal.trials()}
        results = log(results_path, TSV_HEADER)
        with results.locked():
            rows, error = _read(state := _look(results_path), "results")
            _compare(state, rows, trials)
            done["results"] = _replace(results, state, error, map(row_line, trials.values()), len(trials))
        if corpus_path is not None:
            corpus = log(corpus_path, CORPUS_HEADER)
            with corpus.locked():
                kept, error = _read(state := _look(corpus_path), "corpus")
                _compare_corpus(state, kept, trials)
                others = [trial for name, trial in kept.items() if name not in trials]
                new = [*others, *(trial for trial in trials.values() if trial.in_corpus)]
                lines = (json_line(corpus_entry(trial)) for trial in new)
                done["corpus"] = _replace(corpus, state, error, lines, len(new))
    return done


def _replace(
    log: AppendLog, state: FileState, error: InputError | None, lines: Iterable[bytes], count: int
) -> dict[str, Any]:
    drops = error is not None or bool(state.tally) or state.unbacked > 0 or state.different > 0
    kept = log.replace(lines, keep_old=state.present and drops)
    return {"path": log.path, "rows": count, "old_file_kept_as": kept}
