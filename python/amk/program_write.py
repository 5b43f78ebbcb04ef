"""A program as plain data, out: tables -> dict, whole columns at a time.

In: `ProgramTables`. Out: the dict that `program_read` turns back into the same tables, byte for byte, or `Rejected`
when JSON cannot say what they hold (strides of their own, NaN, slots in use past their count). Judges nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .columns import is_text
from .config import ScheduleConfig
from .errors import Rejected
from .program_read import (
    ABI_MAJOR,
    ABI_MINOR,
    DTYPES,
    IR_VERSION,
    KINDS,
    LAUNCH,
    OPS,
    PARAMS,
    RESETS,
    SPACES,
    row_major,
    target_table,
)
from .tables import ProgramTables, StringTable
from .targets import TARGETS

__all__ = ["write_program"]


def write_program(tables: ProgramTables, meta: Mapping[str, Any], config: ScheduleConfig | None) -> dict[str, Any]:
    """Plain data that `read_program` turns back into the same tables; Rejected when JSON cannot say what they hold."""
    _check_canonical(tables)
    launch = {name: int(tables.launch[name][0]) for name in LAUNCH}
    launch["counter_reset"] = RESETS.get(launch["counter_reset"], launch["counter_reset"])
    page_of = tables.bindings["page"].tolist()
    return {
        "ir_version": IR_VERSION,
        "abi_version": f"{ABI_MAJOR}.{ABI_MINOR}",
        "meta": {**meta, "launch": launch},
        "target": _write_target(tables.target),
        "buffers": _write_buffers(tables),
        "counters": [{"id": index, "init": init} for index, init in enumerate(tables.counter_init.tolist())],
        "tasks": _write_tasks(tables),
        "pages": {
            "buffer_to_page": {str(buffer): page for buffer, page in enumerate(page_of) if page != -1},
            "pages": [
                {"id": index, "space": SPACES.get(space, space), "offset": offset, "nbytes": nbytes}
                for index, (space, offset, nbytes) in enumerate(tables.pages.tolist())
            ],
        },
        "config": {} if config is None else config.to_dict(),
    }


def _check_canonical(tables: ProgramTables) -> None:
    """JSON leaves out what the rest implies; tables where it implies something else cannot be written."""
    buffers, tasks = tables.buffers, tables.tasks
    rank = buffers["rank"]
    plain = (rank >= 0) & (rank <= buffers["shape"].shape[1]) & (buffers["ptr"] == 0) & (buffers["pad"] == 0)
    numel, strides, overflows = row_major(buffers["shape"], np.where(plain, rank, 0))
    plain &= (numel == buffers["numel"]) & (strides == buffers["stride"]).all(axis=1) & ~_past(buffers["shape"], rank)
    plain[overflows] = False
    if not plain.all():
        raise Rejected(f"V2: buffer {int(np.argmin(plain))} is not contiguous, or holds more than JSON can say")
    lawful = np.isfinite(tasks["params"]["eps"]) & np.isfinite(tasks["params"]["scale"])
    lawful &= np.isfinite(tasks["params"]["theta"])
    if not lawful.all():
        raise Rejected(f"V4: task {int(np.argmin(lawful))} has a parameter that is not finite, which JSON cannot say")
    for count, *columns in (("n_inputs", "inputs"), ("n_outputs", "outputs"), ("n_waits", "wait_counter")):
        room = tasks[columns[0]].shape[1]
        lawful &= (tasks[count] >= 0) & (tasks[count] <= room) & ~_past(tasks[columns[0]], tasks[count])
    lawful &= ~_past(tasks["wait_threshold"], tasks["n_waits"])
    if not lawful.all():
        raise Rejected(f"V1: task {int(np.argmin(lawful))} has bad counts, or slots in use past them")
    for strings in (tables.buffer_name, tables.buffer_source, tables.task_label):
        if (
            any(not is_text(text) for text in strings.strings())
            or StringTable.of(strings.strings()).data != strings.data
        ):
            raise Rejected("V3: a name, source or label is not Unicode text without NUL, which JSON cannot say")


def _past(slots: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """bool [n]: whether a slot at or past the count is in use."""
    return ((np.arange(slots.shape[1]) >= counts[:, None]) & (slots != 0)).any(axis=1)


def _write_target(table: np.ndarray) -> str | dict[str, Any]:
    record = {name: value.item() for name, value in zip(table.dtype.names or (), table[0], strict=True)}
    record["name"] = record["name"].decode("utf-8", "backslashreplace")
    preset = TARGETS.get(record["name"])
    if preset is not None and target_table(preset).tobytes() == table.tobytes():
        return record["name"]
    return record


def _write_buffers(tables: ProgramTables) -> list[dict[str, Any]]:
    buffers = tables.buffers
    columns = zip(
        tables.buffer_name.strings(),
        tables.bindings["kind"].tolist(),
        buffers["dtype"].tolist(),
        buffers["shape"].tolist(),
        buffers["rank"].tolist(),
        buffers["space"].tolist(),
        tables.buffer_source.strings(),
        strict=True,
    )
    return [
        {
            "id": index,
            "name": name,
            "kind": KINDS.get(kind, kind),
            "dtype": DTYPES.get(dtype, dtype),
            "shape": shape[:rank],
            "space": SPACES.get(space, space),
            "source": source,
        }
        for index, (name, kind, dtype, shape, rank, space, source) in enumerate(columns)
    ]


def _write_tasks(tables: ProgramTables) -> list[dict[str, Any]]:
    tasks = tables.tasks
    params: list[dict[str, Any]] = [{} for _ in range(len(tasks))]
    for name, dtype in PARAMS.items():
        column = tasks["params"][name]
        chosen = np.flatnonzero(column)
        values = _shortest(column[chosen]) if dtype.kind == "f" else column[chosen].tolist()
        for index, value in zip(chosen.tolist(), values, strict=True):
            params[index][name] = value
    columns = zip(
        [OPS.get(op, op) for op in tasks["op"].tolist()],
        _used(tasks["inputs"], tasks["n_inputs"]),
        _used(tasks["outputs"], tasks["n_outputs"]),
        tasks["out_counter"].tolist(),
        _used(tasks["wait_counter"], tasks["n_waits"]),
        _used(tasks["wait_threshold"], tasks["n_waits"]),
        tasks["sm"].tolist(),
        params,
        tables.task_label.strings(),
        strict=True,
    )
    return [
        {
            "id": index,
            "op": op,
            "inputs": inputs,
            "outputs": outputs,
            "out_counter": out_counter,
            "waits": [{"counter": c, "threshold": t} for c, t in zip(counters, thresholds, strict=True)],
            "params": task_params,
            "sm": sm,
            "label": label,
        }
        for index, (op, inputs, outputs, out_counter, counters, thresholds, sm, task_params, label) in enumerate(
            columns
        )
    ]


def _used(slots: np.ndarray, counts: np.ndarray) -> list[list[int]]:
    """The slots below each count."""
    width = int(counts.max(initial=0))  # most tasks leave most slots empty: do not even convert those
    return [row[:count] for row, count in zip(slots[:, :width].tolist(), counts.tolist(), strict=True)]


def _shortest(column: np.ndarray) -> list[float]:
    """As Python floats with the fewest digits that give the same float32 back."""
    distinct, which = np.unique(column, return_inverse=True)
    return np.array([float(str(value)) for value in distinct], np.float64)[which].tolist()
