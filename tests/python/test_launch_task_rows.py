"""tests/gpu/launch_task_rows.py on devices in place of a GPU: what is launched is judged, bad words are one line."""

import importlib.util
import sys
from pathlib import Path

import pytest

import fake_task_devices

SCRIPT = Path(__file__).resolve().parents[1] / "gpu" / "launch_task_rows.py"
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope",), "expected one of"),
        (("residual_gate_add", "nope"), "expected one of its rows, got 'nope'"),
        (("residual_gate_add", f"{ROW}=5"), "expected a size as 529x3072, got '5'"),
        (("residual_gate_add", f"{ROW}=5x-3"), "expected a size as 529x3072, got '5x-3'"),
    ],
)
def test_a_bad_word_is_one_sentence(run, arguments, said):
    code, out, err = run(fake_task_devices.Honest, *arguments)
    assert code == 1 and out == "" and said in err and len(err.splitlines()) == 1
