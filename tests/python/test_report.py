"""What is told of a log: groups, the best so far, knobs, commands that redo it, plots and the page."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import amk
from amk import cli
from amk.errors import InputError, Unavailable
from amk.records import RecordStore, Trial
from amk.records.digest import Group, group_trials
from amk.records.read import journal_beside
from amk.report import facts, plots
from amk.report.history import History, read_history
from amk.report.page import render_page
from sample_trials import BUILD, HOSTILE, LOOP, hostile_trials, make_loop, make_trial, write_log

ABOUT = {"version": "0", "build": BUILD[:12]}
OTHER = "ba9876543210"
STARTED = {"loop": LOOP, "model": "toy", "gpu": "h200", "budget": 12, "seed": 0}


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def two_groups() -> tuple[list[Trial], str]:
    """A predicted loop whose start is known and a measured one, and their page."""
    trials = make_loop(12) + make_loop(6, loop=OTHER, regime="measured-gpu", model="1B")
    return trials, page_of(trials, loops=(STARTED,))


def page_of(trials: Any, **parts: Any) -> str:
    return render_page(History("results.tsv", tuple(trials), **parts), ABOUT)


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.pre: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "pre":
            self.pre.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data + " "
        if "pre" in self._open:
            self.pre[-1] += data


# --- facts ----------------------------------------------------------------------------------------------------------


def test_latencies_of_another_kind_model_or_gpu_are_another_group() -> None:
    trials = [
        make_trial(0), make_trial(1, regime="measured-gpu"), make_trial(2, model="toy-2L"), make_trial(3, gpu="b200"),
        make_trial(4),
    ]  # fmt: skip
    groups = group_trials(trials)
    assert [[trial.experiment for trial in group.trials] for group in groups] == [[0, 4], [1], [2], [3]]
    assert {facts.latency_label(group.regime) for group in groups} == {
        "us per token, predicted", "us per token, measured"
    }  # fmt: skip


def test_best_so_far_is_what_each_loop_kept() -> None:
    first = [(0, 30.0, "kept"), (1, 20.0, "tried"), (2, 25.0, "kept"), (3, 26.0, "tried")]
    trials = [make_trial(i, latency_us=us, tag=tag) for i, us, tag in first]
    trials += [make_trial(0, loop=OTHER, latency_us=24.0, tag="kept")]
    (group,) = group_trials(trials)
    assert facts.best_so_far(group) == [[(0, 30.0), (2, 25.0), (3, 25.0)], [(4, 24.0)]]
    (nothing,) = group_trials([make_trial(0, latency_us=None, tag="revert", correctness="FAIL")])
    assert facts.best_so_far(nothing) == []


def test_knobs_are_those_that_were_varied() -> None:
    default = amk.ScheduleConfig.default().to_dict()
    configs = [amk.propose.__globals__["with_knob"](default, "tiling.gemv.N_tile", n) for n in (0, 128, 16, 0)]
    configs += [{**default, "sm_assignment": {"0": 1, "1": 2}}, {**default, "fusion_grouping": []}, {}]
    trials = [make_trial(i, schedule_config=config) for i, config in enumerate(configs)]
    knobs = {knob.path: knob for knob in facts.knobs_of(Group("toy", "h200", "predicted", 256, 128, trials))}
    assert set(knobs) == {"tiling.gemv.N_tile", "sm_assignment", "fusion_grouping"}
    assert knobs["tiling.gemv.N_tile"].labels == ("0", "16", "128")  # by size, not as text
    assert knobs["tiling.gemv.N_tile"].choices == (0, 2, 1, 0, 0, 0, None)
    assert knobs["sm_assignment"].labels == ("round_robin", "explicit, 2 tasks")
    assert knobs["fusion_grouping"].labels == ("none", "all")


def test_a_list_of_fusions_is_a_set_and_is_named_by_what_it_lacks() -> None:
    every = ["a", "b", "c", "d"]
    lists = [every, every[::-1], ["a", "b", "c"], ["d"], []]
    trials = [make_trial(i, schedule_config={"fusion_grouping": names}) for i, names in enumerate(lists)]
    (knob,) = facts.knobs_of(Group("toy", "h200", "predicted", 256, 128, trials))
    assert knob.labels == ("none", "d", "all but d", "all") and knob.choices == (3, 3, 2, 1, 0)


def test_more_values_than_fit_are_shown_as_one() -> None:
    values = [0, 0] + list(range(100))
    trials = [make_trial(i, schedule_config={"knob": value}) for i, value in enumerate(values)]
    (knob,) = facts.knobs_of(Group("toy", "h200", "predicted", 256, 128, trials))
    assert len(knob.labels) == facts.MAX_VALUES + 1 and knob.labels[-1] == "other values"
    assert max(choice for choice in knob.choices if choice is not None) == facts.MAX_VALUES


# --- commands -------------------------------------------------------------------------------------------------------


def run_shell(command: str) -> list[str]:
    """The words that bash makes of a command."""
    script = f"""show() {{ for word in "$@"; do printf '%s\\0' "$word"; done; }}; show {command}"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, timeout=20)
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


@pytest.mark.parametrize("text", [*HOSTILE, "", "plain", "a b", "$(id)", "`id`", "'", "\\", "é", "\u00a0", "-rf", "*"])
def test_a_word_survives_a_shell_and_can_be_seen(text: str) -> None:
    word = facts.shell_word(text)
    assert run_shell(word) == [text]
    assert word.isprintable()


def test_the_command_of_a_trial_repeats_it(tmp_path: Path) -> None:
    """The printed command, run in a shell, judges the same schedule and finds the same latency."""
    verdict = amk.evaluate("toy", "h200", {"tiling": {"gemv": {"N_tile": 32}}}, "cpu", max_seq=128, position=9, seed=3)
    trial = make_trial(
        0, tag="kept", latency_us=verdict.latency_us, schedule_config=verdict.schedule_config,
        verdict=verdict.to_dict(), schedule_id=verdict.schedule_id,
    )  # fmt: skip
    command = facts.redo_trial(trial) + " --json --quiet"
    (tmp_path / "amk").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m amk "$@"\n')
    (tmp_path / "amk").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=environment, timeout=120)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["schedule_id"] == verdict.schedule_id
    assert (found["latency_us"], found["max_seq"], found["seed"]) == (verdict.latency_us, 128, 3)


def test_what_the_log_does_not_hold_is_not_made_up() -> None:
    assert facts.redo_trial(make_trial(0, schedule_config={})) is None
    assert facts.redo_loop({"loop": LOOP, "budget": 3}, "x.tsv") is None
    command = facts.redo_trial(make_trial(0, model="--config=x", verdict={"seed": "1; id", "device": "-x"}))
    assert "./--config=x" in command and "id" not in command.split("|")[1] and "--seed" not in command
    given = {"model": "/m/1b", "gpu": "h200", "budget": 8, "explore_fraction": 0.35, "cold": True, "max_seq": None}
    assert facts.redo_loop(given, "redone.tsv") == (
        "amk loop /m/1b --gpu h200 --budget 8 --explore 0.35 --cold --results redone.tsv"
    )


def test_the_command_of_a_loop_runs_it_again(tmp_path: Path) -> None:
    """The printed command parses to what the loop was given, and finds the same."""
    first = amk.loop(
        "toy", "h200", 4, "cpu", seed=5, explore_fraction=0.5, cold=True, engine="inline", max_seq=64, position=9,
        results_path=tmp_path / "a.tsv", corpus_path=None,
    )  # fmt: skip
    (facts_of_loop,) = read_history(str(tmp_path / "a.tsv"), BUILD).loops
    words = run_shell(facts.redo_loop(facts_of_loop, str(tmp_path / "b.tsv")))
    assert words[0] == "amk" and cli.main([*words[1:], "--corpus", str(tmp_path / "c.jsonl"), "--quiet"]) == 0
    again = read_history(str(tmp_path / "b.tsv"), BUILD).trials
    assert [(trial.schedule_id, trial.latency_us, trial.tag) for trial in again] == [
        (trial.schedule_id, trial.latency_us, trial.tag) for trial in first.trials
    ]


# --- plots ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_trials_give_the_same_bytes(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = make_loop(6)
    plots.plot_trials(trials, tmp_path / f"a{suffix}")
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 30\nsvg.hashsalt: other\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from sample_trials import make_loop; from amk.report.plots import plot_trials\n"
        "plot_trials(make_loop(6), sys.argv[2])"
    )
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path), "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"}
    environment |= {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / f"b{suffix}")]
    subprocess.run(command, env=environment, check=True, timeout=60)
    data = (tmp_path / f"a{suffix}").read_bytes()
    assert data == (tmp_path / f"b{suffix}").read_bytes()
    assert b"date" not in data.lower() and b"2026" not in data
    plots.plot_trials(make_loop(6, seed=1), tmp_path / f"c{suffix}")
    assert data != (tmp_path / f"c{suffix}").read_bytes()


def test_a_plot_shows_every_kind_of_outcome_and_every_knob(tmp_path: Path) -> None:
    trials = make_loop(12) + make_loop(12, seed=5, loop=OTHER, regime="measured-gpu", model="1B")
    plots.plot_trials(trials, tmp_path / "a.svg")
    text = "\n".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    for word in ("toy on h200", "1B on h200", "best so far", "kept", "tried", "crash", "rejected", "not correct"):
        assert word in text, word
    assert "us per token, predicted" in text and "us per token, measured" in text
    for group in group_trials(trials):
        for knob in facts.knobs_of(group):
            assert knob.path in text
            assert any(label in text for label in knob.labels)


def test_a_plot_of_hostile_or_empty_trials(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    plots.plot_trials(hostile_trials(), tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()  # well formed, whatever the texts hold
    text = "".join(root.itertext())
    assert "not drawn: 1 more" in text and "\u202e" not in text
    assert not [element for element in root.iter() if element.tag.rpartition("}")[2] in ("script", "iframe", "img")]
    plots.plot_trials([make_trial(0, latency_us=None, tag="crash", correctness="CRASH")], tmp_path / "b.png")
    plots.plot_trials([make_trial(i, latency_us=10.0**i) for i in range(5)], tmp_path / "c.png")
    assert not recwarn.list, [str(warning.message) for warning in recwarn]


def test_a_plot_that_cannot_be_made_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = make_loop(3)
    (tmp_path / "folder.png").mkdir()
    for output in ("a.pdf", "a", "no/such/place/a.png", "folder.png", "a.png\0", ""):
        with pytest.raises(InputError, match="output"):
            plots.plot_trials(trials, output and str(tmp_path / output))
    with pytest.raises(InputError, match="at least one trial"):
        plots.plot_trials([], tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Unavailable, match=r"amk\[plot\]"):
        plots.plot_trials(trials, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_has_every_trial_and_its_facts(two_groups: Any) -> None:
    trials, text = two_groups
    page = Page(text)
    assert [attrs["data-trial"] for tag, attrs in page.tags if tag == "tr" and "data-trial" in attrs] == [
        trial.trial_id for trial in trials
    ]
    for word in ("predicted", "measured on the GPU", "NVIDIA H200", "580.1", "1980-1980 MHz", BUILD, "% of floor"):
        assert word in page.text, word
    kept = [trial for trial in trials if trial.tag == "kept"]
    assert page.pre == [
        *(facts.redo_trial(trial, "toy") for trial in kept if trial.loop == LOOP),
        facts.redo_loop(STARTED, "redone.tsv"),
        *(facts.redo_trial(trial) for trial in kept if trial.loop == OTHER),
    ]
    assert "how it was started is not known" in page.text
    svgs = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(svgs) == 2 + sum(len(facts.knobs_of(group)) for group in group_trials(trials))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_counts_tags_and_says_the_gain() -> None:
    trials = [make_trial(0, tag="kept", latency_us=30.0), make_trial(1, tag="kept", latency_us=20.0), make_trial(2)]
    text = " ".join(Page(page_of(trials)).text.split())
    assert "33.3 % less time than its loop's trial 0" in text and "20 us best per token, trial 1" in text
    assert "2 kept 1 tried 0 revert 0 rejected 0 crash" in text


def test_the_same_log_gives_the_same_page() -> None:
    trials = make_loop(4)
    assert page_of(trials) == page_of(trials)


def test_the_page_asks_for_nothing(two_groups: Any) -> None:
    _, text = two_groups
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href", "action", "srcset"):
                assert str(value).startswith(("#", "data:image/png;base64,")), (tag, name, value)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "script" not in policy
    assert "url(http" not in text and "@import" not in text


def test_hostile_text_is_text(two_groups: Any) -> None:
    text = page_of(hostile_trials())
    page, plain = Page(text), Page(two_groups[1])
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"p", "b", "li", "section"}
    assert not any(attrs.get("id") == "pwned" for _, attrs in page.tags)
    assert "<script>document.documentElement.id" in page.text  # shown, as it was written
    assert not set("\u202e\u200b\u2066\u2069\x07") & set(text) and "\\u202egnp.exe" in page.text
    assert "1337" in page.text and "{{ 7 * 191 }}" in page.text
    assert "x" * 5000 in page.text


def test_many_points_become_a_picture_inside_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "RASTER_POINTS", 2)
    assert 'xlink:href="data:image/png;base64,' in page_of(make_loop(6))


# --- the log behind it ----------------------------------------------------------------------------------------------


def test_a_sound_log_has_nothing_to_say(tmp_path: Path) -> None:
    trials = make_loop(5)
    path = write_log(tmp_path, trials, device="cpu")
    history = read_history(str(path), BUILD)
    assert list(history.trials) == trials and not history.damaged and not history.doubts
    assert history.loops[0]["loop"] == LOOP and history.loops[0]["device"] == "cpu"
    assert list(read_history(journal_beside(str(path)), BUILD).trials) == trials
    assert "Read with care" not in render_page(history, ABOUT)


def test_damage_is_said(tmp_path: Path) -> None:
    path = write_log(tmp_path, make_loop(12))
    journal = Path(journal_beside(str(path)))
    lines = journal.read_bytes().splitlines(keepends=True)
    hit = next(i for i, line in enumerate(lines) if b'"kind":"end"' in line)
    lines[hit] = lines[hit].replace(b"toy", b"boy")
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    with RecordStore(tmp_path / "other.tsv") as store:
        store.end(make_trial(77))
    forged = (tmp_path / "other.tsv").read_bytes().splitlines(keepends=True)[-1]
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:3] + rows[4:]) + forged)
    history = read_history(str(path), BUILD)
    told = "\n".join(history.damaged)
    assert "1 line is damaged" in told and "40 bytes" in told and "began and have no end" in told, told
    assert "that the journal does not hold" in told and "missing from" in told, told
    assert all(trial.experiment != 77 for trial in history.trials)
    page = Page(render_page(history, ABOUT))
    assert "Read with care" in page.text and all(what in page.text for what in history.damaged)


def test_a_row_that_the_journal_contradicts_is_not_verified(tmp_path: Path) -> None:
    trials = make_loop(6)
    path = write_log(tmp_path, trials)
    (tmp_path / "forged").mkdir()
    lie = dataclasses.replace(trials[1], latency_us=1.5, description="fast")
    forged = write_log(tmp_path / "forged", [trials[0], lie, *trials[2:]])
    path.write_bytes(forged.read_bytes())
    history = read_history(str(path), BUILD)
    assert history.doubts == {lie.trial_id: "results.tsv and the journal differ in latency_us, description"}
    assert history.trials[1].latency_us == trials[1].latency_us
    page = Page(render_page(history, ABOUT)).text
    assert "1 of 6 trials are not verified" in page and "differ in latency_us" in page


def test_another_build_or_a_missing_journal_is_not_verified(tmp_path: Path) -> None:
    path = write_log(tmp_path, make_loop(6))
    assert len(read_history(str(path), "another build").doubts) == 6
    Path(journal_beside(str(path))).unlink()
    history = read_history(str(path), BUILD)
    assert (
        set(history.doubts.values()) == {"no record in a journal"} and len(history.doubts) == len(history.trials) == 6
    )
    assert "is missing" in history.damaged[0]
    page = Page(render_page(history, ABOUT))
    assert "cannot be redone from here" in page.text and page.pre == []


# --- the verb -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_verb_writes_the_page(run: Any, tmp_path: Path) -> None:
    path = write_log(tmp_path, make_loop(4))
    code, out, _ = run("report", path, "--output", tmp_path / "page.html", "--json")
    result = json.loads(out)
    page = (tmp_path / "page.html").read_bytes()
    assert code == 0 and result["trials"] == 4 and result["page_bytes"] == len(page) and result["unverified"] == 0
    assert page.startswith(b"<!doctype html>") and page.rstrip().endswith(b"</html>")
    code, out, _ = run("report", path, "--output", tmp_path / "page.html")
    assert code == 0 and "4 trials" in out and (tmp_path / "page.html").read_bytes() == page


def test_the_verb_refuses_in_one_sentence(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_log(tmp_path, make_loop(3))
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "empty").mkdir()
    empty = tmp_path / "empty.tsv"
    RecordStore(empty).close()
    before = sorted(tmp_path.iterdir())
    for log, output in (
        (tmp_path / "absent", "page.html"), (tmp_path / "text", "page.html"), (tmp_path, "page.html"),
        (empty, "page.html"), (path, "page.txt"), (path, "empty"), (path, "no/such/page.html"),
    ):  # fmt: skip
        code, out, err = run("report", log, "--output", tmp_path / output, "--quiet")
        assert code == 2 and out == "" and err.startswith("amk report: ") and len(err.splitlines()) == 1, (log, err)
    for package in ("jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)
        code, out, err = run("report", path, "--output", tmp_path / "page.html", "--quiet")
        assert code == 4 and package in err and "amk[report]" in err and out == ""
    assert sorted(tmp_path.iterdir()) == before
