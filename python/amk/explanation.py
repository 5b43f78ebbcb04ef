"""Why a program takes as long as the cost model says: its critical path, who is waited for, and what would help next.

In: a `Program` that validates, and a position. Out: an `Explanation`, plain data and text. Every time in it comes from
the library's own replay (`Program.task_costs`); here it is only followed and summed, never modelled a second time. It
is about a prediction: nothing in it was measured.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .errors import InputError, show

if TYPE_CHECKING:
    import numpy as np

    from .program import Cost, Program

__all__ = ["Explanation", "explain"]

MAX_PATH_STEPS = 256  # of the critical path in the record; its sums cover the whole of it
MAX_PRODUCERS = 32

# What can be shortened, in words.
PARTS = {
    "memory": "streaming beyond the floor",
    "cache": "reading and writing activations in the L2 cache",
    "compute": "arithmetic",
    "exchange": "signals between SMs and the fixed cost of each task",
}


@dataclass(frozen=True)
class Explanation:
    """Times are microseconds, predicted; shares are parts of 1."""

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
    sm_time: dict[str, float]  # busy, waiting and done early, as shares of SMs times latency
    opcodes: list[dict[str, Any]]  # by share of the busy time
    next_bottleneck: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        """For people: the answer first."""
        path, waiting = self.critical_path, self.waiting
        lines = [
            f"{self.latency_us:.2f} us predicted (cost model) at position {self.position} on {self.target}, "
            f"{self.pct_of_roofline:.1f} % of the floor's rate",
            f"  next        {self.next_bottleneck}",
            f"  floor       {self.bound_us:.2f} us: {self.bytes['streamed_once'] / 1e6:.2f} MB at least once; the "
            f"tasks stream {self.bytes['streamed_by_tasks'] / 1e6:.2f} MB and move {self.bytes['cached'] / 1e6:.2f} MB "
            "through the L2 cache",
            f"  path        {path['tasks']} tasks, {path['signals']} signals: "
            + ", ".join(f"{part} {share:.1%}" for part, share in path["shares"].items() if share > 0),
            f"  SMs         {self.sms}: busy {self.sm_time['busy']:.1%}, waiting {self.sm_time['waiting']:.1%}, "
            f"done early {self.sm_time['done_early']:.1%} of the step",
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


def explain(program: Program, position: int | None = None) -> Explanation:
    """Explains a program's predicted latency at a position (default: half of its cache). Rejected when the program
    is not valid."""
    import numpy as np

    from . import _lib

    max_seq = program.launch["max_seq"]
    position = max_seq // 2 if position is None else position
    if type(position) is not int or not 0 <= position < max(max_seq, 1):
        raise InputError(f"position: expected an integer in 0..{max_seq - 1}, got {show(position)}")
    cost, costs, tables = program.cost(position), program.task_costs(position), program.tables()
    names = _lib.enum_names("amk_opcode", "AMK_OP_")
    ops = [names[op] for op in tables.tasks["op"].tolist()]
    named = zip(tables.task_label.strings(), ops, strict=True)
    labels = [label or f"{op}[{index}]" for index, (label, op) in enumerate(named)]
    grid = program.launch["grid"]
    ran, waited = costs["finish_us"] - costs["start_us"], costs["start_us"] - costs["free_us"]
    replay_us = float(costs["finish_us"].max(initial=0.0))

    steps = _walk_back(costs, tables.tasks["sm"])
    parts = _parts(costs, steps)
    parts["memory"] += max(0.0, cost.latency_us - replay_us)  # a replay may beat the floor: vectors come from the cache
    shares = {part: us / cost.latency_us for part, us in parts.items()}
    on_path = np.zeros(len(costs), bool)
    on_path[[step["task"] for step in steps]] = True
    sm_us = grid * cost.latency_us
    busy, waiting = float(ran.sum()) / sm_us, float(waited.sum()) / sm_us
    opcodes = [_opcode(name, np.array([op == name for op in ops]), ran, costs, on_path) for name in sorted(set(ops))]
    return Explanation(
        position=position,
        target=tables.target["name"][0].decode("utf-8", "backslashreplace"),
        tasks=len(costs),
        sms=grid,
        latency_us=cost.latency_us,
        bound_us=cost.bound_us,
        pct_of_roofline=100.0 * cost.bound_us / cost.latency_us,
        bytes={
            "streamed_once": float(cost.streamed_bytes),
            "streamed_by_tasks": float(costs["streamed_bytes"].sum()),
            "cached": float(costs["cached_bytes"].sum()),
        },
        critical_path={
            "tasks": len(steps),
            "signals": sum(step["after"] == "signal" for step in steps),
            "us": parts,
            "shares": shares,
            "steps": [
                step | {"op": ops[step["task"]], "label": labels[step["task"]]} for step in steps[:MAX_PATH_STEPS]
            ],
        },
        waiting={
            "total_us": float(waited.sum()),
            "waits": int((costs["blocker"] >= 0).sum()),
            "by_producer": _by_producer(costs, waited, labels),
        },
        sm_time={"busy": busy, "waiting": waiting, "done_early": max(0.0, 1.0 - busy - waiting)},
        opcodes=sorted(opcodes, key=lambda entry: (-entry["busy_us"], entry["op"])),
        next_bottleneck=_in_words(parts, cost, steps, labels, costs),
    )


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


def _by_producer(costs: np.ndarray, waited: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
    totals: dict[str, list[float]] = {}
    for producer, us in zip(costs["producer"].tolist(), waited.tolist(), strict=True):
        if producer >= 0:
            entry = totals.setdefault(_kind(labels[producer]), [0, 0.0])
            entry[0] += 1
            entry[1] += us
    whole = sum(us for _, us in totals.values()) or 1.0
    found = [
        {"producer": kind, "waits": waits, "total_us": us, "mean_us": us / waits, "share": us / whole}
        for kind, (waits, us) in totals.items()
    ]
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


def _in_words(
    parts: dict[str, float], cost: Cost, steps: list[dict[str, Any]], labels: list[str], costs: np.ndarray
) -> str:
    """The largest part of the critical path that is not the floor, where most of it lies, and what shortens it."""
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
