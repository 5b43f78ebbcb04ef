"""Kernel tasks as data: loaders that refuse by name, the border of their library, the command, external baselines."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amk import cli
from amk.errors import AmkError, InputError, Unavailable
from amk.tasks import external, harness_library, torch_device, workloads
from amk.tasks.check import call_at, make_trial
from amk.tasks.judge import Refused, judge_outputs
from amk.tasks.measure import load_oracle
from amk.tasks.operands import Block, values_of
from amk.tasks.time_row import bytes_moved
from amk.tasks.workloads import Tolerance, load_task, parse_workloads, read_task
from amk.tasks.write import baseline_source

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "benchmarks" / "tasks"
NAMES = sorted(path.parent.name for path in TASKS.glob("*/task.toml"))
OPERANDS = {"inputs": ("a", "b"), "outputs": ("y", "z"), "scalars": ("eps",)}

in_tree = pytest.mark.skipif(not TASKS.is_dir(), reason="not a source tree")


@pytest.fixture(autouse=True)
def _tasks_of_this_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMK_TASKS_DIR", str(TASKS))


# --- the tasks of this tree -----------------------------------------------------------------------------------------


@in_tree
@pytest.mark.parametrize("name", NAMES)
def test_every_task_loads_and_its_rows_are_those_that_were_declared(name: str) -> None:
    task = load_task(name)
    load_oracle(task)
    assert {"sm_90a", "sm_100a"} <= set(task.targets)
    done = subprocess.run(
        [sys.executable, str(TASKS / "freeze.py"), name, "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for side in ("baseline", "solution"):
        assert (TASKS / name / side / f"{name}_{side}.cu").exists()
    assert re.search(rf"^\s*(set\(AMK_TASK_NAMES.*)?\b{name}\b", (TASKS / "CMakeLists.txt").read_text(), re.M)


@in_tree
@pytest.mark.parametrize("name", NAMES)
def test_oracles_agree_with_torch_and_their_rows_tell(name: str) -> None:
    """The float64 reference against the plain torch code, in float64 where rounding cannot hide a difference."""
    torch = pytest.importorskip("torch")
    task = load_task(name)
    oracle = load_oracle(task)
    for row in task.rows:
        if row.rejects is not None:
            make_trial(Block(row, oracle.OPERANDS), oracle, 0)
    small = [row for row in task.rows if row.rejects is None and bytes_moved(row, oracle) < 1 << 20]
    kinds = {}
    for row in small:
        kinds.setdefault(tuple((key, spec.dtype, len(spec.shape)) for key, spec in row.inputs.items()), row)
    assert kinds
    for row in list(kinds.values())[:24]:
        block = Block(row, oracle.OPERANDS)
        trial = make_trial(block, oracle, 0)  # refuses a row that zeros would pass
        tensors = {}
        for key, place in block.places.items():
            values = values_of(place.view(trial.image), place.spec.dtype)
            wide = values.astype(np.float64) if values.dtype.kind == "f" else values
            tensors[key] = torch.from_numpy(np.ascontiguousarray(wide))
        got = oracle.torch_reference(row, tensors)
        for key, want in trial.expected.items():
            np.testing.assert_allclose(got[key].double().numpy(), want, rtol=1e-5, atol=1e-6, err_msg=row.name)


def test_residual_gate_add_has_the_shapes_and_layouts_asked_for() -> None:
    task = load_task("residual_gate_add")
    production = {tuple(row.outputs["y"].shape): row.inputs["gate"].shape for row in task.rows_of("full")
                  if row.kind == "production"}  # fmt: skip
    assert production == {
        (1, 8160, 4096): (1, 8160, 4096), (1, 32640, 4096): (1, 1, 4096), (1, 4096, 4608): (1, 1, 4608),
        (1, 4608, 3072): (1, 1, 3072), (1, 4096, 3072): (1, 1, 3072), (1, 512, 3072): (1, 1, 3072),
        (1, 126, 2048): (1, 126, 2048),
    }  # fmt: skip
    regression = [row for row in task.rows if row.kind == "regression"]
    assert {row.outputs["y"].dtype for row in regression} == {"f32", "f16", "bf16"}
    assert {row.rejects for row in regression} == {None, "INVALID_ARGUMENT", "UNSUPPORTED"}
    assert sum(not row.outputs["y"].is_contiguous for row in regression) > 20


# --- loaders --------------------------------------------------------------------------------------------------------


def spec(**changed: Any) -> dict[str, Any]:
    return {"shape": [2, 3], "dtype": "f32"} | changed


def row(**changed: Any) -> dict[str, Any]:
    return {"name": "one", "kind": "production", "inputs": {"a": spec()}, "outputs": {"y": spec()}, "scalars": {},
            "tolerance": {"atol": 0.0, "rtol": 0.0}, "seed": 1} | changed  # fmt: skip


def parse(*rows: Any, **changed: Any) -> Any:
    table = {"schema": "amk.workloads", "schema_version": 1, "task": "t", "rows": list(rows)} | changed
    return parse_workloads(json.dumps(table).encode(), "t")


def test_a_row_is_what_was_written() -> None:
    (found,) = parse(row(inputs={"a": spec(stride=[3, 1]), "b": spec(shape=[4], dtype="i64", regime="words")},
                         scalars={"eps": 1}, tolerance={"y": {"atol": 1e-3, "rtol": 0}}))  # fmt: skip
    assert found.inputs["a"].is_contiguous and found.inputs["b"].regime == "words"
    assert found.scalars == {"eps": 1.0} and found.tolerance["y"] == Tolerance(1e-3, 0.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kind": "prod"}, "kind: expected one of production, regression"),
        ({"name": "a b"}, "name: expected letters"),
        ({"seed": -1}, "seed: expected an integer"),
        ({"seed": True}, "seed: expected an integer"),
        ({"outputs": {}}, "outputs: expected at least one"),
        ({"inputs": []}, "expected an object"),
        ({"inputs": {"a": spec(shape=[0])}}, r"inputs\.a: shape"),
        ({"inputs": {"a": spec(shape=[1] * 5)}}, r"inputs\.a: shape"),
        ({"inputs": {"a": spec(shape=[1 << 20, 1 << 20])}}, "at most"),
        ({"inputs": {"a": spec(dtype="f64")}}, "dtype: expected one of f32"),
        ({"inputs": {"a": spec(dtype=["f32"])}}, "dtype: expected one of f32"),
        ({"inputs": {"a": spec(stride=[1])}}, "stride: expected 2 integers"),
        ({"inputs": {"a": spec(stride=[1 << 33, 1])}}, "extent"),
        ({"inputs": {"a": spec(strides=[1, 1])}}, "unknown"),
        ({"outputs": {"y": spec(stride=[0, 1])}}, "no two elements at one place"),
        ({"outputs": {"y": spec(stride=[2, 1])}}, "no two elements at one place"),
        ({"scalars": {"eps": "1"}}, r"scalars\.eps: expected a finite number"),
        ({"tolerance": {"atol": -1, "rtol": 0}}, "tolerance.y.atol"),
        ({"tolerance": {"atol": 1}}, "tolerance"),
        ({"tolerance": {"z": {"atol": 1, "rtol": 1}}}, "missing y"),
        ({"rejects": "UNSUPPORTED"}, "in a production row"),
        ({"kind": "regression", "rejects": "OK"}, "rejects: expected one of"),
    ],
)
def test_a_bad_row_is_refused_by_name(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse(row(name="good"), row(**changed))
    assert "t/workloads.json" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "changed", "said"),
    [
        ([], {}, "rows: expected 1"),
        ([row(), row()], {}, "each name once"),
        ([row(kind="regression")], {}, "at least one of kind production"),
        ([row()], {"task": "u"}, "task: expected 't'"),
        ([row()], {"schema": "x"}, "expected schema amk.workloads 1"),
        ([row()], {"schema_version": True}, "expected schema amk.workloads 1"),
        ([row()], {"note": ""}, "unknown"),
    ],
)
def test_a_bad_file_is_refused_by_name(rows: list[Any], changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(*rows, **changed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_rows_or_an_input_error(data: bytes) -> None:
    with pytest.raises(InputError):
        parse_workloads(data, "t")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_change_of_a_row_is_a_row_or_an_input_error(data: st.DataObject) -> None:
    """One value anywhere in a good row becomes anything: no other exception, and no overlapping output gets through."""
    good = row(outputs={"y": spec(stride=[7, 2])}, scalars={"eps": 1.0})
    paths = [("name",), ("kind",), ("seed",), ("inputs", "a"), ("inputs", "a", "shape"), ("inputs", "a", "dtype"),
             ("outputs", "y", "stride"), ("outputs", "y", "shape"), ("scalars",), ("scalars", "eps"), ("tolerance",),
             ("tolerance", "atol"), ("rejects",)]  # fmt: skip
    *way, last = data.draw(st.sampled_from(paths))
    changed = json.loads(json.dumps(good))
    at = changed
    for key in way:
        at = at[key]
    at[last] = data.draw(json_values | st.lists(st.integers(0, 9), min_size=1, max_size=4))
    try:
        (found,) = parse(changed)
    except InputError:
        return
    y = found.outputs["y"]
    places = {sum(i * step for i, step in zip(index, y.stride, strict=True)) for index in np.ndindex(*y.shape)}
    assert len(places) == math.prod(y.shape) and max(places) < y.extent


TOML = """schema_version = 1
name = "t"
title = "a task"
targets = ["sm_90a"]
workloads_sha256 = "{digest}"
[tolerances]
f32 = 1e-5
[stages]
quick = ["a", "b", "c"]
representative = ["a"]
[bench]
trials = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    import hashlib

    def put(old: str = "", new: str = "", rows: Any = None) -> Path:
        path = tmp_path / "t"
        path.mkdir(exist_ok=True)
        made = [row(name=name) for name in "abc"] if rows is None else rows
        text = json.dumps({"schema": "amk.workloads", "schema_version": 1, "task": "t", "rows": made})
        toml = TOML.format(digest=hashlib.sha256(text.encode()).hexdigest())
        assert old in toml
        (path / "workloads.json").write_text(text)
        (path / "task.toml").write_text(toml.replace(old, new))
        return path

    return put


def test_a_task_is_what_was_written(folder: Any) -> None:
    task = read_task(folder())
    assert (task.name, task.settings.trials, task.settings.iterations) == ("t", 5, 100)
    assert [found.name for found in task.rows_of("representative")] == ["a"]
    with pytest.raises(InputError, match="stage: expected one of quick"):
        task.rows_of("all")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema_version = 1", "schema_version = 2", "schema_version: expected 1"),
        ('name = "t"', 'name = "u"', "the name of its folder"),
        ('["sm_90a"]', '["90a"]', "targets: expected names like sm_90a"),
        ('["a", "b", "c"]', '["a", "b"]', "quick: expected 3 rows"),
        ('["a", "b", "c"]', '["a", "b", "d"]', "expected names of rows"),
        ("trials = 5", "trials = 0", r"bench.trials: expected an integer in 3\.\.1000"),
        ("trials = 5", "trials = true", "bench.trials"),
        ("trials = 5", "tirals = 5", "unknown"),
        ("f32 = 1e-5", "f64 = 1e-5", "tolerances: expected names of f32"),
        ("[tolerances]", "[tolerances", "expected TOML"),
        ("1e-5", "nan", "tolerances.f32: expected a finite number"),
    ],
)
def test_a_bad_task_is_refused_by_name(folder: Any, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_task(folder(old, new))


def test_no_row_may_be_looser_than_its_task(folder: Any) -> None:
    loose = [row(name=name, tolerance={"atol": 0.1, "rtol": 0.0}) for name in "abc"]
    with pytest.raises(InputError, match="tolerance of y: expected at most 1e-05 for f32"):
        read_task(folder(rows=loose))


def test_a_row_names_operands_of_the_entry(folder: Any) -> None:
    task = read_task(folder())
    with pytest.raises(InputError, match="scalars: expected 'eps'"):
        workloads.check_operands(task, OPERANDS)
    with pytest.raises(InputError, match="inputs: expected some of b"):
        workloads.check_operands(task, OPERANDS | {"inputs": ("b",), "scalars": ()})


def block_of(**outputs: Any) -> Block:
    inputs = {"a": spec(shape=[5, 3], stride=[0, 1]), "b": spec(shape=[7], dtype="i32")}
    (found,) = parse(row(inputs=inputs, outputs=outputs or {"y": spec()}, scalars={"eps": 0.5},
                         tolerance={"atol": 1e-5, "rtol": 0.0}))  # fmt: skip
    return Block(found, OPERANDS)


# --- the border and the command -------------------------------------------------------------------------------------


def test_without_the_library_one_sentence_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    harness_library.open_library.cache_clear()
    monkeypatch.setenv("AMK_TASKS_LIBRARY", str(tmp_path / "libamk_tasks.so"))
    with pytest.raises(Unavailable, match=r"libamk_tasks\.so at .*: (this build has no CUDA|it is missing)"):
        harness_library.open_library()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


@in_tree
def test_the_list_names_the_tasks(run: Any) -> None:
    code, out, _ = run("bench", "kernel", "--list", "--json")
    answer = json.loads(out)
    assert code == 0 and [task["name"] for task in answer["tasks"]] == NAMES
    assert "residual_gate_add" in run("bench", "kernel", "--list")[1]


@in_tree
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kernel"], "expected one task"),
        (["kernel", "no_such"], "task: expected one of"),
        (["kernel", "../tasks"], "task: expected one of"),
        (["kernel", "residual_gate_add", "x"], "expected one task"),
        (["kernel", "residual_gate_add", "--contexts", "1"], "no --contexts, which is of models"),
        (["kernel", "residual_gate_add", "--gpu", "h200"], "no --gpu"),
        (["kernel", "residual_gate_add", "--list"], "--list: expected no name"),
        (["kernel", "residual_gate_add", "--plot", "x.pdf"], "expected a file ending in .png"),
        (["kernel", "residual_gate_add", "--baseline", "nonsense"], "baseline: expected in-repo, torch"),
        (["kernel", "residual_gate_add", "--baseline", "no_such_module:f"], "to be importable"),
        (["kernel", "residual_gate_add", "--baseline", "json:__name__"], "to be callable"),
        (["toy", "--stage", "quick"], "expected no --stage"),
        (["toy", "--output", "x"], "expected no --output"),
    ],
)
def test_a_bad_command_is_one_sentence(run: Any, arguments: list[str], said: str) -> None:
    code, out, err = run("bench", *arguments, "--quiet")
    assert code == 2 and out == "" and said in err and len(err.strip().splitlines()) == 1


def test_a_missing_tasks_folder_is_one_sentence(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMK_TASKS_DIR", str(tmp_path / "none"))
    code, _, err = run("bench", "kernel", "--list")
    assert code == 4 and "expected them in" in err


# --- external baselines ---------------------------------------------------------------------------------------------


@in_tree
def test_where_an_external_baseline_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "some_kernel.py").write_text("def run(row, tensors):\n    return tensors['x']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@e"]
    for words in (["init", "-qb", "trunk"], ["remote", "add", "origin", "https://example.org/k.git"], ["add", "."],
                  ["commit", "-qm", "m"]):  # fmt: skip
        subprocess.run([*git, *words], check=True, timeout=60)
    found = external.find_external("some_kernel:run", "residual_gate_add").describe()
    assert (found["repository"], found["branch"]) == ("https://example.org/k.git", "trunk")
    assert re.fullmatch("[0-9a-f]{40}", found["commit"]) and found["resolved"].startswith("20")
    assert [file["path"] for file in found["files"]] == ["some_kernel.py"]
    torch_source = external.find_external("torch", "residual_gate_add").describe()
    assert torch_source["repository"].endswith("pytorch/pytorch") and torch_source["commit"]


def test_the_file_of_baselines_keeps_the_others() -> None:
    source = {"repository": None, "branch": "b", "commit": "c", "resolved": "now",
              "files": [{"path": "f.py", "sha256": "0"}]}  # fmt: skip
    record = {"task": "t", "baseline": {"spec": "torch", **source}}
    one = baseline_source(record)
    both = baseline_source({"task": "t", "baseline": {"spec": "torch.compile", **source, "commit": "d"}}, one)
    again = baseline_source({"task": "t", "baseline": {"spec": "torch", **source, "commit": "e"}}, both)
    assert "repository: `unknown`" in one and both.count("## torch") == 2
    assert "`c`" in both and "`d`" in again and "`e`" in again and "`c`" not in again
    assert baseline_source({"task": "t", "baseline": {"spec": "torch", **source, "commit": "e"}}, again) == again


def test_torch_sees_the_operands_where_they_lie() -> None:
    torch = pytest.importorskip("torch")
    block = block_of(y=spec(shape=[4, 3], stride=[5, 1], dtype="bf16"))
    image = block.fill({"a": np.ones((5, 3)) * 2.5, "b": np.arange(7)})
    buffer = torch.from_numpy(image)
    for name, place in block.places.items():
        tensor = torch_device.tensor_at(torch, buffer, place.offset, place.spec)
        assert tuple(tensor.shape) == place.spec.shape and tensor.stride() == place.spec.stride
        if name != "y":
            np.testing.assert_array_equal(tensor.numpy(), place.view(image))
    torch_device.tensor_at(torch, buffer, block.places["y"].offset, block.places["y"].spec).fill_(1.0)
    assert (values_of(block.places["y"].view(image), "bf16") == 1.0).all()


def test_a_callable_gets_its_operands_by_name_and_its_results_reach_the_outputs() -> None:
    """All of an external baseline but the GPU: over torch's memory on the CPU."""
    torch = pytest.importorskip("torch")
    task = load_task("residual_gate_add")
    oracle = load_oracle(task)
    found = next(row for row in task.rows if row.name == "f32_BF1D_transposed")
    block = Block(found, oracle.OPERANDS)
    trial = make_trial(block, oracle, 0)
    buffer = torch.from_numpy(trial.image.copy())
    device = object.__new__(torch_device.TorchDevice)
    device._torch, device._buffers = torch, {buffer.data_ptr(): buffer}
    device._row, device._operands = found, oracle.OPERANDS
    call = call_at(block, buffer.data_ptr())

    def made(function: Any) -> Any:
        (enqueue,) = device._enqueuers(torch_device._Callable(function), [call])
        return enqueue()

    device._put(call, made(oracle.torch_reference))
    begin = block.out_begin
    assert judge_outputs(block, trial.image[begin:], buffer.numpy()[begin:], trial.expected)["y"] < 1e-5
    assert list(made(lambda row, tensors: tensors["x"])) == ["y"]
    for wrong, reason, said in [
        (lambda row, tensors: {"z": tensors["x"]}, "shape", "expected the outputs"),
        (lambda row, tensors: (tensors["x"], tensors["x"]), "shape", "expected the outputs"),
        (lambda row, tensors: tensors["x"][:, :1], "shape", "y: expected"),
        (lambda row, tensors: 1.0, "shape", "y: expected a tensor, got float"),
        (lambda row, tensors: tensors["no_such"], "failed", "KeyError: 'no_such'"),
    ]:
        with pytest.raises(Refused, match=said) as caught:
            device._put(call, made(wrong))
        assert caught.value.reason == reason


def test_errors_of_tasks_are_amk_errors() -> None:
    assert issubclass(Refused, AmkError)
