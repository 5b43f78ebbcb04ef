"""The state of one loop: which configs were seen, which is the incumbent, and what becomes of the next trial.

In: finished trials, in order, whether they come from a log or from a worker just now. Out: the incumbent, the ids not
to propose again, the configs to try once more. Pure: the same trials give the same state, which is what resuming rests
on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..config import ScheduleConfig
from ..errors import InputError, InternalError, show
from ..verdict import Verdict

if TYPE_CHECKING:
    from ..records import Trial

__all__ = ["MAX_INTERRUPTIONS", "Campaign", "verdict_of"]

_NUMBERS = (
    *("max_abs_err", "rel_err", "err_limit", "top1_agreement", "latency_us", "latency_p10_us", "latency_p90_us"),
    *("latency_per_token_us", "bound_us", "pct_of_roofline", "latency_position", "max_seq", "batch"),
)
MAX_INTERRUPTIONS = 2  # of one config: then it is not tried again


class Campaign:
    def __init__(self, blocked: Iterable[str] = ()) -> None:
        self.incumbent: Trial | None = None
        self.slack = 0.0
        self.n_trials = 0
        self.n_proposed = 0  # without the repeats of interrupted ones
        self.seen: set[str] = set(blocked)
        self._proposed: set[str] = set()
        self._interrupted: Counter[str] = Counter()
        self._retry: dict[str, Mapping[str, Any]] = {}

    def begin(self, schedule_id: str) -> None:
        """A trial of this config is about to run."""
        self.n_trials += 1
        self.seen.add(schedule_id)
        if schedule_id not in self._proposed:
            self._proposed.add(schedule_id)
            self.n_proposed += 1
        self._retry.pop(schedule_id, None)

    def end(self, trial: Trial) -> None:
        """It is over. Trials end in the order in which they began."""
        if trial.tag == "kept":
            self.incumbent = trial
            self.slack = float(trial.comparison.get("slack", 0.0))
        elif trial.comparison.get("interrupted"):
            self._interrupted[trial.schedule_id] += 1
            if self._interrupted[trial.schedule_id] < MAX_INTERRUPTIONS:
                self._retry[trial.schedule_id] = trial.schedule_config

    def next_retry(self) -> ScheduleConfig | None:
        """A config whose trial was interrupted, to be tried once more."""
        for table in self._retry.values():
            return ScheduleConfig.from_dict(table, strict=True)[0]
        return None

    @property
    def incumbent_config(self) -> ScheduleConfig | None:
        if self.incumbent is None:
            return None
        return ScheduleConfig.from_dict(self.incumbent.schedule_config, strict=True)[0]


def blocked_ids(trials: Iterable[Trial]) -> set[str]:
    """Ids of configs that were interrupted so often that they are not proposed again."""
    count = Counter(trial.schedule_id for trial in trials if trial.comparison.get("interrupted"))
    return {name for name, times in count.items() if times >= MAX_INTERRUPTIONS}


def verdict_of(fields: Any) -> Verdict:
    """The verdict that plain data claims to be, held to the rules of honesty; InputError where it breaks one."""
    if not isinstance(fields, Mapping):
        raise InputError(f"verdict: expected an object, got {show(fields)}")
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    for name in _NUMBERS:
        if type(known.get(name)) not in (float, int, type(None)):
            raise InputError(f"verdict: {name}: expected a number or none, got {show(known[name])}")
    for name in ("schedule_config", "provenance"):
        if not isinstance(known.get(name, {}), Mapping):
            raise InputError(f"verdict: {name}: expected an object, got {show(known[name])}")
    try:
        verdict = Verdict(**known)
    except (InternalError, TypeError, ValueError) as error:
        raise InputError(f"verdict: {error}") from error
    if verdict.latency_us is not None:
        share = 100.0 * verdict.bound_us / verdict.latency_us  # type: ignore[operator]
        if not math.isclose(verdict.pct_of_roofline, share, rel_tol=1e-9):  # type: ignore[arg-type]
            raise InputError(f"verdict: {verdict.pct_of_roofline} % of the roofline, expected {share}")
    return verdict
