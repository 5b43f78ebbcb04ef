"""A `Timeline` as a file for people and tools: Chrome trace JSON, plain or gzip, and back.

In: a timeline and its program. Out: bytes in the Trace Event Format (complete events "X", one thread per SM, a task
named by layer, op and tile, its wait as an event inside it, a counter of the bytes that are used), and from such bytes
the same timeline to the nanosecond. A file that is not one of these, is cut short, or holds a time that is no number is
an InputError that says where. Whether the times are measured or predicted is in every name a viewer shows.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, show
from .timeline import MEASURED, PREDICTED, Timeline, join

if TYPE_CHECKING:
    from .program import Program

__all__ = ["SUFFIXES", "label_parts", "read_timeline", "task_labels", "trace_bytes"]

SUFFIXES = (".json", ".json.gz")
SCHEMA = {"schema": "amk.trace", "schema_version": 1}
PID = 1
COUNTER_POINTS = 256
MAX_BYTES = 1 << 30
MAX_VALUES = 64_000_000
_TICK_US = 1e-3  # times in a file are whole nanoseconds
_DIGITS = 3


def task_labels(program: Program) -> tuple[list[str], list[str]]:
    """(labels, names of opcodes), by task; a task without a label is named by its opcode and its number."""
    from . import _lib

    tables = program.tables()
    names = _lib.enum_names("amk_opcode", "AMK_OP_")
    ops = [names.get(op, f"OP_{op}") for op in tables.tasks["op"].tolist()]
    named = zip(tables.task_label.strings(), ops, strict=True)
    return [label or f"{op}[{index}]" for index, (label, op) in enumerate(named)], ops


def label_parts(label: str) -> dict[str, Any]:
    """layers.3.qkv[17] -> layer 3, part "qkv", tile 17; what a label does not say is left out."""
    layer, tile = re.match(r"layers\.(\d+)\.", label), re.search(r"\[(\d+)\]$", label)
    parts: dict[str, Any] = {"part": re.sub(r"\[\d+\]$", "", re.sub(r"^layers\.\d+\.", "", label))}
    if layer:
        parts["layer"] = int(layer[1])
    if tile:
        parts["tile"] = int(tile[1])
    return parts


def trace_bytes(timeline: Timeline, program: Program, *, compress: bool) -> bytes:
    """The whole file."""
    events = _events(timeline, program)
    head = {**SCHEMA, **timeline.meta, "kind": timeline.kind, "step_us": timeline.step_us}
    head["overlap_closed_us"] = timeline.overlap_us
    lines = ",\n".join(json.dumps(event, separators=(",", ":"), allow_nan=False) for event in events)
    text = (
        f'{{"displayTimeUnit":"ns",\n"otherData":{json.dumps(head, allow_nan=False)},\n"traceEvents":[\n{lines}\n]}}\n'
    )
    # mtime 0: the same timeline always gives the same bytes
    return gzip.compress(text.encode(), 6, mtime=0) if compress else text.encode()


def _events(timeline: Timeline, program: Program) -> list[dict[str, Any]]:
    kind, meta = timeline.kind, timeline.meta
    title = f"{meta.get('model', 'program')} on {meta.get('gpu', 'gpu')}, context {meta.get('context', '?')} ({kind})"
    events = [_named("process_name", 0, title)]
    for sm in sorted(set(timeline.queue.tolist())):
        events.append(_named("thread_name", sm, f"SM {sm} ({kind})"))
        events.append({**_named("thread_sort_index", sm, ""), "args": {"sort_index": sm}})
    labels, ops = task_labels(program)
    costs = program.task_costs(int(meta.get("position", 0)))
    producer = join(timeline, program.tables().tasks).producer.tolist()
    ticks = [np.rint(times / _TICK_US).astype(np.int64) for times in
             (timeline.start_us, timeline.ready_us, timeline.finish_us)]  # fmt: skip
    rows = zip(timeline.queue.tolist(), *(column.tolist() for column in ticks), strict=True)
    for task, (sm, start, ready, finish) in enumerate(rows):
        place = {"ph": "X", "pid": PID, "tid": sm}
        facts = {
            "task": task,
            "op": ops[task],
            **label_parts(labels[task]),
            "bytes": int(costs["streamed_bytes"][task]),
        }
        events.append({**place, "name": labels[task], "cat": ops[task], **_times(start, finish), "args": facts})
        if ready > start:
            made = producer[task]
            what = labels[made] if made >= 0 else "its turn"
            events.append({**place, "name": f"wait: {what}", "cat": "wait", **_times(start, ready),
                           "args": {"task": task, "producer": made}})  # fmt: skip
    name = f"weights and KV used, GB/s ({kind})"
    for at_us, rate in _rates(timeline, costs["streamed_bytes"]):
        events.append({"ph": "C", "pid": PID, "tid": 0, "name": name, "ts": round(at_us, _DIGITS),
                       "args": {"GB/s": round(rate, 1)}})  # fmt: skip
    return events


def _named(what: str, sm: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": PID, "tid": sm, "name": what, "args": {"name": name}}


def _times(first: int, last: int) -> dict[str, float]:
    return {"ts": round(first * _TICK_US, _DIGITS), "dur": round((last - first) * _TICK_US, _DIGITS)}


def _rates(timeline: Timeline, streamed: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Bytes of the tasks at work per time, in equal steps: each task's spread evenly from ready to finish. A ring reads
    ahead of its tasks, so this is when bytes are used, not when they are read."""
    edges = np.linspace(0.0, timeline.span_us, COUNTER_POINTS + 1)
    ready, finish = timeline.ready_us, np.maximum(timeline.finish_us, timeline.ready_us + _TICK_US)
    done = [float((streamed * np.clip((edge - ready) / (finish - ready), 0.0, 1.0)).sum()) for edge in edges]
    if timeline.span_us <= 0:
        return []
    rates = np.diff(done) / np.diff(edges) / 1e3
    return [*zip(edges[:-1].tolist(), rates.tolist(), strict=True), (timeline.span_us, 0.0)]


# ---- and back -------------------------------------------------------------------------------------------------------


def read_timeline(data: bytes, where: str) -> Timeline:
    """A timeline from a trace of ours, or from what `amk profile --output-file` wrote."""
    from .strict_json import parse_strict_json

    found = parse_strict_json(_unpacked(data, where), where, max_values=MAX_VALUES)
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected a trace or a profile of amk, got {show(found)}")
    if found.get("schema") == "amk.profile":
        return _from_columns(found, where)
    head = found.get("otherData")
    if not isinstance(head, dict) or head.get("schema") != SCHEMA["schema"]:
        raise InputError(f"{where}: expected a trace or a profile of amk, got {show(sorted(map(str, found)))}")
    return _from_events(found.get("traceEvents"), head, where)


def _unpacked(data: bytes, where: str) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            text = file.read(MAX_BYTES + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{where}: expected whole gzip data, got {error}") from error
    if len(text) > MAX_BYTES:
        raise InputError(f"{where}: expected at most {MAX_BYTES} bytes once unpacked, got more")
    return text


def _from_events(events: Any, head: Mapping[str, Any], where: str) -> Timeline:
    if not isinstance(events, list):
        raise InputError(f"{where}: traceEvents: expected a list, got {show(events)}")
    tasks: dict[int, tuple[int, int, int]] = {}  # task -> (queue, start, finish) in ticks
    waits: dict[int, tuple[int, int]] = {}
    for index, event in enumerate(events):
        at = f"{where}: event {index}"
        if not isinstance(event, dict):
            raise InputError(f"{at}: expected an object, got {show(event)}")
        if event.get("ph") != "X":
            continue
        facts = event.get("args")
        task, sm = _integer(facts.get("task") if isinstance(facts, dict) else None, at), _integer(event.get("tid"), at)
        start, duration = (_ticks(event.get(name), f"{at}: {name}") for name in ("ts", "dur"))
        into: dict[int, Any] = waits if event.get("cat") == "wait" else tasks
        if task in into:
            raise InputError(f"{at}: task {task}: expected one such event, got two")
        into[task] = (start, start + duration) if into is waits else (sm, start, start + duration)
    n = len(tasks)
    if sorted(tasks) != list(range(n)) or n == 0:
        raise InputError(f"{where}: expected an event for each of the tasks 0, 1, ..., got {n} of other numbers")
    stray = [task for task in waits if task not in tasks or waits[task][0] != tasks[task][1]]
    if stray:
        raise InputError(f"{where}: task {stray[0]}: expected a wait that begins with the task, got another")
    columns = np.array([(*tasks[task], waits.get(task, tasks[task][1:2] * 2)[1]) for task in range(n)], np.int64)
    times = [columns[:, column] * _TICK_US for column in (1, 3, 2)]
    return _timeline(head, columns[:, 0], times, where)


def _from_columns(found: Mapping[str, Any], where: str) -> Timeline:
    table = found.get("timeline")
    if not isinstance(table, dict) or not isinstance(table.get("meta"), dict):
        raise InputError(f"{where}: expected a profile with its timeline (`amk profile --output-file`), got none")
    columns = []
    for name in ("queue", "start_us", "ready_us", "finish_us"):
        values = table.get(name)
        good = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not good or len(values) != len(table.get("queue", ())):
            raise InputError(f"{where}: timeline.{name}: expected a list of one number per task, got {show(values)}")
        columns.append(np.array(values, np.float64))
    if not np.array_equal(columns[0], np.rint(columns[0])) or not np.all(np.abs(columns[0]) < 1 << 31):
        raise InputError(f"{where}: timeline.queue: expected integers, got {show(table['queue'])}")
    return _timeline(table["meta"], columns[0].astype(np.int64), columns[1:], where)


def _timeline(head: Mapping[str, Any], queue: NDArray[np.int64], times: Any, where: str) -> Timeline:
    head = {name: value for name, value in head.items() if name not in SCHEMA}
    kind, step_us, closed = (head.pop(name, None) for name in ("kind", "step_us", "overlap_closed_us"))
    if kind not in (MEASURED, PREDICTED):
        raise InputError(f"{where}: kind: expected {MEASURED} or {PREDICTED}, got {show(kind)}")
    if type(step_us) not in (int, float) or not np.isfinite(step_us) or step_us <= 0:
        raise InputError(f"{where}: step_us: expected microseconds, got {show(step_us)}")
    if type(closed) not in (int, float):
        raise InputError(f"{where}: overlap_closed_us: expected microseconds, got {show(closed)}")
    if np.any((queue < 0) | (queue >= 1 << 31)):
        raise InputError(f"{where}: expected SMs from 0 on, got {queue.min()}")
    return Timeline(kind, queue.astype(np.int32), *times, step_us=float(step_us), overlap_us=float(closed), meta=head)


def _integer(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise InputError(f"{where}: expected a task and an SM by number, got {show(value)}")
    return value


def _ticks(value: Any, where: str) -> int:
    if type(value) not in (int, float) or not 0 <= value < 1e12:  # also false for NaN
        raise InputError(f"{where}: expected microseconds, got {show(value)}")
    return round(value / _TICK_US)
