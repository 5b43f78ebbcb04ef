"""How a loop begins: anew, or where an earlier one was cut off.

In: the record, a plan. Out: a `Beginning`: the loop's id, its state so far, and what has to be done first. Nothing is
taken from a log on trust: an incumbent that it names is judged again before anything is compared with it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ..config import ScheduleConfig
from ..errors import DeviceError, InputError, Rejected
from ..records import RecordStore, Trial, read_corpus
from .campaign import Campaign, blocked_ids
from .prior import order_prior
from .sampler import BuiltinSampler, Sampler, Space

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["Beginning", "begin", "make_sampler", "verify_incumbent"]

SAME_WITHIN = 1.25  # a measurement repeated another day, on another clock, may differ by this factor


@dataclass
class Beginning:
    loop: str
    campaign: Campaign
    n_explored: int
    prior: list[ScheduleConfig]
    first: ScheduleConfig | None = None  # to be evaluated before anything else
    n_first: int = 0  # whether there was such a one, done or not
    interrupted: list[Trial] = field(default_factory=list)  # to be recorded as ended
    trials: list[Trial] = field(default_factory=list)  # of the log, for the sampler


def begin(store: RecordStore, plan: Plan, *, resume: bool, say: Callable[[str], None]) -> Beginning:
    """Begins a loop in the record, or finds the one to go on with."""
    every = store.trials()
    blocked = blocked_ids(t for t in every if (t.gpu, t.model, t.kernel_id) == _who(plan))
    earlier = _latest(store, plan) if resume else None
    first = None
    if earlier is not None:
        mine = [trial for trial in every if trial.loop == earlier["loop"]]
        if earlier.get("conditions") == plan.conditions:
            return _continue(store, plan, earlier, mine, blocked, say)
        campaign = Campaign()
        for trial in mine:
            campaign.end(trial)
        first = campaign.incumbent_config
        say(f"loop {earlier['loop']} had other conditions: a new loop evaluates its incumbent again first")
    elif resume:
        say("no loop of this model, gpu, seed and options in the journal: a new one begins")
    prior = [] if plan.cold or store.corpus_path is None else order_prior(
        read_corpus(store.corpus_path), plan.shape, plan.regime, plan.target
    )  # fmt: skip
    loop = os.urandom(6).hex()
    facts = {
        "identity": plan.identity,
        "conditions": plan.conditions,
        "budget": plan.budget,
        "n_explored": plan.n_explored,
        "prior": [config.to_dict() for config in prior],
        "first": None if first is None else first.to_dict(),
        "engine": plan.engine,
        "workers": plan.workers,
        "time_utc": _now(),
    }
    store.begin_loop(loop, facts)
    return Beginning(loop, Campaign(blocked), plan.n_explored, prior, first, int(first is not None))


def make_sampler(plan: Plan, beginning: Beginning) -> Sampler:
    """The sampler of a loop, as it was when its last trial ended."""
    from ..propose import search_space

    space = Space(search_space(plan.target))
    if plan.sampler == "optuna":
        from .optuna_sampler import OptunaSampler

        sampler: Sampler = OptunaSampler(space, beginning.n_explored, plan.seed, beginning.prior)
    else:
        sampler = BuiltinSampler(space, beginning.n_explored, plan.seed, beginning.prior)
    for trial in beginning.trials:
        sampler.tell(trial)
    return sampler


def verify_incumbent(plan: Plan, incumbent: Trial, judge: Callable[[ScheduleConfig], Any]) -> None:
    """InputError unless the log's incumbent still is what the log says: a prediction to the last bit, a measurement
    within what clocks explain. So a row that somebody wrote by hand does not steer a loop."""
    config = ScheduleConfig.from_dict(incumbent.schedule_config, strict=True)[0]
    if config.schedule_id != incumbent.schedule_id:
        raise InputError(f"trial {incumbent.trial_id}: the log's schedule is not the one that its id names")
    judged = judge(config)
    if judged.correctness == "CRASH":
        raise DeviceError(f"trial {incumbent.trial_id}: its schedule could not be judged again: {judged.reason}")
    now, then = judged.latency_us, incumbent.latency_us
    same = now is not None and then is not None
    if same:
        factor = SAME_WITHIN if plan.on_gpu else 1.0
        same = abs(math.log(now / then)) <= math.log(factor)
    if not same:
        found = judged.correctness if now is None else f"{now:.6g} us"
        raise InputError(
            f"trial {incumbent.trial_id}: the log says {then} us, but its schedule {incumbent.schedule_id} now gives "
            f"{found}: the log was edited, or the model or machine has changed; start without resume"
        )


def _who(plan: Plan) -> tuple[str, str, str]:
    return plan.target.name, plan.model_name, plan.kernel_id


def _latest(store: RecordStore, plan: Plan) -> dict[str, Any] | None:
    """The newest loop that searched the same, whatever it measured with."""
    return next((found for found in reversed(store.loops()) if found.get("identity") == plan.identity), None)


def _continue(
    store: RecordStore,
    plan: Plan,
    facts: Mapping[str, Any],
    trials: list[Trial],
    blocked: set[str],
    say: Callable[[str], None],
) -> Beginning:
    loop = facts["loop"]
    try:
        n_explored = int(facts["n_explored"])
        prior = [ScheduleConfig.from_dict(table, strict=True)[0] for table in facts["prior"]]
        first = None if facts["first"] is None else ScheduleConfig.from_dict(facts["first"], strict=True)[0]
    except (KeyError, TypeError, ValueError, Rejected) as error:
        raise InputError(f"loop {loop}: its record in the journal is damaged: {error}") from error
    begun = sorted(
        [(trial.experiment, trial.schedule_id, trial) for trial in trials]
        + [
            (found["experiment"], found["schedule_id"], found) for found in store.interrupted() if found["loop"] == loop
        ],
        key=lambda entry: entry[0],
    )
    if [entry[0] for entry in begun] != list(range(len(begun))):
        raise InputError(f"loop {loop}: the journal lacks some of its trials; start without resume")
    campaign = Campaign(blocked)
    cut: list[Trial] = []
    for _, schedule_id, entry in begun:
        campaign.begin(schedule_id)
        if isinstance(entry, Trial):
            campaign.end(entry)
        else:
            cut.append(_cut_off(entry, plan))
    say(f"continuing loop {loop} after {len(begun)} trials, {len(cut)} of them cut off")
    left = None if begun else first
    return Beginning(loop, campaign, n_explored, prior, left, int(first is not None), cut, trials)


def _cut_off(found: Mapping[str, Any], plan: Plan) -> Trial:
    """The end of a trial whose loop ended while it ran."""
    why = "the loop ended while it ran"
    return Trial(
        trial_id=found["trial_id"],
        loop=found["loop"],
        experiment=found["experiment"],
        tag="crash",
        model=plan.model_name,
        gpu=plan.target.name,
        regime=plan.regime,
        correctness="CRASH",
        latency_us=None,
        pct_of_roofline=None,
        schedule_id=found["schedule_id"],
        kernel_id=plan.kernel_id,
        description=f"interrupted: crash, {why}",
        schedule_config=found["schedule_config"],
        verdict={},
        comparison={"interrupted": why},
        shape=plan.shape,
        time_utc=_now(),
        duration_s=0.0,
    )


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
