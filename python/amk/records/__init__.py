"""Records of trials that survive what happens to the process that writes them.

In: finished trials. Out: an append-only journal, results.tsv and corpus.jsonl, and readers that never invent a row.
"""

from __future__ import annotations

from .read import read_corpus, read_trials
from .store import RecordStore
from .trial import TAGS, Trial

__all__ = ["TAGS", "RecordStore", "Trial", "read_corpus", "read_trials"]
