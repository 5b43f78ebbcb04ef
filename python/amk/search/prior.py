"""What was good elsewhere: the corpus of kept points, ordered for a new model and GPU.

In: kept trials of any loops, and the shape of the new problem. Out: configs to try, those of the nearest shapes first.
It only orders proposals: nothing in a corpus is believed, and a config that it names is judged like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..config import ScheduleConfig
from ..errors import Rejected

if TYPE_CHECKING:
    from ..checkpoint import WeightSource
    from ..records import Trial
    from ..targets import GpuTarget

__all__ = ["MAX_PRIOR", "distance", "order_prior", "shape_of"]

MAX_PRIOR = 16
_MODEL_NUMBERS = ("layers", "hidden", "n_heads", "n_kv_heads", "head_dim", "ffn", "vocab")
_GPU_NUMBERS = ("sm_count", "hbm_gb_per_s", "l2_bytes")
_OTHER_DTYPE, _OTHER_REGIME = 2.0, 1.0


def shape_of(source: WeightSource, target: GpuTarget, max_seq: int) -> dict[str, Any]:
    """What is kept of a problem, so that a later one can find its relatives."""
    model = {name: getattr(source.config, name) for name in (*_MODEL_NUMBERS, "dtype")}
    return {**model, **{name: getattr(target, name) for name in _GPU_NUMBERS}, "max_seq": max_seq}


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Octaves between two shapes, summed over their numbers; another dtype counts as two. Infinite where a number is
    missing or is none."""
    total = 0.0 if one.get("dtype") == other.get("dtype") else _OTHER_DTYPE
    for name in (*_MODEL_NUMBERS, *_GPU_NUMBERS, "max_seq"):
        a, b = one.get(name), other.get(name)
        if not (_is_positive(a) and _is_positive(b)):
            return math.inf
        total += abs(math.log2(a / b))  # type: ignore[operator]
    return total


def order_prior(
    corpus: Iterable[Trial], shape: Mapping[str, Any], regime: str, target: GpuTarget
) -> list[ScheduleConfig]:
    """The last kept config of each loop, by distance of its shape, each config once; at most MAX_PRIOR of them. A
    config that is no legal schedule of this target is left out. Of equally near ones the later loop's comes first."""
    last: dict[str, tuple[int, Trial]] = {}
    for place, trial in enumerate(corpus):
        if trial.tag == "kept" and trial.correctness == "PASS":
            known = last.get(trial.loop)
            if known is None or trial.experiment >= known[1].experiment:
                last[trial.loop] = (place, trial)
    ranked = sorted(
        (
            (distance(trial.shape, shape) + _OTHER_REGIME * (trial.regime != regime), -place, trial)
            for place, trial in last.values()
        ),
        key=lambda entry: entry[:2],
    )
    found: dict[str, ScheduleConfig] = {}
    for far, _, trial in ranked:
        if far == math.inf or len(found) == MAX_PRIOR:
            break
        try:
            config = ScheduleConfig.from_dict(trial.schedule_config, strict=True)[0]
            config.check(target)
        except Rejected:
            continue
        if isinstance(config.sm_assignment, str):  # an explicit map belongs to the tiling of one model
            found.setdefault(config.schedule_id, config)
    return list(found.values())


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
