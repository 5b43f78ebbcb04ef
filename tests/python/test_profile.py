"""`amk profile` and its timelines: every event of a trace, the join against brute force, and what is refused."""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cffi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amk
import made_timelines
from amk import _lib, cli, gpu_trial, profile, vm
from amk.errors import AmkError, DeviceFault, InputError, InternalError, Unavailable, WorkerDied
from amk.explanation import critical_path, explain
from amk.profile import run_profile
from amk.timeline import MAX_OVERLAP_US, MEASURED, PREDICTED, Timeline, join, predict, read_machine, require_program
from amk.trace import label_parts, read_timeline, trace_bytes

HERE = Path(__file__).parent
H200 = amk.TARGETS["h200"]
TABLE = _lib.table_dtype("amk_instruction_t")


def program_of(model: str = "toy-2L", max_seq: int = 64, **config: Any) -> amk.Program:
    schedule, _ = amk.ScheduleConfig.from_dict(config)
    return amk.lower(amk.open_model(model).config, schedule, H200, max_seq)


PROGRAM = program_of()


def measured(program: amk.Program = PROGRAM, seed: int = 3, **meta: Any) -> Timeline:
    """As a GPU would have recorded it."""
    records = made_timelines.replay(program.tables().tasks, seed)
    found = read_machine(records, program, float(records["finish_us"].max()) + 4.0)
    known = {"model": "toy-2L", "gpu": "h200", "context": 33, "position": 32, "max_seq": 64, "read_gb_per_s": 4000.0}
    known["image_hash"] = program.pack().hash
    return found.with_meta(**{**known, **meta})


# --- the trace ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MEASURED, PREDICTED])
def test_every_event_of_a_trace(kind: str) -> None:
    meta = {"model": "toy-2L", "gpu": "h200", "context": 33, "position": 32}
    timeline = measured() if kind == MEASURED else predict(PROGRAM, 32).with_meta(**meta)
    trace = json.loads(trace_bytes(timeline, PROGRAM, compress=False))
    head = trace["otherData"]
    assert head["schema"] == "amk.trace" and head["kind"] == kind and head["step_us"] == timeline.step_us
    assert (head["model"], head["gpu"], head["context"]) == ("toy-2L", "h200", 33)
    tasks, waits, rows, named, counters = {}, {}, defaultdict(list), {}, []
    for event in trace["traceEvents"]:
        assert event["pid"] == 1 and event["ph"] in "MXC"
        if event["ph"] == "M":
            named[event["name"], event["tid"]] = event["args"]
        elif event["ph"] == "C":
            assert kind in event["name"] and event["args"].keys() == {"GB/s"}
            counters.append((event["ts"], event["args"]["GB/s"]))
        else:
            first, last = event["ts"], round(event["ts"] + event["dur"], 3)
            assert 0 <= first <= last <= round(timeline.span_us, 3) and event["dur"] >= 0
            of = event["args"]["task"]
            into = waits if event["cat"] == "wait" else tasks
            assert of not in into, "each once"
            into[of] = (event, first, last)
    assert sorted(tasks) == list(range(PROGRAM.n_tasks)), "all tasks, each once"
    table, labels = PROGRAM.tables().tasks, PROGRAM.tables().task_label.strings()
    ops = _lib.enum_names("amk_opcode", "AMK_OP_")
    for task, (event, first, last) in tasks.items():
        assert event["tid"] == table["sm"][task] and event["name"] == labels[task]
        assert event["args"]["op"] == event["cat"] == ops[int(table["op"][task])]
        assert event["args"]["bytes"] == PROGRAM.task_costs(32)["streamed_bytes"][task]
        rows[event["tid"]].append((first, last, task))
    for row in rows.values():  # no overlap on a row, in the order of the queue
        in_time = sorted(row)
        assert [task for *_, task in in_time] == sorted(task for *_, task in row)
        assert all(earlier[1] <= later[0] for earlier, later in zip(in_time, in_time[1:], strict=False))
    assert len(waits) == sum(np.rint(timeline.ready_us * 1e3) > np.rint(timeline.start_us * 1e3))
    for task, (event, first, last) in waits.items():
        _, task_first, task_last = tasks[task]
        assert event["tid"] == tasks[task][0]["tid"] and task_first == first <= last <= task_last, "inside its task"
        producer = event["args"]["producer"]
        assert table["out_counter"][producer] in table["wait_counter"][task][: table["n_waits"][task]]
        assert event["name"] == f"wait: {labels[producer]}"
    used = set(table["sm"].tolist())
    assert {tid for name, tid in named if name == "thread_name"} == used
    assert all(named["thread_name", sm]["name"] == f"SM {sm} ({kind})" for sm in used)
    assert all(named["thread_sort_index", sm]["sort_index"] == sm for sm in used)
    assert named["process_name", 0]["name"] == f"toy-2L on h200, context 33 ({kind})"
    times = [at for at, _ in counters]
    assert times == sorted(times) and counters[-1][1] == 0
    used_bytes = sum(rate * 1e3 * (times[i + 1] - times[i]) for i, (_, rate) in enumerate(counters[:-1]))
    assert used_bytes == pytest.approx(PROGRAM.task_costs(32)["streamed_bytes"].sum(), rel=0.02)


def test_labels() -> None:
    assert label_parts("layers.12.qkv[7]") == {"layer": 12, "part": "qkv", "tile": 7}
    assert label_parts("lm_head[3]") == {"part": "lm_head", "tile": 3} and label_parts("odd") == {"part": "odd"}


@pytest.mark.parametrize("compress", [False, True])
def test_a_trace_is_read_back_to_the_nanosecond(compress: bool) -> None:
    timeline = measured()
    data = trace_bytes(timeline, PROGRAM, compress=compress)
    assert data == trace_bytes(timeline, PROGRAM, compress=compress), "the same bytes again"
    found = read_timeline(data, "t.json")
    for name in ("start_us", "ready_us", "finish_us"):
        np.testing.assert_allclose(getattr(found, name), getattr(timeline, name), rtol=0, atol=0.000501)
    assert np.array_equal(found.queue, timeline.queue) and found.meta == timeline.meta
    assert (found.kind, found.step_us, found.overlap_us) == (MEASURED, timeline.step_us, 0.0)
    require_program(found, PROGRAM, PROGRAM.pack().hash)


# --- what a machine recorded ----------------------------------------------------------------------------------------


def records(**changes: Any) -> np.ndarray:
    found = np.sort(made_timelines.replay(PROGRAM.tables().tasks, 1), order="task")
    for field, (task, value) in changes.items():
        found[field][task] = value
    return found


@pytest.mark.parametrize(
    ("given_records", "match"),
    [
        (records()[1:], "1 are missing, the first is task 0"),
        (np.concatenate([records(), records()[:1]]), "some came twice"),
        (records(task=(4, 5)), "the first is task 4"),
        (records(queue=(4, 9999)), "task 4: expected queue"),
        (records(start_us=(4, np.nan)), "start of task 4: expected microseconds, got nan"),
        (records(finish_us=(4, np.inf)), "finish of task 4: expected microseconds, got inf"),
        (records(start_us=(4, -1.0)), "start of task 4"),
        (records(ready_us=(4, 1e6)), "task 4: expected start <= ready <= finish"),
        (records(finish_us=(4, 0.0)), "task 4: expected start <= ready <= finish"),
    ],
)
def test_records_that_are_no_timeline(given_records: np.ndarray, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_machine(given_records, PROGRAM, 99.0)
    with pytest.raises(InputError, match="the step"):
        read_machine(records(), PROGRAM, float("nan"))


def test_an_overlap_that_a_timer_explains_is_closed_and_told() -> None:
    found = records()
    second = int(np.flatnonzero(PROGRAM.tables().tasks["sm"] == 0)[1])
    first = int(np.flatnonzero(PROGRAM.tables().tasks["sm"] == 0)[0])
    for overlap in (0.25, MAX_OVERLAP_US - 1e-6, MAX_OVERLAP_US + 0.1):
        found["start_us"][second] = found["finish_us"][first] - overlap
        if overlap > MAX_OVERLAP_US:
            with pytest.raises(InputError, match=f"task {second} began"):
                read_machine(found, PROGRAM, 99.0)
            continue
        timeline = read_machine(found, PROGRAM, 99.0)
        assert timeline.overlap_us == pytest.approx(overlap)
        assert timeline.start_us[second] == found["finish_us"][first] <= timeline.ready_us[second]


# --- the join -------------------------------------------------------------------------------------------------------


@st.composite
def small_steps(draw: Any) -> tuple[np.ndarray, Timeline]:
    """A table of tasks in topological order, and any times that its queues allow: clocks of SMs may disagree."""
    n = draw(st.integers(1, 9))
    tasks = np.zeros(n, TABLE)
    queues, counters = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    free = dict.fromkeys(range(queues), 0)
    columns: dict[str, list[int]] = {"start": [], "ready": [], "finish": []}
    closed: set[int] = set()
    for i in range(n):
        made = sorted({int(tasks["out_counter"][j]) for j in range(i)})
        waits = draw(st.lists(st.sampled_from(made), unique=True, max_size=3)) if made else []
        closed |= set(waits)  # all its producers are known by now
        tasks["n_waits"][i] = len(waits)
        tasks["wait_counter"][i][: len(waits)] = waits
        tasks["out_counter"][i] = draw(st.sampled_from([c for c in range(counters + n) if c not in closed]))
        tasks["sm"][i] = sm = draw(st.integers(0, queues - 1))
        start = free[sm] + draw(st.integers(0, 3))
        ready = start + draw(st.integers(0, 6))
        free[sm] = finish = ready + draw(st.integers(0, 6))
        for name, value in (("start", start), ("ready", ready), ("finish", finish)):
            columns[name].append(value)
    times = [np.array(columns[name], float) for name in ("start", "ready", "finish")]
    times[2] += np.arange(n) / 1024  # no two are done at once
    return tasks, Timeline(MEASURED, tasks["sm"].astype(np.int32), *times, step_us=1.0)


def all_paths(task: int, before: dict[int, list[int]]) -> list[list[int]]:
    """Every chain that ends in a task, from one that waits for nobody."""
    if not before[task]:
        return [[task]]
    return [[*path, task] for earlier in before[task] for path in all_paths(earlier, before)]


@settings(max_examples=200, deadline=None)
@given(small_steps())
def test_the_critical_path_is_that_of_brute_force(step: tuple[np.ndarray, Timeline]) -> None:
    """Of all chains to the task done last, the one whose tasks, looked at from its end, are done the latest."""
    tasks, timeline = step
    finish = timeline.finish_us
    before: dict[int, list[int]] = {}
    for i, task in enumerate(tasks):
        waits = set(task["wait_counter"][: task["n_waits"]].tolist())
        same = [j for j in range(i) if tasks["sm"][j] == task["sm"]]
        before[i] = [j for j in range(i) if int(tasks["out_counter"][j]) in waits or same[-1:] == [j]]
    ends = [i for i in range(len(tasks)) if finish[i] == finish.max()]
    best = max(
        [finish[i] for i in reversed(path)] for path in all_paths(ends[0], before)
    )  # a shorter chain that agrees so far is smaller
    steps = critical_path(timeline, join(timeline, tasks))
    path = [found["task"] for found in steps]
    assert path in all_paths(ends[0], before)
    length = min(len(best), len(path))
    assert [finish[i] for i in reversed(path)][:length] == best[:length]
    for earlier, later in zip(steps, steps[1:], strict=False):
        if later["after"] == "signal":
            assert tasks["out_counter"][earlier["task"]] == later["counter"]
        else:
            assert later["after"] == "queue" and earlier["sm"] == later["sm"]
    assert steps[0]["after"] == "start"


@settings(max_examples=100, deadline=None)
@given(small_steps())
def test_who_is_waited_for_is_who_was_done_last(step: tuple[np.ndarray, Timeline]) -> None:
    tasks, timeline = step
    found = join(timeline, tasks)
    for i, task in enumerate(tasks):
        waits = set(task["wait_counter"][: task["n_waits"]].tolist())
        producers = [j for j in range(len(tasks)) if int(tasks["out_counter"][j]) in waits]
        last = max((timeline.finish_us[j] for j in producers), default=None)
        if last is None:
            assert found.producer[i] == found.counter[i] == -1
        else:
            assert found.producer[i] in producers and timeline.finish_us[found.producer[i]] == last
            assert found.counter[i] == tasks["out_counter"][found.producer[i]]


@pytest.mark.parametrize("model", ["toy-2L", "toy-gqa"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_sums_of_a_measured_explanation(model: str, seed: int) -> None:
    program = program_of(model)
    timeline = measured(program, seed)
    found = explain(program, None, timeline)
    assert found.latency_kind == MEASURED and found.position == 32 and found.latency_us == timeline.step_us
    path = found.critical_path
    assert sum(path["us"].values()) == pytest.approx(found.latency_us)
    assert path["us"]["launch"] == pytest.approx(4.0) and min(path["us"].values()) >= 0
    assert path["us"]["signal"] == pytest.approx(made_timelines.SIGNAL_US * path["signals"])
    assert path["steps"][-1]["finish_us"] == timeline.span_us and path["steps"][0]["after"] == "start"
    for earlier, later in zip(path["steps"], path["steps"][1:], strict=False):
        gap = made_timelines.SIGNAL_US if later["after"] == "signal" else 0.0
        assert later["start_us"] - earlier["finish_us"] == pytest.approx(gap)
    assert sum(found.sm_time.values()) == pytest.approx(1) and min(found.sm_time.values()) >= 0
    waited = timeline.ready_us - timeline.start_us
    assert found.waiting["total_us"] == pytest.approx(waited.sum()) and found.waiting["waits"] == (waited > 0).sum()
    assert sum(entry["total_us"] for entry in found.waiting["by_producer"]) == pytest.approx(waited.sum())
    assert max(entry["longest_us"] for entry in found.waiting["by_producer"]) == pytest.approx(waited.max())
    assert found.bound_us == pytest.approx(program.cost(32).streamed_bytes / 4e6)
    assert sum(entry["busy_us"] for entry in found.opcodes) == pytest.approx(
        (timeline.finish_us - timeline.ready_us).sum()
    )
    assert "measured at position 32" in found.to_text() and "predicted" not in found.to_text()
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_words_follow_a_measurement() -> None:
    base = measured()

    def words(**changes: Any) -> str:
        return explain(PROGRAM, None, Timeline(**{**vars(base), **changes})).next_bottleneck

    assert words().startswith("working beyond the floor")
    assert "the same however the step is scheduled" in words(step_us=base.step_us + 1000)
    slow = made_timelines.replay(PROGRAM.tables().tasks, 3, signal_us=50.0)
    far = read_machine(slow, PROGRAM, float(slow["finish_us"].max()))
    assert "signals between SMs" in words(**{name: getattr(far, name) for name in vars(far) if name != "meta"})
    rate = PROGRAM.cost(32).streamed_bytes / base.step_us / 1e3
    assert "only fewer bytes" in words(meta={**base.meta, "read_gb_per_s": rate})


# --- what is no timeline of this program ----------------------------------------------------------------------------


def trace(**changes: Any) -> dict[str, Any]:
    found = json.loads(trace_bytes(measured(), PROGRAM, compress=False))
    return {**found, **changes}


def with_event(**changes: Any) -> dict[str, Any]:
    found = trace()
    event = next(e for e in found["traceEvents"] if e["ph"] == "X" and e["cat"] != "wait" and e["args"]["task"] == 5)
    event.update(changes)
    return found


def with_head(**changes: Any) -> dict[str, Any]:
    found = trace()
    found["otherData"] = {**found["otherData"], **changes}
    return found


BAD_FILES = [
    (b"", "valid JSON"),
    (b"\x00\xff", "UTF-8"),
    (b"[]", "a trace or a profile of amk"),
    (b'{"traceEvents": []}', "a trace or a profile of amk"),
    (b'{"otherData": {"schema": "amk.trace"}, "traceEvents": 3}', "expected a list"),
    (json.dumps(trace())[:-500].encode(), "valid JSON"),
    (gzip.compress(json.dumps(trace()).encode())[:-40], "whole gzip data"),
    (gzip.compress(json.dumps(trace()).encode())[:3], "whole gzip data"),
    (b"\x1f\x8bnonsense", "whole gzip data"),
    (trace(traceEvents=trace()["traceEvents"][:40]), "tasks 0, 1, "),
    (trace(traceEvents=[]), "tasks 0, 1, "),
    (trace(traceEvents=[3]), "event 0: expected an object"),
    (json.dumps(with_event(ts=float("nan"))).encode(), "finite number, got NaN"),
    (json.dumps(with_event(dur=1e400)).encode(), "finite number, got Infinity"),
    (with_event(ts="12"), "ts: expected microseconds, got '12'"),
    (with_event(ts=-0.5), "ts: expected microseconds, got -0.5"),
    (with_event(dur=None), "dur: expected microseconds, got None"),
    (with_event(dur=True), "dur: expected microseconds, got True"),
    (with_event(tid="SM 3"), "by number, got 'SM 3'"),
    (with_event(args={"task": 4}), "expected one such event, got two"),
    (with_event(args=None), "by number, got None"),
    (with_head(kind="guessed"), "kind: expected measured-gpu or predicted"),
    (with_head(step_us=0), "step_us"),
    (with_head(overlap_closed_us="none"), "overlap_closed_us"),
    ({"schema": "amk.profile"}, "with its timeline"),
    ({"schema": "amk.profile", "timeline": {"meta": {}, "queue": [0], "start_us": [0.0]}}, "timeline.ready_us"),
    (
        {"schema": "amk.profile", "timeline": {"meta": {}, "queue": [0.5], "start_us": [0], "ready_us": [0],
                                               "finish_us": [1]}},
        "timeline.queue: expected integers",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("content", "match"), BAD_FILES, ids=[f"{i}-{m[:20]}" for i, (_, m) in enumerate(BAD_FILES)])
def test_files_that_hold_no_timeline(content: Any, match: str) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(InputError, match="t.json") as caught:
        read_timeline(data, "t.json")
    assert match in str(caught.value)


def test_a_timeline_of_another_program_is_refused() -> None:
    timeline, other = measured(), program_of(tiling={"gemv": {"N_tile": 64}})
    with pytest.raises(InputError, match="expected one of image"):
        require_program(timeline, other, other.pack().hash)
    with pytest.raises(InputError, match="expected one of image"):
        require_program(timeline.with_meta(image_hash=None), PROGRAM, PROGRAM.pack().hash)
    with pytest.raises(InputError, match="tasks"):  # whatever it says of itself
        require_program(timeline.with_meta(image_hash=other.pack().hash), other, other.pack().hash)
    nothing = dict.fromkeys(("start_us", "ready_us", "finish_us"), np.zeros(PROGRAM.n_tasks))
    with pytest.raises(InputError, match="took time"):
        require_program(Timeline(**{**vars(timeline), **nothing}), PROGRAM, PROGRAM.pack().hash)
    with pytest.raises(InputError, match="position"):
        explain(PROGRAM, None, timeline.with_meta(position=64))
    with pytest.raises(InputError, match="position"):
        explain(PROGRAM, 3, timeline)
    with pytest.raises(InputError, match="got a prediction"):
        explain(PROGRAM, None, predict(PROGRAM, 3))
    with pytest.raises(InputError, match="read_gb_per_s"):
        explain(PROGRAM, None, timeline.with_meta(read_gb_per_s="fast"))


# --- the contract of the call ---------------------------------------------------------------------------------------

CONTRACT = """
typedef struct amk_task_time_t { int32_t task, queue; double start_us, ready_us, finish_us; } amk_task_time_t;
amk_status amk_vm_timeline(amk_vm* vm, amk_task_time_t* out, int64_t room, int64_t* n);
"""


@pytest.fixture(scope="module")
def header() -> cffi.FFI:
    """The interface with the call in it, from the header itself as soon as that has it."""
    text = (HERE.parents[1] / "csrc" / "amk.h").read_text()
    text = text[text.index("/* amk-cdef-begin */") : text.index("/* amk-cdef-end */")]
    found = cffi.FFI()
    found.cdef(text + ("" if "amk_vm_timeline" in text else CONTRACT))
    return found


def test_the_call_is_made_as_agreed(header: cffi.FFI, monkeypatch: pytest.MonkeyPatch) -> None:
    told = made_timelines.replay(PROGRAM.tables().tasks, 2)
    weights = amk.open_model("toy-2L").weights()
    short = 0

    @header.callback("amk_status(amk_vm*, amk_task_time_t*, int64_t, int64_t*)")
    def call(machine: Any, out: Any, room: int, count: Any) -> int:
        assert room == len(told)
        for i, record in enumerate(told):
            out[i].task, out[i].queue = int(record["task"]), int(record["queue"])
            out[i].start_us, out[i].ready_us, out[i].finish_us = (
                float(record[name]) for name in ("start_us", "ready_us", "finish_us")
            )
        count[0] = room - short
        return 0

    with amk.ReferenceVM(PROGRAM.pack(), weights) as machine, monkeypatch.context() as patch:
        patch.setattr(_lib, "ffi", header)
        patch.setattr(vm, "ffi", header)
        patch.setattr(vm, "lib", SimpleNamespace(amk_vm_timeline=call))
        patch.setattr(vm, "require_timeline", lambda: None)
        patch.setattr(machine, "_open", lambda: header.NULL)
        patch.setattr(_lib, "table_dtype", _lib.table_dtype.__wrapped__)
        found = machine.timeline()
        for name in made_timelines.FIELDS.names or ():
            assert np.array_equal(found[name], told[name])
        short = 1
        with pytest.raises(InternalError, match="expected [0-9]+ tasks"):
            machine.timeline()


def test_a_machine_without_timelines_says_so() -> None:
    weights = amk.open_model("toy-2L").weights()
    with amk.ReferenceVM(PROGRAM.pack(), weights) as machine:
        machine.step(1, 0)
        with pytest.raises(Unavailable):
            machine.timeline()
    with pytest.raises(Unavailable):
        amk.MegakernelVM(PROGRAM.pack(), weights, timeline=True)


# --- a measured profile ---------------------------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As if a device of this kind were there."""

    def put(kind: str) -> None:
        monkeypatch.setattr(gpu_trial, "_DEVICE_CLASS", f"fake_devices:{kind}")
        monkeypatch.setattr(gpu_trial, "STEP_S", 2.0)
        monkeypatch.setattr(profile, "pick_device", lambda *_: ("cuda:0", []))
        monkeypatch.syspath_prepend(str(HERE))

    return put


def test_a_step_is_recorded_in_a_worker(device: Any) -> None:
    device("Faithful")
    said: list[str] = []
    found = run_profile("toy-2L", "h200", device="cuda", context=20, steps=7, seed=5, progress=said.append)
    summary, timeline = found.summary, found.timeline
    assert summary["latency_kind"] == timeline.kind == MEASURED and summary["steps"] == 7
    assert summary["context"] == 20 and summary["position"] == 19 and summary["device"] == "cuda:0"
    assert timeline.span_us == pytest.approx(0.9 * timeline.step_us)
    assert summary["overhead"]["on_us"] == pytest.approx(timeline.step_us), "the median of an odd number of steps"
    share = summary["overhead"]["on_us"] / summary["overhead"]["off_us"] - 1
    assert summary["overhead"]["share"] == pytest.approx(share)
    assert summary["floor"] == {
        "us": pytest.approx(found.program.cost(19).streamed_bytes / 4e6), "gb_per_s": 4000.0,
        "from": "read in this run", "pct": pytest.approx(100 * summary["floor"]["us"] / timeline.step_us),
    }  # fmt: skip
    assert summary["gb_per_s"] == pytest.approx(found.program.cost(19).streamed_bytes / timeline.step_us / 1e3)
    assert sum(entry["tasks"] for entry in summary["by_op"]) == found.program.n_tasks
    assert sum(entry["waiting_us"] for entry in summary["by_op"]) == pytest.approx(
        sum(entry["total_us"] for entry in summary["waits"])
    )
    assert sum(summary["sm_time"].values()) == pytest.approx(1)
    assert sum(entry["share"] for entry in summary["by_op"]) == pytest.approx(1 - summary["sm_time"]["idle"])
    assert len(summary["clocks"]) == 2 and any("twice on cuda:0" in text for text in said)


@pytest.mark.parametrize(
    ("kind", "error", "match"),
    [
        ("NoTimeline", Unavailable, "no call amk_vm_timeline"),
        ("Gone", Unavailable, "no machine code"),
        ("Full", amk.OutOfMemory, "9 bytes asked"),
        ("Refuses", amk.Rejected, "V10"),
        ("Exit", WorkerDied, "exit status 7"),
        ("ExitInTimeline", WorkerDied, "last words"),
        ("HangInTimeline", WorkerDied, "silent for too long"),
        ("FaultWhenTimed", AmkError, "no progress"),
        ("OtherLogits", DeviceFault, "other logits"),
        ("NotANumber", WorkerDied, "no positive times"),
        ("NegativeTime", WorkerDied, "no positive times"),
        ("TooSlow", WorkerDied, "the host's"),
        ("ShortTimeline", InputError, "1 are missing"),
        ("DoubleTimeline", InputError, "are missing"),
        ("NotANumberTimeline", InputError, "got nan"),
        ("OtherQueueTimeline", InputError, "expected queue"),
        ("LongTimeline", InputError, "its tasks took"),
    ],
)
def test_a_device_that_gives_no_profile(device: Any, kind: str, error: type, match: str) -> None:
    device(kind)
    with pytest.raises(error, match=match):
        run_profile("toy", "h200", device="cuda", max_seq=64, steps=20)


# --- the verbs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: Any) -> Any:
    def call(*arguments: Any) -> Any:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        out = capsys.readouterr()
        return SimpleNamespace(code=code, out=out.out, err=out.err)

    return call


def test_a_prediction_is_called_one_everywhere(run: Any, tmp_path: Path) -> None:
    trace_path, output = tmp_path / "t.json.gz", tmp_path / "o.json"
    found = run("profile", "toy", "--gpu", "h200", "--device", "cpu", "--trace", trace_path, "--output-file", output,
                "--json")  # fmt: skip
    data = json.loads(found.out)
    assert found.code == 0 and data["schema"] == "amk.profile" and data["latency_kind"] == "predicted"
    assert data["overhead"] is None and data["steps"] == 0 and "timeline" not in data
    assert data["step_us"] == amk.evaluate("toy", "h200", device="cpu").latency_us
    assert data["floor"]["from"] == "published" and any("not measured" in note for note in data["notes"])
    for path in (trace_path, output):
        assert read_timeline(path.read_bytes(), str(path)).kind == PREDICTED
        refused = run("explain", "toy", "--timeline", path)
        assert refused.code == 2 and "got a prediction" in refused.err
    assert json.loads(output.read_text())["timeline"]["meta"]["kind"] == "predicted"
    text = run("profile", "toy", "--gpu", "h200", "--device", "cpu").out
    assert "predicted (cost model)" in text and "measured on" not in text


def test_profile_then_explain(run: Any, device: Any, tmp_path: Path) -> None:
    device("Faithful")
    (tmp_path / "c.json").write_text('{"tiling": {"gemv": {"N_tile": 64}}}')
    trace_path, output = tmp_path / "t.json", tmp_path / "o.json"
    found = run("profile", "toy", "--gpu", "h200", "--device", "cuda", "--config", tmp_path / "c.json", "--context", 9,
                "--max-seq", 32, "--steps", 3, "--trace", trace_path, "--output-file", output)  # fmt: skip
    assert found.code == 0 and "measured on Fake device" in found.out and "predicted" not in found.out
    answers = []
    for path in (trace_path, output):  # gpu, schedule, max_seq and position are the timeline's
        explained = run("explain", "toy", "--timeline", path, "--json")
        assert explained.code == 0 and "as the timeline says" in explained.err
        answers.append(json.loads(explained.out))
        assert answers[-1]["latency_kind"] == "measured-gpu" and answers[-1]["position"] == 8
        assert answers[-1]["timeline"].pop("file") == str(path)
    paths = [[step["task"] for step in answer["critical_path"]["steps"]] for answer in answers]
    assert paths[0] == paths[1] and answers[0]["latency_us"] == answers[1]["latency_us"]
    assert run("explain", "toy", "--timeline", trace_path, "--max-seq", 64).code == 2, "another program"
    assert run("explain", "toy-2L", "--timeline", trace_path).code == 2, "another model"
    assert run("explain", "toy", "--timeline", trace_path, "--position", 3).code == 2
    assert run("explain", "toy", "--timeline", tmp_path / "c.json").code == 2
    assert run("explain", "toy", "--timeline", tmp_path / "none.json").code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--context", 0], ["--context", 999999], ["--context", 33, "--max-seq", 32], ["--steps", 0],
        ["--seed", -1], ["--trace", "t.txt"], ["--output-file", "o.txt"], ["--device", "tpu"],
        ["--trace", "x.json", "--output-file", "x.json"], ["--trace", "no/such/folder/t.json"],
    ],
)  # fmt: skip
def test_misuse(run: Any, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = run("profile", "toy", "--gpu", "h200", *arguments)
    assert found.code == 2 and found.out == "" and len(found.err.strip().splitlines()) <= 2, found
    assert list(tmp_path.iterdir()) == []


def test_a_rejected_schedule_and_no_gpu(run: Any, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"tiling": {"gemv": {"N_tile": 17}}}')
    assert run("profile", "toy", "--gpu", "h200", "--config", tmp_path / "c.json").code == 1
    assert run("profile", "toy", "--gpu", "h200", "--device", "cuda").code == 4
    assert sys.modules["amk.profile"].run_profile is run_profile
