"""Timelines for tests, made by a replay that shares nothing with the library: durations are drawn.

A task is taken up when the one before it on its queue is done, is ready when all that it waits for are done and their
signals have arrived, and takes as long as was drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SIGNAL_US = 0.5
# The fields that amk_task_time_t has; the header's own layout is what the library is read with.
FIELDS = np.dtype(
    [("task", np.int32), ("queue", np.int32), ("start_us", float), ("ready_us", float), ("finish_us", float)]
)


def replay(tasks: Any, seed: int, signal_us: float = SIGNAL_US) -> np.ndarray:
    """Records in an order that is not the table's."""
    rng = np.random.default_rng(seed)
    done: dict[int, list[float]] = {}  # counter -> when its producers so far were done
    free: dict[int, float] = {}
    records = np.zeros(len(tasks), FIELDS)
    for index, task in enumerate(tasks):
        queue = int(task["sm"])
        start = ready = free.get(queue, 0.0)
        for counter in task["wait_counter"][: task["n_waits"]].tolist():
            ready = max([ready, *(at + signal_us for at in done[counter])])
        finish = ready + float(rng.exponential(2.0)) + 0.01
        records[index] = (index, queue, start, ready, finish)
        free[queue] = finish
        done.setdefault(int(task["out_counter"]), []).append(finish)
    return records[rng.permutation(len(records))]
