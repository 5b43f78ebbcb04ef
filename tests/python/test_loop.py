"""`amk.loop` on the reference machine: what is recorded, whatever happens to a trial or to the loop itself."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import amk
from amk.errors import DeviceBusy, InputError, Unavailable
from amk.gpu_lock import lock_directory, name_lock
from amk.records import RecordStore, Trial, read_corpus, read_trials

RUN = "amk.search.run"
HERE = Path(__file__).parent
TILES = {"tiling.gemv.N_tile": [0, 8, 16, 32, 64, 128, 256]}


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """amk.loop, recording into the test's folder, with another judge if one is named."""
    monkeypatch.setenv("LOOP_JOBS_DIR", str(tmp_path))

    def call(budget: int = 6, judge: str = "", space: Any = None, **options: Any) -> amk.LoopResult:
        if judge:
            monkeypatch.setattr(f"{RUN}._JUDGE", f"loop_jobs:{judge}")
        if space is not None:
            monkeypatch.setattr(sys.modules["amk.propose"], "search_space", lambda target: space)
        known = {
            "results_path": tmp_path / "results.tsv", "corpus_path": tmp_path / "corpus.jsonl", "engine": "inline",
        }  # fmt: skip
        return amk.loop("toy", "h200", budget, options.pop("device", "cpu"), **known | options)

    return call


def facts(trials: Any) -> list[Any]:
    """What must be the same when a loop is run again."""
    return [(t.experiment, t.tag, t.correctness, t.latency_us, t.schedule_id, t.description) for t in trials]


# --- a loop that goes well ------------------------------------------------------------------------------------------


def test_a_loop_records_every_trial(search: Any, tmp_path: Path) -> None:
    heard: list[Trial] = []
    result = search(12, on_trial=heard.append)
    assert len(result.trials) == 12 == len(heard) and tuple(heard) == result.trials
    assert [t.experiment for t in result.trials] == list(range(12))
    first = result.trials[0]
    assert first.schedule_id == amk.ScheduleConfig.default().schedule_id and first.tag == "kept"
    assert len({t.schedule_id for t in result.trials}) == 12
    assert {t.tag for t in result.trials[1:5]} <= {"kept", "tried"}
    assert {t.tag for t in result.trials[5:]} <= {"kept", "revert"}
    assert result.best is not None and result.best.latency_us == min(
        t.latency_us for t in result.trials if t.tag == "kept"
    )
    for trial in result.trials:
        verdict = amk.evaluate("toy", "h200", trial.schedule_config, "cpu")
        assert trial.latency_us == verdict.latency_us and trial.correctness == "PASS"
        assert trial.regime == "predicted" and trial.description.endswith((".", ")", "slower", "simpler", "one"))
    assert read_trials(tmp_path / "results.journal.jsonl") == list(result.trials)
    kept = [t for t in result.trials if t.tag == "kept"]
    assert [t.trial_id for t in read_corpus(tmp_path / "corpus.jsonl")] == [t.trial_id for t in kept]
    assert (result.regime, result.stopped, result.gpu) == ("predicted", None, "h200")
    text = result.to_text()
    assert "12 trials" in text and "predicted (cost model)" in text and str(tmp_path) in text
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("engine", ["inline", "process"])
def test_the_same_seed_gives_the_same_loop(search: Any, tmp_path: Path, engine: str) -> None:
    runs = [search(8, seed=3, results_path=tmp_path / f"{i}.tsv", corpus_path=None, engine=engine) for i in (1, 2)]
    assert facts(runs[0].trials) == facts(runs[1].trials)
    assert runs[0].loop != runs[1].loop
    other = search(8, seed=4, results_path=tmp_path / "3.tsv", corpus_path=None)
    assert [t.schedule_id for t in other.trials] != [t.schedule_id for t in runs[0].trials]


def test_workers_side_by_side_change_nothing_but_the_time(search: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """With two workers a proposal knows one decision less; but the clock decides nothing."""
    monkeypatch.setenv("LOOP_JOBS_SLEEP", "0.02")
    runs = []
    for i in (1, 2):
        options = {"judge": "slow", "engine": "process", "workers": 2, "corpus_path": None}
        runs.append(search(10, results_path=tmp_path / f"{i}.tsv", **options))
    assert facts(runs[0].trials) == facts(runs[1].trials)


def test_the_corpus_leads_a_loop_of_a_similar_shape(search: Any, tmp_path: Path) -> None:
    good = amk.ScheduleConfig.from_dict({"sm_assignment": "load_balance", "page_allocation": "none"})[0]
    found = search(1)
    trial = Trial.from_dict(
        found.trials[0].to_dict() | {
            "loop": "0" * 12, "trial_id": "0" * 12 + "-000000", "schedule_config": good.to_dict(),
            "schedule_id": good.schedule_id, "model": "another",
        }
    )  # fmt: skip
    with RecordStore(tmp_path / "other.tsv", tmp_path / "corpus.jsonl") as store:
        store.end(trial)
    warm = search(5, seed=1)
    assert warm.trials[1].schedule_id == good.schedule_id and "similar" in warm.trials[1].description
    assert good.schedule_id not in [t.schedule_id for t in search(5, seed=1, cold=True).trials[1:2]]


def test_optuna_proposes(search: Any, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    runs = [search(14, sampler="optuna", results_path=tmp_path / f"{i}.tsv", corpus_path=None) for i in (1, 2)]
    assert facts(runs[0].trials) == facts(runs[1].trials)
    trials = runs[0].trials
    assert len({t.schedule_id for t in trials}) == 14 and trials[0].tag == "kept"
    assert all("Optuna" in t.description for t in trials[1:])
    space = {"tiling.gemv.N_tile": [0, 8, 16], "page_allocation": ["linear", "none"]}
    small = search(9, sampler="optuna", results_path=tmp_path / "3.tsv", corpus_path=None, space=space)
    assert len(small.trials) == 6 == len({t.schedule_id for t in small.trials}), "each point once, then the end"
    assert "nothing new" in small.stopped


def test_a_resumed_optuna_loop_knows_what_was_found(search: Any) -> None:
    pytest.importorskip("optuna")
    search(6, sampler="optuna")
    result = search(12, sampler="optuna", resume=True)
    assert len(result.trials) == 12 == len({t.schedule_id for t in result.trials})


# --- tags -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_trouble_is_a_row_and_the_loop_goes_on(search: Any) -> None:
    result = search(8, "troubled", TILES, engine="process", timeout_s=1.5, explore_fraction=0.3)
    by_tile = {t.schedule_config["tiling"]["gemv"]["N_tile"]: t for t in result.trials}
    assert set(by_tile) == {0, 8, 16, 32, 64, 128, 256} and "nothing new" in result.stopped
    why = {8: "SIGSEGV", 16: "in time", 32: "(SIGKILL) while at work: last words", 64: "a bug in the worker",
           128: "no verdict", 256: "floor"}  # fmt: skip
    for tile, text in why.items():
        trial = by_tile[tile]
        assert (trial.tag, trial.correctness, trial.latency_us) == ("crash", "CRASH", None), trial
        assert text in trial.description, trial.description
        assert trial.verdict == {}
    assert by_tile[0].tag == "kept" and result.best == by_tile[0]


def test_a_wrong_answer_is_no_crash_and_is_never_kept(search: Any) -> None:
    result = search(4, "wrong", engine="process")
    assert [t.correctness for t in result.trials] == ["FAIL"] * 4
    assert {t.tag for t in result.trials} == {"tried"} and result.best is None
    assert all("exceeds" in t.description for t in result.trials)
    assert "none: no trial was correct" in result.to_text()


def test_a_refused_schedule_is_rejected(search: Any) -> None:
    depths = [amk.ScheduleConfig.default().pipelining_depth, 65]
    result = search(6, space={"tiling.gemv.N_tile": [0, 12], "pipelining_depth": depths}, explore_fraction=1.0)
    assert [t.tag for t in result.trials] == ["kept", "rejected", "rejected", "rejected"]
    for trial in result.trials[1:]:
        assert "V26" in trial.description and trial.verdict["valid"] is False and trial.correctness == "REJECTED"


def test_a_correct_one_whose_latency_is_withheld_is_tried(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = sys.modules["amk.evaluate"]
    monkeypatch.setattr(evaluate, "_price", lambda *_: ({"bound_us": 1.0}, ["latency withheld: a test says so"]))
    result = search(3)
    assert [(t.tag, t.correctness, t.latency_us) for t in result.trials[:2]] == [("tried", "PASS", None)] * 2
    assert "withheld" in result.trials[0].description and result.best is None


# --- resuming -------------------------------------------------------------------------------------------------------


def test_resuming_gives_the_loop_that_was_not_cut(search: Any, tmp_path: Path) -> None:
    whole = search(14, seed=5, results_path=tmp_path / "whole.tsv")

    def stop(trial: Trial) -> None:
        if trial.experiment == 6:
            raise ZeroDivisionError

    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(ZeroDivisionError):
        search(14, seed=5, on_trial=stop)
    said: list[str] = []
    result = search(14, seed=5, resume=True, progress=said.append)
    assert facts(result.trials) == facts(whole.trials)
    assert any("continuing" in text for text in said)
    again = search(14, seed=5, resume=True)
    assert again.trials == result.trials, "nothing is left to do"
    more = search(20, seed=5, resume=True)
    assert len(more.trials) == 20 and more.trials[:14] == result.trials and more.loop == result.loop


def test_another_seed_or_option_is_another_loop(search: Any) -> None:
    first = search(3)
    for options in ({"seed": 1}, {"cold": True}, {"position": 3}, {"explore_fraction": 0.5}, {"max_seq": 64}):
        assert search(3, resume=True, **options).loop != first.loop
    assert search(3, resume=True).loop == first.loop


def test_a_running_loop_is_not_resumed_by_another(search: Any) -> None:
    result = search(3)
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from amk.gpu_lock import name_lock\n"
        "with name_lock(sys.argv[1], ''): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, f"loop-{result.loop}", str(Path(amk.__file__).parents[1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DeviceBusy, match=f"process {other.pid}"):
            search(4, resume=True)
        other.stdin.close()
    assert len(search(4, resume=True).trials) == 4


def test_a_log_of_the_other_kind_is_evaluated_again_first(search: Any, tmp_path: Path) -> None:
    result = search(9, seed=1)
    path = tmp_path / "results.journal.jsonl"
    rewrite(path, lambda entry: entry["facts"]["conditions"].update(regime="measured-gpu"), "loop")
    said: list[str] = []
    other = search(9, seed=1, resume=True, progress=said.append)
    assert other.loop != result.loop and other.trials[0].schedule_id == result.best.schedule_id
    assert "evaluated again" in other.trials[0].description and other.trials[0].tag == "kept"
    assert any("other conditions" in text for text in said)
    assert amk.ScheduleConfig.default().schedule_id in [t.schedule_id for t in other.trials[:2]]


def rewrite(path: Path, change: Any, kind: str) -> None:
    """Edits the journal the way somebody with its source code would: with a right checksum."""
    from amk.records.lines import json_line

    lines = path.read_bytes().splitlines(keepends=True)
    for i, line in enumerate(lines):
        entry = json.loads(line)
        if entry.get("kind") == kind:
            entry.pop("crc")
            change(entry)
            lines[i] = json_line(entry)
    path.write_bytes(b"".join(lines))


KILLED = (
    "import sys; sys.path[:0] = sys.argv[3:]; import amk; from amk.search import run\n"
    "run._JUDGE = 'loop_jobs:slow'\n"
    "amk.loop('toy', 'h200', 10, 'cpu', seed=2, results_path=sys.argv[1], corpus_path=sys.argv[2], resume=True,"
    " on_trial=lambda t: print(t.trial_id, flush=True))\n"
)


def test_a_killed_loop_goes_on_and_loses_nothing(search: Any, tmp_path: Path) -> None:
    """kill -9 of the loop's process at random moments, until it gets through."""
    rng = random.Random(4)
    paths = [str(tmp_path / "killed.tsv"), str(tmp_path / "killed.jsonl")]
    command = [sys.executable, "-c", KILLED, *paths, str(HERE), str(Path(amk.__file__).parents[1])]
    acknowledged: list[str] = []
    for attempt in range(6):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            lines = []
            if attempt < 4:
                for _ in range(rng.randrange(1, 4)):
                    lines.append(child.stdout.readline().strip())
                time.sleep(rng.random() * 0.1)
                child.kill()
            lines += child.stdout.read().split()
            acknowledged += [line for line in lines if line]
        if child.returncode == 0:
            break
    assert child.returncode == 0
    trials = read_trials(tmp_path / "killed.journal.jsonl")
    assert len(trials) == 10 and [t.experiment for t in trials] == list(range(10))
    assert set(acknowledged) <= {t.trial_id for t in trials} and len(set(acknowledged)) == len(acknowledged)
    assert read_trials(tmp_path / "killed.tsv") and [t.trial_id for t in read_trials(tmp_path / "killed.tsv")] == [
        t.trial_id for t in trials
    ]
    cut = [t for t in trials if t.tag == "crash"]
    for trial in cut:
        assert trial.comparison["interrupted"]
        assert sum(t.schedule_id == trial.schedule_id for t in trials) <= 2, "tried once more, and then never"
    whole = search(10, seed=2, results_path=tmp_path / "whole.tsv", corpus_path=None)
    rest = [t.schedule_id for t in trials if t.tag != "crash"]
    assert rest == [t.schedule_id for t in whole.trials][: len(rest)], "the same proposals, but for the repeats"


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["once", "twice"])
def test_ctrl_c_finishes_the_record(how: str, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import amk; from amk.search import run\n"
        "run._JUDGE = 'loop_jobs:waits'\n"
        "if sys.argv[3] == 'twice':\n"
        "    import time; end = run._Run.end_running\n"
        "    run._Run.end_running = lambda *a, **k: (open('ending', 'w'), time.sleep(30), end(*a))\n"
        "sys.argv = ['amk', 'loop', 'toy', '--gpu', 'h200', '--device', 'cpu', '--json', '--results', sys.argv[4]]\n"
        "from amk.__main__ import run as main; main()"
    )
    command = [sys.executable, "-c", code, str(HERE), str(Path(amk.__file__).parents[1]), how]
    environment = {**os.environ, "LOOP_JOBS_DIR": str(tmp_path)}
    with subprocess.Popen(
        [*command, str(tmp_path / "results.tsv")], stdout=subprocess.PIPE, env=environment, cwd=tmp_path
    ) as child:
        end = time.monotonic() + 60
        while not (tmp_path / "pid").exists() and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        if how == "twice":
            while not (tmp_path / "ending").exists() and time.monotonic() < end:
                time.sleep(0.02)
            child.send_signal(signal.SIGINT)
        out = child.stdout.read()
        child.wait(30)
    worker = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{worker}"), "the worker outlived its loop"
    trials = read_trials(tmp_path / "results.journal.jsonl")
    if how == "twice":
        assert child.returncode == -signal.SIGINT and trials == []
        return
    assert child.returncode == 130
    found = json.loads(out)
    assert found["status"] == "INTERRUPTED" and found["stopped"] == "interrupted"
    assert found["results_path"] == str(tmp_path / "results.tsv")
    assert [(t.tag, t.comparison["interrupted"]) for t in trials] == [("crash", "Ctrl-C")]


# --- misuse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0}, {"budget": 2.5}, {"budget": True}, {"seed": -1}, {"explore_fraction": 1.5},
        {"explore_fraction": "all"}, {"sampler": "magic"}, {"engine": "magic"}, {"workers": 0}, {"workers": 2},
        {"timeout_s": 0}, {"device": "cuda:1", "engine": "ray"}, {"device": 3}, {"timeout_s": float("nan")},
        {"position": 256}, {"max_seq": 0}, {"results_path": 3},
    ],
    ids=str,
)  # fmt: skip
def test_misuse_is_refused_before_anything_runs(search: Any, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        search(**options)
    assert not list(tmp_path.glob("results*"))


def test_what_is_not_there_is_said(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(Unavailable, match=r"amk\[optuna\]"):
        search(sampler="optuna")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable, match=r"amk\[ray\]"):
        search(engine="ray")


def test_a_lock_changes_hands_between_processes(tmp_path: Path) -> None:
    """Two processes at a time write a file of their own; the lock's file comes and goes meanwhile."""
    code = (
        "import os, sys, time; sys.path[:0] = sys.argv[2:]; from amk.gpu_lock import name_lock\n"
        "for i in range(150):\n"
        "    with name_lock(f'test-{os.getppid()}', '', wait_s=60):\n"
        "        os.close(os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)); os.unlink(sys.argv[1])\n"
        "    time.sleep(0.0001 * (i % 3))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "held"), str(Path(amk.__file__).parents[1])]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait(120) for child in children] == [0, 0]
    assert not list(lock_directory().glob(f"test-{os.getpid()}*"))


def test_a_lock_is_one_per_name(tmp_path: Path) -> None:
    with name_lock("loop-test", "x"):
        with name_lock("loop-other", "x"):
            pass
        with pytest.raises(DeviceBusy, match=f"process {os.getpid()}"), name_lock("loop-test", "x"):
            pass
    with name_lock("loop-test", "x"):
        pass
    with pytest.raises(InputError), name_lock("../etc", "x"):
        pass


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from amk.cli import main

    monkeypatch.chdir(tmp_path)
    options = ["loop", "toy", "--gpu", "h200", "--device", "cpu", "--budget", "3", "--engine", "inline"]
    assert main(options) == 0
    out = capsys.readouterr()
    assert "3 trials" in out.out and out.err.count("amk: trial") == 3 and "trial 1/3 kept" in out.err
    assert main([*options, "--json", "--quiet", "--resume"]) == 0
    out = capsys.readouterr()
    data = json.loads(out.out)
    assert out.err == "" and data["schema"] == "amk.loop" and data["counts"]["kept"] >= 1
    assert data["best"]["latency_us"] > 0 and len(data["trials"]) == 3
    assert main([*options, "--sampler", "builtin", "--explore", "2"]) == 2


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_gets_a_bar(colour: bool, tmp_path: Path) -> None:
    pytest.importorskip("rich")
    command = [sys.executable, "-m", "amk", "loop", "toy", "--gpu", "h200", "--device", "cpu", "--budget", "2",
               "--results", str(tmp_path / "r.tsv"), "--corpus", str(tmp_path / "c.jsonl")]  # fmt: skip
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(Path(amk.__file__).parents[1])}
    environment |= {} if colour else {"NO_COLOR": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as child:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            if not data:
                break
            drawn += data
        out = child.stdout.read()
    os.close(ours)
    assert child.returncode == 0 and b"2 trials" in out and b"\x1b" not in out, "nothing is drawn on stdout"
    assert b"amk loop" in drawn and b"2/2" in drawn and b"predicted" in drawn and b"trial 1/2 kept" in drawn
    assert (b"\x1b[32m" in drawn) is colour
