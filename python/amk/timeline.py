"""When each task of one decode step was taken up, had its inputs, and was done; and who waited for whom.

In: what a machine recorded (`amk_vm_timeline`) or what the cost model replayed, with the program it belongs to. Out: a
`Timeline`, checked: every task once, in the order of its queue, no two tasks of a queue at once, every time a number.
A timeline says of itself whether it was measured or predicted, and nothing here turns one into the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, show
from .verdict import LATENCY_KINDS

if TYPE_CHECKING:
    from .program import Program

__all__ = ["MEASURED", "PREDICTED", "Join", "Timeline", "join", "predict", "read_machine", "require_program"]

MEASURED, PREDICTED = LATENCY_KINDS
# A device's timer ticks, and a signal is seen before its sender reads the timer: tasks of one queue may seem to overlap
# by so much. What is more than this is no timeline.
MAX_OVERLAP_US = 2.0


@dataclass(frozen=True)
class Timeline:
    """By task, microseconds since the step's first task began. `start`: its queue took it up; `ready`: its inputs were
    there; `finish`: its signal was sent. `step_us` is the whole step, as its own clock saw it (the last finish, where
    there is no other). `meta` says of what: model, gpu, context, image_hash, schedule and so on, plain data."""

    kind: str
    queue: NDArray[np.int32]
    start_us: NDArray[np.float64]
    ready_us: NDArray[np.float64]
    finish_us: NDArray[np.float64]
    step_us: float
    overlap_us: float = 0.0  # the largest that was closed
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_tasks(self) -> int:
        return len(self.queue)

    @property
    def span_us(self) -> float:
        return float(self.finish_us.max(initial=0.0))

    def with_meta(self, **meta: Any) -> Timeline:
        return replace(self, meta={**self.meta, **meta})


def predict(program: Program, position: int) -> Timeline:
    """What the cost model's replay says of a valid program."""
    costs = program.task_costs(position)
    queue = program.tables().tasks["sm"].astype(np.int32)
    times = [costs[name].copy() for name in ("free_us", "start_us", "finish_us")]
    return Timeline(PREDICTED, queue, *times, step_us=program.cost(position).latency_us)


def read_machine(records: Any, program: Program, step_us: float) -> Timeline:
    """What a machine recorded of one step of a program: records with the fields of `amk_task_time_t`, in any order."""
    where = "the machine's timeline"
    tasks, queue = (np.asarray(records[name], np.int64) for name in ("task", "queue"))
    n = program.n_tasks
    if len(tasks) != n or not np.array_equal(np.sort(tasks), np.arange(n)):
        missing = np.setdiff1d(np.arange(n), tasks)
        text = f"{len(missing)} are missing, the first is task {missing[0]}" if len(missing) else "some came twice"
        raise InputError(f"{where}: expected each of {n} tasks once, got {len(tasks)} records: {text}")
    order = np.argsort(tasks)
    times = [np.asarray(records[f"{name}_us"], np.float64)[order] for name in ("start", "ready", "finish")]
    found = Timeline(MEASURED, queue[order].astype(np.int32), *times, step_us=float(step_us))
    return close_overlaps(found, program, where)


def close_overlaps(timeline: Timeline, program: Program, where: str) -> Timeline:
    """The timeline, checked against its program; overlaps on a queue that a timer explains are closed, and the largest
    is kept in `overlap_us`."""
    times = {"start": timeline.start_us, "ready": timeline.ready_us, "finish": timeline.finish_us}
    for name, values in times.items():
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if len(bad):
            raise InputError(f"{where}: {name} of task {bad[0]}: expected microseconds, got {values[bad[0]]}")
    if not (np.isfinite(timeline.step_us) and timeline.step_us > 0):
        raise InputError(f"{where}: the step: expected microseconds, got {timeline.step_us}")
    if not timeline.span_us > 0:
        raise InputError(f"{where}: expected tasks that took time, got none")
    start, ready, finish = timeline.start_us, timeline.ready_us, timeline.finish_us
    bad = np.flatnonzero(~((start <= ready) & (ready <= finish)))
    if len(bad):
        task = bad[0]
        got = f"{start[task]:.3f}, {ready[task]:.3f}, {finish[task]:.3f}"
        raise InputError(f"{where}: task {task}: expected start <= ready <= finish, got {got}")
    sms = program.tables().tasks["sm"]
    wrong = np.flatnonzero(timeline.queue != sms)
    if len(wrong):
        task = wrong[0]
        raise InputError(f"{where}: task {task}: expected queue {sms[task]}, got {timeline.queue[task]}")
    before = queue_order(timeline.queue)
    has = before >= 0
    overlap = np.zeros(len(start))
    overlap[has] = finish[before[has]] - start[has]
    largest = float(overlap.max(initial=0.0))
    if largest > MAX_OVERLAP_US:
        task = int(overlap.argmax())
        raise InputError(
            f"{where}: task {task} began {largest:.3f} us before task {before[task]} of its queue was done; expected "
            f"at most the {MAX_OVERLAP_US} us of a timer"
        )
    if largest <= 0:
        return timeline
    floor = np.where(has, finish[before], 0.0)
    start = np.maximum(start, floor)
    ready = np.maximum(ready, start)
    return replace(timeline, start_us=start, ready_us=ready, finish_us=np.maximum(finish, ready), overlap_us=largest)


def require_program(timeline: Timeline, program: Program, image_hash: str) -> Timeline:
    """The timeline, if it is one of this program."""
    told = timeline.meta.get("image_hash")
    if told != image_hash:
        raise InputError(f"timeline: expected one of image {image_hash}, got one of {show(told)}")
    if timeline.n_tasks != program.n_tasks:
        raise InputError(f"timeline: expected {program.n_tasks} tasks, got {timeline.n_tasks}")
    return close_overlaps(timeline, program, "timeline")


def queue_order(queue: NDArray[Any]) -> NDArray[np.int64]:
    """The task before each on its queue; -1 for the first."""
    order = np.argsort(queue, kind="stable")  # a queue runs its tasks in table order
    before = np.full(len(queue), -1, np.int64)
    same = queue[order[1:]] == queue[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    return before


@dataclass(frozen=True)
class Join:
    """By task. `producer`: of the tasks it waits for, the one done last, and `counter`, which that one increments;
    -1 for none. `before`: the task before it on its queue. `critical`: which of the two it started after, -1 for
    neither; it is the one done last, the queue's on a tie."""

    producer: NDArray[np.int64]
    counter: NDArray[np.int64]
    before: NDArray[np.int64]
    critical: NDArray[np.int64]


def join(timeline: Timeline, tasks: NDArray[Any]) -> Join:
    """Who each task of a program's table waited for."""
    n, finish = len(tasks), timeline.finish_us
    last_of: dict[int, int] = {}  # counter -> the producer done last, the lowest on a tie
    for task, counter in enumerate(tasks["out_counter"].tolist()):
        if counter >= 0 and (counter not in last_of or finish[task] > finish[last_of[counter]]):
            last_of[counter] = task
    producer, blocker = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    for task, (count, counters) in enumerate(zip(tasks["n_waits"].tolist(), tasks["wait_counter"], strict=True)):
        for counter in counters[:count].tolist():
            made = last_of.get(counter, -1)
            if made >= 0 and (producer[task] < 0 or finish[made] > finish[producer[task]]):
                producer[task], blocker[task] = made, counter
    before = queue_order(timeline.queue)
    waited_longer = (producer >= 0) & ((before < 0) | (finish[producer] > finish[before]))
    return Join(producer, blocker, before, np.where(waited_longer, producer, before))
