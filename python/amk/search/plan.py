"""What one loop is about, settled before it starts.

In: a model, a target and checked options. Out: a frozen `Plan`: what a trial is asked, and what identifies the loop, so
that a later one can tell whether it continues the same search.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import _lib
from ..gpu_trial import TOTAL_S
from .prior import shape_of

if TYPE_CHECKING:
    from ..checkpoint import WeightSource
    from ..config import ScheduleConfig
    from ..targets import GpuTarget

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    model: str  # as it is opened: a name, or an absolute path
    model_name: str
    target: GpuTarget
    device: str  # "cpu" or "cuda:N"
    budget: int
    seed: int
    explore_fraction: float
    cold: bool
    sampler: str
    engine: str
    workers: int
    max_seq: int
    position: int
    timeout_s: float
    kernel_id: str  # the library's build
    shape: Mapping[str, Any]

    @classmethod
    def make(
        cls,
        source: WeightSource,
        target: GpuTarget,
        *,
        model: str | os.PathLike[str],
        timeout_s: float | None,
        **options: Any,
    ) -> Plan:
        """Default deadline of a trial: what a GPU trial may take in all, and the time to read the weights slowly."""
        name = os.fsdecode(model)
        nbytes = sum(
            math.prod(entry.shape) * (4 if entry.dtype == "F32" else 2)
            for entry in map(source.tensor_entry, source.tensor_names())
        )
        return cls(
            model=name if getattr(source, "path", None) is None else os.path.abspath(name),
            model_name=source.name,
            target=target,
            timeout_s=TOTAL_S + nbytes / 5e6 if timeout_s is None else timeout_s,
            kernel_id=_lib.build_info().get("build_id", ""),
            shape=shape_of(source, target, options["max_seq"]),
            **options,
        )

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def regime(self) -> str:
        return "measured-gpu" if self.on_gpu else "predicted"

    @property
    def n_explored(self) -> int:
        return round((self.budget - 1) * self.explore_fraction)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a loop to be continued. The budget may grow; what latencies depend on besides is
        `conditions`."""
        target = {name: value for name, value in self.target.to_dict().items() if name != "source"}
        return {
            "model": self.model,
            "shape": dict(self.shape),
            "target": target,
            "seed": self.seed,
            "explore_fraction": self.explore_fraction,
            "cold": self.cold,
            "sampler": self.sampler,
            "max_seq": self.max_seq,
            "position": self.position,
        }

    @property
    def conditions(self) -> dict[str, Any]:
        """Where they differ, an incumbent of an earlier loop is evaluated again before anything is compared with it."""
        return {"regime": self.regime, "kernel_id": self.kernel_id}

    def asked(self, **more: Any) -> dict[str, Any]:
        """The arguments of a job."""
        return {
            "model": self.model,
            "target": self.target.to_dict(),
            "device": self.device,
            "max_seq": self.max_seq,
            "position": self.position,
            **more,
        }

    def judging(self, config: ScheduleConfig) -> dict[str, Any]:
        return self.asked(schedule_config=config.to_dict(), seed=self.seed)
