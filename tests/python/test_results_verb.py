"""`amk results`: what it answers about a search, what it says about damage, and what it repairs."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from amk import cli
from amk.errors import StoreError
from amk.records import RecordStore, Trial, append_log, read_corpus, read_trials
from amk.records.lines import TSV_COLUMNS, TSV_HEADER, row_line
from whole_store import LOOP, check_whole, failed_trial, make_trial, open_store, paths, start

OTHER = "ba9876543210"
MEASURED = {
    "regime": "measured-gpu",
    "verdict": {"latency_kind": "measured-gpu", "max_seq": 64, "latency_position": 32, "device": "cuda:0"},
}
SEARCH = [
    make_trial(0),
    make_trial(1, latency_us=8.0),
    make_trial(2, tag="revert", latency_us=7.99, description="no real gain | <b>\tforged\nrow"),
    failed_trial(3),
    make_trial(0, OTHER, latency_us=20.0, **MEASURED),
    make_trial(1, OTHER, latency_us=15.0, model="a model", **MEASURED),
]


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with open_store(tmp_path) as store:
        store.begin_loop(LOOP, {"model": "toy"})
        for trial in SEARCH:
            start(store, trial)
            store.end(trial)
        start(store, make_trial(4))
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Any:
    def call(action: str, *arguments: Any) -> Result:
        capfd.readouterr()
        code = cli.main(["results", action, *map(str, arguments)])
        return Result(code, *capfd.readouterr())

    return call


def test_summary(folder: Path, run: Any) -> None:
    data = run("summary", "--json").json
    first, second, third = data["groups"]
    assert data["trials"] == 6 and data["skipped"] == dict.fromkeys(data["skipped"], 0)
    assert first["tags"] == {"kept": 2, "tried": 0, "revert": 1, "rejected": 0, "crash": 1}
    assert (first["model"], first["gpu"], first["regime"], first["position"]) == ("toy", "h200", "predicted", 32)
    assert first["best"] == f"{LOOP}-000001" and first["gain_pct"] == pytest.approx(20.0)  # of 10 us, not the revert
    assert second["regime"] == "measured-gpu" and second["best_latency_us"] == 20.0 and second["gain_pct"] == 0.0
    assert third["model"] == "a model" and third["gain_pct"] is None  # its loop's default is of another model
    text = run("summary").out
    assert len(text.splitlines()) == 4 and "20" in text.splitlines()[1] and "predicted" in text
    assert len(run("summary", "--model", "toy", "--regime", "predicted", "--json").json["groups"]) == 1
    assert run("summary", "--gpu", "b200").out == "results.tsv: no trials\n"


def test_best_names_the_commands_that_judge_it_again(folder: Path, run: Any) -> None:
    data = run("best", "--regime", "predicted", "--json").json
    assert data["schedule_config"] == SEARCH[1].schedule_config
    (best,) = data["best"]
    assert best["trial_id"] == SEARCH[1].trial_id and best["latency_us"] == 8.0
    write, again = map(shlex.split, best["commands"])
    assert cli.main(write[1:]) == 0 and json.loads((folder / "best.json").read_text()) == SEARCH[1].schedule_config
    assert again == shlex.split(
        "amk eval toy --gpu h200 --config best.json --device cpu --max-seq 64 --position 32 --seed 0"
    )
    text = run("best").out
    assert "8 us, predicted" in text and "20.0 % less than the default" in text and "15 us, measured-gpu" in text
    assert "'a model' --gpu h200 --config best.json --device cuda --max-seq 64 --position 32" in text
    assert "schedule_config" not in run("best", "--json").json  # three bests are no single one
    several = run("best", "--output-file", "x.json")
    assert several.code == 2 and "expected one" in several.err and not Path("x.json").exists()
    none = run("best", "--gpu", "b200", "--json")
    assert none.code == 1 and none.json["status"] == "EMPTY"


def test_the_winner_of_a_loop_is_what_it_kept_last(tmp_path: Path, run: Any) -> None:
    """Within 1 % the simpler schedule is kept, although it is a little slower."""
    with open_store(tmp_path) as store:
        for experiment, latency in enumerate((10.0, 8.0, 8.05)):
            store.end(make_trial(experiment, latency_us=latency))
    assert run("best", tmp_path / "results.tsv", "--json").json["best"][0]["latency_us"] == 8.05


def test_best_redoes_a_checkpoint_by_its_path(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial holds the name of its model; the path that the loop was given is in the journal."""
    monkeypatch.chdir(tmp_path)
    with open_store(tmp_path) as store:
        store.begin_loop(LOOP, {"identity": {"model": "/some/where/a model"}})
        trial = make_trial(0, model="a model")
        start(store, trial)
        store.end(trial)
    for log in ("results.tsv", paths(tmp_path)[2].name):
        (best,) = run("best", log, "--json").json["best"]
        assert shlex.split(best["commands"][-1])[:3] == ["amk", "eval", "/some/where/a model"]
        assert best["model"] == "a model"


def test_best_without_the_journal_says_what_is_missing(folder: Path, run: Any) -> None:
    paths(folder)[2].unlink()
    result = run("best", "--regime", "predicted")
    assert result.code == 0 and "8 us" in result.out and "journal, which is not here" in result.out
    assert run("best", "--regime", "predicted", "--output-file", "x.json").code == 2


def test_export(folder: Path, run: Any) -> None:
    rows = list(csv.reader(io.StringIO(run("export").out)))
    assert tuple(rows[0]) == TSV_COLUMNS[:-1] and len(rows) == 7
    assert rows[3][TSV_COLUMNS.index("description")] == "no real gain | <b>\\tforged\\nrow"
    lines = run("export", "--format", "jsonl").out.splitlines()
    assert [Trial.from_dict(json.loads(line)) for line in lines] == SEARCH
    marked = run("export", "--format", "md").out.splitlines()
    assert len(marked) == 8 and all(line.count("|") == len(TSV_COLUMNS) for line in marked) and "<b>" not in marked[4]
    data = run("export", "--json").json
    assert [Trial.from_dict(trial) for trial in data["trials"]] == SEARCH
    assert run("export", "--output-file", "out.csv").out == "out.csv: 6 trials\n"
    assert list(csv.reader(Path("out.csv").open(newline=""))) == rows
    assert run("export", "--gpu", "b200", "--format", "jsonl").out == ""


@pytest.mark.parametrize("path", ["results.tsv", "./results.journal.jsonl", "corpus.jsonl", "no/x", ".", "", "fifo"])
def test_an_output_file_in_the_way_is_refused(folder: Path, run: Any, path: str) -> None:
    os.mkfifo("fifo")
    before = [log.read_bytes() for log in paths(folder)]
    for action in (("export",), ("best", "--regime", "predicted")):
        result = run(*action, "--output-file", path)
        assert result.code == 2 and "--output-file" in result.err
    assert before == [log.read_bytes() for log in paths(folder)] and not list(folder.glob(".amk-*"))


def test_check_of_what_is_whole(folder: Path, run: Any) -> None:
    result = run("check", "--json")
    assert result.code == 0 and result.json["status"] == "OK" and result.json["problems"] == []
    assert result.json["interrupted"] == [f"{LOOP}-000004"]
    assert result.json["results"]["records"] == 6 and result.json["corpus"]["records"] == 4
    assert result.json["journal"]["records"] == 14
    assert "never finished" in run("check").out


def damage(folder: Path, kind: str) -> None:
    results, corpus, _ = paths(folder)
    rows = results.read_bytes().splitlines(keepends=True)
    if kind == "row lost":
        results.write_bytes(b"".join(rows[:3] + rows[4:]))
    elif kind == "row edited":
        results.write_bytes(b"".join(rows).replace(b"\t8.0\t", b"\t1.0\t"))
    elif kind == "row edited and signed":
        results.write_bytes(b"".join(rows[:2] + [row_line(make_trial(1, latency_us=1.0))] + rows[3:]))
    elif kind == "row forged":
        results.write_bytes(b"".join([*rows, row_line(make_trial(9, latency_us=0.1))]))
    elif kind == "row twice":
        results.write_bytes(b"".join([*rows, rows[1]]))
    elif kind == "results header":
        results.write_bytes(b"".join(rows)[1:])
    elif kind == "results gone":
        results.unlink()
    elif kind == "corpus line":
        corpus.write_bytes(corpus.read_bytes().replace(b"toy", b"boy", 1))
    elif kind == "corpus header":
        corpus.write_bytes(b"\0" * 50)


REPAIRABLE = ("row lost", "row edited", "row edited and signed", "row forged", "row twice", "results header")
REPAIRABLE += ("results gone", "corpus line", "corpus header")


@pytest.mark.parametrize("kind", REPAIRABLE)
def test_damage_is_named_and_rebuilt(folder: Path, run: Any, kind: str) -> None:
    damage(folder, kind)
    results, corpus, journal = paths(folder)
    before = {path: path.read_bytes() for path in (results, corpus, journal) if path.exists()}
    found = run("check", "--json")
    assert found.code == 8 and found.json["status"] == "DAMAGED" and found.json["problems"]
    name = kind.split()[0].replace("row", "results")
    assert all(problem.startswith(f"{name}: ") for problem in found.json["problems"])
    assert "PROBLEM" in run("check").out
    assert before == {path: path.read_bytes() for path in (results, corpus, journal) if path.exists()}
    if not kind.startswith("corpus") and kind not in ("results header",):
        seen = read_trials(journal if kind == "results gone" else results)
        assert seen == SEARCH, "the journal stands"
    done = run("rebuild", "--json")
    assert done.code == 0
    assert run("check").code == 0
    assert journal.read_bytes() == before[journal]
    damaged = corpus if kind.startswith("corpus") else results
    copy = done.json["corpus" if kind.startswith("corpus") else "results"]["old_file_kept_as"]
    if kind in ("row lost", "results gone"):  # nothing was dropped
        assert copy is None and not list(folder.glob("*.old.*"))
    else:
        assert Path(copy).read_bytes() == before[damaged]
    check_whole(folder, SEARCH)


def test_what_the_journal_lost_is_counted(folder: Path, run: Any) -> None:
    journal = paths(folder)[2]
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3] + lines[4:]))  # the end of trial 0
    problems = run("check", "--json").json["problems"]
    assert problems == ["results: 1 rows that the journal does not hold", *problems[1:]]
    assert problems[-1] == "journal: 1 records lost, by the numbering of their writers"
    flipped = bytearray(b"".join(lines))
    flipped[len(flipped) // 2] ^= 4
    journal.write_bytes(flipped)
    result = run("check", "--json")
    assert result.code == 8 and "journal: 1 damaged lines" in result.json["problems"]
    assert run("summary").err.count("`amk results check` names them") == 1
    run("rebuild")
    assert list(folder.glob("results.tsv.old.1")), "the row that only results.tsv still held is kept"
    assert run("check").code == 8


def test_a_torn_tail_is_no_loss(folder: Path, run: Any) -> None:
    with paths(folder)[2].open("ab") as file:
        file.write(b'{"kind":"end"')
    result = run("check")
    assert result.code == 0 and "1 unfinished appends were never acknowledged" in result.out
    open_store(folder).close()
    assert run("check", "--json").json["journal"]["torn_copies"] == ["./results.journal.jsonl.torn.1"]


def test_a_corpus_keeps_the_trials_of_other_journals(folder: Path, run: Any) -> None:
    foreign = make_trial(0, "feedfeedfeed")
    with RecordStore(folder / "other.tsv", folder / "corpus.jsonl") as store:
        store.end(foreign)
    assert run("check").code == 0
    damage(folder, "corpus line")
    assert run("rebuild").code == 0
    found = read_corpus(folder / "corpus.jsonl")
    assert foreign in found and len(found) == 5


def test_a_store_that_is_locked_is_not_rebuilt(folder: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_log, "LOCK_TIMEOUT_S", 0.05)
    with RecordStore(folder / "results.tsv")._journal.locked():
        result = run("rebuild", "--json")
    assert result.code == 8 and result.json["error"]["code"] == StoreError.code
    assert "locked by another process" in result.json["error"]["message"]


@pytest.mark.parametrize("action", ["summary", "best", "export", "check", "rebuild", "plot"])
@pytest.mark.parametrize("kind", ["absent", "directory", "fifo", "binary", "empty", "header", "link to nothing"])
def test_bad_input_is_one_typed_error(tmp_path: Path, run: Any, action: str, kind: str) -> None:
    path = tmp_path / "results.tsv"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link to nothing":
        path.symlink_to(tmp_path / "nothing")
    elif kind != "absent":
        path.write_bytes({"binary": bytes(range(256)) * 9, "empty": b"", "header": b"a\tb\n"}[kind])
    result = run(action, path, "--output-file", tmp_path / "x.png", "--json")
    assert result.code == 2 and result.json["error"]["code"] == "input"
    assert len(result.err.strip().splitlines()) == 1 and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_rebuild_replaces_no_other_kind_of_file(folder: Path, run: Any, kind: str) -> None:
    results = folder / "results.tsv"
    results.unlink()
    results.mkdir() if kind == "directory" else os.mkfifo(results)
    result = run("rebuild")
    assert result.code == 2 and "regular file" in result.err and results.exists() and not results.is_file()


def test_plot_draws_the_trials_that_the_filters_let_through(
    folder: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    package, plots = ModuleType("amk.report"), ModuleType("amk.report.plots")
    package.__path__ = []  # type: ignore[attr-defined]
    plots.plot_trials = lambda trials, output: drawn.append((trials, output))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "amk.report", package)
    monkeypatch.setitem(sys.modules, "amk.report.plots", plots)
    assert run("plot", "--regime", "predicted", "--output-file", "x.svg").code == 0
    assert drawn == [(SEARCH[:4], "x.svg")]
    assert run("plot").code == 2 and run("plot", "--output-file", "results.tsv").code == 2 and len(drawn) == 1
    monkeypatch.setitem(sys.modules, "amk.report.plots", None)
    missing = run("plot", "--output-file", "x.svg", "--json")
    assert missing.code == 4 and 'pip install "amk[plot]"' in missing.json["error"]["message"]


def test_results_of_a_header_alone(tmp_path: Path, run: Any) -> None:
    (tmp_path / "results.tsv").write_bytes(TSV_HEADER)
    assert run("summary", tmp_path / "results.tsv").code == 0
    assert run("export", tmp_path / "results.tsv", "--format", "md").out.count("\n") == 2
