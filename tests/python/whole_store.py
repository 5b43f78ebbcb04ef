"""What must hold of the three logs after anything at all: asked in one place, by every test of the store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amk.records import RecordStore, Trial, read_corpus, read_trials
from amk.records.lines import CORPUS_HEADER, JOURNAL_HEADER, TSV_HEADER, row_line
from some_trials import LOOP, failed_trial, make_trial


def paths(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "results.tsv", folder / "corpus.jsonl", folder / "results.journal.jsonl"


def open_store(folder: Path, **keywords: Any) -> RecordStore:
    return RecordStore(folder / "results.tsv", folder / "corpus.jsonl", **keywords)


def start(store: RecordStore, trial: Trial) -> None:
    store.start(trial.trial_id, trial.loop, trial.experiment, trial.schedule_id, trial.schedule_config)


def check_whole(folder: Path, expected: Iterable[Trial], maybe: Iterable[Trial] = ()) -> list[Trial]:
    """Opened again, the logs hold the expected trials exactly, perhaps some of the others, each once and whole; and one
    header each. Returns the trials, in the order of the journal."""
    results, corpus, journal = paths(folder)
    with open_store(folder) as store:
        found = store.trials()
    known, kept = {trial.trial_id: trial for trial in [*expected, *maybe]}, [t for t in found if t.tag == "kept"]
    assert len({trial.trial_id for trial in found}) == len(found)
    assert all(trial == known[trial.trial_id] for trial in found)
    assert {trial.trial_id for trial in expected} <= {trial.trial_id for trial in found}
    assert read_trials(results) == found
    assert {trial.trial_id: trial for trial in read_corpus(corpus)} == {trial.trial_id: trial for trial in kept}
    for path, header, count in ((results, TSV_HEADER, len(found)), (corpus, CORPUS_HEADER, len(kept))):
        lines = path.read_bytes().splitlines(keepends=True)
        assert len(lines) == count + 1 and lines[0] == header and header not in lines[1:]
    assert sorted(results.read_bytes().splitlines(keepends=True)[1:]) == sorted(map(row_line, found))
    assert journal.read_bytes().startswith(JOURNAL_HEADER) and journal.read_bytes().count(JOURNAL_HEADER) == 1
    return found


@contextmanager
def folders() -> Iterator[Iterator[Path]]:
    """Fresh folders without end, in memory where there is such a place: thousands of fsyncs take minutes on a disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

    def one_after_the_other() -> Iterator[Path]:
        number = 0
        while True:
            folder = Path(root) / str(number)
            folder.mkdir()
            yield folder
            number += 1

    with tempfile.TemporaryDirectory(prefix="amk-", dir=memory) as root:
        yield one_after_the_other()


__all__ = ["LOOP", "check_whole", "failed_trial", "folders", "make_trial", "open_store", "paths", "start"]
