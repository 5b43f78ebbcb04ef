"""A task as it lies on disk -> its rows, settings and stages; anything out of place is an InputError that says where.

In: a folder with task.toml and workloads.json, or a task's name. Out: a `Task`. workloads.json is frozen: its SHA-256
stands in task.toml, and a file that differs is refused before it is read. A row says everything that a run depends on:
shapes, dtypes, strides, scalars, tolerance, seed. Which operands an entry takes, and in which order, is the oracle's
to say; `check_operands` holds the rows against it.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, Unavailable, show
from ..strict_json import parse_strict_json

__all__ = [
    "DTYPES",
    "KINDS",
    "STAGES",
    "Row",
    "Settings",
    "Task",
    "TensorSpec",
    "Tolerance",
    "check_operands",
    "load_task",
    "parse_workloads",
    "task_names",
]

# name -> storage in numpy (which has no bf16: its bits), and the enumerator of amk.h or amk_task.h
DTYPES = {
    "f32": (np.dtype(np.float32), "F32"),
    "f16": (np.dtype(np.float16), "F16"),
    "bf16": (np.dtype(np.uint16), "BF16"),
    "i32": (np.dtype(np.int32), "I32"),
    "i64": (np.dtype(np.int64), "I64"),
    "u8": (np.dtype(np.uint8), "U8"),
}
KINDS = ("production", "regression")
STAGES = ("quick", "representative", "full")
QUICK_ROWS = 3
REJECTIONS = ("UNSUPPORTED", "INVALID_ARGUMENT")
MAX_RANK = 4
MAX_ROWS = 4096
MAX_ELEMENTS = 1 << 33
MAX_SEED = (1 << 63) - 1
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ROW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=x-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_FILE_BYTES = 16 << 20


@dataclass(frozen=True)
class TensorSpec:
    """An operand of a row. Strides in elements; 0 only in inputs."""

    shape: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...]
    regime: str = "normal"

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype][0].itemsize

    @property
    def extent(self) -> int:
        """Elements from the first to the last, those between the strides included."""
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def touched(self) -> int:
        """Different elements."""
        return math.prod(n for n, step in zip(self.shape, self.stride, strict=True) if step)

    @property
    def is_contiguous(self) -> bool:
        return self.stride == contiguous(self.shape)


@dataclass(frozen=True)
class Tolerance:
    """|got - expected| <= atol + rtol * |expected|, element by element."""

    atol: float
    rtol: float


@dataclass(frozen=True)
class Row:
    name: str
    kind: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    scalars: Mapping[str, float]
    tolerance: Mapping[str, Tolerance]  # of each output
    seed: int
    rejects: str | None = None  # both sides must refuse the row with this status, and touch nothing


@dataclass(frozen=True)
class Settings:
    """How a task is timed. `min_sample_us` is what one sample lasts at least, by repeating launches inside it."""

    warmup_rounds: int = 3
    iterations: int = 100
    trials: int = 5
    min_sample_us: float = 1000.0
    l2_multiple: int = 4  # cold: buffers rotate over at least this many times the L2
    check_limit_s: float = 300.0  # of sixteen regression rows of a worker process
    row_limit_s: float = 180.0  # of a production row and one baseline


@dataclass(frozen=True)
class Task:
    name: str
    title: str
    targets: tuple[str, ...]
    tolerances: Mapping[str, float]  # by dtype of an output: no row may ask for less care
    settings: Settings
    stages: Mapping[str, tuple[str, ...]]
    rows: tuple[Row, ...]
    workloads_sha256: str
    folder: Path = field(compare=False)

    def rows_of(self, stage: str) -> tuple[Row, ...]:
        """Of a stage, in the order of the file; `full` is every row."""
        if stage not in STAGES:
            raise InputError(f"stage: expected one of {', '.join(STAGES)}, got {show(stage)}")
        chosen = {row.name for row in self.rows} if stage == "full" else set(self.stages[stage])
        return tuple(row for row in self.rows if row.name in chosen)


def tasks_root() -> Path:
    """Where tasks lie: $AMK_TASKS_DIR (benchmarks/tasks of a source tree), else inside the installed package."""
    override = os.environ.get("AMK_TASKS_DIR")
    if override:
        return Path(override)
    return Path(os.fspath(importlib.resources.files("amk").joinpath("task_data")))  # type: ignore[arg-type]


def task_names() -> list[str]:
    root = tasks_root()
    if not root.is_dir():
        raise Unavailable(f"kernel tasks: expected them in {root}, which the build installs or $AMK_TASKS_DIR names")
    return sorted(path.parent.name for path in root.glob("*/task.toml"))


def load_task(name: str) -> Task:
    """By name. InputError where it does not exist or is not what it must be."""
    known = task_names()
    if name not in known:
        raise InputError(f"task: expected one of {', '.join(known) or 'none, as none is installed'}, got {show(name)}")
    return read_task(tasks_root() / name)


def read_task(folder: Path) -> Task:
    where = f"{folder.name}/task.toml"
    table = _read_toml(folder / "task.toml", where)
    _keys(table, where, {"schema_version", "name", "title", "targets", "workloads_sha256", "tolerances", "stages"},
          {"bench"})  # fmt: skip
    if table["schema_version"] != 1 or isinstance(table["schema_version"], bool):
        raise InputError(f"{where}: schema_version: expected 1, got {show(table['schema_version'])}")
    name = _text(table["name"], f"{where}: name")
    if name != folder.name or not _NAME.fullmatch(name):
        raise InputError(f"{where}: name: expected {show(folder.name)}, the name of its folder, got {show(name)}")
    digest = _text(table["workloads_sha256"], f"{where}: workloads_sha256")
    if not _DIGEST.fullmatch(digest):
        raise InputError(f"{where}: workloads_sha256: expected 64 hexadecimal digits, got {show(digest)}")
    targets = _list(table["targets"], f"{where}: targets")
    if not targets or not all(isinstance(one, str) and re.fullmatch(r"sm_\d+[a-z]?", one) for one in targets):
        raise InputError(f"{where}: targets: expected names like sm_90a, got {show(targets)}")
    data = _read_bytes(folder / "workloads.json", f"{name}/workloads.json")
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise InputError(
            f"{name}/workloads.json: it is frozen: expected SHA-256 {digest} (task.toml), got {found}; "
            "results of changed rows are not comparable"
        )
    rows = parse_workloads(data, name)
    tolerances = _tolerances(table["tolerances"], where)
    _check_tolerances(rows, tolerances, f"{name}/workloads.json")
    stages = _stages(table["stages"], rows, where)
    settings = _settings(table.get("bench", {}), where)
    title = _text(table["title"], f"{where}: title")
    return Task(name, title, tuple(targets), tolerances, settings, stages, rows, digest, folder)


def parse_workloads(data: bytes, task: str) -> tuple[Row, ...]:
    """The rows of a workloads.json."""
    where = f"{task}/workloads.json"
    table = parse_strict_json(data, where)
    _keys(table, where, {"schema", "schema_version", "task", "rows"})
    if table["schema"] != "amk.workloads" or table["schema_version"] != 1 or isinstance(table["schema_version"], bool):
        raise InputError(f"{where}: expected schema amk.workloads 1, got {show(table['schema'])} "
                         f"{show(table['schema_version'])}")  # fmt: skip
    if table["task"] != task:
        raise InputError(f"{where}: task: expected {show(task)}, got {show(table['task'])}")
    found = _list(table["rows"], f"{where}: rows")
    if not 1 <= len(found) <= MAX_ROWS:
        raise InputError(f"{where}: rows: expected 1..{MAX_ROWS}, got {len(found)}")
    rows = tuple(_row(entry, f"{where}: row {i}") for i, entry in enumerate(found))
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{where}: rows: expected each name once, got {show(twice)} twice")
    if not any(row.kind == "production" for row in rows):
        raise InputError(f"{where}: rows: expected at least one of kind production, got none")
    return rows


def check_operands(task: Task, operands: Mapping[str, Sequence[str]]) -> None:
    """That every row names operands of the entry, and all outputs and scalars of it."""
    for row in task.rows:
        where = f"{task.name}/workloads.json: row {show(row.name)}"
        for what, given in (("inputs", row.inputs), ("outputs", row.outputs), ("scalars", row.scalars)):
            unknown = [name for name in given if name not in operands[what]]
            if unknown:
                raise InputError(f"{where}: {what}: expected some of {', '.join(operands[what])}, got {show(unknown)}")
        for name in operands["scalars"]:
            if name not in row.scalars:
                raise InputError(f"{where}: scalars: expected {show(name)}, which the entry takes; it is missing")


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    steps, step = [], 1
    for n in reversed(shape):
        steps.append(step)
        step *= n
    return tuple(reversed(steps))


def _row(entry: Any, where: str) -> Row:
    _keys(entry, where, {"name", "kind", "inputs", "outputs", "scalars", "tolerance", "seed"}, {"rejects"})
    name = _text(entry["name"], f"{where}: name")
    if not _ROW_NAME.fullmatch(name):
        raise InputError(f"{where}: name: expected letters, digits and '_.,=x-', got {show(name)}")
    where = f"{where} ({name})"
    if entry["kind"] not in KINDS:
        raise InputError(f"{where}: kind: expected one of {', '.join(KINDS)}, got {show(entry['kind'])}")
    inputs = {key: _spec(spec, f"{where}: inputs.{key}") for key, spec in _table(entry["inputs"], where).items()}
    outputs = {key: _spec(spec, f"{where}: outputs.{key}") for key, spec in _table(entry["outputs"], where).items()}
    if not outputs:
        raise InputError(f"{where}: outputs: expected at least one, got none")
    for key, spec in outputs.items():
        _check_no_overlap(spec, f"{where}: outputs.{key}")
    scalars = {}
    for key, value in _table(entry["scalars"], where).items():
        scalars[key] = _number(value, f"{where}: scalars.{key}", -math.inf)
    seed = entry["seed"]
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise InputError(f"{where}: seed: expected an integer in 0..2^63-1, got {show(seed)}")
    rejects = entry.get("rejects")
    if rejects is not None and (rejects not in REJECTIONS or entry["kind"] != "regression"):
        raise InputError(f"{where}: rejects: expected one of {', '.join(REJECTIONS)} in a regression row, "
                         f"got {show(rejects)} in a {entry['kind']} row")  # fmt: skip
    tolerance = _row_tolerance(entry["tolerance"], outputs, f"{where}: tolerance")
    return Row(name, entry["kind"], inputs, outputs, scalars, tolerance, seed, rejects)


def _spec(entry: Any, where: str) -> TensorSpec:
    _keys(entry, where, {"shape", "dtype"}, {"stride", "regime"})
    shape = _list(entry["shape"], f"{where}: shape")
    if not 1 <= len(shape) <= MAX_RANK or not all(type(n) is int and 1 <= n <= MAX_ELEMENTS for n in shape):
        raise InputError(f"{where}: shape: expected 1..{MAX_RANK} positive integers, got {show(shape)}")
    if math.prod(shape) > MAX_ELEMENTS:
        raise InputError(f"{where}: shape: expected at most {MAX_ELEMENTS} elements, got {show(shape)}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise InputError(f"{where}: dtype: expected one of {', '.join(DTYPES)}, got {show(entry['dtype'])}")
    stride = contiguous(shape)
    if "stride" in entry:
        given = _list(entry["stride"], f"{where}: stride")
        if len(given) != len(shape) or not all(type(n) is int and 0 <= n <= MAX_ELEMENTS for n in given):
            raise InputError(f"{where}: stride: expected {len(shape)} integers from 0 on, got {show(given)}")
        stride = tuple(given)
    regime = _text(entry.get("regime", "normal"), f"{where}: regime")
    spec = TensorSpec(tuple(shape), entry["dtype"], stride, regime)
    if spec.extent > MAX_ELEMENTS:
        raise InputError(f"{where}: stride: expected an extent of at most {MAX_ELEMENTS} elements, got {spec.extent}")
    return spec


def _check_no_overlap(spec: TensorSpec, where: str) -> None:
    """Sufficient: sorted by stride, each dimension steps over the whole of those before it."""
    reach = 1
    for step, n in sorted((step, n) for n, step in zip(spec.shape, spec.stride, strict=True) if n > 1):
        if step < reach:
            raise InputError(f"{where}: stride: expected no two elements at one place, got {show(spec.stride)}")
        reach = step * (n - 1) + reach


def _row_tolerance(entry: Any, outputs: Mapping[str, TensorSpec], where: str) -> dict[str, Tolerance]:
    """One for all outputs, or one for each by name."""
    table = _table(entry, where)
    if set(table) == {"atol", "rtol"}:
        table = dict.fromkeys(outputs, entry)
    _keys(table, where, set(outputs))
    out = {}
    for key, limits in table.items():
        _keys(limits, f"{where}.{key}", {"atol", "rtol"})
        out[key] = Tolerance(*(_number(limits[name], f"{where}.{key}.{name}", 0.0) for name in ("atol", "rtol")))
    return out


def _check_tolerances(rows: Sequence[Row], limits: Mapping[str, float], where: str) -> None:
    for row in rows:
        for key, spec in row.outputs.items():
            limit = limits.get(spec.dtype, 0.0)
            asked = row.tolerance[key]
            if max(asked.atol, asked.rtol) > limit:
                raise InputError(f"{where}: row {show(row.name)}: tolerance of {key}: expected at most {limit:g} for "
                                 f"{spec.dtype} (task.toml), got {show(asked)}")  # fmt: skip


def _tolerances(entry: Any, where: str) -> dict[str, float]:
    table = _table(entry, f"{where}: tolerances")
    for key in table:
        if key not in DTYPES:
            raise InputError(f"{where}: tolerances: expected names of {', '.join(DTYPES)}, got {show(key)}")
    return {key: _number(value, f"{where}: tolerances.{key}", 0.0) for key, value in table.items()}


def _stages(entry: Any, rows: Sequence[Row], where: str) -> dict[str, tuple[str, ...]]:
    table = _table(entry, f"{where}: stages")
    _keys(table, f"{where}: stages", {"quick", "representative"})
    known = {row.name for row in rows}
    out = {}
    for stage, names in table.items():
        names = _list(names, f"{where}: stages.{stage}")
        strange = [name for name in names if not isinstance(name, str) or name not in known]
        if strange or len(set(names)) < len(names) or not names:
            raise InputError(
                f"{where}: stages.{stage}: expected names of rows, each once, got {show(strange or names)}"
            )
        out[stage] = tuple(names)
    if len(out["quick"]) != QUICK_ROWS:
        raise InputError(f"{where}: stages.quick: expected {QUICK_ROWS} rows, got {len(out['quick'])}")
    return out


# Settings: smallest and largest value.
_BOUNDS = {
    "warmup_rounds": (1, 1000), "iterations": (1, 10_000), "trials": (3, 1000), "min_sample_us": (1.0, 1e6),
    "l2_multiple": (2, 64), "check_limit_s": (1.0, 3600.0), "row_limit_s": (1.0, 3600.0),
}  # fmt: skip


def _settings(entry: Any, where: str) -> Settings:
    table = _table(entry, f"{where}: bench")
    _keys(table, f"{where}: bench", set(), set(_BOUNDS))
    for key, value in table.items():
        low, high = _BOUNDS[key]
        allowed = (int, float) if isinstance(low, float) else (int,)
        if isinstance(value, bool) or not isinstance(value, allowed) or not low <= value <= high:
            kind = "a number" if isinstance(low, float) else "an integer"
            raise InputError(f"{where}: bench.{key}: expected {kind} in {low:g}..{high:g}, got {show(value)}")
    return Settings(**table)


def _read_bytes(path: Path, where: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{where}: expected a readable file, got {error.strerror} ({path})") from error
    if len(data) > _MAX_FILE_BYTES:
        raise InputError(f"{where}: expected at most {_MAX_FILE_BYTES} bytes, got more")
    return data


def _read_toml(path: Path, where: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[no-redef]
        except ImportError as error:
            raise Unavailable(f"{where}: needs Python 3.11, or the package tomli: pip install tomli") from error
    try:
        return tomllib.loads(_read_bytes(path, where).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # of the text or of its encoding
        raise InputError(f"{where}: expected TOML, got {str(error)[:200]}") from error


def _keys(table: Any, where: str, wanted: set[str], optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    _table(table, where)
    missing, strange = sorted(wanted - set(table)), sorted(set(table) - wanted - optional)
    if missing or strange:
        raise InputError(f"{where}: expected the keys {', '.join(sorted(wanted)) or 'of its schema'}; missing "
                         f"{', '.join(missing) or 'none'}, unknown {show(strange) if strange else 'none'}")  # fmt: skip


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, got {show(value)}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list, got {show(value)}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 500:
        raise InputError(f"{where}: expected a text of 1..500 characters, got {show(value)}")
    return value


def _number(value: Any, where: str, low: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        raise InputError(f"{where}: expected a finite number{' from 0 on' if low == 0 else ''}, got {show(value)}")
    return float(value)
