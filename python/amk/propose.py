"""The search space of schedules, and the next point to try in it.

In: a model, a target, and perhaps the best schedule so far. Out: plain data that an agent can read and edit. Only live
knobs are listed: each value offered changes the emitted program, and a test proves it for every one of them.
The ring's knobs are offered as far as their values agree with each other; direct loads (cpasync = 0) are an ablation.
This module imports nothing heavy, so that `import amk` stays cheap; it never judges.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import Rejected
from .schema import load_schema

if TYPE_CHECKING:
    from .config import ScheduleConfig
    from .targets import GpuTarget

__all__ = ["config_schema", "propose", "search_space", "with_knob"]

_N_TILES = (0, 8, 16, 32, 64, 128, 256)
_KV_BLOCKS = (16, 32, 64, 128, 256)
_RING_DEPTHS = (2, 3, 4, 5, 6, 8)  # slots on their way: one stage of the ring has eight
_RING_STAGES = (0, 1, 2)  # slots per warp: all that fit, one, two


def search_space(target: str | GpuTarget) -> dict[str, list[Any]]:
    """Dotted path of each live knob -> the values offered for it on `target`, the default first."""
    from .config import FUSION_NAMES, PAGE_POLICIES, SM_POLICIES, ScheduleConfig
    from .targets import resolve_target

    target = resolve_target(target)
    default = ScheduleConfig.default()
    # attention+combine changes nothing by itself: it needs a block that holds every row.
    offered = [name for name in FUSION_NAMES if name != "attention+combine"]
    every = [name for name in offered if name != "gate+up"]  # gate+up+silu contains it
    groupings = [list(default.fusion_grouping), every, []]
    groupings += [[name for name in every if name != left_out] for left_out in every]
    # rope+attention acts only on keys that rope+kv_append turns.
    groupings += [["rope+kv_append", name] if name == "rope+attention" else [name] for name in offered]
    groupings += [["gate+up" if name == "gate+up+silu" else name for name in every]]
    ring = {
        "pipelining_depth": _distinct([default.pipelining_depth, *_RING_DEPTHS]),
        "kernel_knobs.cpa_stages": _distinct([default.kernel_knobs["cpa_stages"], *_RING_STAGES]),
    }
    return {
        "tiling.gemv.N_tile": _distinct([default.tiling["gemv"]["N_tile"], *_N_TILES]),
        "tiling.attention.kv_block": _distinct([default.tiling["attention"]["kv_block"], *_KV_BLOCKS]),
        "fusion_grouping": _distinct(groupings),
        "sm_assignment": _distinct([default.sm_assignment, *SM_POLICIES]),
        "page_allocation": _distinct([default.page_allocation, *PAGE_POLICIES]),
        **{path: values for path, values in ring.items() if _acts(path, values, target)},
    }


def _acts(path: str, values: list[Any], target: GpuTarget) -> bool:
    """Whether the library takes another value than the default: not every target has a ring."""
    from .config import ScheduleConfig

    try:
        for value in values:
            ScheduleConfig.from_dict(with_knob(ScheduleConfig.default().to_dict(), path, value))[0].check(target)
    except Rejected:
        return False
    return True


def propose(model: str | os.PathLike[str], gpu: str | GpuTarget, *, incumbent: Any = None) -> dict[str, Any]:
    """A point to evaluate next: the default, or `incumbent` with exactly one knob changed. Same input, same answer.

    `incumbent` is a `ScheduleConfig` or a dict; one that is not a legal schedule of the target is Rejected.
    """
    from .embedded import open_model
    from .evaluate import freeze_config
    from .targets import resolve_target

    source, target = open_model(model), resolve_target(gpu)
    space = search_space(target)
    schedule, _ = freeze_config(incumbent, strict=True)
    schedule.check(target)
    changed: dict[str, Any] | None = None
    if incumbent is not None:
        schedule, changed = _mutate(schedule, target, space)
    return {
        "model": source.name,
        "gpu": target.name,
        "schedule_config": schedule.to_dict(),
        "schedule_id": schedule.schedule_id,
        "changed": changed,
        "search_space": space,
        "schema": config_schema(),
        "edit_surface": {
            "file": "schedule_config",
            "paths": sorted(space),
            "rule": "edit these values only; everything else is fixed and checked by evaluate",
        },
    }


def with_knob(config: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a schedule's dict with the value at a dotted path replaced."""
    changed = copy.deepcopy(dict(config))
    *parents, last = path.split(".")
    table = changed
    for name in parents:
        table = table[name]
    table[last] = copy.deepcopy(value)
    return changed


def config_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a schedule, as published in the package."""
    return load_schema("ScheduleConfig")


def _mutate(
    incumbent: ScheduleConfig, target: GpuTarget, space: Mapping[str, list[Any]]
) -> tuple[ScheduleConfig, dict[str, Any]]:
    """One knob of the incumbent set to another value: the next point of a reflected mixed-radix Gray code (Knuth, The
    Art of Computer Programming 4A, 7.2.1.1), so a chain of proposals visits the whole space, one knob at a time. A
    value that is not offered (an explicit map, another tile) is first replaced by one that is.
    """
    from .config import ScheduleConfig

    table = incumbent.to_dict()
    path, value = _next_in_gray_code({path: _at(table, path) for path in space}, space)
    moved, _ = ScheduleConfig.from_dict(with_knob(table, path, value), strict=True)
    moved.check(target)
    return moved, {"path": path, "value": value}


def _next_in_gray_code(point: Mapping[str, Any], space: Mapping[str, list[Any]]) -> tuple[str, Any]:
    """(path, new value) of the one coordinate in which the successor of `point` differs."""
    for path, values in space.items():
        if _key(point[path]) not in map(_key, values):
            return path, values[0]
    # 1. Gray digits -> index: a digit counts backwards where the number formed by the digits above it is odd.
    index, gray = 0, {path: list(map(_key, values)).index(_key(point[path])) for path, values in space.items()}
    for path, values in reversed(space.items()):
        index = index * len(values) + (gray[path] if index % 2 == 0 else len(values) - 1 - gray[path])
    # 2. The next index; after the last point, its predecessor.
    size = math.prod(map(len, space.values()))
    index += 1 if index + 1 < size else -1
    # 3. Index -> Gray digits; exactly one is new.
    for path, values in space.items():
        index, digit = divmod(index, len(values))
        digit = digit if index % 2 == 0 else len(values) - 1 - digit
        if digit != gray[path]:
            return path, values[digit]
    raise Rejected("propose: the search space holds a single point")


def _at(table: Mapping[str, Any], path: str) -> Any:
    value: Any = table
    for name in path.split("."):
        value = value[name]
    return value


def _key(value: Any) -> Any:
    """For comparing values of a knob: a list of fusions is a set."""
    return frozenset(value) if isinstance(value, list) else str(value)


def _distinct(values: list[Any]) -> list[Any]:
    """Each value once, in order of first appearance."""
    out: dict[Any, Any] = {}
    for value in values:
        out.setdefault(_key(value), value)
    return list(out.values())
