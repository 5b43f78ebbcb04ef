"""The command line: results on stdout, talk on stderr, exit codes as documented, and no traceback for any input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import amk
from amk import cli, core_verbs, verbs
from amk.errors import InternalError


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def live_gpu() -> str | None:
    try:
        return amk.resolve_target("local").name
    except amk.Unavailable:
        return None


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Result:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(code, captured.out, captured.err)

    return call


def process(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "amk", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120)


# --- the verbs -----------------------------------------------------------------------------------------------------


def test_eval_prints_a_short_verdict(run: Any) -> None:
    result = run("eval", "toy")
    assert result.code == 0 and "CORRECT" in result.out and "predicted (cost model)" in result.out
    for word in (f"toy on {live_gpu() or 'h200'}", "error", "limit", "latency", "floor", "note"):
        assert word in result.out
    assert len(result.out.splitlines()) < 15
    assert "no --gpu given" in result.err and "amk:" not in result.out


def test_eval_json_is_the_verdict(run: Any) -> None:
    result = run("eval", "toy", "--gpu", "b200", "--json", "--max-seq", 64, "--token", 9, "--position", 3)
    data = result.json
    assert (data["schema"], data["schema_version"], data["status"], data["exit_code"]) == ("amk.eval", 1, "PASSED", 0)
    verdict = amk.evaluate("toy", "b200", max_seq=64, token=9, position=3).to_dict()
    assert {key: data[key] for key in verdict} == json.loads(json.dumps(verdict))


def test_eval_of_a_bad_schedule_is_a_no(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"tiling": {"gemv": {"N_tile": 17}}}')
    result = run("eval", "toy", "--gpu", "h200", "--config", path)
    assert result.code == 1 and "REJECTED" in result.out and "tiling.gemv.N_tile" in result.out
    result = run("eval", "toy", "--gpu", "h200", "--config", path, "--json")
    assert result.code == 1 and result.json["status"] == "REJECTED" and result.json["valid"] is False


def test_config_from_stdin_and_strict() -> None:
    done = process("eval", "toy", "--gpu", "h200", "--config", "-", "--json", "--quiet", stdin=b'{"magic": 1}')
    assert done.returncode == 0 and done.stderr == b""
    assert any("magic" in note for note in json.loads(done.stdout)["notes"])
    done = process("eval", "toy", "--gpu", "h200", "--config", "-", "--strict", stdin=b'{"magic": 1}')
    assert done.returncode == 1 and b"magic" in done.stdout


def test_doctor(run: Any) -> None:
    data = run("doctor", "--json").json
    assert data["problems"] == [] and data["status"] == "OK"
    assert data["library"]["abi"] == "1.6" and data["library"]["build"]["cxx_flags"]
    assert os.path.exists(data["library"]["path"]) and data["numpy"] and data["cpu"]["name"]
    assert {"AMK_LIBRARY", "AMK_CACHE_DIR"} <= set(data["environment"])
    text = run("doctor").out
    assert "cuda" in text and data["library"]["path"] in text and "AMK_LIBRARY" in text


def test_doctor_works_on_a_broken_installation(tmp_path: Path) -> None:
    environment = {**os.environ, "AMK_LIBRARY": str(tmp_path / "nothing.so")}
    command = [sys.executable, "-m", "amk"]
    done = subprocess.run([*command, "doctor", "--json"], capture_output=True, env=environment)
    data = json.loads(done.stdout)
    assert done.returncode == 4 and "nothing.so" in data["problems"][0] and b"Traceback" not in done.stderr
    done = subprocess.run([*command, "eval", "toy"], capture_output=True, env=environment)
    assert done.returncode == 4 and b"nothing.so" in done.stderr and b"Traceback" not in done.stderr


def test_targets(run: Any) -> None:
    data = run("targets", "--json").json
    assert {target["name"] for target in data["targets"]} == set(amk.TARGETS)
    assert all(target["source"] and target["hbm_gb_per_s"] > 0 for target in data["targets"])
    assert all(name in run("targets").out for name in amk.TARGETS)


def test_propose_feeds_eval(run: Any, tmp_path: Path) -> None:
    first = run("propose", "toy", "--gpu", "h200")
    path = tmp_path / "config.json"
    path.write_text(first.out)
    data = run("propose", "toy", "--gpu", "h200", "--incumbent", path, "--json").json
    assert data["schema"] == "amk.propose" and data["config_schema"]["title"] == "ScheduleConfig"
    assert data["schedule_config"] != json.loads(first.out) and data["changed"]["path"] in data["search_space"]
    path.write_text(json.dumps(data["schedule_config"]))
    assert run("eval", "toy", "--gpu", "h200", "--config", path).code == 0
    path.write_text('{"magic": 1}')
    assert run("propose", "toy", "--gpu", "h200", "--incumbent", path).code == 1


def test_help_lists_what_the_parser_takes(run: Any) -> None:
    data = run("help", "--json").json
    assert [verb["name"] for verb in data["verbs"]] == [verb.name for verb in verbs.VERBS]
    assert set(data["exit_codes"]) == {"0", "1", "2", "3", "4", "8", "70", "130"}
    for verb in data["verbs"]:
        assert verb["help"] in run("help").out
        shown = run(verb["name"], "--help").out
        assert all(option["name"] in shown for option in verb["options"])
        if verb["name"] == "mcp":  # its stdout is a protocol
            continue
        assert {"--json", "--quiet"} <= {option["name"] for option in verb["options"]}
    assert run("--version").out.startswith("amk ")


# --- validate and compile -------------------------------------------------------------------------------------------


def toy_program() -> amk.Program:
    return amk.lower(amk.open_model("toy").config, amk.ScheduleConfig.default(), amk.TARGETS["h200"], 64)


def test_validate_a_model_a_program_and_an_image(run: Any, tmp_path: Path) -> None:
    program = toy_program()
    (tmp_path / "program.json").write_text("\n  " + program.to_json(indent=1))
    (tmp_path / "image.amk").write_bytes(program.pack().bytes)
    hashes = set()
    for what, kind in (("toy", "model"), (tmp_path / "program.json", "program"), (tmp_path / "image.amk", "image")):
        data = run("validate", what, "--gpu", "h200", "--max-seq", 64, "--json").json
        assert data["kind"] == kind and data["ok"] and data["status"] == "PASSED" and data["rejections"] == []
        hashes.add(data["image_hash"])
        assert "VALID" in run("validate", what, "--gpu", "h200").out
    assert hashes == {program.pack().hash}


def test_validate_says_no_by_number(run: Any, tmp_path: Path) -> None:
    data = toy_program().to_dict()
    waiting = next(task for task in data["tasks"] if task["waits"])
    waiting["waits"][0]["threshold"] += 1
    (tmp_path / "program.json").write_text(json.dumps(data))
    result = run("validate", tmp_path / "program.json", "--json")
    assert result.code == 1 and result.json["ok"] is False and result.json["rejections"][0]["code"] == "V8"
    text = run("validate", tmp_path / "program.json")
    assert text.code == 1 and "REJECTED" in text.out and "V8" in text.out


def test_a_flipped_byte_is_no_image(run: Any, tmp_path: Path) -> None:
    data = bytearray(toy_program().pack().bytes)
    data[len(data) // 2] ^= 1
    (tmp_path / "image.amk").write_bytes(data)
    result = run("validate", tmp_path / "image.amk", "--json")
    assert result.code == 1 and "V24" in result.json["rejections"][0]["text"]


def test_compile_writes_an_image_and_a_report(run: Any, tmp_path: Path) -> None:
    places = {
        str(tmp_path / "new"): (tmp_path / "new/image.amk", tmp_path / "new/report.json"),
        str(tmp_path): (tmp_path / "image.amk", tmp_path / "report.json"),
        str(tmp_path / "my.amk"): (tmp_path / "my.amk", tmp_path / "my.report.json"),
    }
    for output, (image, report) in places.items():
        data = run("compile", "toy", "--gpu", "h200", "--max-seq", 64, "--output", output, "--json").json
        assert data["image"] == str(image) and data["status"] == "PASSED"
        written = json.loads(report.read_text())
        assert written["schema"] == "amk.image-report" and written["cost"]["kind"] == "predicted"
        assert amk.Image.from_bytes(image.read_bytes()).hash == written["image_hash"] == toy_program().pack().hash
        assert written["image_bytes"] == image.stat().st_size and written["rejections"] == []
        assert (image.stat().st_mode & 0o777) == (report.stat().st_mode & 0o777) == 0o666 & ~umask()
    assert {path.name for path in tmp_path.iterdir()} == {
        "new", "image.amk", "report.json", "my.amk", "my.report.json"
    }  # fmt: skip


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_unwritable_output_is_refused_before_any_work(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(core_verbs, "_lower", fail)
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe.amk")
    (tmp_path / "report.json").mkdir()
    bad = [tmp_path / "file", tmp_path / "file/x.amk", tmp_path / "no/such/place", tmp_path / "pipe.amk", tmp_path, ""]
    bad += ["/proc/amk", "/proc/self/x.amk"]
    for output in bad:
        result = run("compile", "toy", "--gpu", "h200", "--output", output)
        assert result.code == 2 and "output" in result.err, output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe.amk", "report.json"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_compile_leaves_the_old_files(run: Any, tmp_path: Path) -> None:
    (tmp_path / "image.amk").write_text("old")
    (tmp_path / "config.json").write_text('{"tiling": {"gemv": {"N_tile": 17}}}')
    config = ("--config", tmp_path / "config.json", "--gpu", "h200")
    assert run("compile", "toy", "--output", tmp_path, *config).code == 1
    assert run("compile", "toy", "--output", tmp_path / "new", *config).code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "image.amk"]
    assert (tmp_path / "image.amk").read_text() == "old"


# --- exit codes and bad input ---------------------------------------------------------------------------------------


def bad_inputs(folder: Path) -> list[tuple[tuple[object, ...], int]]:
    """(arguments, exit code). Written fresh for each test."""
    image = toy_program().pack().bytes
    for name, content in {
        "garbage": b"\x00\xff" * 500,
        "cut.amk": image[:-1],
        "tiny.amk": image[:7],
        "empty": b"",
        "twice.json": b'{"tiling": {}, "tiling": {}}',
        "huge.json": b'{"pipelining_depth": 1e400}',
        "deep.json": b"[" * 100_000,
        "latin.json": b'{"magic": "\xe9"}',
        "list.json": b"[1, 2]",
    }.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "fifo")
    (folder / "moe").mkdir()
    (folder / "moe" / "config.json").write_text('{"model_type": "mixtral", "num_local_experts": 8}')
    (folder / "torn").mkdir()
    (folder / "torn" / "config.json").write_text('{"model_type": "llama", "hidden')
    toy = ("eval", "toy", "--gpu", "h200")
    return [
        ((), 2),
        (("frobnicate",), 2),
        (("eval",), 2),
        (("eval", "toy", "--max-seq", "many"), 2),
        (("eval", "toy", "--frob"), 2),
        (("eval", "toy", "--gp", "h200"), 2),  # no abbreviations
        (("eval", "no-such-model"), 2),
        (("eval", "toy", "--gpu", "h9000"), 2),
        (("eval", "toy", "--gpu", ""), 2),
        ((*toy, "--token", "-1"), 2),
        ((*toy, "--token", "256"), 2),
        ((*toy, "--token", str(2**63)), 2),
        ((*toy, "--max-seq", "0"), 2),
        ((*toy, "--max-seq", "100000"), 2),
        ((*toy, "--position", "256"), 2),
        *(((*toy, "--device", name), 2) for name in ("tpu", "", "CUDA", "cuda:", "cuda:-1", "cuda:1x", "cuda:12345")),
        *(((*toy, "--device", name), 4) for name in ("cuda", "cuda:0", "cuda:99")),
        ((*toy, "--batch", "17"), 1),
        (("eval", "toy", "--gpu", "local"), 0 if live_gpu() else 4),
        (("eval", folder / "moe", "--gpu", "h200"), 3),
        (("eval", folder / "torn", "--gpu", "h200"), 2),
        (("eval", folder, "--gpu", "h200"), 2),
        (("eval", "toy\0", "--gpu", "h200"), 2),
        (("eval", "a" * 5000, "--gpu", "h200"), 2),
        *(((*toy, "--config", folder / name), 2) for name in ("garbage", "empty", "twice.json", "huge.json")),
        *(((*toy, "--config", folder / name), 2) for name in ("deep.json", "latin.json", "fifo", "absent", ".")),
        ((*toy, "--config", folder / "list.json"), 1),
        (("propose", "toy", "--incumbent", folder / "list.json"), 1),
        *((("validate", folder / name), 2) for name in ("garbage", "empty", "cut.amk", "tiny.amk", "fifo", "absent")),
        (("validate", folder / "deep.json"), 2),
        (("validate", folder / "moe"), 3),
        (("validate", folder / "huge.json"), 2),
        (("compile", "toy", "--gpu", "h200"), 2),
        (("compile", folder / "moe", "--output", folder / "out"), 3),
    ]


def test_bad_input_ends_in_one_sentence(run: Any, tmp_path: Path) -> None:
    before: set[str] | None = None
    for arguments, code in bad_inputs(tmp_path):
        before = before or {path.name for path in tmp_path.iterdir()}
        result = run(*arguments)
        assert result.code == code, (arguments, result.code, result.err, result.out)
        assert result.out == "" if code > 1 else result.out + result.err, arguments
        assert result.err.strip() or code == 1, arguments
        if arguments and code not in (0, 2) or (code == 2 and "usage:" not in result.err):
            as_json = run(*arguments, "--json")
            assert as_json.code == code and as_json.json["exit_code"] == code, arguments
            if code > 1:
                assert as_json.json["schema"] == "amk.error" and as_json.json["error"]["message"], arguments
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (MemoryError(), 4), (OSError(28, "No space left"), 4), (ZeroDivisionError("x"), 70),
     (InternalError("counters"), 70), (RecursionError(), 70)],
    ids=repr,
)  # fmt: skip
def test_whatever_a_verb_raises_becomes_a_code(
    error: BaseException, code: int, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_it(*_: Any) -> None:
        raise error

    table = tuple(verbs.Verb(verb.name, verb.help, verb.options, raise_it) for verb in verbs.VERBS)
    monkeypatch.setattr(cli, "VERBS", table)
    result = run("targets", "--json")
    assert result.code == code and result.json["error"]["message"] and result.json["exit_code"] == code


def test_an_incorrect_machine_is_a_no(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from amk import vm

    step = vm.ReferenceVM.step
    monkeypatch.setattr(vm.ReferenceVM, "step", lambda self, token, pos: step(self, token, pos) * 1.5)
    result = run("eval", "toy", "--gpu", "h200", "--json")
    assert result.code == 1 and result.json["status"] == "INCORRECT_NUMERICAL" and result.json["latency_us"] is None


def test_a_reader_that_goes_away_is_no_error() -> None:
    for arguments in (["help", "--json"], ["targets"], ["doctor"]):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "amk", *arguments]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
        os.close(writing)
        assert done.returncode == 0 and done.stderr == b"", arguments


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_reported() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "amk", "targets"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 4 and b"could not be written" in done.stderr and b"Traceback" not in done.stderr


def test_interrupt() -> None:
    command = [sys.executable, "-m", "amk", "eval", "toy", "--config", "-"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b"no --gpu" in child.stderr.readline()  # now it waits for its configuration
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130 and out == b"" and b"Traceback" not in err


def test_interrupt_while_python_runs_a_string(tmp_path: Path) -> None:
    """Importing a dataclass runs one; `python -m` would then end by the signal although the command caught it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins, os, signal\n"
        "real = builtins.__import__\n"
        "def hook(name, *arguments, **keywords):\n"
        "    if name == 'doctor':\n"
        "        builtins.__import__ = real\n"
        "        exec('os.kill(os.getpid(), signal.SIGINT)\\nfor _ in range(1000): pass')\n"
        "    return real(name, *arguments, **keywords)\n"
        "builtins.__import__ = hook\n"
    )
    command = [sys.executable, "-m", "amk", "doctor"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 130 and done.stdout == b"" and done.stderr == b"amk doctor: interrupted\n"


def test_import_is_cheap_and_lazy() -> None:
    code = (
        "import sys, amk; assert callable(amk.evaluate) and callable(amk.propose);"
        "print(sorted(m for m in sys.modules if m.startswith('amk.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "amk._lib" not in done.stdout and "amk.oracle" not in done.stdout
    import amk.evaluate as by_module_name
    import amk.propose  # noqa: F401

    assert callable(by_module_name) and callable(amk.propose) and set(amk.__all__) <= set(dir(amk))
    assert all(getattr(amk, name) is not None for name in amk.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        amk.no_such_name  # noqa: B018
