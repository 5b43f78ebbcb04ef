"""`ReferenceVM`: the machine that explains an image on the CPU; and `ImageMachine`, what every machine offers.

In: an `Image` and its weights, by name. Out: logits of a step, or any named output; the KV cache and the states of
linear layers can be set and read. A step moves the states on: running it again is another step. One that fails poisons
them. A machine whose program decodes a batch runs that many consecutive tokens of one sequence a step. Machines of one
model may share weights and caches: one that decodes a batch fills the cache that another goes on from.
The weights stay the caller's arrays (no copy, unless one is not aligned) and must not change while the machine lives.
A machine may be used from several threads: calls take turns, and other Python threads run meanwhile.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from . import _lib
from ._lib import ffi, lib
from .errors import InputError, InternalError, Unavailable, show
from .program import Image

__all__ = ["ImageMachine", "ReferenceVM", "checked_int32", "require_kind", "require_timeline"]

_Self = TypeVar("_Self", bound="ImageMachine")

_ALIGNMENT = _lib.limit("VECTOR_BYTES")  # what amk_vm_bind asks of a pointer
_DECODE = lib.amk_vm_decode
_KINDS = {name: number for number, name in _lib.enum_names("amk_buffer_kind", "AMK_KIND_").items()}
_BOUND = {_KINDS["WEIGHT"], _KINDS["CONST"]}
_PERSISTENT = {_KINDS["KV_CACHE"], _KINDS["STATE"]}

# numpy has no bf16, and none of the 8-bit floats: they travel as the integers that hold their bits.
_STORAGE = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F8E4M3": np.uint8,
    "F8E5M2": np.uint8,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.uint8,
}


class _Buffer:
    """What this file needs to know of one buffer."""

    def __init__(self, name: str, source: str, kind: int, dtype: int, shape: tuple[int, ...]) -> None:
        self.name, self.source, self.kind, self.shape = name, source, kind, shape
        storage = _STORAGE.get(_lib.enum_names("amk_dtype", "AMK_DTYPE_").get(dtype, ""))
        self.dtype = None if storage is None else np.dtype(storage)

    def check(self, array: object, what: str) -> np.ndarray:
        """The array, when it has this buffer's dtype and is C-contiguous."""
        if not isinstance(array, np.ndarray) or array.dtype != self.dtype:
            got = array.dtype if isinstance(array, np.ndarray) else show(array)
            raise InputError(f"{what} {self.name!r}: expected an array of {self.dtype}, got {got}")
        if not array.flags.c_contiguous:
            raise InputError(f"{what} {self.name!r}: expected a C-contiguous array")
        return array


class ImageMachine:
    """An image, its weights bound by name, and buffers that are set and read by name: the contract of both machines."""

    def __init__(
        self,
        image: Image,
        weights: Mapping[str, np.ndarray],
        create: Callable[[Any, Any], int],
        options: Any,
        share: ImageMachine | None = None,
    ) -> None:
        """`create(options, out)` is the library's call that makes the machine. With `share`, weights and caches are
        those of that machine, and `weights` is not used."""
        self._lock = threading.Lock() if share is None else share._lock  # of machines that share, one runs at a time
        self._handle = None
        self._bound: list[object] = []
        self.share = share
        self._last_pos: int | None = None
        options.struct_size = ffi.sizeof("amk_vm_options_t")
        out = ffi.new("amk_vm **")
        with self._lock:
            if share is not None:
                options.share = share._open()
            _lib.check(create(options, out))
        self._handle = _lib.owned(out, lib.amk_vm_destroy)
        program = image.program()
        self.max_seq: int = program.launch["max_seq"]
        self._n_tasks = program.n_tasks
        self._buffers = _describe(program.tables())
        try:
            if share is None:
                self._bind(weights)
            else:
                self._bound = list(share._bound)
        except BaseException:
            self.close()
            raise
        self._by_name = {buffer.name: buffer for buffer in self._buffers if buffer.name}
        token = self._by_name.get("token")
        self._batch = 1 if token is None else math.prod(token.shape)
        self._chosen = ffi.new("int32_t[]", self._batch)

    @property
    def batch(self) -> int:
        """Consecutive tokens of one sequence that a step decodes."""
        return self._batch

    # ---- one decoded token ----

    def step(self, token: int, pos: int) -> np.ndarray:
        """float32 logits [V] after `token` at position `pos`; rows below pos are taken from the cache as they are, and
        states as the last step left them, or zero in a new machine."""
        self._require_one("step")
        return self._step(np.array([checked_int32("token", token)], np.int32), pos)

    def decode(self, token: int, pos: int) -> int:
        """The greedy choice after `token` at position `pos`: the step that `step` runs, but the logits stay where they
        are, and only the token comes back. NonFinite where a logit is NaN."""
        if self._batch != 1:
            self._require_one("decode")
        if type(token) is not int or type(pos) is not int:
            token, pos = checked_int32("token", token), checked_int32("pos", pos)
        with self._lock:  # a few hundred nanoseconds a call count here: nothing is called that need not be
            if not self._is_prepared:
                self._prepare()
            try:
                status = _DECODE(self._handle or self._open(), token, pos, self._chosen)
            except OverflowError:  # from cffi: not of 32 bits
                checked_int32("token", token), checked_int32("pos", pos)
                raise
            if status:
                _lib.check(status)
            self._last_pos = pos
            return self._chosen[0]

    @property
    def next_token(self) -> int:
        """The greedy choice of the last step, of one token."""
        self._require_one("next_token")
        return int(self.read("next_token")[0])

    # ---- a batch: consecutive tokens of one sequence ----

    def step_batch(self, tokens: Sequence[int], pos: int) -> np.ndarray:
        """float32 logits [B, V]: row t after tokens[0 .. t], which are at positions pos .. pos + t. No token sees a
        later one."""
        return self._step(self._all("step_batch", tokens), pos).reshape(self._batch, -1)

    def decode_batch(self, tokens: Sequence[int], pos: int) -> np.ndarray:
        """int32 [B]: the greedy choice after each token, of the step that `step_batch` runs; the logits stay where they
        are (`logits_of` reads them). NonFinite where a logit is NaN."""
        ids, position = self._all("decode_batch", tokens), checked_int32("pos", pos)
        with self._lock:
            self._prepare()
            given = _lib.pointer("int32_t", ids)
            _lib.check(lib.amk_vm_decode_batch(self._open(), given, len(ids), position, self._chosen))
            self._last_pos = position
            return np.array(list(self._chosen), np.int32)

    def logits_of(self, index: int) -> np.ndarray:
        """float32 logits [V] after token `index` of the last step."""
        output = self._buffer("logits")
        if type(index) is not int or not 0 <= index < self._batch:
            raise InputError(f"logits_of: expected a token of the step, 0 to {self._batch - 1}, got {show(index)}")
        logits = np.empty(output.shape[-1], output.dtype)
        with self._lock:
            self._read("logits", index * logits.nbytes, logits)
        return logits

    @property
    def next_tokens(self) -> list[int]:
        """The greedy choices of the last step, one after each of its tokens."""
        return self.read("next_token").tolist()

    def set_kv(self, layer: int, k: np.ndarray, v: np.ndarray) -> None:
        """Sets the first rows of a layer's cache: k, v [G, rows, D] in storage dtype, k turned and in the order of
        `head_runs`."""
        for name, rows in ((f"kv.{layer}.k", k), (f"kv.{layer}.v", v)):
            self.write_rows(name, rows)

    def get_kv(self, layer: int, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The first rows (default: all) of a layer's cache: k, v [G, rows, D] in storage dtype."""
        return self.read_rows(f"kv.{layer}.k", rows), self.read_rows(f"kv.{layer}.v", rows)

    def set_state(self, layer: int, conv: np.ndarray, memory: np.ndarray) -> None:
        """Sets the state of a linear layer: the convolution's last inputs [C, W - 1], oldest first, in storage dtype,
        and S [Hv, D (of v), D (of k)] in f32."""
        for name, array in zip(_state_names(layer), (conv, memory), strict=True):
            self.write(name, array)

    def get_state(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """The state of a linear layer, as `set_state` takes it. `DevicePoisoned` if a failed step left it."""
        conv, memory = (self.read(name) for name in _state_names(layer))
        return conv, memory

    def reset_state(self) -> None:
        """Every state zero, as in a new machine, and good again after a failed step."""
        with self._lock:
            _lib.check(lib.amk_vm_reset_state(self._open()))

    # ---- any program ----

    def run(
        self, inputs: Mapping[str, np.ndarray], kv: Mapping[str, np.ndarray] | None = None, pos: int = 0
    ) -> dict[str, np.ndarray]:
        """One launch: every IO_INPUT by name, and caches or state to set first; every IO_OUTPUT by name."""
        wanted = {buffer.name for buffer in self._buffers if buffer.kind == _KINDS["IO_INPUT"]}
        if set(inputs) != wanted:
            raise InputError(f"inputs: expected {', '.join(sorted(wanted)) or 'none'}, got {show(sorted(inputs))}")
        for name, array in (kv or {}).items():
            if self._buffer(name).kind not in _PERSISTENT:
                raise InputError(f"kv: {name!r} is neither a cache nor state")
            self.write_rows(name, array)
        for name, array in inputs.items():
            self.write(name, array)
        with self._lock:
            self._run(pos)
        return {buffer.name: self.read(buffer.name) for buffer in self._buffers if buffer.kind == _KINDS["IO_OUTPUT"]}

    def relaunch(self) -> None:
        """The last step again, on inputs, cache and states as they are now: nothing is copied in or out."""
        if self._last_pos is None:
            raise InputError("relaunch: expected a step to repeat, but none has run")
        with self._lock:
            self._run(self._last_pos)

    def write(self, name: str, array: np.ndarray) -> None:
        """Sets a whole cache, state or input buffer."""
        buffer = self._buffer(name)
        if buffer.check(array, "write").shape != buffer.shape:
            raise InputError(f"write {name!r}: expected shape {buffer.shape}, got {array.shape}")
        with self._lock:
            self._write(name, 0, array)

    def read(self, name: str) -> np.ndarray:
        """A copy of a whole cache, state, input or output buffer."""
        buffer = self._buffer(name)
        out = np.empty(buffer.shape, buffer.dtype)
        with self._lock:
            self._read(name, 0, out)
        return out

    def write_rows(self, name: str, rows: np.ndarray) -> None:
        """Sets the first rows of a cache [G, S, D] from [G, rows, D]; a buffer of another kind as a whole."""
        buffer = self._buffer(name)
        if buffer.kind != _KINDS["KV_CACHE"]:
            return self.write(name, rows)
        buffer.check(rows, "write")
        groups, capacity, width = buffer.shape
        if rows.ndim != 3 or rows.shape[::2] != (groups, width) or rows.shape[1] > capacity:
            expected = f"({groups}, at most {capacity}, {width})"
            raise InputError(f"write {name!r}: expected shape {expected}, got {rows.shape}")
        with self._lock:
            for group in range(groups if rows.shape[1] else 0):
                self._write(name, group * capacity * width * rows.itemsize, rows[group])
        return None

    def read_rows(self, name: str, rows: int | None = None) -> np.ndarray:
        """A copy of the first rows of a cache [G, S, D]."""
        buffer = self._buffer(name)
        if rows is None or buffer.kind != _KINDS["KV_CACHE"]:
            return self.read(name)
        groups, capacity, width = buffer.shape
        if type(rows) is not int or not 0 <= rows <= capacity:
            raise InputError(f"read {name!r}: expected 0 to {capacity} rows, got {show(rows)}")
        out = np.empty((groups, rows, width), buffer.dtype)
        with self._lock:
            for group in range(groups if rows else 0):
                self._read(name, group * capacity * width * out.itemsize, out[group])
        return out

    def timeline(self) -> np.ndarray:
        """When each task of the last step began, had its inputs and was done: records of `amk_task_time_t`, of a
        machine made with `timeline=True`. Unavailable on the reference machine, and where it was not built."""
        require_timeline()
        with self._lock:
            out = np.zeros(self._n_tasks, _lib.table_dtype("amk_task_time_t"))
            count = ffi.new("int64_t *")
            records = _lib.pointer("amk_task_time_t", out)
            _lib.check(lib.amk_vm_timeline(self._open(), records, len(out), count))
        if count[0] != len(out):
            raise InternalError(f"amk_vm_timeline: expected {len(out)} tasks, got {count[0]}")
        return out

    def close(self) -> None:
        """Frees the machine; using it afterwards is an InputError. Closing twice is fine."""
        with self._lock:
            if self._handle is not None:
                ffi.release(self._handle)
            self._handle = None
            self._bound = []

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- tokens of a step ----

    def _require_one(self, call: str) -> None:
        if self._batch != 1:
            raise InputError(
                f"{call}: expected a machine of one token a step, got one of {self._batch}, which has step_batch, "
                "decode_batch and next_tokens"
            )

    def _all(self, call: str, tokens: Sequence[int]) -> np.ndarray:
        self._open()
        if isinstance(tokens, np.ndarray) and tokens.ndim == 1:
            tokens = tokens.tolist()
        if not isinstance(tokens, (list, tuple)) or len(tokens) != self._batch:
            got = f"{len(tokens)}" if isinstance(tokens, (list, tuple)) else show(tokens)
            raise InputError(f"{call}: expected the {self._batch} tokens of a step, got {got}")
        return np.array([checked_int32(f"tokens[{i}]", token) for i, token in enumerate(tokens)], np.int32)

    def _step(self, ids: np.ndarray, pos: int) -> np.ndarray:
        output = self._buffer("logits")
        logits = np.empty(output.shape, output.dtype)
        with self._lock:
            self._write("token", 0, ids)
            self._run(pos)
            self._read("logits", 0, logits)
        return logits

    # ---- calls into the library; the lock is held ----

    def _open(self) -> Any:
        if self._handle is None:
            raise InputError("the machine is closed")
        return self._handle

    _is_prepared = True  # where it is False, `_prepare` has something to do

    def _prepare(self) -> None:
        """What has to happen once, before the first step."""

    def _run(self, pos: int) -> None:
        self._prepare()
        _lib.check(lib.amk_vm_run(self._open(), checked_int32("pos", pos)))
        self._last_pos = int(pos)

    def _write(self, name: str, offset: int, array: np.ndarray) -> None:
        data = ffi.from_buffer(array)
        _lib.check(lib.amk_vm_write(self._open(), name.encode(), offset, data, array.nbytes))

    def _read(self, name: str, offset: int, out: np.ndarray) -> None:
        data = ffi.from_buffer(out, require_writable=True)
        _lib.check(lib.amk_vm_read(self._open(), name.encode(), offset, data, out.nbytes))

    def _buffer(self, name: str) -> _Buffer:
        self._open()
        buffer = self._by_name.get(name) if isinstance(name, str) else None
        if buffer is None or buffer.dtype is None:
            raise InputError(f"expected the name of a buffer of this program, got {show(name)}")
        return buffer

    def _bind(self, weights: Mapping[str, np.ndarray]) -> None:
        operands: dict[str, list[_Buffer]] = {}
        for buffer in self._buffers:
            if buffer.kind in _BOUND and buffer.source:
                operands.setdefault(buffer.source, []).append(buffer)
        missing = [source for source in operands if source not in weights]
        if missing:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise InputError(f"weights: expected {', '.join(map(repr, missing[:8]))}{more}, which are not there")
        for source, buffers in operands.items():
            array = buffers[0].check(weights[source], "weight")
            shapes = {buffer.shape for buffer in buffers}
            if array.shape not in shapes:
                raise InputError(f"weight {source!r}: expected shape {shapes.pop()}, got {array.shape}")
            if array.ctypes.data % _ALIGNMENT:
                array = _lib.aligned_copy(array, _ALIGNMENT)
            self._bound.append(array)
            _lib.check(lib.amk_vm_bind(self._handle, source.encode(), ffi.from_buffer(array), array.nbytes))


class ReferenceVM(ImageMachine):
    """Runs an image in any legal order (`seed`; 0 is table order) on one or more threads.

    guard=True poisons scratch and outputs before each step and checks canaries around every region after it. `share`
    is another machine of this model, whose weights and caches are used in place of its own (`weights` is then not).
    """

    def __init__(
        self,
        image: Image,
        weights: Mapping[str, np.ndarray],
        *,
        seed: int = 0,
        threads: int = 0,
        guard: bool = False,
        share: ReferenceVM | None = None,
    ) -> None:
        self._handle = None
        options = ffi.new("amk_vm_options_t *")
        options.seed = _uint64("seed", seed)
        if type(threads) is not int or not 0 <= threads <= _lib.limit("MAX_QUEUES"):
            raise InputError(f"threads: expected an integer in 0..{_lib.limit('MAX_QUEUES')}, got {show(threads)}")
        options.threads, options.guard = threads, bool(guard)
        self._threads, self._guard = threads, guard
        require_kind("share", share, ReferenceVM)
        super().__init__(
            image, weights, lambda given, out: lib.amk_vm_create_reference(image._handle, given, out), options, share
        )

    def beside(self, image: Image) -> ReferenceVM:
        """A machine for another image of this model, on this one's weights and caches."""
        return ReferenceVM(image, {}, threads=self._threads, guard=self._guard, share=self)

    def reseed(self, seed: int) -> None:
        """Another legal order for the next steps."""
        with self._lock:
            _lib.check(lib.amk_vm_reseed(self._open(), _uint64("seed", seed)))


def _state_names(layer: int) -> tuple[str, str]:
    return f"layers.{layer}.conv_state", f"layers.{layer}.gdn_state"


def require_kind(name: str, machine: object, kind: type) -> None:
    """InputError where a machine is given and is none of this kind."""
    if machine is not None and not isinstance(machine, kind):
        raise InputError(f"{name}: expected a {kind.__name__} or None, got {show(machine)}")


def require_timeline() -> None:
    """Unavailable where this library keeps no timelines at all."""
    if not _lib.has_call("amk_vm_timeline") or not _lib.has_field("amk_vm_options_t", "timeline"):
        build = _lib.build_info().get("build_id", "")
        raise Unavailable(f"timeline: this libamk (build {str(build)[:12]}) has no call amk_vm_timeline")


def _describe(tables: Any) -> list[_Buffer]:
    names, sources = tables.buffer_name.strings(), tables.buffer_source.strings()
    rows = zip(names, sources, tables.bindings["kind"].tolist(), tables.buffers, strict=True)
    return [
        _Buffer(name, source, kind, int(record["dtype"]), tuple(record["shape"][: record["rank"]].tolist()))
        for name, source, kind, record in rows
    ]


def checked_int32(name: str, value: object) -> int:
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not int or not -(1 << 31) <= value < 1 << 31:
        raise InputError(f"{name}: expected a 32-bit integer, got {show(value)}")
    return value


def _uint64(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise InputError(f"{name}: expected an integer in 0..2^64-1, got {show(value)}")
    return value
