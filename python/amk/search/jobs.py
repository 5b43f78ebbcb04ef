"""What runs in a worker: one judgement, one comparison, one look at the device. Plain data in, plain data out.

In: arguments that JSON can hold, and `say`. Out: the same. The judge is `amk.evaluate`, unchanged and unhurried; only
the reference's answers are shared between trials, through its own cache, keyed by weights and questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["compare", "judge", "probe", "target_of"]

Say = Callable[[str], None]


def judge(arguments: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """The verdict on one schedule."""
    from ..evaluate import evaluate

    start = time.perf_counter()
    verdict = evaluate(
        arguments["model"],
        target_of(arguments["target"]),
        arguments["schedule_config"],
        arguments["device"],
        strict=True,
        max_seq=arguments["max_seq"],
        position=arguments["position"],
        seed=arguments["seed"],
        progress=say,
    )
    say(f"judged in {time.perf_counter() - start:.6f} s")
    return {"verdict": verdict.to_dict()}


def compare(arguments: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """The incumbent and a candidate, timed in interleaved pairs on one GPU; both are checked while they are timed."""
    from .pair_job import compare_pair

    return compare_pair(arguments, say)


def probe(arguments: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """What the device is, if it answers at all. Opens no context."""
    from ..megakernel import device_count, device_uuid
    from ..targets import query_device

    index = arguments["index"]
    say(f"asking device {index} whether it is there")
    device_count()
    return {"uuid": device_uuid(index), "name": query_device(index).name}


def target_of(fields: Mapping[str, Any]) -> Any:
    from ..targets import GpuTarget

    return GpuTarget(**fields)
