"""What a loop found, for those who asked.

In: the trials of its journal. Out: a frozen `LoopResult`, also as a plain dict and as text; and the exception that
brings one when somebody interrupted the loop. This module imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..records import Trial

__all__ = ["LoopInterrupted", "LoopResult"]


@dataclass(frozen=True)
class LoopResult:
    """What a loop found. `trials` are those that its journal holds; `stopped` says why it ended before its budget."""

    loop: str
    model: str
    gpu: str
    regime: str  # of every latency in it: "predicted" or "measured-gpu"
    best: Trial | None
    trials: tuple[Trial, ...]
    stopped: str | None
    results_path: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the best trial in full, of the others what a table needs."""
        names = ("experiment", "tag", "correctness", "latency_us", "pct_of_roofline", "schedule_id", "description")
        return {
            "loop": self.loop,
            "model": self.model,
            "gpu": self.gpu,
            "regime": self.regime,
            "best": None if self.best is None else self.best.to_dict(),
            "counts": self.counts,
            "trials": [{name: getattr(trial, name) for name in names} for trial in self.trials],
            "stopped": self.stopped,
            "results_path": self.results_path,
        }

    @property
    def counts(self) -> dict[str, int]:
        """Trials by tag."""
        from ..records import TAGS

        return {tag: sum(trial.tag == tag for trial in self.trials) for tag in TAGS}

    def to_text(self) -> str:
        counts = ", ".join(f"{number} {tag}" for tag, number in self.counts.items() if number)
        lines = [f"{self.model} on {self.gpu}: {len(self.trials)} trials ({counts or 'none'}), loop {self.loop}"]
        if self.best is None:
            lines.append("  best      none: no trial was correct and had a latency")
        else:
            kind = "predicted (cost model)" if self.regime == "predicted" else self.regime
            lines.append(f"  best      {self.best.latency_us:.4g} us, {kind}, schedule {self.best.schedule_id}")
            first = next((trial for trial in self.trials if trial.latency_us is not None), None)
            if first is not None and first.trial_id != self.best.trial_id:
                lines.append(f"  first     {first.latency_us:.4g} us, schedule {first.schedule_id}")
        if self.stopped is not None:
            lines.append(f"  stopped   {self.stopped}")
        lines.append(f"  record    {self.results_path}")
        return "\n".join(lines)


class LoopInterrupted(KeyboardInterrupt):
    """Ctrl-C, after the record was finished; `result` is what the loop had found."""

    def __init__(self, result: LoopResult) -> None:
        super().__init__(f"interrupted; the record is in {result.results_path}")
        self.result = result
