"""`amk bench kernel` cannot be fooled: each planted fraud is refused, with the right reason and without a time."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

import fake_task_devices
from amk import cli
from amk.errors import InputError
from amk.tasks import run as task_run
from amk.tasks.judge import REASONS, Refused
from amk.tasks.record import seal
from amk.tasks.time_row import require_possible
from amk.tasks.workloads import load_task
from amk.tasks.write import json_lines, markdown, table
from small_task import (
    ROWS,
    TASK,
    assert_no_time,
    bench_one,
    from_somewhere,
    in_this_process,
    reasons,
    write_task,
)

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AMK_TASKS_DIR", str(tmp_path / "tasks"))
    return write_task(tmp_path / "tasks")


# --- an honest device -----------------------------------------------------------------------------------------------


def test_an_honest_result_is_valid_and_says_everything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = in_this_process("Honest", monkeypatch)
    record = bench_one(TASK)
    assert record["valid"] and record["counts"] and record["reasons"] == []
    assert [(one["name"], one["kind"]) for one in record["rows"]] == [(one["name"], one["kind"]) for one in ROWS]
    assert record["headline"]["rows"] == 2
    assert record["headline"]["geometric_mean"] == pytest.approx(2.0 / 1.05)
    for one in record["rows"][:2]:
        assert one["cold"]["solution"]["share_of_copy"] == pytest.approx(1 / 1.05, rel=0.05)
        assert one["cold"]["solution"]["samples"] == one["warm"]["copy"]["samples"] == 6
        assert one["cold"]["copy"]["ceiling_us"] == one["cold"]["copy"]["median_us"]
        assert one["copy_ways"]["cold"]["plain"] < one["copy_ways"]["cold"]["slower"]
        assert len(one["after"]) == 3 * 2 * 2 and one["before"]["trials"] == 3
    timed = [job["rows"] for job in jobs if job["action"] == "time"]
    assert timed == [["large"], ["small"]]  # a process each, after the regression rows
    assert [job["action"] for job in jobs] == ["devices", "check", "time", "time"]
    assert "not validated on a B200" in " ".join(record["notes"])
    for proof in (*record["proofs"]["baseline"], *record["proofs"]["solution"]):
        assert proof["ran"] == "sm_90a" and set(proof["cubins"]) == {"sm_90a", "sm_100a"}
    text = markdown(record)
    for said in (
        "not validated on a B200",
        record["workloads_sha256"],
        "GPU-fake",
        fake_task_devices.COMMAND,
        "sm_100a",
    ):
        assert said in text
    lines = [json.loads(line) for line in json_lines(record).splitlines()]
    assert [line["line"] for line in lines] == ["record"] + ["row"] * 5


@pytest.mark.parametrize("device", ["SlowCopyInTurns", "SlowCopyAlone"])
def test_the_ceiling_is_the_faster_of_the_copys_times(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    in_this_process(device, monkeypatch)
    for one in bench_one(TASK)["rows"][:2]:
        for mode in ("cold", "warm"):
            copy, chosen = one[mode]["copy"], min(one["copy_ways"][mode].values())
            slower, faster = sorted((chosen, copy["median_us"]), reverse=True)
            assert (chosen < copy["median_us"]) == (device == "SlowCopyInTurns") and slower > 1.2 * faster
            assert copy["ceiling_us"] == faster
            share = copy["ceiling_us"] / one[mode]["solution"]["median_us"]
            assert one[mode]["solution"]["share_of_copy"] == pytest.approx(share, rel=0.05)


def test_cold_rotates_over_several_times_the_l2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process("Honest", monkeypatch)
    for one in bench_one(TASK)["rows"][:2]:
        assert one["sets"] * one["bytes_moved"] >= 4 * fake_task_devices.Honest(0).facts()["l2_bytes"]
        assert one["launches"]["cold"]["solution"] % one["sets"] == 0


@pytest.mark.parametrize(("stage", "names"), [("quick", ["large", "small", "half"]),
                                              ("representative", ["large", "strided"])])  # fmt: skip
def test_only_full_counts(folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str, names: list[str]) -> None:
    in_this_process("Honest", monkeypatch)
    record = bench_one(TASK, stage=stage)
    assert record["valid"] and not record["counts"] and [one["name"] for one in record["rows"]] == names
    assert "only full counts" in markdown(record) and "does not count" in table(record)


# --- the ten frauds, and others -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Stale", "stale-output"),
        ("Cached", "cached-result"),
        ("WrongStream", "wrong-stream"),
        ("WrongStreamOfBaseline", "wrong-stream"),
        ("DifferentFlags", "different-flags"),
        ("FastMath", "different-flags"),
        ("NotANumber", "non-finite"),
        ("Zeros", "wrong-value"),
        ("OneWrongElement", "wrong-value"),
        ("MissingCubin", "missing-cubin"),
        ("OtherCubin", "missing-cubin"),
        ("LazyWhenTimed", "stale-output"),
        ("Synchronises", "synchronises"),
        ("OnlyWhileCaptured", "stale-output"),
        ("TooFast", "too-fast"),
        ("OutOfBounds", "out-of-bounds"),
        ("FillsTheGaps", "out-of-bounds"),
        ("ChangesInput", "input-changed"),
        ("SpoilsPristine", "input-changed"),
        ("RefusesNothing", "status"),
        ("Replaced", "changed-library"),
    ],
)
def test_a_fraud_is_refused_with_its_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str
) -> None:
    in_this_process(kind, monkeypatch)
    record = bench_one(TASK)
    assert reason in reasons(record), record["reasons"]
    assert reasons(record) <= {reason, "missing-row"}  # rows that were not timed because others had failed
    assert_no_time(record)


@pytest.mark.parametrize("kind", ["DifferentFlags", "MissingCubin"])
def test_a_library_that_proves_nothing_is_not_even_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    jobs = in_this_process(kind, monkeypatch)
    assert len(bench_one(TASK)["reasons"]) == 1 and [job["action"] for job in jobs] == ["devices"]


def test_what_runs_during_a_capture_counts_for_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs are brought after it, so the check before the timing sees that a replay does nothing."""
    in_this_process("OnlyWhileCaptured", monkeypatch)
    record = bench_one(TASK)
    assert reasons(record) >= {"stale-output"}
    assert not any("after timing" in entry["message"] for entry in record["reasons"])


def test_who_cheats_only_while_it_is_timed_is_found_after_the_timing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process("LazyWhenTimed", monkeypatch)
    assert any("after timing" in entry["message"] for entry in bench_one(TASK)["reasons"])


def test_what_no_memory_allows_is_no_time() -> None:
    """Up to 1.5 times the speed of the copy is believed; a copy of few bytes is latency alone, and leaves more room."""
    assert require_possible("s", 10_000, 8.0, 10_000, 10.0) == pytest.approx(1.25)
    assert require_possible("s", 1_000, 1.0, 1_000, 2.0) == pytest.approx(2.0)
    for us, copy_us in ((5.0, 10.0), (0.5, 2.0)):
        with pytest.raises(Refused) as caught:
            require_possible("s", 1_000, us, 1_000, copy_us)
        assert caught.value.reason == "too-fast"


def test_zeros_within_the_tolerance_prove_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tolerance that a result of zeros would pass: the row is refused, also for a device that is right."""
    rows = copy.deepcopy(ROWS)
    rows[2]["tolerance"] = {"atol": 50.0, "rtol": 0.0}
    write_task(folder.parent, rows, f32=50.0)
    for kind in ("Zeros", "Honest"):
        in_this_process(kind, monkeypatch)
        record = bench_one(TASK)
        assert ("zero-passes", "strided") in {(entry["reason"], entry["row"]) for entry in record["reasons"]}
        assert_no_time(record)


@pytest.mark.parametrize("name", ["small", "half"])
def test_a_skipped_row_makes_the_result_invalid_and_not_shorter(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    in_this_process("Honest", monkeypatch, drop=name)
    record = bench_one(TASK)
    assert [(entry["reason"], entry["row"]) for entry in record["reasons"]] == [("missing-row", name)]
    assert_no_time(record)


def test_changed_rows_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process("Honest", monkeypatch)
    path = folder / "workloads.json"
    path.write_text(path.read_text().replace('"seed": 5', '"seed": 6'))
    with pytest.raises(InputError, match="it is frozen: expected SHA-256 [0-9a-f]{64}"):
        bench_one(TASK)


def test_rows_that_change_during_the_run_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where task.toml is changed with them, so that both agree."""
    in_this_process("Honest", monkeypatch)
    real = task_run.run_job

    def then_change(job: Any, *arguments: Any, **options: Any) -> Any:
        answer = real(job, *arguments, **options)
        if job["action"] == "check":
            write_task(folder.parent, [{**ROWS[0], "seed": 77}, *ROWS[1:]])
        return answer

    monkeypatch.setattr(task_run, "run_job", then_change)
    with pytest.raises(InputError, match="changed during the run"):
        bench_one(TASK)


@pytest.fixture
def sealed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    in_this_process("Honest", monkeypatch)
    return bench_one(TASK)


def tamper_before(record: dict[str, Any]) -> None:
    record["rows"][0]["before"] = {}


def tamper_after(record: dict[str, Any]) -> None:
    record["rows"][1]["after"].pop()


def tamper_one_side(record: dict[str, Any]) -> None:
    del record["rows"][1]["before"]["errors"]["solution"]


def tamper_digest(record: dict[str, Any]) -> None:
    record["workloads_sha256"] = "0" * 64


def tamper_twice(record: dict[str, Any]) -> None:
    record["rows"].append(record["rows"][0])


def tamper_kernel(record: dict[str, Any]) -> None:
    record["rows"][0]["kernels"]["solution"] = []


def tamper_flags(record: dict[str, Any]) -> None:
    del record["library"]["build"]["tasks"][TASK]["baseline"]["command"]


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (tamper_before, "unchecked-time"),
        (tamper_after, "unchecked-time"),
        (tamper_one_side, "unchecked-time"),
        (tamper_digest, "changed-workloads"),
        (tamper_twice, "missing-row"),
        (tamper_kernel, "missing-cubin"),
        (tamper_flags, "different-flags"),
    ],
)
def test_a_record_is_sealed_only_with_all_its_evidence(sealed: dict[str, Any], tamper: Any, reason: str) -> None:
    task = load_task(TASK)
    assert seal(task, sealed)["valid"]
    tamper(sealed)
    record = seal(task, sealed)
    assert reasons(record) == {reason}
    assert_no_time(record)


def test_a_worker_that_dies_is_a_reason_and_its_rows_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own, as they are on a GPU."""
    monkeypatch.setattr(task_run, "_DEVICE_CLASS", "fake_task_devices:Crash")
    monkeypatch.syspath_prepend(str(HERE))
    record = bench_one(TASK, stage="quick")
    assert ("worker", "half") in {(entry["reason"], entry["row"]) for entry in record["reasons"]}
    assert "SIGSEGV" in record["reasons"][-1]["message"] and "half" in [one["name"] for one in record["rows"]]
    assert_no_time(record)


def test_an_honest_run_in_processes_of_their_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(task_run, "_DEVICE_CLASS", "fake_task_devices:Honest")
    monkeypatch.syspath_prepend(str(HERE))
    output, plot = tmp_path / "docs", tmp_path / "p.svg"
    assert cli.main(["bench", "kernel", TASK, "--output", str(output), "--plot", str(plot), "--quiet"]) == 0
    assert "1.905x against the in-repo baseline" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == ["results.jsonl", "results.md"]
    assert b"best copy, same run" in plot.read_bytes()


def test_an_invalid_result_leaves_the_files_of_the_last_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.md").write_text("as it was")
    in_this_process("Stale", monkeypatch)
    assert cli.main(["bench", "kernel", TASK, "--output", str(tmp_path), "--quiet", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "FAILED" and answer["files"] == [] and answer["schema"] == "amk.kernel_bench"
    assert (tmp_path / "results.md").read_text() == "as it was" and not (tmp_path / "results.jsonl").exists()


def test_an_external_baseline_is_named_with_its_source(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = in_this_process("Honest", monkeypatch)
    from_somewhere(monkeypatch)
    arguments = ["bench", "kernel", TASK, "--baseline", "k:f", "--output", str(tmp_path / "docs"), "--quiet"]
    assert cli.main(arguments) == 0 and "against k:f" in capsys.readouterr().out
    timed = [job for job in jobs if job["action"] == "time"]
    assert all((job["sides"], job["device_class"]) == (["k:f", "solution"], "fake:Device") for job in timed) and timed
    checked = [job for job in jobs if job["action"] == "check"]
    assert all((job["sides"], job["device_class"]) == (["baseline", "solution"], task_run._DEVICE_CLASS)
               for job in checked) and checked  # our two sides  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "docs").iterdir())
    assert names == ["baseline_source.md", "results_k_f.jsonl", "results_k_f.md"]
    assert "c0ffee" in (tmp_path / "docs" / "baseline_source.md").read_text()
    head = json.loads((tmp_path / "docs" / "results_k_f.jsonl").read_text().splitlines()[0])
    assert head["baseline"]["commit"] == "c0ffee" and list(head["proofs"]) == ["solution"]
    assert head["library"]["cubins"][0]["kernels"] == 3


def test_every_reason_is_explained(folder: Path) -> None:
    source = "".join(path.read_text() for path in (Path(task_run.__file__).parent).glob("*.py"))
    used = set(re.findall(r'(?:Refused\(\s*|fault\(|_refused\(row, )"([a-z-]+)"', source))
    assert used == set(REASONS)
