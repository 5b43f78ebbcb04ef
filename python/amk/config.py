"""`ScheduleConfig`: one point of the search space, the only thing a search may edit.

In: keyword arguments or a plain dict (from JSON). Out: a frozen config with every knob set, its canonical dict, its
`schedule_id` and the amk_schedule_t that crosses into the library. Types are checked here, domains in
csrc/lower/schedule.cpp (`check`). A value is never repaired: it is taken as it is or refused by name (V26).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from . import _lib
from ._lib import ffi, lib
from .errors import BuildMismatch, Rejected, show
from .targets import GpuTarget

__all__ = ["FUSION_NAMES", "PAGE_POLICIES", "SM_POLICIES", "ScheduleConfig", "integer_key"]

# Where each integer knob lives in the dict, and its field of amk_schedule_t.
_INTEGER_KNOBS: dict[tuple[str, ...], str] = {
    ("tiling", "gemv", "N_tile"): "gemv_n_tile",
    ("tiling", "attention", "kv_block"): "attention_kv_block",
    ("pipelining_depth",): "pipelining_depth",
    ("threads_per_block",): "threads_per_block",
    ("smem_bytes_per_block",): "smem_bytes_per_block",
    ("kernel_knobs", "cols_per_warp"): "cols_per_warp",
    ("kernel_knobs", "cpasync"): "cpasync",
    ("kernel_knobs", "cpa_stages"): "cpa_stages",
    ("kernel_knobs", "cpa_cols"): "cpa_cols",
}

# Spelled name -> bit. The spelling of a fusion cannot be derived from its enumerator, so it is paired with it here.
_FUSION_SPELLING = {
    "RMSNORM_GEMV": "rmsnorm+gemv",
    "GATE_UP": "gate+up",
    "GATE_UP_SILU": "gate+up+silu",
    "GEMV_ADD": "gemv+add",
    "QKV": "qkv",
    "ROPE_KV_APPEND": "rope+kv_append",
    "ROPE_ATTENTION": "rope+attention",
    "ATTENTION_COMBINE": "attention+combine",
}
_FUSION_ENUM = _lib.enum_names("amk_fusion", "AMK_FUSE_")
if set(_FUSION_ENUM.values()) != set(_FUSION_SPELLING):
    raise BuildMismatch(
        f"amk_fusion holds {sorted(_FUSION_ENUM.values())}; config.py spells {sorted(_FUSION_SPELLING)}"
    )
FUSION_NAMES: dict[str, int] = {_FUSION_SPELLING[name]: bit for bit, name in _FUSION_ENUM.items()}
SM_POLICIES: dict[str, int] = {name.lower(): n for n, name in _lib.enum_names("amk_sm_policy", "AMK_SM_").items()}
_SM_EXPLICIT = SM_POLICIES.pop("explicit")  # spelled as a dict, not as a name
PAGE_POLICIES: dict[str, int] = {
    name.lower(): n for n, name in _lib.enum_names("amk_page_policy", "AMK_PAGES_").items()
}

_INT32_MAX = (1 << 31) - 1
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,9}")


def _default(name: str) -> Callable[[], Any]:
    return lambda: deepcopy(_defaults()[name])


@dataclass(frozen=True)
class ScheduleConfig:
    """Every knob of one schedule. Wrong types are `Rejected` naming the field; `check` asks for the domains."""

    tiling: Mapping[str, Mapping[str, int]] = field(default_factory=_default("tiling"))
    fusion_grouping: tuple[str, ...] = field(default_factory=_default("fusion_grouping"))
    sm_assignment: str | Mapping[int, int] = field(default_factory=_default("sm_assignment"))
    pipelining_depth: int = field(default_factory=_default("pipelining_depth"))
    page_allocation: str = field(default_factory=_default("page_allocation"))
    threads_per_block: int = field(default_factory=_default("threads_per_block"))
    smem_bytes_per_block: int = field(default_factory=_default("smem_bytes_per_block"))
    kernel_knobs: Mapping[str, int] = field(default_factory=_default("kernel_knobs"))

    def __post_init__(self) -> None:
        notes: list[str] = []
        given = {name.name: getattr(self, name.name) for name in fields(self)}
        for name, value in _take(given, _TREE, "", notes, _defaults).items():
            object.__setattr__(self, name, value)
        if notes:  # only from_dict drops keys
            raise Rejected(f"V26: {notes[0]}")

    @classmethod
    def default(cls) -> ScheduleConfig:
        """The library's own default."""
        return cls()

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], strict: bool = False) -> tuple[ScheduleConfig, list[str]]:
        """The config and one note per unknown key that was dropped; strict: an unknown key is Rejected."""
        notes: list[str] = []
        known = _take(given, _TREE, "", notes, _defaults)
        if strict and notes:
            raise Rejected(f"V26: {notes[0]}")
        return cls(**known), [f"{note}; it was dropped" for note in notes]

    def to_dict(self) -> dict[str, Any]:
        """Canonical plain data: the same for equal configs, and what `from_dict` reads back after JSON."""
        out = {name.name: deepcopy(getattr(self, name.name)) for name in fields(self)}
        out["fusion_grouping"] = list(self.fusion_grouping)
        if isinstance(self.sm_assignment, Mapping):
            out["sm_assignment"] = {str(task): sm for task, sm in self.sm_assignment.items()}
        return out

    @property
    def schedule_id(self) -> str:
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.schedule_id)

    def check(self, target: GpuTarget) -> None:
        """Rejected, naming the field and what it may be, when a value is out of its domain or was not built."""
        schedule, _alive = self.to_c()
        _lib.check(lib.amk_schedule_check(schedule, target.to_c()))

    def to_c(self) -> tuple[Any, object]:
        """(amk_schedule_t *, what it borrows): keep both while C reads it."""
        out = ffi.new("amk_schedule_t *")
        out.struct_size = ffi.sizeof("amk_schedule_t")
        flat = self.to_dict()
        for path, name in _INTEGER_KNOBS.items():
            setattr(out, name, _at(flat, path))
        out.fusion = sum(FUSION_NAMES[name] for name in self.fusion_grouping)
        out.page_policy = PAGE_POLICIES[self.page_allocation]
        if isinstance(self.sm_assignment, str):
            out.sm_policy = SM_POLICIES[self.sm_assignment]
            return out, None
        out.sm_policy = _SM_EXPLICIT
        tasks = np.fromiter(self.sm_assignment.keys(), np.int32, len(self.sm_assignment))
        sms = np.fromiter(self.sm_assignment.values(), np.int32, len(self.sm_assignment))
        out.sm_map_count = len(tasks)
        out.sm_map_task, out.sm_map_sm = _lib.pointer("int32_t", tasks), _lib.pointer("int32_t", sms)
        return out, (tasks, sms, out.sm_map_task, out.sm_map_sm)


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


# ---- types: each reader returns the canonical value or raises Rejected naming the field ----


def _refuse(where: str, expected: str, got: object) -> Rejected:
    return Rejected(f"V26: {where}: expected {expected}, got {show(got)}")


def _integer(value: object, where: str) -> int:
    if type(value) is not int or not -_INT32_MAX - 1 <= value <= _INT32_MAX:
        raise _refuse(where, "a 32-bit integer", value)
    return value


def _fusions(value: object, where: str) -> tuple[str, ...]:
    names = ", ".join(FUSION_NAMES)
    if not isinstance(value, list | tuple):
        raise _refuse(where, f"a list of names among {names}", value)
    for name in value:
        if not isinstance(name, str) or name not in FUSION_NAMES:
            raise _refuse(where, f"names among {names}", name)
    if len(set(value)) != len(value):
        raise _refuse(where, "each name once", value)
    return tuple(sorted(value, key=FUSION_NAMES.__getitem__))


def _assignment(value: object, where: str) -> str | dict[int, int]:
    if isinstance(value, str):
        return _name_among(SM_POLICIES, " or an object {task id: sm}")(value, where)
    if not isinstance(value, Mapping):
        raise _refuse(where, f"one of {', '.join(SM_POLICIES)} or an object {{task id: sm}}", value)
    table: dict[int, int] = {}
    for key, sm in value.items():
        task = integer_key(key)
        if type(task) is not int or not 0 <= task <= _INT32_MAX:
            raise _refuse(where, "task ids as integers >= 0 (or their decimal text) for keys", key)
        if task in table:
            raise _refuse(where, "each task id once", key)
        table[task] = _integer(sm, f"{where}.{task}")
    return dict(sorted(table.items()))


def integer_key(key: object) -> object:
    """JSON keys are text: decimal text becomes the integer it spells, anything else stays what it is."""
    return int(key) if isinstance(key, str) and _DECIMAL.fullmatch(key) else key


def _name_among(table: Mapping[str, int], more: str = "") -> Callable[[object, str], str]:
    def read(value: object, where: str) -> str:
        if not isinstance(value, str) or value not in table:
            raise _refuse(where, f"one of {', '.join(table)}{more}", value)
        return value

    return read


def _tree() -> dict[str, Any]:
    """The known keys: an inner dict, or the reader of a leaf; in the order of the dataclass."""
    tree: dict[str, Any] = {"tiling": {"gemv": {}, "attention": {}}, "kernel_knobs": {}}
    for path in _INTEGER_KNOBS:
        _at(tree, path[:-1])[path[-1]] = _integer
    tree |= {"fusion_grouping": _fusions, "sm_assignment": _assignment, "page_allocation": _name_among(PAGE_POLICIES)}
    return {name.name: tree[name.name] for name in fields(ScheduleConfig)}


def _take(given: object, tree: dict[str, Any], where: str, notes: list[str], default: Callable[[], Any]) -> dict:
    """The known keys of `given`, checked, with defaults for the absent ones; unknown keys go to `notes`."""
    if not isinstance(given, Mapping):
        raise _refuse(where or "schedule_config", "an object", given)
    out = {}
    for key, reader in tree.items():
        here = f"{where}.{key}" if where else key
        if key not in given:
            out[key] = deepcopy(default()[key])
        elif isinstance(reader, dict):
            out[key] = _take(given[key], reader, here, notes, lambda key=key: default()[key])  # type: ignore[misc]
        else:
            out[key] = reader(given[key], here)
    for key in given:
        if key not in tree:
            name = key if isinstance(key, str) else show(key)
            notes.append(f"unknown key {f'{where}.{name}' if where else name!s:.120}")
    return out


def _defaults() -> dict[str, Any]:
    """amk_schedule_default as a dict; read once."""
    if not _DEFAULTS:
        schedule = ffi.new("amk_schedule_t *")
        schedule.struct_size = ffi.sizeof("amk_schedule_t")
        _lib.check(lib.amk_schedule_default(schedule))
        tree: dict[str, Any] = {"tiling": {"gemv": {}, "attention": {}}, "kernel_knobs": {}}
        for path, name in _INTEGER_KNOBS.items():
            _at(tree, path[:-1])[path[-1]] = getattr(schedule, name)
        tree["fusion_grouping"] = tuple(name for name, bit in FUSION_NAMES.items() if schedule.fusion & bit)
        tree["sm_assignment"] = next(name for name, n in SM_POLICIES.items() if n == schedule.sm_policy)
        tree["page_allocation"] = next(name for name, n in PAGE_POLICIES.items() if n == schedule.page_policy)
        _DEFAULTS.update({name.name: tree[name.name] for name in fields(ScheduleConfig)})
    return _DEFAULTS


_DEFAULTS: dict[str, Any] = {}
_TREE = _tree()
