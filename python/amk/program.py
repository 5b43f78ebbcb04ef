"""Programs and images: the owners of the library's handles.

In: a model, a config and a target (`lower`), tables, or a program as data. Out: `Program`, its `Report`, its costs and,
once it is proved, its `Image`. All judgement is the library's; only what cannot be put in tables is refused here.
A Program never changes after it was made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _lib
from ._lib import ffi, lib
from .columns import Rejection
from .config import ScheduleConfig
from .errors import InputError, Rejected, show
from .model_config import ModelConfig
from .program_read import ReadProgram, read_json, read_program
from .program_write import write_program
from .tables import ProgramTables, view_of
from .targets import GpuTarget, resolve_target

__all__ = ["Access", "Cost", "Image", "Program", "Rejection", "Report", "lower"]

_DTYPE_NUMBERS = {name.lower(): number for number, name in _lib.enum_names("amk_dtype", "AMK_DTYPE_").items()}
_FEATURES = {name.lower(): bit for bit, name in _lib.enum_names("amk_model_feature", "AMK_MODEL_").items()}
_MODEL_DIMS = ("layers", "hidden", "n_heads", "n_kv_heads", "head_dim", "ffn", "vocab")
_HYBRID_DIMS = ("linear_key_heads", "linear_value_heads", "linear_head_dim", "conv_width", "full_attention_interval")


@dataclass(frozen=True)
class Report:
    """The judgement of one program: ok exactly when nothing was refused. `count` may exceed the rejections kept."""

    ok: bool
    rejections: tuple[Rejection, ...] = ()
    count: int = 0

    def __str__(self) -> str:
        if self.ok:
            return "accepted"
        more = f"\n... and {self.count - len(self.rejections)} more" if self.count > len(self.rejections) else ""
        return "\n".join(map(str, self.rejections)) + more


@dataclass(frozen=True)
class Cost:
    """What one step costs: amk_cost_t. `latency_us` is a prediction, `bound_us` streamed bytes over bandwidth."""

    latency_us: float
    bound_us: float
    streamed_bytes: int
    weight_bytes: int
    arena_bytes: int
    flops: float


@dataclass(frozen=True)
class Access:
    """`rows` ranges of row_bytes bytes, stride_bytes apart, from offset_bytes in a buffer."""

    buffer: int
    is_write: bool
    offset_bytes: int
    row_bytes: int
    rows: int
    stride_bytes: int


class Program:
    """The tables of one decode step, valid or not. Make one with `lower`, `from_json`, `from_dict`, `from_tables`."""

    def __init__(self, handle: Any, meta: Mapping[str, Any], config: ScheduleConfig | None) -> None:
        self._handle = handle  # None: refused as data, there are no tables
        self._meta = dict(meta)
        self.config = config
        # By (model, max_seq), or None for the judgement without a model.
        self._reports: dict[tuple[ModelConfig, int | None] | None, Report] = {}
        self._proof: Any = None
        self._view = None if handle is None else view_of(handle)

    @classmethod
    def from_tables(
        cls, tables: ProgramTables, *, meta: Mapping[str, Any] | None = None, config: ScheduleConfig | None = None
    ) -> Program:
        """Copies the tables; judges nothing."""
        view, _alive = tables.to_c()
        out = ffi.new("amk_program **")
        _lib.check(lib.amk_program_from_tables(view, out))
        return cls(_lib.owned(out, lib.amk_program_destroy), meta or {}, config)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Program:
        """Total on contents: what cannot be put in tables is what `validate` reports. InputError only for no dict."""
        return cls._from_read(read_program(data))

    @classmethod
    def from_json(cls, text: str | bytes) -> Program:
        """As from_dict; InputError when the text is no (strict) JSON."""
        return cls._from_read(read_json(text))

    @classmethod
    def _from_read(cls, read: ReadProgram) -> Program:
        if read.tables is not None:
            return cls.from_tables(read.tables, meta=read.meta, config=read.config)
        program = cls(None, read.meta, read.config)
        program._reports[None] = Report(False, tuple(read.rejections), read.rejected_count)
        return program

    def to_dict(self) -> dict[str, Any]:
        """Plain data for from_dict. Rejected when there are no tables, or tables that JSON cannot say."""
        return write_program(self.tables(), self._meta, self.config)

    def to_json(self, indent: int | None = None) -> str:
        """JSON text for from_json; the same program always gives the same text."""
        separators = (",", ":") if indent is None else None
        try:
            return json.dumps(self.to_dict(), indent=indent, separators=separators, allow_nan=False)
        except ValueError as error:
            raise Rejected(f"V10: a figure of the target cannot be written as JSON: {error}") from error

    def tables(self) -> ProgramTables:
        """A copy of the tables as numpy arrays."""
        self._require_tables()
        return ProgramTables.of_program(self._handle)

    @property
    def meta(self) -> dict[str, Any]:
        return dict(self._meta)

    @property
    def n_tasks(self) -> int:
        return 0 if self._view is None else self._view.n_tasks

    @property
    def n_buffers(self) -> int:
        return 0 if self._view is None else self._view.n_buffers

    @property
    def n_counters(self) -> int:
        return 0 if self._view is None else self._view.n_counters

    @property
    def n_pages(self) -> int:
        return 0 if self._view is None else self._view.n_pages

    @property
    def launch(self) -> dict[str, int]:
        """The launch facts: grid, max_seq, kv_block, ..."""
        self._require_tables()
        return {name: getattr(self._view.launch, name) for name in _lib.table_dtype("amk_launch_t").names or ()}

    def validate(self, model_config: ModelConfig | None = None, max_seq: int | None = None) -> Report:
        """The proof, or why there is none; each made once. With a model: also that the program computes this decoder
        (V17) for positions below `max_seq` (default: the program's own)."""
        key = None if model_config is None else (model_config, max_seq)
        if self._handle is None:
            return self._reports[None]
        if key not in self._reports:
            if model_config is None:
                self._reports[key] = self._judge(lambda *out: lib.amk_program_validate(self._handle, *out))
            else:
                capacity = self._view.launch.max_seq if max_seq is None else max_seq
                if max_seq is None and not 1 <= capacity <= _lib.limit("MAX_SEQ"):
                    return self.validate()  # V19 says so
                model = _describe(model_config, capacity)
                report = self._judge(lambda *out: lib.amk_program_validate_model(self._handle, model, *out))
                self._reports[key] = report
                if report.ok:
                    self._reports.setdefault(None, report)
        return self._reports[key]

    def _judge(self, judge: Callable[[Any, Any], int]) -> Report:
        report, proof = ffi.new("amk_report **"), ffi.new("amk_valid_program **")
        _lib.check(judge(report, proof))
        entries = _lib.owned(report, lib.amk_report_destroy)
        if proof[0] != ffi.NULL:
            self._proof = _lib.owned(proof, lib.amk_valid_program_destroy)
        return _read_report(entries)

    def cost(self, pos: int) -> Cost:
        """Cost of the step at a position, on the program's own target. Rejected when the program is invalid."""
        out = ffi.new("amk_cost_t *")
        out.struct_size = ffi.sizeof("amk_cost_t")
        _lib.check(lib.amk_program_cost(self._require_proof(), _int32("pos", pos), out))
        return Cost(**{name: getattr(out, name) for name in Cost.__dataclass_fields__})

    def task_costs(self, pos: int) -> np.ndarray:
        """What that cost is made of: one record of amk_task_cost_t per task, in microseconds since the step began."""
        count = ffi.new("int64_t *")
        costs = np.zeros(self.n_tasks, _lib.table_dtype("amk_task_cost_t"))
        out = _lib.pointer("amk_task_cost_t", costs)
        status = lib.amk_program_task_costs(self._require_proof(), _int32("pos", pos), out, len(costs), count)
        _lib.check(status)
        return costs

    def footprint(self, task: int, pos: int = 0) -> list[Access]:
        """The byte ranges a task touches at a position, as the law table has them."""
        room = _lib.limit("MAX_INPUTS") * 2 + _lib.limit("MAX_OUTPUTS") * _lib.limit("MAX_BATCH")
        out, count = ffi.new("amk_access_t[]", room), ffi.new("int32_t *")
        proof = self._require_proof()
        _lib.check(lib.amk_program_footprint(proof, _int32("task", task), _int32("pos", pos), out, room, count))
        names = Access.__dataclass_fields__
        accesses = [{name: getattr(out[i], name) for name in names} for i in range(min(count[0], room))]
        return [Access(**access | {"is_write": bool(access["is_write"])}) for access in accesses]

    def pack(self, model_config: ModelConfig | None = None, max_seq: int | None = None) -> Image:
        """The image that machines run. Rejected, with the report, when the program is invalid, or with a model
        when it computes something else."""
        out = ffi.new("amk_image **")
        _lib.check(lib.amk_image_pack(self._require_proof(model_config, max_seq), out))
        return Image(_lib.owned(out, lib.amk_image_destroy))

    def _require_tables(self) -> None:
        if self._handle is None:
            report = self.validate()
            raise Rejected(f"the program cannot be put in tables: {_first_rejection(report)}", report)

    def _require_proof(self, model_config: ModelConfig | None = None, max_seq: int | None = None) -> Any:
        report = self.validate(model_config, max_seq)
        if not report.ok:
            raise Rejected(f"the program is not valid: {_first_rejection(report)}", report)
        return self._proof


class Image:
    """One flat, hashed blob of a valid program: what machines run and what files keep."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Image:
        """Opens untrusted bytes: BuildMismatch (V24) for a broken certificate, Rejected, or InputError."""
        try:
            borrowed = ffi.from_buffer(data)
        except (TypeError, BufferError, ValueError) as error:
            raise InputError(f"image: expected contiguous bytes, got {type(data).__name__}") from error
        out = ffi.new("amk_image **")
        _lib.check(lib.amk_image_from_bytes(borrowed, len(borrowed), out))
        return cls(_lib.owned(out, lib.amk_image_destroy))

    @property
    def bytes(self) -> bytes:
        """A copy of the whole blob."""
        address, nbytes = ffi.new("const void **"), ffi.new("uint64_t *")
        _lib.check(lib.amk_image_bytes(self._handle, address, nbytes))
        return ffi.buffer(address[0], nbytes[0])[:]

    @property
    def hash(self) -> str:
        """64 hexadecimal digits: the identity of this program in every record."""
        out = ffi.new("char[65]")
        _lib.check(lib.amk_image_hash(self._handle, out))
        return ffi.string(out).decode()

    def program(self) -> Program:
        """The tables back out, as a new program (without meta and config, which an image does not hold)."""
        out = ffi.new("amk_program **")
        _lib.check(lib.amk_image_program(self._handle, out))
        return Program(_lib.owned(out, lib.amk_program_destroy), {}, None)


def lower(model: ModelConfig, config: ScheduleConfig, target: GpuTarget | str, max_seq: int) -> Program:
    """Model + schedule + target -> program for positions below max_seq. Rejected for the schedule's sake,
    UnsupportedModel or InputError for the model's."""
    gpu = resolve_target(target)
    description = _describe(model, max_seq)
    schedule, _alive = config.to_c()
    out = ffi.new("amk_program **")
    _lib.check(lib.amk_program_lower(description, schedule, gpu.to_c(), out))
    dims = {name: getattr(model, name) for name in (*_MODEL_DIMS, *(_HYBRID_DIMS if model.has_state else ()))}
    features = _features(model)
    meta = {"model": {"family": model.family, "dtype": model.dtype, **dims, "eps": model.eps, "features": features}}
    if model.weight_group:
        meta["model"]["weight_group"] = model.weight_group
    return Program(_lib.owned(out, lib.amk_program_destroy), meta, config)


_FEATURE_FIELDS = {"tied_head": "tied"}


def _features(model: ModelConfig) -> list[str]:
    return sorted(name for name in _FEATURES if getattr(model, _FEATURE_FIELDS.get(name, name)))


def _describe(model: ModelConfig, max_seq: int) -> Any:
    """The model as the library reads it."""
    if model.dtype not in _DTYPE_NUMBERS:
        raise InputError(f"model.dtype: expected one of f32, f16, bf16, got {show(model.dtype)}")
    description = ffi.new("amk_model_t *")
    description.struct_size = ffi.sizeof("amk_model_t")
    description.dtype = _DTYPE_NUMBERS[model.dtype]
    for name in (*_MODEL_DIMS, *_HYBRID_DIMS):
        setattr(description, name, _int32(f"model.{name}", getattr(model, name)))
    description.max_seq = _int32("max_seq", max_seq)
    description.features = sum(_FEATURES[name] for name in _features(model))
    description.eps = model.eps
    description.weight_group = _int32("model.weight_group", model.weight_group)
    return description


def _int32(name: str, value: object) -> int:
    if type(value) is not int or not -(1 << 31) <= value < 1 << 31:
        raise InputError(f"{name}: expected a 32-bit integer, got {show(value)}")
    return value


def _first_rejection(report: Report) -> str:
    return f"{report.rejections[0]} ({report.count} in all)" if report.count > 1 else str(report.rejections[0])


def _read_report(handle: Any) -> Report:
    count = lib.amk_report_count(handle)
    entry = ffi.new("amk_rejection_t *")
    rejections = []
    for index in range(min(count, _lib.limit("MAX_REPORTED"))):
        _lib.check(lib.amk_report_entry(handle, index, entry))
        text = _lib.text_of(entry.text)
        rejections.append(Rejection(f"V{entry.code}", entry.task, entry.buffer, entry.counter, text))
    return Report(count == 0, tuple(rejections), count)
