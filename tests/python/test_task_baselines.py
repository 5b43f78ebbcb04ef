"""Several baselines in one run of `amk bench kernel`: one solution beside all, a record each, a fraud its own alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import fake_task_devices
from amk import cli
from amk.agent.tools import tools_of
from amk.errors import InputError, Rejected, WorkerDied
from amk.tasks import run as task_run
from amk.tasks.run import run_kernel_bench
from amk.tasks.time_row import MODES
from amk.verbs import VERBS
from small_task import (
    ROWS,
    TASK,
    assert_no_time,
    bench_one,
    from_somewhere,
    in_this_process,
    json_lines,
    markdown,
    reasons,
    write_task,
)

THREE = ("in-repo", "k:f", "torch.compile")


@pytest.fixture(autouse=True)
def _small_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMK_TASKS_DIR", str(tmp_path / "tasks"))
    write_task(tmp_path / "tasks")
    from_somewhere(monkeypatch)


class SpoilsWhenTimed(fake_task_devices.Honest):
    """As LazyWhenTimed, and what it does then is to what the others read."""

    launches = 0

    def cheat(self, call: Any, stream: list[Any]) -> int:
        def spoil() -> None:
            self.launches += 1
            self.write(call, self.result(call))
            if self.launches >= 60:
                self.at(call.inputs[0].address, 1)[:] ^= 1

        stream.append(spoil)
        return 0


class NoGraph(fake_task_devices.Honest):
    """Cannot be captured, as a callable that waits for the device."""

    def graph(self, entry: str, calls: Any, rounds: int) -> Any:
        if entry == self.fraud:
            raise Rejected("harness: 1 calls put 0 nodes on the stream they were given")
        return super().graph(entry, calls, rounds)


def shape_of(value: Any) -> Any:
    """Keys all the way down, and how long lists are."""
    if isinstance(value, dict):
        return {key: shape_of(inner) for key, inner in value.items()}
    return [shape_of(inner) for inner in value] if isinstance(value, list) else type(value).__name__


def test_one_solution_is_timed_beside_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = in_this_process("Honest", monkeypatch)
    records = run_kernel_bench(TASK, baselines=THREE)
    assert all(record["valid"] and record["counts"] for record in records)
    assert [record["baseline"].get("spec", record["baseline"]["kind"]) for record in records] == list(THREE)
    assert [record["proved_sides"] for record in records] == [["baseline", "solution"], ["solution"], ["solution"]]
    assert [record["headline"]["geometric_mean"] for record in records] == pytest.approx(
        [2.0 / 1.05, 3.0 / 1.05, 3.0 / 1.05]
    )
    for rows in zip(*(record["rows"][:2] for record in records), strict=True):
        for mode in MODES:
            for name in ("solution", "copy"):
                assert rows[0][mode][name] == rows[1][mode][name] == rows[2][mode][name]
            assert rows[0][mode]["baseline"]["median_us"] < rows[1][mode]["baseline"]["median_us"]
    # The trials of a row, with its oracle, are made by one worker; the regression rows are checked once.
    assert [job["action"] for job in jobs] == ["devices", "check", "time", "time"]
    assert [job["sides"] for job in jobs[1:]] == [
        ["baseline", "solution"], *[["baseline", "k:f", "torch.compile", "solution"]] * 2
    ]  # fmt: skip
    assert [job["device_class"] for job in jobs[1:]] == [task_run._DEVICE_CLASS, *["fake:Device"] * 2]
    assert "in one run with in-repo, torch.compile" in markdown(records[1])


def test_a_record_of_several_is_made_as_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process("Honest", monkeypatch)
    together = run_kernel_bench(TASK, baselines=THREE)
    for spec, record in zip(THREE, together, strict=True):
        alone = bench_one(TASK, baselines=[spec])
        assert "in one run with" not in markdown(alone)
        assert shape_of({**alone, "notes": []}) == shape_of({**record, "notes": []})
        assert {**alone, **dict.fromkeys(("rows", "notes", "began", "ended", "headline"))} == {
            **record, **dict.fromkeys(("rows", "notes", "began", "ended", "headline"))
        }  # fmt: skip


def test_the_order_of_the_samples_is_seeded_and_holds_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process("Honest", monkeypatch)
    taken: list[str] = []
    real = fake_task_devices.Graph.time

    def seen(graph: Any, replays: int) -> float:
        taken.append(graph._entry)
        return real(graph, replays)

    monkeypatch.setattr(fake_task_devices.Graph, "time", seen)
    runs = []
    for seed in (0, 0, 1):
        taken.clear()
        run_kernel_bench(TASK, baselines=THREE, stage="quick", seed=seed)
        runs.append(tuple(taken))
    assert runs[0] == runs[1] != runs[2]
    five = {"baseline", "k:f", "torch.compile", "solution", "copy"}
    assert any(set(runs[0][at : at + 5]) == five for at in range(len(runs[0])))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Stale", "stale-output"),
        ("Cached", "cached-result"),
        ("WrongStream", "wrong-stream"),
        ("NotANumber", "non-finite"),
        ("Zeros", "wrong-value"),
        ("OneWrongElement", "wrong-value"),
        ("LazyWhenTimed", "stale-output"),
        ("Synchronises", "synchronises"),
        ("OnlyWhileCaptured", "stale-output"),
        ("TooFast", "too-fast"),
        ("OutOfBounds", "out-of-bounds"),
        ("ChangesInput", "input-changed"),
        (NoGraph, "failed"),
    ],
)
def test_a_fraud_invalidates_its_own_record_alone(monkeypatch: pytest.MonkeyPatch, kind: Any, reason: str) -> None:
    in_this_process(kind, monkeypatch, fraud="k:f")
    ours, fraud, other = run_kernel_bench(TASK, baselines=THREE)
    assert reasons(fraud) == {reason} and {entry["row"] for entry in fraud["reasons"]} == {"large", "small"}
    assert all(entry["message"].startswith("k:f") or reason == "too-fast" for entry in fraud["reasons"])
    assert_no_time(fraud)
    for record in (ours, other):
        assert record["valid"], record["reasons"]
        assert [one["name"] for one in record["rows"]] == [one["name"] for one in ROWS]
        assert all(one["cold"]["solution"]["samples"] == 6 for one in record["rows"][:2])


def test_a_baseline_of_ours_that_cheats_while_timed_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process("LazyWhenTimed", monkeypatch, fraud="baseline")
    ours, *others = run_kernel_bench(TASK, baselines=THREE)
    assert reasons(ours) == {"stale-output"} and all("after timing" in entry["message"] for entry in ours["reasons"])
    assert_no_time(ours)
    assert all(record["valid"] for record in others)


@pytest.mark.parametrize(
    ("kind", "fraud", "reason"),
    [
        ("LazyWhenTimed", "solution", "stale-output"),
        ("NotANumber", "solution", "non-finite"),
        (NoGraph, "solution", "failed"),
        ("TooFast", "solution", "too-fast"),
        ("WrongStream", "baseline", "wrong-stream"),  # the regression rows are everybody's
        (SpoilsWhenTimed, "k:f", "input-changed"),  # what the others were timed on
        ("MissingCubin", "k:f", "missing-cubin"),
        ("Replaced", "k:f", "changed-library"),
    ],
)
def test_what_all_rest_on_invalidates_all(monkeypatch: pytest.MonkeyPatch, kind: Any, fraud: str, reason: str) -> None:
    in_this_process(kind, monkeypatch, fraud=fraud)
    for record in run_kernel_bench(TASK, baselines=THREE):
        assert reason in reasons(record) <= {reason, "missing-row"}, record["reasons"]
        assert_no_time(record)


def test_a_dead_worker_is_the_answer_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process("Honest", monkeypatch)
    real = task_run.run_job

    def dies(job: Any, *arguments: Any, **options: Any) -> Any:
        if job.get("rows") == ["small"]:
            raise WorkerDied("the GPU worker died")
        return real(job, *arguments, **options)

    monkeypatch.setattr(task_run, "run_job", dies)
    for record in run_kernel_bench(TASK, baselines=THREE):
        assert [(entry["reason"], entry["row"]) for entry in record["reasons"]] == [("worker", "small")]
        assert_no_time(record)


def test_all_baselines_refused_is_a_reason_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first falls out alone, the last with the row; each has its own reason."""
    in_this_process("Stale", monkeypatch, fraud="k:f")
    monkeypatch.setattr(fake_task_devices.Stale, "call", _both_cheat)
    one, other = run_kernel_bench(TASK, baselines=["k:f", "k:g"])
    for record, spec in ((one, "k:f"), (other, "k:g")):
        assert reasons(record) == {"stale-output"} and record["reasons"][0]["message"].startswith(f"{spec}: ")


def _both_cheat(device: Any, entry: str, call: Any, stream: list[Any]) -> int:
    planted = device.fraud if entry.startswith("k:") else entry
    return fake_task_devices.Honest.call(device, planted, call, stream)


@pytest.mark.parametrize("baselines", [[], ["torch", "torch"], ["in-repo", "k:f", "in-repo"], "torch"])
def test_each_baseline_is_given_once(monkeypatch: pytest.MonkeyPatch, baselines: Any) -> None:
    jobs = in_this_process("Honest", monkeypatch)
    with pytest.raises(InputError, match="baseline: expected some, each once"):
        run_kernel_bench(TASK, baselines=baselines)
    assert not jobs


def flags_of(specs: Any) -> list[str]:
    return [word for spec in specs for word in ("--baseline", spec)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (flags_of(["torch", "torch"]), "each once"),
        ([*flags_of(["torch", "in-repo"]), "--plot", "x.svg"], "--plot: expected one baseline"),
        ([*flags_of(["a.b:f", "a_b:f"]), "--output", "docs"], "expected baselines whose files differ"),
    ],
)
def test_a_command_with_baselines_that_cannot_be_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: Any, said: str
) -> None:
    jobs = in_this_process("Honest", monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "kernel", TASK, *arguments, "--quiet"]) == 2
    assert (
        said in capsys.readouterr().err and not jobs and sorted(path.name for path in tmp_path.iterdir()) == ["tasks"]
    )


def test_files_of_the_valid_are_written_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_this_process("Stale", monkeypatch, fraud="k:f")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "results_k_f.md").write_text("as it was")
    (docs / "baseline_source.md").write_text("# t\n\n## k:f\n\nof before\n")
    code = cli.main(["bench", "kernel", TASK, *flags_of(THREE), "--output", str(docs), "--quiet", "--json"])
    answer = json.loads(capsys.readouterr().out)
    names = ["results.jsonl", "results.md", "results_torch_compile.jsonl", "results_torch_compile.md"]
    assert code == 1 and answer["status"] == "FAILED" and answer["valid"] is False
    assert [record["valid"] for record in answer["records"]] == [True, False, True]
    assert answer["files"] == [str(docs / name) for name in [*names, "baseline_source.md"]]
    assert sorted(path.name for path in docs.iterdir()) == sorted([*names, "results_k_f.md", "baseline_source.md"])
    assert (docs / "results_k_f.md").read_text() == "as it was"
    source = (docs / "baseline_source.md").read_text()
    assert re.findall("^## (.*)$", source, re.M) == ["k:f", "torch.compile"] and "of before" in source
    lines = [json.loads(line) for line in (docs / "results_torch_compile.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == ["record"] + ["row"] * 5
    assert lines[0]["schema"] == answer["schema"] == "amk.kernel_bench" and "records" not in lines[0]


def test_nothing_valid_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_this_process("LazyWhenTimed", monkeypatch)
    arguments = ["bench", "kernel", TASK, *flags_of(THREE), "--output", str(tmp_path / "docs"), "--quiet"]
    assert cli.main(arguments) == 1 and not (tmp_path / "docs").exists()
    assert capsys.readouterr().out.count("INVALID") == 3


def test_the_terminal_shows_a_table_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    in_this_process("Honest", monkeypatch)
    assert cli.main(["bench", "kernel", TASK, *flags_of(THREE), "--quiet"]) == 0
    out = capsys.readouterr().out
    for said in ("1.905x against the in-repo baseline", "2.857x against k:f", "2.857x against torch.compile"):
        assert said in out


def test_a_file_of_one_record_says_nothing_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process("Honest", monkeypatch)
    first, *_ = run_kernel_bench(TASK, baselines=THREE)
    head = json.loads(json_lines(first).splitlines()[0])
    assert list(head)[:4] == ["schema", "schema_version", "line", "task"] and head["baseline"] == {"kind": "in-repo"}


def test_an_agent_gives_them_as_a_list(tmp_path: Path) -> None:
    tool = tools_of(VERBS)["amk_bench"]
    given = tool.read({"model": ["kernel", TASK], "baseline": ["torch", "k:f"]})
    arguments = cli.parser_of(VERBS).parse_args(tool.argv(given, str(tmp_path)))
    assert arguments.baseline == ["torch", "k:f"] and arguments.MODEL == ["kernel", TASK]
    assert tool.input_schema()["properties"]["baseline"]["type"] == "array"
    with pytest.raises(InputError, match="baseline: expected at least 1"):
        tool.read({"model": ["kernel", TASK], "baseline": []})
