"""One loop, from its first trial to its result.

In: a `Plan`, where to record, whom to tell. Out: a `LoopResult`. Each trial is started in the record, judged in a
worker, compared with the incumbent, and ended in the record, in this order; trials that run side by side are decided in
the order in which they began, so that the clock has no say in what is proposed. Whatever ends the loop, the trials that
were running get an end in the record too.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ..errors import AmkError, BuildMismatch, DeviceError, InputError, StoreError, UnsupportedModel
from ..exam import draw
from ..gpu_lock import gpu_lock, name_lock
from ..records import RecordStore, Trial
from .campaign import verdict_of
from .executor import Executor, Job, open_executor
from .interrupts import unbroken
from .keep import Decision, Gain, complexity, decide, predicted_gain
from .pairs import paired_gain
from .result import LoopInterrupted, LoopResult
from .resume import Beginning, begin, make_sampler, verify_incumbent
from .sampler import Proposal, Sampler

if TYPE_CHECKING:
    from ..config import ScheduleConfig
    from .plan import Plan

__all__ = ["run_loop"]

# Tests put others in their place.
_JUDGE, _COMPARE, _PROBE = "amk.search.jobs:judge", "amk.search.jobs:compare", "amk.search.jobs:probe"
PROBE_TIMEOUT_S = 60.0
MAX_LOSSES = 3  # of the device, in a row
LOSS_PAUSE_S = 2.0  # a device that is being reset may come back
CLEARLY_SLOWER = 1.25  # a candidate whose fast steps are slower than this times the incumbent's slow ones is not paired

Tell = Callable[[str], None]


@dataclass(frozen=True)
class _Running:
    trial_id: str
    experiment: int
    proposal: Proposal
    ticket: int
    began: float


@dataclass(frozen=True)
class _Judged:
    """What became of a trial, before it is compared with anything."""

    correctness: str
    verdict: dict[str, Any]
    latency_us: float | None
    pct_of_roofline: float | None
    reason: str


def run_loop(
    plan: Plan,
    results_path: str | os.PathLike[str],
    corpus_path: str | os.PathLike[str] | None,
    *,
    resume: bool,
    on_trial: Callable[[Trial], None],
    say: Tell,
    say_more: Tell,
) -> LoopResult:
    """See `amk.loop`. LoopInterrupted, with the result, on Ctrl-C."""
    with contextlib.ExitStack() as stack:
        executor = open_executor(plan.engine, plan.workers, gpus=plan.on_gpu)
        stack.callback(executor.close)
        store = stack.enter_context(RecordStore(results_path, corpus_path))
        store.check_writable()
        if plan.on_gpu and plan.engine != "ray":
            found = executor.wait(executor.submit(_probe_job(plan), say_more))
            stack.enter_context(gpu_lock(str(found["uuid"])))
        beginning = begin(store, plan, resume=resume, say=say)
        busy = f"loop {beginning.loop}: it is being run"
        stack.enter_context(name_lock(f"loop-{beginning.loop}", busy))
        run = _Run(plan, store, executor, beginning, on_trial, say, say_more)
        try:
            stopped = run.run()
        except KeyboardInterrupt:
            run.end_running("Ctrl-C")
            raise LoopInterrupted(run.result("interrupted")) from None
        except BaseException as error:
            run.end_running(f"the loop ended: {type(error).__name__}", tell=False)  # it may have been told already
            raise
        return run.result(stopped)


class _Run:
    def __init__(
        self,
        plan: Plan,
        store: RecordStore,
        executor: Executor,
        beginning: Beginning,
        on_trial: Callable[[Trial], None],
        say: Tell,
        say_more: Tell,
    ) -> None:
        self._plan, self._store, self._executor = plan, store, executor
        self._loop, self._campaign = beginning.loop, beginning.campaign
        self._first: ScheduleConfig | None = beginning.first
        self._beginning = beginning
        self._sampler: Sampler = make_sampler(plan, beginning)
        self._on_trial, self._say, self._say_more = on_trial, say, say_more
        self._running: deque[_Running] = deque()
        self._losses: dict[int, int] = {}  # of the device, in a row, by worker

    def run(self) -> str | None:
        """None when the budget is spent, else why not."""
        for trial in self._beginning.interrupted:
            self._record(trial)
            self._sampler.tell(trial)
            self._on_trial(trial)
        if self._campaign.incumbent is not None:
            verify_incumbent(self._plan, self._campaign.incumbent, self._judge)
        exhausted = False
        while True:
            while not exhausted and len(self._running) < self._executor.workers:
                if self._campaign.n_trials >= self._plan.budget:
                    break
                exhausted = not self._start_next()
            if not self._running:
                return "the search space holds nothing new" if exhausted else None
            self._finish_oldest()
            for worker, losses in self._losses.items():
                if losses >= MAX_LOSSES:
                    self.end_running("the device was lost")
                    of = f" of worker {worker}" if self._plan.engine == "ray" else ""
                    return f"the device was lost {MAX_LOSSES} times in a row: {self._plan.device}{of} does not answer"

    def result(self, stopped: str | None) -> LoopResult:
        return LoopResult(
            loop=self._loop,
            model=self._plan.model_name,
            gpu=self._plan.target.name,
            regime=self._plan.regime,
            best=self._campaign.incumbent,
            trials=tuple(sorted(self._store.trials(self._loop), key=lambda trial: trial.experiment)),
            stopped=stopped,
            results_path=os.fspath(self._store.results_path),
        )

    def end_running(self, why: str, *, tell: bool = True) -> None:
        """An end in the record for each trial that has none. A record that cannot be written stays as it is: its start
        is there, and resuming will end it."""
        with contextlib.suppress(StoreError):
            while self._running:
                running = self._running.popleft()
                trial = self._trial(running, _crashed(f"interrupted: {why}"), "crash", {"interrupted": why})
                self._record(trial)
                if tell:
                    self._on_trial(trial)

    # ---- one trial ----

    def _start_next(self) -> bool:
        """False when there is nothing left to propose."""
        proposal = self._propose()
        if proposal is None:
            return False
        config, experiment = proposal.config, self._campaign.n_trials
        trial_id = f"{self._loop}-{experiment:06d}"
        self._store.check_writable()
        with unbroken():
            self._store.start(trial_id, self._loop, experiment, config.schedule_id, config.to_dict())
            self._campaign.begin(config.schedule_id)
            self._running.append(_Running(trial_id, experiment, proposal, 0, time.monotonic()))
        self._say_more(f"trial {experiment + 1} of {self._plan.budget}: {proposal.text}")
        ticket = self._executor.submit(self._judging(config), self._say_more)
        self._running[-1] = _Running(trial_id, experiment, proposal, ticket, self._running[-1].began)
        return True

    def _propose(self) -> Proposal | None:
        if self._first is not None:
            first, self._first = self._first, None
            return Proposal(first, "incumbent", "the incumbent of an earlier loop, evaluated again")
        retry = self._campaign.next_retry()
        if retry is not None:
            return Proposal(retry, "retry", "a config whose trial was interrupted, once more")
        index = self._campaign.n_proposed - self._beginning.n_first
        return self._sampler.propose(max(index, 0), self._campaign.incumbent_config, self._campaign.seen)

    def _finish_oldest(self) -> None:
        running = self._running[0]
        judged = self._wait(running.ticket, running.proposal.config)
        facts: dict[str, Any] = {}
        decision: Decision | None = None
        if judged.latency_us is not None:
            decision, facts, judged = self._compare(running, judged)
        tag = {"CRASH": "crash", "REJECTED": "rejected"}.get(judged.correctness)
        if tag is None and decision is not None and decision.keep:
            tag = "kept"
            facts["slack"] = decision.slack
        if tag is None:
            tag = "revert" if running.proposal.origin == "mutation" else "tried"
        reason = judged.reason if decision is None else decision.reason
        trial = self._trial(running, judged, tag, facts, reason)
        with unbroken():
            self._record(trial)
            self._running.popleft()
        self._sampler.tell(trial)
        self._on_trial(trial)
        if self._plan.on_gpu:
            self._check_health(running.ticket)

    def _record(self, trial: Trial) -> None:
        with unbroken():
            self._store.end(trial)
            self._campaign.end(trial)

    def _trial(
        self, running: _Running, judged: _Judged, tag: str, comparison: dict[str, Any], reason: str | None = None
    ) -> Trial:
        said = {"kept": "kept", "crash": "crash", "rejected": "rejected"}.get(tag, "not kept")
        config = running.proposal.config
        return Trial(
            trial_id=running.trial_id,
            loop=self._loop,
            experiment=running.experiment,
            tag=tag,
            model=self._plan.model_name,
            gpu=self._plan.target.name,
            regime=self._plan.regime,
            correctness=judged.correctness,
            latency_us=judged.latency_us,
            pct_of_roofline=judged.pct_of_roofline,
            schedule_id=config.schedule_id,
            kernel_id=self._plan.kernel_id,
            description=f"{running.proposal.text}: {said}, {reason or judged.reason}"[:1000],
            schedule_config=config.to_dict(),
            verdict=judged.verdict,
            comparison=comparison,
            shape=self._plan.shape,
            time_utc=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            duration_s=time.monotonic() - running.began,
        )

    # ---- judging ----

    def _judging(self, config: ScheduleConfig) -> Job:
        return Job(_JUDGE, self._plan.judging(config), self._plan.timeout_s)

    def _judge(self, config: ScheduleConfig) -> _Judged:
        return self._wait(self._executor.submit(self._judging(config), self._say_more), config)

    def _wait(self, ticket: int, config: ScheduleConfig) -> _Judged:
        """The judgement. What would befall every trial alike is raised; anything else is this trial's crash."""
        try:
            answer = self._executor.wait(ticket)
        except (InputError, BuildMismatch, UnsupportedModel, StoreError):
            raise
        except AmkError as error:
            return _crashed(f"{error.code}: {error}")
        try:
            verdict = verdict_of(answer["verdict"])
        except (InputError, TypeError, KeyError) as error:
            return _crashed(f"the worker gave what is no verdict: {error}")
        plan = self._plan
        asked = (plan.model_name, plan.target.name, plan.device, config.schedule_id, config.to_dict(), plan.seed)
        told = (verdict.model, verdict.gpu, verdict.device, verdict.schedule_id, verdict.schedule_config, verdict.seed)
        if asked != told and not (not verdict.valid and told[:3] == asked[:3]):
            return _crashed("the worker judged something else than it was asked")
        facts = verdict.to_dict()
        if not verdict.valid:
            return _Judged("REJECTED", facts, None, None, str(verdict.rejected_reason))
        if verdict.provenance.get("library_build_id") != plan.kernel_id:
            raise BuildMismatch("the worker runs another build of the library than this process")
        if verdict.correct is not True:
            fault = verdict.provenance.get("device_fault")
            if fault:
                return _crashed(str(fault))
            return _Judged("FAIL", facts, None, None, "; ".join(verdict.notes[:2]) or "incorrect")
        if verdict.latency_us is None or verdict.latency_kind != plan.regime:
            held = [note for note in verdict.notes if "withheld" in note]
            return _Judged("PASS", facts, None, None, held[0] if held else "correct, but without a latency that counts")
        if verdict.latency_position != plan.position or verdict.max_seq != plan.max_seq:
            return _crashed("the worker timed another position than it was asked")
        return _Judged("PASS", facts, verdict.latency_us, verdict.pct_of_roofline, "")

    # ---- comparing ----

    def _compare(self, running: _Running, judged: _Judged) -> tuple[Decision | None, dict[str, Any], _Judged]:
        """Whether the candidate becomes the incumbent, on what grounds, and the judgement as it stands after that."""
        incumbent, campaign = self._campaign.incumbent, self._campaign
        if incumbent is None or incumbent.latency_us is None:
            return Decision(True, "the first correct one", 0.0), {}, judged
        assert judged.latency_us is not None and campaign.incumbent_config is not None
        sizes = complexity(running.proposal.config), complexity(campaign.incumbent_config)
        facts: dict[str, Any] = {"incumbent": incumbent.trial_id, "complexity": list(sizes), "kind": self._plan.regime}
        if not self._plan.on_gpu:
            gain = predicted_gain(judged.latency_us, incumbent.latency_us)
            facts |= {"gain": gain.estimate, "gain_low": gain.low}
            return decide(gain, *sizes, campaign.slack), facts, judged
        fast, slow = judged.verdict["latency_p10_us"], incumbent.verdict["latency_p90_us"]
        if fast > CLEARLY_SLOWER * slow:
            return (
                Decision(False, f"its fast steps take {fast:.1f} us, the incumbent's slow ones {slow:.1f}", 0.0),
                facts,
                judged,
            )
        rounds: list[dict[str, Any]] = []
        facts["rounds"] = rounds
        decision = Decision(False, "", campaign.slack)
        for attempt in ("compared", "confirmed"):
            seed = draw(self._plan.seed, f"pair {running.trial_id} {attempt}", 0, 1 << 63)
            gain, found = self._pair(campaign.incumbent_config, running.proposal.config, seed)
            rounds.append(found)
            if found.get("device_fault"):
                return None, facts, _crashed(str(found["device_fault"]))
            if "candidate" in found.get("wrong", ()):
                return None, facts, _Judged("FAIL", judged.verdict, None, None, str(gain))
            if isinstance(gain, str):
                return Decision(False, f"not {attempt}: {gain}", campaign.slack), facts, judged
            before, decision = decision, decide(gain, *sizes, campaign.slack)
            if not decision.keep:
                why = f"{before.reason} at first, but in a fresh process " if before.keep else ""
                return Decision(False, why + decision.reason, campaign.slack), facts, judged
        return decision, facts, judged

    def _pair(
        self, incumbent: ScheduleConfig, candidate: ScheduleConfig, seed: int
    ) -> tuple[Gain | str, dict[str, Any]]:
        """One paired comparison, in a process of its own."""
        asked = self._plan.asked(incumbent=incumbent.to_dict(), candidate=candidate.to_dict(), seed=seed)
        try:
            ticket = self._executor.submit(Job(_COMPARE, asked, 2 * self._plan.timeout_s), self._say_more)
            answer = dict(self._executor.wait(ticket))
        except BuildMismatch:
            raise
        except AmkError as error:
            found = {"trouble": str(error), "device_fault": f"{error.code}: {error}"}
            return str(error), found
        samples = answer.pop("us", None)
        trouble = answer.get("trouble")
        if trouble or samples is None:
            return str(trouble or "no samples"), answer
        gain = paired_gain(samples, seed)
        if isinstance(gain, Gain):
            answer |= {"gain": gain.estimate, "gain_low": gain.low, "pairs": len(samples)}
        return gain, answer

    # ---- the device ----

    def _check_health(self, ticket: int) -> None:
        """Between trials: is the device that this one ran on still there? Asked of the worker that ran it."""
        worker, error = self._executor.probe(ticket, _probe_job(self._plan))
        if error is None:
            self._losses[worker] = 0
            return
        if not isinstance(error, DeviceError):
            raise error
        of = f" of worker {worker}" if self._plan.engine == "ray" else ""
        self._say(f"the device{of} does not answer: {error}")
        self._losses[worker] = self._losses.get(worker, 0) + 1
        time.sleep(LOSS_PAUSE_S)


def _crashed(reason: str) -> _Judged:
    return _Judged("CRASH", {}, None, None, reason)


def _probe_job(plan: Plan) -> Job:
    return Job(_PROBE, {"index": int(plan.device.partition(":")[2] or 0)}, PROBE_TIMEOUT_S)
