"""A run of `amk bench kernel` that was cut short goes on from its journal: what was measured is not measured again."""

from __future__ import annotations

import errno
import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest

import fake_task_devices
from amk import cli
from amk.errors import InputError, StoreError, Unavailable
from amk.records.calls import FileCalls
from amk.tasks import run as task_run
from amk.tasks.journal import HEADER
from amk.tasks.run import run_kernel_bench
from small_task import ROWS, TASK, from_somewhere, in_this_process, write_task

BOTH = ("in-repo", "torch")


@pytest.fixture(autouse=True)
def _small_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMK_TASKS_DIR", str(tmp_path / "tasks"))
    write_task(tmp_path / "tasks")
    from_somewhere(monkeypatch)


class Cut(Exception):  # noqa: N818
    """Ends the run as a killed process does."""


def cut_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends instead of its worker number n + 1, the one that names the devices not counted."""
    inner, left = task_run.run_job, [n + 1]

    def run_job(*args: Any, **options: Any) -> Any:
        if not left[0]:
            raise Cut
        left[0] -= 1
        return inner(*args, **options)

    monkeypatch.setattr(task_run, "run_job", run_job)


def rows_of(jobs: list[dict[str, Any]]) -> list[list[str]]:
    return [job["rows"] for job in jobs if "rows" in job]


@pytest.mark.parametrize("n", range(4))
def test_it_goes_on_where_it_was(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = str(tmp_path / "journal")
    with monkeypatch.context() as patch:
        jobs = in_this_process("Honest", patch)
        cut_after(n, patch)
        if n < 3:
            with pytest.raises(Cut):
                run_kernel_bench(TASK, baselines=BOTH, journal=journal)
        else:  # three workers are all there are: nothing is left to do
            run_kernel_bench(TASK, baselines=BOTH, journal=journal)
        first = rows_of(jobs)
    assert len(first) == n
    jobs = in_this_process("Honest", monkeypatch)
    records = run_kernel_bench(TASK, baselines=BOTH, journal=journal)
    second = rows_of(jobs)
    assert sorted(sum(first + second, [])) == sorted(row["name"] for row in ROWS)
    assert all(record["valid"] and record["counts"] for record in records)
    assert all(any("continued from its journal" in note for note in record["notes"]) for record in records)
    _, head, *lines = [json.loads(line) for line in Path(journal).read_text().splitlines()]
    assert all(record["began"] == head["began"] for record in records) and len(lines) == 3
    samples = {
        line["facts"]["rows"][0]["name"]: line["facts"]["rows"][0]["timing"] for line in lines if len(line["rows"]) == 1
    }
    for record in records:
        assert len(record["snapshots"]) == len(record["library_sha256_seen"]) == 3
        for row in record["rows"]:
            if row["kind"] == "production":
                of_journal = samples[row["name"]]["samples_us"]["cold"]["solution"]
                assert row["cold"]["solution"]["median_us"] == statistics.median(of_journal)


def test_a_line_that_was_not_written_to_its_end_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    in_this_process("Honest", monkeypatch)
    run_kernel_bench(TASK, journal=str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    jobs = in_this_process("Honest", monkeypatch)
    (record,) = run_kernel_bench(TASK, journal=str(path))
    assert record["valid"] and rows_of(jobs) == [["small"]]
    assert len(path.read_bytes().splitlines()) == len(whole.splitlines())
    head, first = whole.splitlines(keepends=True)[:2]
    path.write_bytes(head + first[:20])  # not even what run it is of: a new journal
    jobs = in_this_process("Honest", monkeypatch)
    (record,) = run_kernel_bench(TASK, journal=str(path))
    assert record["valid"] and len(rows_of(jobs)) == 3 and not any("continued" in note for note in record["notes"])


def test_a_row_that_was_refused_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "journal")
    in_this_process("Zeros", monkeypatch)
    (refused,) = run_kernel_bench(TASK, journal=path)
    in_this_process("Honest", monkeypatch)
    (record,) = run_kernel_bench(TASK, journal=path)
    assert not refused["valid"] and not record["valid"]
    assert {entry["row"] for entry in refused["reasons"]} <= {entry["row"] for entry in record["reasons"]}


@pytest.mark.parametrize(
    ("changed", "word"),
    [({"seed": 1}, "seed"), ({"stage": "quick"}, "stage"), ({"baselines": ("torch",)}, "baselines")],
)
def test_the_journal_of_another_run_is_refused(
    changed: dict[str, Any], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    in_this_process("Honest", monkeypatch)
    run_kernel_bench(TASK, journal=str(path))
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"another run: {word}: expected"):
        run_kernel_bench(TASK, journal=str(path), **changed)
    assert path.read_bytes() == before


def test_rows_or_a_library_that_changed_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "journal")
    in_this_process("Honest", monkeypatch)
    run_kernel_bench(TASK, journal=path)
    write_task(tmp_path / "tasks", ROWS[::-1])
    with pytest.raises(InputError, match="another run: workloads_sha256"):
        run_kernel_bench(TASK, journal=path)
    write_task(tmp_path / "tasks")
    for name in ("library_sha256", "sources"):
        head, what, *lines = Path(path).read_text().splitlines()
        other = json.loads(what)
        mine, other["identity"][name] = other["identity"][name], "0" * 64
        Path(path).write_text("\n".join([head, json.dumps(other), *lines]) + "\n")
        with pytest.raises(InputError, match=f"another run: {name}"):
            run_kernel_bench(TASK, journal=path)
        other["identity"][name] = mine
        Path(path).write_text("\n".join([head, json.dumps(other), *lines]) + "\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got an empty file"),
        ("no journal\n", "expected a file that begins with"),
        (HEADER.decode() + "no json\n", "line 2"),
        (HEADER.decode() + "[]\n", "line 2: expected an object with began, a str"),
        (HEADER.decode() + '{"began": ""}\n', "line 2: expected an object with identity, a dict"),
        (HEADER.decode() + '{"began": "", "identity": {}}\n{"rows": 3}\n', "line 3: expected an object with rows"),
        (HEADER.decode() + '{"began": "", "began": "", "identity": {}}\n', "line 2: .*began"),
    ],
)
def test_what_is_no_journal_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    path.write_text(text)
    in_this_process("Honest", monkeypatch)
    with pytest.raises(InputError, match=message):
        run_kernel_bench(TASK, journal=str(path))
    assert path.read_text() == text


def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = in_this_process("Honest", monkeypatch)
    for path in (tmp_path, tmp_path / "none" / "journal"):
        with pytest.raises(StoreError, match="could not (open|lock) it"):
            run_kernel_bench(TASK, journal=str(path))
    assert rows_of(jobs) == []


def test_a_disk_that_is_full_is_said_and_what_was_kept_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    in_this_process("Honest", monkeypatch)
    lines = []

    def write(handle: int, data: bytes) -> int:
        lines.append(data)
        if len(lines) > 3:  # the header, what run it is, the first worker
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(FileCalls, "write", staticmethod(write))
        with pytest.raises(StoreError, match="No space left on device"):
            run_kernel_bench(TASK, journal=str(path))
    jobs = in_this_process("Honest", monkeypatch)
    (record,) = run_kernel_bench(TASK, journal=str(path))
    assert record["valid"] and rows_of(jobs) == [["large"], ["small"]]


def test_another_version_of_torch_is_not_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "journal")
    with monkeypatch.context() as patch:
        in_this_process("Honest", patch)
        cut_after(2, patch)
        with pytest.raises(Cut):
            run_kernel_bench(TASK, journal=path)
    monkeypatch.setattr(fake_task_devices.Honest, "versions", lambda self: {"fake": "2"})
    in_this_process("Honest", monkeypatch)
    for _ in range(2):  # nothing of it was kept
        with pytest.raises(Unavailable, match="fake changed during the run: expected 1, a worker has 2"):
            run_kernel_bench(TASK, journal=path)


def test_the_command_takes_it_and_that_of_models_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal"
    jobs = in_this_process("Honest", monkeypatch)
    words = ["bench", "kernel", TASK, "--journal", str(path)]
    assert cli.main(words) == 0 and cli.main(words) == 0
    assert len(rows_of(jobs)) == 3 and "continued from its journal" in capsys.readouterr().out
    assert cli.main(["bench", "toy", "--device", "cpu", "--journal", str(path)]) == 2
    assert "--journal" in capsys.readouterr().err
