"""A program as plain data, in: dict -> tables, whole columns at a time.

In: anything JSON could hold. Out: `ProgramTables` plus meta and config, or the list of format rejections: what cannot
be put in tables at all (V1 ids and references, V2 shapes, V3 names, ...). What the tables *mean* is not judged here but
by the library's validator. Reading is total: no contents raise, only a top level that is no dict.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from . import _lib
from .columns import INT64, MISSING, UINT32, Anything, Columns, Groups, Rejection
from .config import ScheduleConfig, integer_key
from .errors import InputError, Rejected, show
from .strict_json import no_collection, parse_strict_json
from .tables import ProgramTables, StringTable
from .targets import TARGETS, GpuTarget

__all__ = ["ReadProgram", "read_json", "read_program"]


IR_VERSION = _lib.limit("IR_VERSION")
ABI_MAJOR, ABI_MINOR = _lib.limit("ABI_VERSION_MAJOR"), _lib.limit("ABI_VERSION_MINOR")
_MAX_VALUES = 1 << 26  # a task takes about 40 values: room for a program of 2^20 tasks, and a bound on memory

OPS = _lib.enum_names("amk_opcode", "AMK_OP_")
DTYPES = _lib.enum_names("amk_dtype", "AMK_DTYPE_")
SPACES = _lib.enum_names("amk_space", "AMK_SPACE_")
KINDS = _lib.enum_names("amk_buffer_kind", "AMK_KIND_")
RESETS = _lib.enum_names("amk_counter_reset", "AMK_COUNTER_RESET_")

PARAMS = {name: field_of[0] for name, field_of in _lib.table_dtype("amk_params_t").fields.items()}
PARAM_NAMES = tuple(PARAMS)
_PARAM_INDEX = {name: index for index, name in enumerate(PARAM_NAMES)}
LAUNCH = _lib.table_dtype("amk_launch_t").names or ()
# Whose obligation a launch number is, when it is no number; the others belong to residency, V10.
_LAUNCH_CODES = {"max_seq": "V19", "kv_block": "V19", "steps_per_launch": "V21", "counter_reset": "V21"}
_LAUNCH_REQUIRED = ("grid", "max_seq")

_TOP = {"ir_version", "abi_version", "meta", "target", "buffers", "counters", "tasks", "pages", "config"}


@dataclass
class ReadProgram:
    """What was read; `tables` is None exactly when there are rejections."""

    tables: ProgramTables | None
    meta: dict[str, Any]
    config: ScheduleConfig | None
    rejections: list[Rejection] = field(default_factory=list)
    rejected_count: int = 0


def read_json(text: str | bytes) -> ReadProgram:
    """As read_program, of the text of a program file; InputError when it is no JSON."""
    with no_collection():
        return read_program(_parse(text))


def _parse(text: str | bytes) -> Any:
    if isinstance(text, str):
        try:
            text = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"program: expected Unicode text, got a lone surrogate at {error.start}") from error
    if not isinstance(text, bytes):
        raise InputError(f"program: expected JSON text, got a value of type {type(text).__name__}")
    return parse_strict_json(text, "program", max_values=_MAX_VALUES, wide_integers=True)


def read_program(data: object) -> ReadProgram:
    """Everything a program file says, or what is wrong with its form."""
    if not isinstance(data, dict):
        raise InputError(f"program: expected an object, got {show(data)}")
    return _Reader().read(data)


class _Reader(Columns):
    """Fills the tables of one program."""

    def read(self, data: dict) -> ReadProgram:
        self.unknown_keys([data], _TOP, lambda _: "program")
        for key in ("ir_version", "abi_version", "target", "buffers", "counters", "tasks", "pages"):
            if key not in data:
                self.reject("V1", f"{key}: expected this key, but it is missing")
        self._versions(data)
        meta, launch = self._meta(data.get("meta", {}))
        config = self._config(data.get("config", {}), launch)
        target = self._target(data.get("target"))
        buffers, kinds, names, sources = self._buffers(data.get("buffers", []))
        counter_init = self._counters(data.get("counters", []))
        tasks, labels = self._tasks(data.get("tasks", []))
        page_of, pages = self._pages(data.get("pages", {}), len(buffers))
        if self.count:
            return ReadProgram(None, meta, config, self.rejections, self.count)
        bindings = np.zeros(len(buffers), _lib.table_dtype("amk_binding_t"))
        bindings["kind"], bindings["page"] = kinds, page_of
        strings = [StringTable.of(column) for column in (names, sources, labels)]
        tables = ProgramTables(buffers, bindings, counter_init, tasks, pages, *strings, launch, target)
        return ReadProgram(tables, meta, config)

    # -- tables --

    def _buffers(self, value: object) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
        keys = {"id", "name", "kind", "dtype", "shape", "space", "source"}
        records = self.records(value, "buffers", "MAX_BUFFERS", keys)
        table = np.zeros(len(records), _lib.table_dtype("amk_buffer_t"))
        self.ids(records, "buffers", "buffer")
        for key in ("dtype", "space"):
            table[key] = self.enums(records, key, DTYPES if key == "dtype" else SPACES, "buffers", "buffer")
        kinds = self.enums(records, "kind", KINDS, "buffers", "buffer")
        rank = _lib.limit("MAX_RANK")
        groups = self.groups(records, "shape", rank, "buffers", "buffer")
        dims = self.integers(
            groups.flat, groups.where, "V2", INT64, lambda k: {"buffer": int(groups.owner[k])}, "a dimension"
        )
        table["rank"] = groups.counts
        table["shape"][groups.owner, groups.slot] = dims
        table["numel"], table["stride"], overflows = row_major(table["shape"], table["rank"])
        for index in overflows:
            self.reject("V2", f"buffers[{index}].shape: the number of elements is beyond 64 bits", buffer=index)
        names = self.strings(records, "name", "buffers", "buffer")
        sources = self.strings(records, "source", "buffers", "buffer")
        return table, kinds, names, sources

    def _counters(self, value: object) -> np.ndarray:
        records = self.records(value, "counters", "MAX_COUNTERS", {"id", "init"})
        self.ids(records, "counters", "counter")
        values = [record.get("init", 0) for record in records]
        init = self.integers(values, lambda i: f"counters[{i}].init", "V8", UINT32, lambda i: {"counter": i})
        return init.astype(_lib.table_dtype("amk_counter_t"))

    def _tasks(self, value: object) -> tuple[np.ndarray, list[str]]:
        keys = {"id", "op", "inputs", "outputs", "out_counter", "waits", "params", "sm", "label"}
        records = self.records(value, "tasks", "MAX_TASKS", keys)
        table = np.zeros(len(records), _lib.table_dtype("amk_instruction_t"))
        self.ids(records, "tasks", "task")
        table["op"] = self.enums(records, "op", OPS, "tasks", "task")
        for key, code in (("out_counter", "V1"), ("sm", "V10")):
            values = [record.get(key, MISSING) for record in records]
            where = f"tasks[{{}}].{key}".format
            table[key] = self.integers(values, where, code, ids=lambda i: {"task": i})
        for key, count, cap in (("inputs", "n_inputs", "MAX_INPUTS"), ("outputs", "n_outputs", "MAX_OUTPUTS")):
            groups = self.groups(records, key, _lib.limit(cap), "tasks", "task")
            table[count] = groups.counts
            table[key][groups.owner, groups.slot] = self.integers(
                groups.flat, groups.where, "V1", ids=groups.ids("task"), what="a buffer id"
            )
        self._waits(records, table)
        self._params(records, table["params"])
        return table, self.strings(records, "label", "tasks", "task")

    def _waits(self, records: list[dict], table: np.ndarray) -> None:
        groups = self.groups(records, "waits", _lib.limit("MAX_WAITS"), "tasks", "task", ())
        table["n_waits"] = groups.counts
        waits = list(groups.flat)
        for index, wait in enumerate(waits):
            if not isinstance(wait, dict):
                text = f"{groups.where(index)}: expected an object, got {show(wait)}"
                self.reject("V1", text, **groups.ids("task")(index))
                waits[index] = Anything()
        self.unknown_keys(waits, {"counter", "threshold"}, groups.where)
        for key, column, code in (("counter", "wait_counter", "V1"), ("threshold", "wait_threshold", "V8")):
            values = [wait.get(key, MISSING) for wait in waits]
            table[column][groups.owner, groups.slot] = self.integers(
                values, lambda k, key=key: f"{groups.where(k)}.{key}", code, ids=groups.ids("task")
            )

    def _params(self, records: list[dict], table: np.ndarray) -> None:
        params = [record.get("params", _NOTHING) for record in records]
        for index, value in enumerate(params):
            if not isinstance(value, dict):
                self.reject("V3", f"tasks[{index}].params: expected an object, got {show(value)}", task=index)
                params[index] = _NOTHING
        groups = Groups([list(value) for value in params], "tasks[{}].params")
        values = list(chain.from_iterable(value.values() for value in params))
        which = np.array([_PARAM_INDEX.get(name, -1) for name in groups.flat], np.int64)
        for k in np.flatnonzero(which < 0).tolist():
            text = f"tasks[{groups.owner[k]}].params: unknown parameter {show(groups.flat[k])}"
            self.reject("V3", text, **groups.ids("task")(k))
        for index, name in enumerate(PARAM_NAMES):
            chosen = np.flatnonzero(which == index)
            if not chosen.size:
                continue
            owner = groups.owner[chosen]
            column = [values[k] for k in chosen.tolist()]
            where = lambda k, name=name, owner=owner: f"tasks[{owner[k]}].params.{name}"  # noqa: E731
            ids = lambda k, owner=owner: {"task": int(owner[k])}  # noqa: E731
            if PARAMS[name].kind == "f":
                table[name][owner] = self._floats(column, where, ids)
            else:
                table[name][owner] = self.integers(column, where, "V4", ids=ids)

    def _floats(self, values: list, where: Callable[[int], str], ids: Callable[[int], dict[str, int]]) -> np.ndarray:
        """float32 [n]; NaN and infinity pass, the validator names them (V4)."""
        column = np.zeros(len(values), np.float64)
        for index, value in enumerate(values):
            try:
                if type(value) not in (int, float):
                    raise TypeError
                column[index] = value
            except (TypeError, OverflowError):
                self.reject("V4", f"{where(index)}: expected a number, got {show(value)}", **ids(index))
        with np.errstate(over="ignore", invalid="ignore"):
            return column.astype(np.float32) + np.float32(0)  # -0.0 is written as no parameter, so it is read as 0

    def _pages(self, value: object, n_buffers: int) -> tuple[np.ndarray, np.ndarray]:
        page_of = np.full(n_buffers, -1, np.int32)
        if not isinstance(value, dict):
            self.reject("V1", f"pages: expected an object, got {show(value)}")
            value = {}
        self.unknown_keys([value], {"buffer_to_page", "pages"}, lambda _: "pages")
        records = self.records(
            value.get("pages", []), "pages.pages", "MAX_BUFFERS", {"id", "space", "offset", "nbytes"}
        )
        table = np.zeros(len(records), _lib.table_dtype("amk_page_t"))
        self.ids(records, "pages.pages", "")
        table["space"] = self.enums(records, "space", SPACES, "pages.pages")
        for key in ("offset", "nbytes"):
            values = [record.get(key, MISSING) for record in records]
            table[key] = self.integers(values, f"pages.pages[{{}}].{key}".format, "V6", INT64)
        placed = value.get("buffer_to_page", {})
        if not isinstance(placed, dict):
            self.reject("V1", f"pages.buffer_to_page: expected an object {{buffer id: page id}}, got {show(placed)}")
            return page_of, table
        buffers: list[int] = []
        for key in placed:
            buffer = integer_key(key)
            if type(buffer) is not int or not 0 <= buffer < n_buffers:
                self.reject(
                    "V1", f"pages.buffer_to_page: expected the id of one of {n_buffers} buffers, got {show(key)}"
                )
                buffer = -1
            buffers.append(buffer)
        if len(set(buffers)) != len(buffers):
            self.reject("V1", "pages.buffer_to_page: expected each buffer id once")
        pages = self.integers(
            list(placed.values()),
            lambda k: f"pages.buffer_to_page.{buffers[k]}",
            "V6",
            ids=lambda k: {"buffer": buffers[k]},
            what="a page id",
        )
        chosen = np.array(buffers, np.int64)
        page_of[chosen[chosen >= 0]] = pages[chosen >= 0]
        return page_of, table

    # -- the rest of the top level --

    def _versions(self, data: dict) -> None:
        ir, abi = data.get("ir_version", IR_VERSION), data.get("abi_version", f"{ABI_MAJOR}.{ABI_MINOR}")
        if type(ir) is not int or ir != IR_VERSION:
            self.reject("V24", f"ir_version: expected {IR_VERSION}, got {show(ir)}")
        major, _, minor = abi.partition(".") if isinstance(abi, str) else ("", "", "")
        known = [str(number) for number in range(ABI_MINOR + 1)]
        if major != str(ABI_MAJOR) or minor not in known:
            self.reject("V24", f'abi_version: expected "{ABI_MAJOR}.{ABI_MINOR}" or older, got {show(abi)}')

    def _meta(self, value: object) -> tuple[dict[str, Any], np.ndarray]:
        """(free facts about the program, the amk_launch_t under "launch")"""
        launch = np.zeros(1, _lib.table_dtype("amk_launch_t"))
        if not isinstance(value, dict):
            self.reject("V3", f"meta: expected an object, got {show(value)}")
            value = {}
        facts = value.get("launch", {})
        if not isinstance(facts, dict):
            self.reject("V10", f"meta.launch: expected an object, got {show(facts)}")
            facts = {}
        self.unknown_keys([facts], set(LAUNCH), lambda _: "meta.launch")
        for name in LAUNCH:
            given = facts.get(name, MISSING if name in _LAUNCH_REQUIRED else _launch_default(name))
            if name == "counter_reset" and isinstance(given, str):
                given = {label: number for number, label in RESETS.items()}.get(given.upper(), given)
            code = _LAUNCH_CODES.get(name, "V10")
            launch[name] = self.integers([given], lambda _, name=name: f"meta.launch.{name}", code)
        free = {key: fact for key, fact in value.items() if key != "launch"}
        try:
            # What cannot make the trip through JSON text would break it later.
            free = parse_strict_json(json.dumps(free, allow_nan=False).encode(), "meta")
        except (InputError, TypeError, ValueError, RecursionError) as error:
            self.reject("V3", f"meta: expected plain JSON values, got: {error!s:.200}")
            free = {}
        return free, launch

    def _config(self, value: object, launch: np.ndarray) -> ScheduleConfig | None:
        """The schedule it says it came from; its launch knobs must be those that will be launched (V26)."""
        if isinstance(value, dict) and not value:
            return None
        try:
            config, _ = ScheduleConfig.from_dict(value, strict=True)  # type: ignore[arg-type]
        except Rejected as error:
            self.reject("V26", f"config: {str(error).removeprefix('V26: ')}")
            return None
        knobs = {**config.to_dict(), **config.kernel_knobs, "kv_block": config.tiling["attention"]["kv_block"]}
        for name in LAUNCH:
            if name in knobs and knobs[name] != launch[name][0]:
                text = f"config says {name} {knobs[name]}, but meta.launch.{name} is {launch[name][0]}"
                self.reject("V26", text)
        return config

    def _target(self, value: object) -> np.ndarray:
        table = np.zeros(1, _lib.table_dtype("amk_target_t"))
        if value is None:
            return table
        try:
            if isinstance(value, dict):
                known = set(table.dtype.names or ()) | {"source"}
                self.unknown_keys([value], known, lambda _: "target")
                target = GpuTarget(**{name: value[name] for name in value if name in known})
            elif isinstance(value, str) and value in TARGETS:
                target = TARGETS[value]
            else:
                raise InputError(f"target: expected an object or one of {', '.join(TARGETS)}, got {show(value)}")
        except (InputError, TypeError) as error:  # TypeError: a field is missing
            self.reject("V10", str(error).replace("GpuTarget.__init__()", "target:"))
            return table
        return target_table(target)


_NOTHING: dict[str, Any] = {}


def _launch_default(name: str) -> int:
    if name == "steps_per_launch":
        return 1
    defaults = ScheduleConfig.default()
    knobs = {**defaults.to_dict(), **defaults.kernel_knobs, "kv_block": defaults.tiling["attention"]["kv_block"]}
    return knobs.get(name, 0)


def target_table(target: GpuTarget) -> np.ndarray:
    return _lib.read_table("amk_target_t", target.to_c(), 1)


def row_major(shapes: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(numel, strides, entries beyond 64 bits): what JSON leaves out because the shape implies it."""
    numel, strides, overflows = np.ones(len(ranks), np.int64), np.zeros_like(shapes), []
    for index, (shape, rank) in enumerate(zip(shapes.tolist(), ranks.tolist(), strict=True)):
        steps = [1]  # Python integers: exact, so the test below sees any overflow
        for dim in reversed(shape[:rank]):
            steps.append(steps[-1] * dim)
        if max(map(abs, steps)) > INT64[1]:
            overflows.append(index)
            continue
        numel[index] = steps.pop()
        strides[index, :rank] = steps[::-1]
    return numel, strides, overflows
