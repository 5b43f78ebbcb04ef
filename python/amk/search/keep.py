"""What is kept: the rule, as arithmetic on numbers that others made.

In: how much faster a candidate is than the incumbent (as it was found out), and how complex both are. Out: a decision
and its reason. Correctness is not weighed here: only a correct candidate with a latency gets this far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import ScheduleConfig

__all__ = ["GAIN", "TAG_MEANINGS", "Decision", "Gain", "complexity", "decide", "predicted_gain"]

GAIN = 0.01  # a faster candidate is faster by this part at least; below it, two are equally fast

TAG_MEANINGS: Mapping[str, str] = {
    "kept": "judged correct, with a latency, and it became the incumbent: the first one, or it beat the one before",
    "tried": "judged, of its own making (default, prior, random, a sampler's, a repeat), and did not become the "
    "incumbent: incorrect, without a latency that counts, or not better",
    "revert": "judged, the incumbent with one knob changed, and did not become the incumbent: the change is undone",
    "rejected": "refused before it ran: the schedule is not legal, or not for this device; no correctness claim",
    "crash": "no judgement: the trial faulted, hung past its deadline, was killed, or its loop ended while it ran",
}


@dataclass(frozen=True)
class Gain:
    """How much faster, as a part of the incumbent's time: 0.1 is 10 % faster, negative is slower. `low` is the lower
    95 % bound; of a prediction both are the same, exact number."""

    estimate: float
    low: float
    is_exact: bool


@dataclass(frozen=True)
class Decision:
    keep: bool
    reason: str
    slack: float  # how much slower than the fastest incumbent so far the new incumbent may be, after simplifications


def complexity(config: ScheduleConfig) -> int:
    """Number of fusion groups + pipelining depth + 1 each for: more shared memory than the default, a page policy
    that is not the default, an explicit SM map."""
    from ..config import ScheduleConfig

    default = ScheduleConfig.default()
    return (
        len(config.fusion_grouping)
        + config.pipelining_depth
        + (config.smem_bytes_per_block > default.smem_bytes_per_block)
        + (config.page_allocation != default.page_allocation)
        + (not isinstance(config.sm_assignment, str))
    )


def predicted_gain(candidate_us: float, incumbent_us: float) -> Gain:
    """Of two predictions at the same position, compared exactly."""
    gain = 1.0 - candidate_us / incumbent_us
    return Gain(gain, gain, True)


def decide(gain: Gain, candidate: int, incumbent: int, slack: float = 0.0) -> Decision:
    """At least 1 % faster wins; within 1 %, the simpler one does (`candidate` and `incumbent` are complexities).
    Simplifications in a row may not cost more than 1 % together: `slack` is what they have cost already."""
    enough = gain.low >= GAIN if gain.is_exact else gain.low > GAIN
    after = max(0.0, slack - gain.estimate)
    said = _percent(gain)
    if enough:
        return Decision(True, f"{said} faster", after)
    if candidate < incumbent and max(slack, 0.0) - gain.low < GAIN:
        return Decision(True, f"simpler ({candidate} against {incumbent}) and within 1 % ({said})", after)
    if gain.estimate >= GAIN:
        return Decision(False, f"{said} faster, which is not sure to be 1 %", slack)
    if abs(gain.estimate) < GAIN:
        why = "no simpler" if candidate >= incumbent else "not sure to be within 1 % of the fastest"
        return Decision(False, f"within 1 % ({said}) and {why}", slack)
    return Decision(False, f"{_percent(gain, -1)} slower", slack)


def _percent(gain: Gain, sign: int = 1) -> str:
    text = f"{100 * sign * gain.estimate:.2f} %"
    return text if gain.is_exact else f"{text} (95 % bound {100 * gain.low:.2f} %)"
