"""Why a program takes as long as it does: its critical path, who is waited for, and what would help next.

In: a `Program` that validates, and a position or a measured `Timeline`. Out: an `Explanation`, plain data and text. Of
a prediction, every time comes from the library's own replay (`Program.task_costs`); of a measurement, from the
timeline; here times are only followed and summed, never modelled a second time. `latency_kind` says which it was.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .errors import InputError, show
from .trace import task_labels

if TYPE_CHECKING:
    import numpy as np

    from .program import Cost, Program
    from .timeline import Join, Timeline

__all__ = ["Explanation", "by_producer", "critical_path", "explain"]

MAX_PATH_STEPS = 256  # of the critical path in the record; its sums cover the whole of it
MAX_PRODUCERS = 32

# What can be shortened, in words.
PARTS = {
    "memory": "streaming beyond the floor",
    "cache": "reading and writing activations in the L2 cache",
    "compute": "arithmetic",
    "exchange": "signals between SMs and the fixed cost of each task",
    "work": "working beyond the floor",
    "signal": "signals between SMs",
    "queue": "an SM between two of its tasks",
    "launch": "launch, resets and all else outside of the tasks",
}


@dataclass(frozen=True)
class Explanation:
    """Times are microseconds; shares are parts of 1."""

    latency_kind: str  # "predicted" or "measured-gpu"
    position: int
    target: str
    tasks: int
    sms: int
    latency_us: float
    bound_us: float
    pct_of_roofline: float
    bytes: dict[str, float]  # streamed once (the floor), streamed by all tasks, through the L2 cache
    critical_path: dict[str, Any]  # steps from the first to the last, and what the time between them is made of
    waiting: dict[str, Any]  # of the queues, all of it and by the producers waited for
    sm_time: dict[str, float]  # busy, waiting and the rest, as shares of SMs times latency
    opcodes: list[dict[str, Any]]  # by share of the busy time
    next_bottleneck: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        """For people: the answer first."""
        path, waiting = self.critical_path, self.waiting
        how = "predicted (cost model)" if self.latency_kind == "predicted" else "measured"
        lines = [
            f"{self.latency_us:.2f} us {how} at position {self.position} on {self.target}, "
            f"{self.pct_of_roofline:.1f} % of the floor's rate",
            f"  next        {self.next_bottleneck}",
            f"  floor       {self.bound_us:.2f} us: {self.bytes['streamed_once'] / 1e6:.2f} MB at least once; the "
            f"tasks stream {self.bytes['streamed_by_tasks'] / 1e6:.2f} MB and move {self.bytes['cached'] / 1e6:.2f} MB "
            "through the L2 cache",
            f"  path        {path['tasks']} tasks, {path['signals']} signals: "
            + ", ".join(f"{part} {share:.1%}" for part, share in path["shares"].items() if share > 0),
            f"  SMs         {self.sms}: "
            + ", ".join(f"{part.replace('_', ' ')} {share:.1%}" for part, share in self.sm_time.items())
            + " of the step",
            f"  waiting     {waiting['total_us']:.1f} SM us in {waiting['waits']} waits, for:",
        ]
        lines += [
            f"    {entry['producer']:<28} {entry['share']:>6.1%}  {entry['waits']} waits of {entry['mean_us']:.2f} us"
            for entry in waiting["by_producer"][:8]
        ]
        lines.append("  opcode               tasks   busy us   share   on the path us")
        lines += [
            f"    {entry['op']:<18} {entry['tasks']:>5} {entry['busy_us']:>9.2f}  {entry['share']:>6.1%}  "
            f"{entry['path_us']:>9.2f}"
            for entry in self.opcodes
        ]
        return "\n".join(lines)


def explain(program: Program, position: int | None = None, timeline: Timeline | None = None) -> Explanation:
    """Explains a program's predicted latency at a position (default: half of its cache), or the measured step that a
    timeline is of. Rejected when the program is not valid."""
    import numpy as np

    from .timeline import MEASURED, PREDICTED

    if timeline is not None:
        if timeline.kind != MEASURED:
            raise InputError("timeline: expected a measured one, got a prediction; without it, explain predicts itself")
        told = timeline.meta.get("position")
        if position is not None and position != told:
            raise InputError(
                f"position: expected {show(told)}, which the timeline is of, or none; got {show(position)}"
            )
        position = told
    max_seq = program.launch["max_seq"]
    position = max_seq // 2 if position is None and timeline is None else position
    if type(position) is not int or not 0 <= position < max(max_seq, 1):
        raise InputError(f"position: expected an integer in 0..{max_seq - 1}, got {show(position)}")
    found = _predicted(program, position) if timeline is None else _measured(program, position, timeline)
    tables, grid = program.tables(), program.launch["grid"]
    labels, ops = task_labels(program)
    costs, steps, parts = found.costs, found.steps, found.parts
    ran, waited = costs["finish_us"] - costs["start_us"], costs["start_us"] - costs["free_us"]
    on_path = np.zeros(len(costs), bool)
    on_path[[step["task"] for step in steps]] = True
    sm_us = grid * found.latency_us
    shares = {"busy": float(ran.sum()) / sm_us, "waiting": float(waited.sum()) / sm_us}
    if timeline is not None:
        shares["between_tasks"] = float((costs["free_us"] - found.previous_us).sum()) / sm_us
    shares["done_early"] = max(0.0, 1.0 - sum(shares.values()))
    opcodes = [_opcode(name, np.array([op == name for op in ops]), ran, costs, on_path) for name in sorted(set(ops))]
    return Explanation(
        latency_kind=PREDICTED if timeline is None else MEASURED,
        position=position,
        target=tables.target["name"][0].decode("utf-8", "backslashreplace"),
        tasks=len(costs),
        sms=grid,
        latency_us=found.latency_us,
        bound_us=found.bound_us,
        pct_of_roofline=100.0 * found.bound_us / found.latency_us,
        bytes={
            "streamed_once": float(found.cost.streamed_bytes),
            "streamed_by_tasks": float(costs["streamed_bytes"].sum()),
            "cached": float(costs["cached_bytes"].sum()),
        },
        critical_path={
            "tasks": len(steps),
            "signals": sum(step["after"] == "signal" for step in steps),
            "us": parts,
            "shares": {part: us / found.latency_us for part, us in parts.items()},
            "steps": [
                step | {"op": ops[step["task"]], "label": labels[step["task"]]} for step in steps[:MAX_PATH_STEPS]
            ],
        },
        waiting={
            "total_us": float(waited.sum()),
            "waits": int(((costs["producer"] >= 0) & (waited > 0)).sum()),
            "by_producer": by_producer(costs["producer"], waited, labels),
        },
        sm_time=shares,
        opcodes=sorted(opcodes, key=lambda entry: (-entry["busy_us"], entry["op"])),
        next_bottleneck=_in_words(found, labels) if timeline is None else _measured_in_words(found, labels),
    )


@dataclass(frozen=True)
class _Findings:
    cost: Cost
    costs: np.ndarray  # by task; of a measurement, with its own times, and for producer the one that was waited for
    previous_us: np.ndarray | float  # when the task before it on its queue was done
    steps: list[dict[str, Any]]  # of the critical path, first to last
    parts: dict[str, float]  # of the latency
    latency_us: float
    bound_us: float


def _predicted(program: Program, position: int) -> _Findings:
    cost, costs = program.cost(position), program.task_costs(position)
    steps = _walk_back(costs, program.tables().tasks["sm"])
    parts = _parts(costs, steps)
    replay_us = float(costs["finish_us"].max(initial=0.0))
    parts["memory"] += max(0.0, cost.latency_us - replay_us)  # a replay may beat the floor: vectors come from the cache
    return _Findings(cost, costs, costs["free_us"], steps, parts, cost.latency_us, cost.bound_us)


def _measured(program: Program, position: int, timeline: Timeline) -> _Findings:
    """Bytes and operations are the program's; every time is the timeline's."""
    import numpy as np

    from .timeline import join

    cost, costs, tasks = program.cost(position), program.task_costs(position), program.tables().tasks
    found = join(timeline, tasks)
    for name in ("streamed_us", "cached_us", "compute_us"):  # a measurement does not tell them apart
        costs[name] = 0.0
    costs["free_us"], costs["start_us"] = timeline.start_us, timeline.ready_us
    costs["finish_us"], costs["blocker"], costs["producer"] = timeline.finish_us, found.counter, found.producer
    steps = critical_path(timeline, found)
    latency_us = max(timeline.step_us, timeline.span_us)
    parts = dict.fromkeys(("work", "signal", "queue", "launch"), 0.0)
    end_us = 0.0
    for step in steps:
        parts["signal" if step["after"] == "signal" else "queue"] += step["start_us"] - end_us
        parts["work"] += step["finish_us"] - step["start_us"]
        end_us = step["finish_us"]
    parts["launch"] = latency_us - end_us
    rate = timeline.meta.get("read_gb_per_s")
    if type(rate) not in (int, float) or not rate > 0:
        raise InputError(f"timeline: read_gb_per_s: expected what the device read, got {show(rate)}")
    previous_us = np.where(found.before >= 0, timeline.finish_us[found.before], 0.0)
    return _Findings(cost, costs, previous_us, steps, parts, latency_us, cost.streamed_bytes / rate / 1e3)


def critical_path(timeline: Timeline, found: Join) -> list[dict[str, Any]]:
    """From the task done last, back to the one that each began after; the first is one that waited for nobody."""
    steps: list[dict[str, Any]] = []
    task = int(timeline.finish_us.argmax()) if timeline.n_tasks else -1
    while task >= 0:
        earlier = int(found.critical[task])
        is_signal = earlier >= 0 and earlier != found.before[task]
        steps.append(
            {
                "task": task,
                "sm": int(timeline.queue[task]),
                "start_us": float(timeline.ready_us[task]),
                "finish_us": float(timeline.finish_us[task]),
                "after": "signal" if is_signal else "queue" if earlier >= 0 else "start",
                "counter": int(found.counter[task]) if is_signal else -1,
            }
        )
        task = earlier
    return steps[::-1]


def _walk_back(costs: np.ndarray, sms: np.ndarray) -> list[dict[str, Any]]:
    """The chain of tasks that ends last, each starting when the one before it ended or its signal arrived."""
    if not len(costs):
        return []
    before: dict[int, int] = {}  # task -> the one that ran before it on its SM
    last_on: dict[int, int] = {}
    for task, sm in enumerate(sms.tolist()):
        if sm in last_on:
            before[task] = last_on[sm]
        last_on[sm] = task
    steps = []
    task: int | None = int(costs["finish_us"].argmax())
    while task is not None:
        cost = costs[task]
        producer = int(cost["producer"])
        after = "signal" if producer >= 0 else "queue" if task in before else "start"
        steps.append(
            {
                "task": task,
                "sm": int(sms[task]),
                "start_us": float(cost["start_us"]),
                "finish_us": float(cost["finish_us"]),
                "after": after,
                "counter": int(cost["blocker"]),
            }
        )
        task = producer if producer >= 0 else before.get(task)
    return steps[::-1]


def _parts(costs: np.ndarray, steps: list[dict[str, Any]]) -> dict[str, float]:
    """What the time of the critical path is made of; the parts add up to its end."""
    parts = dict.fromkeys(("memory", "cache", "compute", "task", "signal"), 0.0)
    end_us = 0.0
    for step in steps:
        cost = costs[step["task"]]
        moving, computing = float(cost["streamed_us"] + cost["cached_us"]), float(cost["compute_us"])
        if computing > moving:
            parts["compute"] += computing
        else:
            parts["memory"] += float(cost["streamed_us"])
            parts["cache"] += float(cost["cached_us"])
        parts["task"] += step["finish_us"] - step["start_us"] - max(moving, computing)
        parts["signal"] += step["start_us"] - end_us
        end_us = step["finish_us"]
    return parts


def _kind(label: str) -> str:
    """A label without its numbers: layers.3.qkv[17] is one of layers.*.qkv."""
    return re.sub(r"\[\d+\]$", "", re.sub(r"\b\d+\b(?=\.)", "*", label))


def by_producer(producers: np.ndarray, waited: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
    """The time that tasks waited, by the kind of task they waited for, the longest first."""
    totals: dict[str, list[float]] = {}
    for producer, us in zip(producers.tolist(), waited.tolist(), strict=True):
        if producer >= 0 and us > 0:
            entry = totals.setdefault(_kind(labels[producer]), [0, 0.0, 0.0])
            entry[0] += 1
            entry[1] += us
            entry[2] = max(entry[2], us)
    whole = sum(us for _, us, _ in totals.values()) or 1.0
    found = [
        {"producer": kind, "waits": waits, "total_us": us, "mean_us": us / waits, "longest_us": longest,
         "share": us / whole}
        for kind, (waits, us, longest) in totals.items()
    ]  # fmt: skip
    return sorted(found, key=lambda entry: (-entry["total_us"], entry["producer"]))[:MAX_PRODUCERS]


def _opcode(name: str, mine: np.ndarray, ran: np.ndarray, costs: np.ndarray, on_path: np.ndarray) -> dict[str, Any]:
    return {
        "op": name,
        "tasks": int(mine.sum()),
        "busy_us": float(ran[mine].sum()),
        "share": float(ran[mine].sum() / ran.sum()),
        "path_us": float(ran[mine & on_path].sum()),
        "streamed_bytes": float(costs["streamed_bytes"][mine].sum()),
        "flops": float(costs["flops"][mine].sum()),
    }


def _in_words(found: _Findings, labels: list[str]) -> str:
    """The largest part of the critical path that is not the floor, where most of it lies, and what shortens it."""
    parts, cost, steps, costs = found.parts, found.cost, found.steps, found.costs
    floor_us = min(cost.bound_us, cost.latency_us)
    if cost.latency_us <= 1.05 * floor_us:
        return f"the floor is {floor_us / cost.latency_us:.0%} of the latency: only fewer bytes help"
    left = parts | {"memory": parts["memory"] - floor_us, "exchange": parts["signal"] + parts["task"]}
    del left["signal"], left["task"]
    part = max(left, key=lambda name: left[name])
    head = f"{PARTS[part]}: {left[part]:.2f} us, {left[part] / cost.latency_us:.0%} of the latency (the floor is "
    head += f"{floor_us / cost.latency_us:.0%})"
    if part == "exchange":
        signals = sum(step["after"] == "signal" for step in steps)
        return f"{head}; {len(steps)} tasks follow each other over {signals} signals: fewer steps (fusion) shorten it"
    field = {"memory": "streamed_us", "cache": "cached_us", "compute": "compute_us"}[part]
    by_kind: dict[str, float] = {}
    for step in steps:
        kind = _kind(labels[step["task"]])
        by_kind[kind] = by_kind.get(kind, 0.0) + float(costs[step["task"]][field])
    where = f"{head}, most of it in {max(by_kind, key=lambda name: by_kind[name])}"
    if part == "memory":
        again = float(costs["streamed_bytes"].sum()) / max(cost.streamed_bytes, 1)
        if again > 1.1:
            return f"{where}; the tasks stream {again:.2f} times what is needed once: larger tiles read it less often"
        return f"{where}: some SMs stream more than others, an even split (tile sizes, sm_assignment) shortens it"
    cure = "more SMs at once (smaller tiles)" if part == "compute" else "fusing it with the op that makes its input"
    return f"{where}: {cure} shortens it"


def _measured_in_words(found: _Findings, labels: list[str]) -> str:
    """As `_in_words`, of what was measured."""
    latency_us, bound_us, steps = found.latency_us, found.bound_us, found.steps
    if latency_us <= 1.05 * bound_us:
        return f"the floor is {bound_us / latency_us:.0%} of the step: only fewer bytes help"
    left = found.parts | {"work": found.parts["work"] - bound_us}
    part = max(left, key=lambda name: left[name])
    head = f"{PARTS[part]}: {left[part]:.2f} us, {left[part] / latency_us:.0%} of the step (the floor is "
    head += f"{bound_us / latency_us:.0%})"
    if part == "launch":
        return f"{head}: it is the same however the step is scheduled"
    by_kind: dict[str, float] = {}
    end_us, before = 0.0, -1
    for step in steps:
        took = {"work": step["finish_us"] - step["start_us"]}
        took["signal" if step["after"] == "signal" else "queue"] = step["start_us"] - end_us
        whose = before if part == "signal" and before >= 0 else step["task"]
        kind = _kind(labels[whose])
        by_kind[kind] = by_kind.get(kind, 0.0) + took.get(part, 0.0)
        end_us, before = step["finish_us"], step["task"]
    worst = max(by_kind, key=lambda name: by_kind[name])
    if part == "signal":
        signals = sum(step["after"] == "signal" for step in steps)
        return f"{head}, over {signals} signals, most of it after {worst}: fewer steps (fusion) shorten it"
    if part == "queue":
        return f"{head}, most of it before {worst}: fewer, larger tasks shorten it"
    return f"{head}, most of it in {worst} ({by_kind[worst]:.2f} us of the path): an even split of it shortens the step"
