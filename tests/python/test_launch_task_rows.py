"""tests/gpu/launch_task_rows.py on devices in place of a GPU: what is launched is judged, bad words are one line."""

import importlib.util
import sys
from pathlib import Path

import pytest

import fake_task_devices
from amk.tasks.workloads import read_task

SCRIPT = Path(__file__).resolve().parents[1] / "gpu" / "launch_task_rows.py"
TASK = SCRIPT.parents[2] / "benchmarks" / "tasks" / "residual_gate_add"
ROW = "f32_BSD_2x24x128"


@pytest.fixture
def run(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("launch_task_rows", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(device, *arguments):
        monkeypatch.setattr(script, "HarnessDevice", device)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        code = script.main()
        return code, *capsys.readouterr()

    return run


def test_right_rows_and_a_size_of_ones_own(run):
    code, out, err = run(fake_task_devices.Honest, "residual_gate_add", ROW, "1x512x3072_11D=7x64")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"ok {ROW}", "ok 1x512x3072_11D as 7x64"]


def test_what_is_wrong_is_said_and_the_next_row_runs(run):
    code, out, _ = run(fake_task_devices.NotANumber, "residual_gate_add", ROW, "1x512x3072_11D=7x64")
    assert code == 1 and [line.split(":")[0] for line in out.splitlines()] == [
        f"FAIL {ROW}",
        "FAIL 1x512x3072_11D as 7x64",
    ]


class Refuses(fake_task_devices.Honest):
    def run(self, entry, call):
        return -3


def test_a_status_is_said(run):
    code, out, _ = run(Refuses, "residual_gate_add", ROW)
    assert (code, out) == (1, f"FAIL {ROW}: status -3\n")


def test_no_name_is_every_regression_row_that_is_not_refused(run):
    rows = [row for row in read_task(TASK).rows if row.kind == "regression" and not row.rejects]
    code, out, _ = run(fake_task_devices.Honest, "residual_gate_add")
    assert code == 0 and out.splitlines() == [f"ok {row.name}" for row in rows] and rows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope",), "expected one of"),
        (("residual_gate_add", "nope"), "expected one of its rows, got 'nope'"),
        (("residual_gate_add", f"{ROW}=5"), "expected a size as 529x3072, got '5'"),
        (("residual_gate_add", f"{ROW}=5x-3"), "expected a size as 529x3072, got '5x-3'"),
        (("residual_gate_add", f"{ROW}=0x64"), "expected a size as 529x3072, got '0x64'"),
        (("residual_gate_add", f"{ROW}=7x64"), "expected operands [1, S or 1, C] for another size, got [(2, 24, 128)"),
        (("qknorm_rope", "19x24=7x64"), "19x24: expected operands [1, S or 1, C] for another size"),
    ],
)
def test_a_bad_word_is_one_sentence(run, arguments, said):
    code, out, err = run(fake_task_devices.Honest, *arguments)
    assert code == 1 and out == "" and said in err and len(err.splitlines()) == 1
