"""Explanations: sums that add up to the prediction, paths that could have been taken, words that follow from both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import amk
from amk import _lib, cli
from amk.embedded import EMBEDDED
from amk.explanation import explain

H200 = amk.TARGETS["h200"]


def program(model="toy-2L", target=H200, max_seq=64, **config):
    schedule, _ = amk.ScheduleConfig.from_dict(config)
    shape = EMBEDDED[model] if isinstance(model, str) else model
    return amk.lower(shape, schedule, target, max_seq)


def big(**dims):
    dims = {
        "layers": 2,
        "hidden": 2048,
        "n_heads": 32,
        "n_kv_heads": 8,
        "head_dim": 64,
        "ffn": 8192,
        "vocab": 8192,
    } | dims
    return replace(EMBEDDED["toy"], dtype="bf16", **dims)


PROGRAMS = [
    program(), program("toy-gqa", replace(H200, sm_count=3)), program(fusion_grouping=[]), program(big()),
    program(sm_assignment="load_balance", tiling={"gemv": {"N_tile": 8}}),
]  # fmt: skip


def replay(tables, ran_us, signal_us):
    """(start, finish) of each task, by fixed point: no queues of ready work, no order of replay."""
    tasks = tables.tasks
    start, finish = np.zeros(len(tasks)), ran_us.copy()
    before = {}
    last = {}
    for index, sm in enumerate(tasks["sm"].tolist()):
        before[index] = last.get(sm)
        last[sm] = index
    producers = {}
    for index, counter in enumerate(tasks["out_counter"].tolist()):
        producers.setdefault(counter, []).append(index)
    waits = [task["wait_counter"][: task["n_waits"]].tolist() for task in tasks]
    for _ in range(len(tasks) + 1):
        ready = np.array([0.0 if before[i] is None else finish[before[i]] for i in range(len(tasks))])
        for i, counters in enumerate(waits):
            for counter in counters:
                ready[i] = max(ready[i], finish[producers[counter]].max() + signal_us)
        if np.array_equal(ready, start):
            return start, finish
        start, finish = ready, ready + ran_us
    raise AssertionError("no fixed point")


@pytest.mark.parametrize("index", range(len(PROGRAMS)))
def test_task_costs_are_what_a_fixed_point_gives(index):
    """The library's replay against another that shares only the tasks' own durations."""
    subject = PROGRAMS[index]
    if subject.n_tasks > 2000:
        pytest.skip("the fixed point is quadratic")
    costs, tables = subject.task_costs(20), subject.tables()
    waited = costs[costs["producer"] >= 0]
    signal_us = (waited["start_us"] - costs["finish_us"][waited["producer"]]).mean()
    start, finish = replay(tables, costs["finish_us"] - costs["start_us"], signal_us)
    np.testing.assert_allclose(costs["start_us"], start, rtol=1e-12)
    assert subject.cost(20).latency_us == pytest.approx(finish.max())


@pytest.mark.parametrize("index", range(len(PROGRAMS)))
@pytest.mark.parametrize("position", [0, 63])
def test_the_parts_add_up(index, position):
    subject = PROGRAMS[index]
    found, cost, costs = explain(subject, position), subject.cost(position), subject.task_costs(position)
    assert (found.latency_us, found.bound_us, found.tasks) == (cost.latency_us, cost.bound_us, subject.n_tasks)
    path = found.critical_path
    assert sum(path["us"].values()) == pytest.approx(cost.latency_us)
    assert sum(path["shares"].values()) == pytest.approx(1) and min(path["us"].values()) >= 0
    assert sum(found.sm_time.values()) == pytest.approx(1) and min(found.sm_time.values()) >= 0
    assert sum(entry["busy_us"] for entry in found.opcodes) == pytest.approx(
        (costs["finish_us"] - costs["start_us"]).sum()
    )
    assert sum(entry["share"] for entry in found.opcodes) == pytest.approx(1)
    assert sum(entry["tasks"] for entry in found.opcodes) == found.tasks
    assert sum(entry["flops"] for entry in found.opcodes) == pytest.approx(cost.flops)
    waiting = found.waiting
    assert sum(entry["total_us"] for entry in waiting["by_producer"]) == pytest.approx(waiting["total_us"])
    assert sum(entry["waits"] for entry in waiting["by_producer"]) == waiting["waits"]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


@pytest.mark.parametrize("index", range(len(PROGRAMS)))
def test_the_path_is_one(index):
    """From the start to the last end, each step begins when the one before it ended on its SM or signalled to it."""
    subject = PROGRAMS[index]
    steps, tables = explain(subject, 7).critical_path["steps"], subject.tables()
    assert steps[0]["after"] == "start" and steps[0]["start_us"] == 0
    assert steps[-1]["finish_us"] == subject.task_costs(7)["finish_us"].max()
    delays = set()
    for earlier, later in zip(steps, steps[1:], strict=False):
        task = tables.tasks[later["task"]]
        if later["after"] == "queue":
            assert earlier["sm"] == later["sm"] and earlier["finish_us"] == later["start_us"] and later["counter"] == -1
        else:
            assert later["after"] == "signal"
            assert later["counter"] in task["wait_counter"][: task["n_waits"]]
            assert tables.tasks[earlier["task"]]["out_counter"] == later["counter"]
            delays.add(round(later["start_us"] - earlier["finish_us"], 9))
    assert len(delays) == 1  # a signal takes as long wherever it goes


def test_words_follow_the_numbers():
    assert "fewer steps (fusion)" in explain(PROGRAMS[0]).next_bottleneck
    shape = big(vocab=131072)
    assert "split" in explain(program(shape, tiling={"gemv": {"N_tile": 8192}})).next_bottleneck
    assert "arithmetic" in explain(program(shape, replace(H200, sm_count=2))).next_bottleneck
    slow = replace(H200, sm_count=8, hbm_gb_per_s=20.0)
    near = explain(program(shape, slow))
    assert "only fewer bytes" in near.next_bottleneck and near.pct_of_roofline > 90


def test_more_fusion_shortens_what_it_says():
    split, fused = explain(PROGRAMS[2], 20), explain(PROGRAMS[0], 20)
    for part in ("signal", "task"):
        assert split.critical_path["us"][part] > fused.critical_path["us"][part]


def test_bad_positions_and_programs():
    for bad in (-1, 64, 1.0, True, "3"):
        with pytest.raises(amk.InputError, match="position"):
            explain(PROGRAMS[0], bad)
    broken = PROGRAMS[0].to_dict()
    broken["tasks"][-1]["waits"] = [{"counter": 0, "threshold": 9}]
    with pytest.raises(amk.Rejected):
        explain(amk.Program.from_dict(broken), 0)


def test_the_border():
    lib, ffi = _lib.lib, _lib.ffi
    count, room = ffi.new("int64_t *"), ffi.new("amk_task_cost_t[2]")
    proof = PROGRAMS[0]._require_proof()
    assert lib.amk_program_task_costs(proof, 0, ffi.NULL, 0, count) == 0 and count[0] == PROGRAMS[0].n_tasks
    assert lib.amk_program_task_costs(proof, 0, room, 2, count) == 0 and room[1].finish_us > 0
    for bad in ((ffi.NULL, 0, room, 2, count), (proof, 0, room, 2, ffi.NULL), (proof, 0, ffi.NULL, 2, count),
                (proof, 0, room, -1, count), (proof, -1, room, 2, count), (proof, 64, room, 2, count)):  # fmt: skip
        with pytest.raises(amk.InputError):
            _lib.check(lib.amk_program_task_costs(*bad))


def test_the_verb(tmp_path: Path, capsys):
    def run(*arguments):
        capsys.readouterr()
        code = cli.main(["explain", *map(str, arguments)])
        return code, capsys.readouterr().out

    subject = program("toy", max_seq=64)
    (tmp_path / "p.json").write_text(subject.to_json())
    (tmp_path / "i.amk").write_bytes(subject.pack().bytes)
    found = []
    for what, kind in (("toy", "model"), (tmp_path / "p.json", "program"), (tmp_path / "i.amk", "image")):
        code, out = run(what, "--gpu", "h200", "--max-seq", 64, "--position", 9, "--json")
        data = json.loads(out)
        assert code == 0 and data["schema"] == "amk.explain" and data["latency_kind"] == "predicted"
        assert data.pop("kind") == kind and data.pop("input") == str(what)
        found.append(data)
    assert found[0] == found[1] == found[2] and found[0]["latency_us"] == subject.cost(9).latency_us
    code, text = run("toy", "--gpu", "h200", "--max-seq", 64)
    assert code == 0 and "predicted (cost model) at position 32 on h200" in text and "GEMV_TILE" in text
    broken = subject.to_dict()
    broken["tasks"][0]["sm"] = 100_000
    (tmp_path / "p.json").write_text(json.dumps(broken))
    assert run(tmp_path / "p.json")[0] == 1 and run(tmp_path / "no")[0] == 2 and run("toy", "--position", 999)[0] == 2
    assert run("toy", "--gpu", "h900")[0] == 2
