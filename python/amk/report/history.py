"""A log as a report needs it: its trials, how its loops were started, what is damaged and what is not verified.

In: the path of results.tsv or of a journal. Out: a `History`; nothing is repaired, nothing is left out in silence. The
journal holds everything and is believed; results.tsv is compared with it. A trial made by another build of the library
than the one that writes the report is shown, and said not to be verified.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..records import Trial
from ..records.entries import Entry
from ..records.read import Log, Tally, journal_beside, read_trials_tallied

__all__ = ["History", "read_history"]


@dataclass(frozen=True)
class History:
    path: str
    trials: tuple[Trial, ...]
    loops: tuple[Mapping[str, Any], ...] = ()  # {"loop": id, and what it was started with}
    damaged: tuple[str, ...] = ()  # sentences
    doubts: Mapping[str, str] = field(default_factory=dict)  # trial_id -> why it is not verified


def read_history(path: str, build_id: str) -> History:
    """InputError: no log at all. `build_id` is that of the library that reads it."""
    trials, tally = read_trials_tallied(path)
    doubts = {
        trial.trial_id: f"made by library build {trial.kernel_id[:12] or '(unknown)'}, this one is {build_id[:12]}"
        for trial in trials
        if trial.kernel_id != build_id
    }
    damaged = _skipped(tally, path)
    with Log(path) as log:
        is_results = log.kind == "results"
        rows = {row.trial_id: row for row in log.trials()} if is_results else {}
    journal = journal_beside(path) if is_results else path
    if not os.path.lexists(journal):
        damaged.append(f"the journal {journal} is missing: no row can be compared with it, and no schedule redone")
        doubts |= dict.fromkeys((trial.trial_id for trial in trials), "no record in a journal")
        return History(path, tuple(trials), (), tuple(damaged), doubts)
    with Log(journal) as log:
        entries = list(log.entries()) if log.kind == "journal" else []
    if unfinished := _unfinished(entries):
        damaged.append(f"{len(unfinished)} trials began and have no end, as {unfinished[0]}: cut off, or running now")
    if is_results:
        if missing := sum(trial.trial_id not in rows for trial in trials):
            damaged.append(f"{missing} trials of the journal are missing from {path}; they are shown")
        for trial in trials:
            if differs := _difference(trial, rows.get(trial.trial_id)):
                doubts[trial.trial_id] = f"{os.path.basename(path)} and the journal differ in {differs}"
    loops = tuple(entry.facts for entry in entries if entry.kind == "loop")
    return History(path, tuple(trials), loops, tuple(damaged), doubts)


def _skipped(tally: Tally, path: str) -> list[str]:
    told = {
        "damaged and left out": tally.bad_lines,
        "of a trial recorded before: the first stands": tally.duplicates,
        f"a row of {path} that the journal does not hold, and not shown": tally.unbacked,
    }
    out = [f"{count} {'line is' if count == 1 else 'lines are'} {what}" for what, count in told.items() if count]
    if tally.torn_bytes:
        out.append(f"the last record is torn: {tally.torn_bytes} bytes are left out")
    return out


def _unfinished(entries: Sequence[Entry]) -> list[str]:
    ended = {entry.trial.trial_id for entry in entries if entry.trial is not None}
    return sorted({entry.facts["trial_id"] for entry in entries if entry.kind == "start"} - ended)


_COMPARED = ("tag", "model", "gpu", "regime", "correctness", "latency_us", "schedule_id", "kernel_id", "description")


def _difference(trial: Trial, row: Trial | None) -> str:
    if row is None:
        return ""
    return ", ".join(name for name in _COMPARED if getattr(trial, name) != getattr(row, name))
