"""JSON Schemas (2020-12) of what AMK reads and writes, published as `amk/schemas/*.json`.

In: the dataclasses. Out: `load_schema`, the published text; `make_schemas`, what it must be. A test keeps them equal,
and proves over generated schedules that the schema and the library's own check agree.
This module imports nothing heavy, so that `import amk` stays cheap.
"""

from __future__ import annotations

import importlib.resources
import json
from functools import cache
from typing import Any

from .errors import InputError, show

__all__ = ["SCHEMA_NAMES", "load_schema", "make_schemas"]

SCHEMA_NAMES = ("ScheduleConfig", "Verdict", "Trial")

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_INT32 = {"type": "integer", "minimum": -(1 << 31), "maximum": (1 << 31) - 1}
# Decimal text of 0 .. 2^31 - 1, without leading zeros.
_INT32_TEXT = (
    "^(0|[1-9][0-9]{0,8}|1[0-9]{9}|20[0-9]{8}|21[0-3][0-9]{7}|214[0-6][0-9]{6}|2147[0-3][0-9]{5}|21474[0-7][0-9]{4}"
    "|214748[0-2][0-9]{3}|2147483[0-5][0-9]{2}|21474836[0-3][0-9]|214748364[0-7])$"
)
_PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "None": "null"}


@cache
def _text_of(name: str) -> str:
    if name not in SCHEMA_NAMES:
        raise InputError(f"schema: expected one of {', '.join(SCHEMA_NAMES)}, got {show(name)}")
    return importlib.resources.files("amk").joinpath("schemas", f"{name}.json").read_text(encoding="utf-8")


def load_schema(name: str) -> dict[str, Any]:
    """A published schema by name."""
    return json.loads(_text_of(name))


def make_schemas() -> dict[str, dict[str, Any]]:
    """Every schema, from the dataclasses and the library's defaults."""
    return {"ScheduleConfig": _config(), "Verdict": _verdict(), "Trial": _trial()}


def _config() -> dict[str, Any]:
    from . import _lib
    from .config import FUSION_NAMES, PAGE_POLICIES, SM_POLICIES, ScheduleConfig

    default = ScheduleConfig.default()

    def table(properties: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def whole(low: int, high: int, step: int) -> dict[str, Any]:
        return {"type": "integer", "minimum": low, "maximum": high, "multipleOf": step}

    def built(value: int) -> dict[str, Any]:
        return {"type": "integer", "enum": [value]}  # the variants that the build has

    def of_ring(path: str, value: int) -> dict[str, Any]:
        """Where there is no ring, a knob of it keeps its default."""
        *parents, name = path.split(".")
        inner: dict[str, Any] = {"properties": {name: {"const": value}}}
        for parent in parents:
            inner = {"properties": {parent: inner}}
        return inner

    no_ring = {"properties": {"kernel_knobs": {"properties": {"cpasync": {"const": 0}}, "required": ["cpasync"]}},
               "required": ["kernel_knobs"]}  # fmt: skip
    ring = {
        "pipelining_depth": default.pipelining_depth,
        "smem_bytes_per_block": default.smem_bytes_per_block,
        "kernel_knobs.cpa_stages": default.kernel_knobs["cpa_stages"],
    }

    return {
        "$schema": _DIALECT,
        "title": "ScheduleConfig",
        "description": (
            "One point of the search space; a knob that is absent has its default. What this schema accepts is what "
            "the library's check accepts, but for two things that no schema can say. A whole number with a fraction "
            "(8.0) is refused: write 8. And an explicit sm_assignment, which must name every task of one tiling "
            "exactly once and only SMs that the target has, is judged when the program is made."
        ),
        **table(
            {
                "tiling": table(
                    {
                        "gemv": table(
                            {"N_tile": {**whole(0, 8192, 8), "description": "0: an even split over the SMs"}}
                        ),
                        "attention": table({"kv_block": whole(16, _lib.limit("MAX_SEQ"), 16)}),
                    }
                ),
                "fusion_grouping": {"type": "array", "items": {"enum": list(FUSION_NAMES)}, "uniqueItems": True},
                "sm_assignment": {
                    "oneOf": [
                        {"enum": list(SM_POLICIES)},
                        {
                            "type": "object",
                            "description": "task id -> SM",
                            "propertyNames": {"pattern": _INT32_TEXT},
                            "additionalProperties": _INT32,
                        },
                    ]
                },
                "pipelining_depth": {**whole(1, 64, 1), "description": "slots of the ring on their way at a time"},
                "page_allocation": {"enum": list(PAGE_POLICIES)},
                "threads_per_block": built(default.threads_per_block),
                "smem_bytes_per_block": {**whole(0, 1 << 20, 1), "description": "0: all that the device offers"},
                "kernel_knobs": table(
                    {
                        **{name: built(value) for name, value in default.kernel_knobs.items()},
                        "cpasync": {**whole(0, 1, 1), "description": "1: weights stream through a ring, 0: loaded"},
                        "cpa_stages": {**whole(0, 8, 1), "description": "slots per warp; 0: as many as fit"},
                    }
                ),
            }
        ),
        "if": no_ring,
        "then": {"allOf": [of_ring(path, value) for path, value in ring.items()]},
    }


def _verdict() -> dict[str, Any]:
    from .verdict import LATENCY_KINDS, Verdict

    nothing = {"type": "null"}
    no_latency = {name: nothing for name in ("latency_us", "latency_per_token_us", "latency_kind", "pct_of_roofline")}
    positive = {
        **{
            name: {"type": ["number", "null"], "exclusiveMinimum": 0} for name in ("latency_us", "latency_per_token_us")
        },
        "batch": {"type": "integer", "minimum": 1},
    }
    return _record(
        Verdict,
        "What `amk.evaluate` found of one schedule: a latency exists only if the result is correct, and says its kind.",
        {"latency_kind": {"enum": [*LATENCY_KINDS, None]}, **positive},
        [
            _rule(
                {"valid": {"const": False}},
                {"rejected_reason": {"type": "string"}, "correct": nothing, **no_latency},
                {"rejected_reason": nothing, "correct": {"type": "boolean"}},
            ),
            _rule({"latency_us": {"type": "number"}}, {"correct": {"const": True}, "bound_us": {"type": "number"},
                  "latency_kind": {"type": "string"}, "pct_of_roofline": {"type": "number"}}, no_latency),
            _rule(
                {"latency_kind": {"const": "measured-gpu"}},
                {"latency_p10_us": {"type": "number"}, "latency_p90_us": {"type": "number"}},
                {"latency_p10_us": nothing, "latency_p90_us": nothing},
            ),
        ],
    )  # fmt: skip


def _trial() -> dict[str, Any]:
    from .records.trial import CORRECTNESS, REGIMES, TAGS, Trial

    optional = {"type": ["number", "null"], "exclusiveMinimum": 0}
    schema = _record(
        Trial,
        "One finished trial of a loop, as the journal, results.tsv and corpus.jsonl keep it. Not said here: trial_id "
        "is the loop and the experiment in six digits, and the latency_kind of the verdict is the regime.",
        {
            "trial_id": {"type": "string", "pattern": "^[0-9a-f]{12}-[0-9]{6,10}$"},
            "loop": {"type": "string", "pattern": "^[0-9a-f]{12}$"},
            "experiment": {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1},
            "tag": {"enum": list(TAGS)},
            "regime": {"enum": list(REGIMES)},
            "correctness": {"enum": list(CORRECTNESS)},
            "latency_us": optional,
            "pct_of_roofline": optional,
            "time_utc": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"},
            "duration_s": {"type": "number", "minimum": 0},
        },
        [
            _rule({"latency_us": {"type": "number"}}, {"correctness": {"const": "PASS"}},
                  {"pct_of_roofline": {"type": "null"}}),
            _rule({"tag": {"const": "kept"}}, {"latency_us": {"type": "number"}}),
            _rule({"tag": {"const": "crash"}}, {"correctness": {"const": "CRASH"}},
                  {"correctness": {"not": {"const": "CRASH"}}}),
            _rule({"tag": {"const": "rejected"}}, {"correctness": {"const": "REJECTED"}},
                  {"correctness": {"not": {"const": "REJECTED"}}}),
        ],
    )  # fmt: skip
    return {**schema, "additionalProperties": False}


def _record(kind: type, description: str, special: dict[str, Any], rules: list[dict[str, Any]]) -> dict[str, Any]:
    """A dataclass whose to_dict has every field; readers allow keys that they do not know."""
    properties = {name: special.get(name, _type_of(text)) for name, text in kind.__annotations__.items()}
    if unknown := set(special) - set(properties):
        raise InputError(f"schema of {kind.__name__}: no such field: {', '.join(sorted(unknown))}")
    return {
        "$schema": _DIALECT,
        "title": kind.__name__,
        "description": description,
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "allOf": rules,
    }


def _rule(when: dict[str, Any], then: dict[str, Any], otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
    rule = {"if": {"properties": when}, "then": {"properties": then}}
    return rule if otherwise is None else {**rule, "else": {"properties": otherwise}}


def _type_of(annotation: str) -> dict[str, Any]:
    """JSON's type for an annotation as it stands in the source: "float | None", "tuple[int, ...]", "Mapping[...]"."""
    names = annotation.split(" | ")
    if all(name in _PLAIN for name in names):
        kinds = [_PLAIN[name] for name in names]
        return {"type": kinds[0] if len(kinds) == 1 else kinds}
    if annotation.startswith("Mapping["):
        return {"type": "object"}
    if annotation.startswith("tuple[") and annotation.endswith(", ...]"):
        return {"type": "array", "items": _type_of(annotation[len("tuple[") : -len(", ...]")])}
    raise InputError(f"schema: no JSON type for the annotation {annotation!r}")
