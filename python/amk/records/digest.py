"""Answers from trials: how a search went, what it found, and its table in other formats.

In: trials that were read. Out: plain dicts and text. Only what can be compared is compared: latencies of one model,
GPU, regime and context; a prediction never beside a measurement.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .lines import TSV_COLUMNS, cells
from .trial import TAGS, Trial

__all__ = ["FORMATS", "Group", "as_operand", "export", "group_trials", "loop_identity", "loop_model", "table"]

FORMATS = ("csv", "jsonl", "md")
_COLUMNS = TSV_COLUMNS[:-1]  # the CRC belongs to the log's own line


@dataclass
class Group:
    """The trials whose latencies can be compared."""

    model: str
    gpu: str
    regime: str
    max_seq: int | None
    position: int | None
    trials: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial | None:
        """The fastest of the loops' winners; a loop's winner is the trial that it kept last."""
        winners: dict[str, Trial] = {}
        for trial in self.trials:
            if trial.tag == "kept" and (trial.loop not in winners or winners[trial.loop].experiment < trial.experiment):
                winners[trial.loop] = trial
        return min(winners.values(), key=lambda trial: trial.latency_us or 0.0, default=None)

    def gain_pct(self, trial: Trial) -> float | None:
        """How much less time it takes than the default schedule, the first trial of its loop; None: not known."""
        first = next((one for one in self.trials if one.loop == trial.loop and one.experiment == 0), None)
        if first is None or first.latency_us is None or trial.latency_us is None:
            return None
        return 100.0 * (1.0 - trial.latency_us / first.latency_us)

    def head(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "gpu", "regime", "max_seq", "position")}

    def summary(self) -> dict[str, Any]:
        best = self.best
        return {
            **self.head(),
            "loops": len({trial.loop for trial in self.trials}),
            "trials": len(self.trials),
            "tags": {tag: sum(trial.tag == tag for trial in self.trials) for tag in TAGS},
            "best": None if best is None else best.trial_id,
            "best_schedule_id": None if best is None else best.schedule_id,
            "best_latency_us": None if best is None else best.latency_us,
            "pct_of_roofline": None if best is None else best.pct_of_roofline,
            "gain_pct": None if best is None else self.gain_pct(best),
        }


def group_trials(trials: Iterable[Trial]) -> list[Group]:
    """In order of first appearance. A trial without a latency belongs where its loop's other trials are."""
    trials = list(trials)
    contexts: dict[str, tuple[int | None, int | None]] = {}
    for trial in trials:
        if trial.latency_us is not None:
            contexts.setdefault(trial.loop, _context(trial))
    groups: dict[tuple[Any, ...], Group] = {}
    for trial in trials:
        context = _context(trial) if trial.latency_us is not None else contexts.get(trial.loop, _context(trial))
        key = (trial.model, trial.gpu, trial.regime, *context)
        groups.setdefault(key, Group(*key)).trials.append(trial)
    return list(groups.values())


def _context(trial: Trial) -> tuple[int | None, int | None]:
    found = [trial.verdict.get(name) for name in ("max_seq", "latency_position")]
    max_seq, position = (value if type(value) is int else None for value in found)
    return max_seq, position


# ---- text ----


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns; numbers to the right."""
    shown = [[_shown(value) for value in row] for row in (head, *rows)]
    kinds = [[isinstance(value, int | float) for value in row] for row in rows] if isinstance(rows, list) else []
    right = [bool(kinds) and any(column) for column in zip(*kinds, strict=True)] or [False] * len(head)
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        parts = [text.rjust(w) if r else text.ljust(w) for text, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def export(trials: Iterable[Trial], form: str) -> str:
    """The trials as csv (one line a row: texts keep the escapes of the log), jsonl (everything) or a Markdown table."""
    if form == "jsonl":
        return "".join(json.dumps(trial.to_dict(), separators=(",", ":"), allow_nan=False) + "\n" for trial in trials)
    rows = [list(cells(trial).values()) for trial in trials]
    if form == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([_COLUMNS, *rows])
        return out.getvalue()
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *([_markdown(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown(cell: str) -> str:
    """A cell that neither ends itself nor is read as HTML or as a link."""
    for char, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("[", "&#91;"), ("`", "&#96;")):
        cell = cell.replace(char, name)
    return cell


def loop_identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a loop must find again to continue, of its record in the journal; the rest of it may change."""
    identity = facts.get("identity")
    return dict(identity) if isinstance(identity, Mapping) else {}


def loop_model(facts: Mapping[str, Any]) -> str | None:
    """What a loop was given: a name, or the path of a checkpoint, which its trials only name."""
    model = (loop_identity(facts) | facts).get("model")
    return model if isinstance(model, str) else None


def as_operand(model: str) -> str:
    """A model that no parser takes for an option."""
    return f"./{model}" if model.startswith("-") else model
