"""`amk bench`: figures that exist only where the result is correct, labelled, beside peers that cannot spoil them."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import amk
from amk import bench, bench_peers, cli, gpu_trial
from amk.bench import run_bench
from amk.bench_peers import pick_peers, run_peer
from amk.bench_plot import draw_bench
from amk.bench_verb import bench_table
from amk.errors import AmkError, InputError, Rejected, Unavailable
from amk.model_config import ModelConfig
from amk.oracle import Oracle
from amk.peers import torch_decode

EVALUATE = sys.modules["amk.evaluate"]
HERE = Path(__file__).parent
TOY = amk.open_model("toy").config


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As if a device of this kind were there."""

    def put(kind: str) -> None:
        monkeypatch.setattr(gpu_trial, "_DEVICE_CLASS", f"fake_devices:{kind}")
        monkeypatch.setattr(EVALUATE, "pick_device", lambda *_: ("cuda:0", []))
        monkeypatch.setattr(bench, "pick_device", lambda *_: ("cuda:0", []))
        monkeypatch.syspath_prepend(str(HERE))

    return put


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A peer that is this program; `job` is what it was asked."""

    def put(program: str) -> None:
        path = tmp_path / "peer.py"
        path.write_text(f"import json, sys, time, os\njob = json.loads(sys.argv[1])\n{ROW}\n{program}\n")
        monkeypatch.setattr(bench_peers, "PEERS", {"fake": (str(path), "v")})

    return put


ROW = """
def row(context, **changed):
    times = {"latency_p10_us": 1e5, "latency_us": 2e5, "latency_p90_us": 3e5}
    print(json.dumps({"context": context, "finite": True, **times, **changed}), flush=True)
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> SimpleNamespace:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call


# --- rows -----------------------------------------------------------------------------------------------------------


def test_a_measured_row_is_what_the_judge_says(device: Any) -> None:
    device("Faithful")
    said: list[str] = []
    result = run_bench(["toy"], "h200", [1, 40], device="cuda", progress=said.append)
    assert [(row["context"], row["status"], row["latency_kind"]) for row in result["rows"]] == [
        (1, "PASSED", "measured-gpu"), (40, "PASSED", "measured-gpu")
    ]  # fmt: skip
    program = amk.lower(TOY, amk.ScheduleConfig.default(), amk.TARGETS["h200"], 40)
    for row in result["rows"]:
        verdict = row["verdict"]
        assert verdict["latency_position"] == row["context"] - 1 and verdict["max_seq"] == 40
        assert verdict["provenance"]["image_hash"] == program.pack().hash  # one program for every context
        assert row["latency_p10_us"] <= row["latency_us"] <= row["latency_p90_us"]
        assert (row["floor_gb_per_s"], row["floor_from"], row["device"]) == (4000, "read in this run", "cuda:0")
        assert row["pct_of_floor"] == pytest.approx(100 * row["floor_us"] / row["latency_us"])
        assert row["gb_per_s"] * row["latency_us"] == pytest.approx(row["floor_gb_per_s"] * row["floor_us"])
    assert any("context 40" in text for text in said)
    json.dumps(result, allow_nan=False)


def test_without_a_gpu_every_figure_is_a_labelled_prediction() -> None:
    result = run_bench(["toy", "toy-2L"], "h200", device="cpu", peers=["torch"])
    assert [(row["model"], row["context"]) for row in result["rows"]] == [
        ("toy", 1), ("toy", 256), ("toy-2L", 1), ("toy-2L", 256)
    ]  # fmt: skip
    assert {row["latency_kind"] for row in result["rows"]} == {"predicted"}
    assert {row["floor_from"] for row in result["rows"]} == {"published"}
    assert len(result["peers"]) == 8 and all("prediction" in row["skipped"] for row in result["peers"])
    table = bench_table(result)
    assert table.count("predicted  ") == 4 and "measured  " not in table and table.count("torch-eager skipped") == 1
    assert "4,800 GB/s, published" in table


def test_a_batch_is_timed_by_step_and_by_token() -> None:
    result = run_bench(["toy", "toy-gdn"], "h200", [1, 40], device="cpu", batch=4)
    rows = [row for row in result["rows"] if row["model"] == "toy"]
    assert result["batch"] == 4 and all(row["correct"] for row in rows)
    for row in rows:
        verdict = row["verdict"]
        assert verdict["batch"] == 4 and verdict["max_seq"] == 43 and verdict["latency_position"] == row["context"] - 1
        assert row["latency_per_token_us"] == pytest.approx(row["latency_us"] / 4)
    lines = bench_table(result).splitlines()
    assert lines[0].split()[3:5] == ["us/step", "us/token"]
    assert any("linear layers" in line for line in lines) and "rejected" in lines[3]
    assert max(row["context"] for row in run_bench(["toy"], "h200", device="cpu", batch=16)["rows"]) == 241
    for batch in (0, 17, True, "2", None):
        with pytest.raises(InputError, match="batch"):
            run_bench(["toy"], "h200", device="cpu", batch=batch)
    with pytest.raises(InputError, match="peers"):
        run_bench(["toy"], "h200", device="cpu", batch=2, peers=["torch"])


@pytest.mark.parametrize(("kind", "why"), [("Wrong", "before the timing"), ("Crash", "SIGSEGV"), ("TooFast", "below")])
def test_no_latency_without_a_right_answer(device: Any, kind: str, why: str) -> None:
    device(kind)
    result = run_bench(["toy"], "h200", [8], device="cuda", peers=["torch"])
    (row,) = result["rows"]
    figures = ("latency_us", "latency_kind", "latency_p10_us", "gb_per_s", "floor_us", "pct_of_floor")
    assert all(row[name] is None for name in figures) and any(why in note for note in row["verdict"]["notes"])
    assert all(peer["skipped"] and peer["latency_us"] is None for peer in result["peers"])
    assert why in bench_table(result) and "none" in bench_table(result)


def test_a_model_that_the_device_cannot_hold_is_a_row(device: Any) -> None:
    device("Full")
    result = run_bench(["toy", "toy-2L"], "h200", [8], device="cuda")
    assert [row["error"]["code"] for row in result["rows"]] == ["out-of-memory"] * 2
    assert "9 bytes asked" in bench_table(result)


def test_a_rejected_schedule_is_a_row() -> None:
    config = {"tiling": {"gemv": {"N_tile": 17}}}
    (row,) = run_bench(["toy"], "h200", [8], config=config, device="cpu")["rows"]
    assert row["status"] == "REJECTED" and row["correct"] is None and row["latency_us"] is None


def test_ctrl_c_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = bench.evaluate, []

    def evaluate(*arguments: Any, **options: Any) -> Any:
        calls.append(options["position"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(bench, "evaluate", evaluate)
    result = run_bench(["toy"], "h200", [2, 3, 4], device="cpu")
    assert result["stopped"] == "interrupted" and [row["context"] for row in result["rows"]] == [2]
    assert calls == [1, 2] and "interrupted" in bench_table(result)


# --- bad input, before any work -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"models": []}, InputError, "at least one model"),
        ({"models": ["toy", "no-such-model"]}, InputError, "no-such-model"),
        ({"contexts": []}, InputError, "at least one"),
        ({"contexts": [0]}, InputError, "1..256"),
        ({"contexts": [8, 257]}, InputError, "1..256"),
        ({"contexts": [True]}, InputError, "1..256"),
        ({"contexts": [1.0]}, InputError, "1..256"),
        ({"contexts": [8, 8]}, InputError, "each once"),
        ({"max_seq": 7}, InputError, "8..256"),
        ({"max_seq": 257}, InputError, "8..256"),
        ({"contexts": None, "max_seq": 0}, InputError, "at least one"),
        ({"peers": ["jax"]}, InputError, "torch-eager"),
        ({"peers": [""]}, InputError, "torch"),
        ({"peer_limit_s": 0}, InputError, "seconds"),
        ({"peer_limit_s": float("nan")}, InputError, "seconds"),
        ({"gpu": "h9000"}, InputError, "h9000"),
        ({"device": "tpu"}, InputError, "tpu"),
        ({"device": "cuda"}, Unavailable, "cuda"),
        ({"config": [1]}, Rejected, "object"),
    ],
)
def test_a_bad_request_is_one_error_before_any_work(
    options: dict[str, Any], error: type[AmkError], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("work was done")

    monkeypatch.setattr(bench, "evaluate", fail)
    monkeypatch.setattr(bench, "run_peer", fail)
    given = {"models": ["toy"], "gpu": "h200", "contexts": [8], "device": "cpu", **options}
    models, gpu, contexts = (given.pop(name) for name in ("models", "gpu", "contexts"))
    with pytest.raises(error, match=why):
        run_bench(models, gpu, contexts, **given)


def test_the_verb_refuses_before_any_work(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "evaluate", None)
    (tmp_path / "folder.json").mkdir()
    toy = ("bench", "toy", "--gpu", "h200", "--device", "cpu")
    for arguments in (
        (*toy, "--contexts", "1,x"), (*toy, "--contexts", ""), (*toy, "--contexts", "0"), (*toy, "--peers", "jax"),
        (*toy, "--output-file", tmp_path / "a.txt"), (*toy, "--output-file", tmp_path / "folder.json"),
        (*toy, "--output-file", tmp_path / "no/such/a.json"), (*toy, "--plot", tmp_path / "a.pdf"),
        (*toy, "--config", tmp_path / "absent"), ("bench",), ("bench", "toy", "--gpu", "h9000"),
    ):  # fmt: skip
        done = run(*arguments)
        assert done.code == 2 and done.out == "" and done.err, arguments
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run(*toy, "--plot", tmp_path / "a.svg")
    assert done.code == 4 and "amk[plot]" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


# --- the verb -------------------------------------------------------------------------------------------------------


def test_the_verb_writes_table_json_and_plot(run: Any, device: Any, peer: Any, tmp_path: Path) -> None:
    device("Faithful")
    peer("print(json.dumps({'about': {'torch': '9'}}))\nrow(40)\nprint(json.dumps({'skipped': 'tired'}))")
    command = ("bench", "toy", "toy-2L", "--gpu", "h200", "--contexts", "1,40", "--device", "cuda:0", "--peers", "fake")
    done = run(*command, "--output-file", tmp_path / "x.json", "--plot", tmp_path / "x.svg")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split()[:4] == ["model", "context", "what", "us/token"] and len(lines) >= 7
    assert [line.split()[:3] for line in lines[1:7]] == [
        ["toy", "1", "AMK"], ["toy", "40", "AMK"], ["toy", "40", "fake"],
        ["toy-2L", "1", "AMK"], ["toy-2L", "40", "AMK"], ["toy-2L", "40", "fake"],
    ]  # fmt: skip
    assert "4,000 GB/s, read in this run" in done.out and "fake skipped (toy at 1, toy-2L at 1): tired" in done.out
    data = json.loads((tmp_path / "x.json").read_text())
    assert data["schema"] == "amk.bench" and len(data["rows"]) == 4
    (right, *_) = [row for row in data["peers"] if row["skipped"] is None]
    amk_row = data["rows"][1]
    assert right["about"] == {"torch": "9"} and right["latency_us"] == 2e5
    assert right["pct_of_floor"] == pytest.approx(100 * amk_row["floor_us"] / 2e5)
    assert right["times_amk"] == pytest.approx(2e5 / amk_row["latency_us"])
    text = "\n".join(ElementTree.parse(tmp_path / "x.svg").getroot().itertext())
    for word in ("toy on h200", "toy-2L on h200", "AMK", "fake", "floor", "us per token, measured"):
        assert word in text, word
    done = run(*command, "--json")
    assert json.loads(done.out)["schema"] == "amk.bench" and done.code == 0


def test_the_verbs_exit_code_is_the_worst_row(run: Any, device: Any, tmp_path: Path) -> None:
    for kind, code in (("Wrong", 1), ("Full", 4)):
        device(kind)
        done = run("bench", "toy", "--gpu", "h200", "--contexts", "8", "--output-file", tmp_path / f"{kind}.json")
        assert done.code == code and (tmp_path / f"{kind}.json").exists()


def test_the_plot_keeps_kinds_apart_and_repeats_itself() -> None:
    def row(kind: str, us: float) -> dict[str, Any]:
        figures = {"latency_us": us, "floor_us": 1.0, "pct_of_floor": 100 / us, "latency_p10_us": None}
        return {"model": "$x$ <b>", "context": 1, "what": "amk", "latency_kind": kind, **figures}

    rows = [row("predicted", 10.0), row("measured-gpu", 20.0)]
    data = draw_bench(rows, [], "h200", ".svg")
    text = "\n".join(ElementTree.fromstring(data).itertext())
    assert text.count("$x$ <b> on h200") == 2 and "predicted" in text and "measured" in text
    assert data == draw_bench(rows, [], "h200", ".svg")
    assert draw_bench([{**row("predicted", 1.0), "latency_us": None}], [], "h200", ".png")[:4] == b"\x89PNG"


# --- peers ----------------------------------------------------------------------------------------------------------


def test_peers_are_chosen_by_name() -> None:
    assert pick_peers(["torch"]) == ("torch-eager", "torch-compile") == pick_peers(["torch-eager", "torch"])
    assert pick_peers(["torch-compile"]) == ("torch-compile",) and pick_peers([]) == ()


def test_a_right_peer_is_taken_at_its_word(peer: Any) -> None:
    peer("row(1)\nrow(7)\nassert job['shape']['hidden'] == 64 and job['device'] == 3 and job['versions'] == ['v']")
    found = run_peer("fake", TOY, [1, 7], "cuda:3", 30)
    assert set(found.rows) == {1, 7} and found.skipped is None and found.rows[7]["latency_us"] == 2e5


@pytest.mark.parametrize(
    ("program", "why", "left"),
    [
        ("row(1)\nsys.exit('no memory for 7')", "exit status 1: no memory for 7", {1}),
        ("row(1)\nos.kill(os.getpid(), 11)", "SIGSEGV", {1}),
        ("row(1)\ntime.sleep(600)", "ended after 1 s", {1}),
        (
            "row(1)\nprint(json.dumps({'stage': 'compiling'}), flush=True)\ntime.sleep(600)",
            "1 s (while compiling)",
            {1},
        ),
        ("row(1)", "no row for context 7", {1}),
        ("row(1)\nrow(9)", "for 9", {1}),
        ("row(1)\nrow(7, latency_us=float('nan'))", "times at context 7", {1}),
        ("row(1)\nrow(7, latency_us=-1)", "times at context 7", {1}),
        ("row(1)\nrow(7, latency_us=9e9)", "times at context 7", {1}),
        ("row(1)\nrow(7, latency_us='fast')", "times at context 7", {1}),
        ("row(1)\nrow(7, finite=False)", "not finite", {1}),
        ("row(1)\nprint('[' * 20000)", "no JSON object", {1}),
        ("os.write(1, b'\\xff\\x00' * 99)", "no JSON object", set()),
        ("print(json.dumps({'skipped': 'no torch'}))", "no torch", set()),
    ],
)
def test_what_a_peer_does_is_a_reason(peer: Any, program: str, why: str, left: set[int]) -> None:
    peer(program)
    found = run_peer("fake", TOY, [1, 7], "cuda:0", 1 if "sleep" in program else 60)
    assert set(found.rows) == left and why in str(found.skipped), found


def test_nothing_of_a_peer_is_left(peer: Any, tmp_path: Path) -> None:
    """Also not a child of it that holds its pipe, which would keep a reader waiting."""
    peer(
        "child = os.fork()\n"
        f"open({str(tmp_path / 'pid')!r} + ('' if child else '.child'), 'w').write(str(os.getpid()))\n"
        "time.sleep(600)"
    )
    start = time.monotonic()
    assert "ended after 2 s" in str(run_peer("fake", TOY, [1], "cuda:0", 2).skipped)
    assert time.monotonic() - start < 30
    for name in ("pid", "pid.child"):
        pid = int((tmp_path / name).read_text())
        for _ in range(100):
            try:
                if "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]:
                    break
            except OSError:
                break
            time.sleep(0.05)
        else:
            raise AssertionError(f"{name} is alive")


def test_torch_without_a_gpu_or_without_torch_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "sees no CUDA device" in str(run_peer("torch-eager", TOY, [1], "cuda:0", 120).skipped)
    (tmp_path / "torch.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "not installed (not here)" in str(run_peer("torch-eager", TOY, [1], "cuda:0", 60).skipped)
    assert os.path.basename(bench_peers.PEERS["torch-eager"][0]) == "torch_decode.py"


BIASES = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}


@pytest.mark.parametrize("changed", [{}, {"qk_norm": True, "tied": True}, {**BIASES, "n_kv_heads": 2}])
def test_the_peer_computes_the_same_model(changed: dict[str, Any]) -> None:
    """Its step, with its own random weights, against the float64 oracle: a decode of six tokens."""
    torch = pytest.importorskip("torch")
    config = ModelConfig(**{**vars(TOY), "layers": 2, **changed})
    decoder = torch_decode.Decoder(torch, {**vars(config)}, 6, "cpu")
    logits, tokens = [], [3, 1, 200, 7, 7, 90]
    with torch.inference_mode():
        for pos, token in enumerate(tokens):
            decoder.token.fill_(token)
            decoder.position.fill_(pos)
            attend = decoder.attention_forms()["sdpa" if pos % 2 else "matmul"]
            found, best = decoder.step(attend, pos + 1)
            assert int(best) == int(found.argmax())
            logits.append(found[0].numpy().copy())
    reference = Oracle(config, lambda name: weights_of(decoder, config, name)).prefill(tokens)
    assert np.abs(np.array(logits) - reference).max() < 1e-4 * np.abs(reference).max()
    assert not np.allclose(reference[0], reference[1], rtol=0.1)


def test_the_peer_compiles_once_for_all_layers_contexts_and_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three graphs, and the eager step's logits from them."""
    torch, dynamo = pytest.importorskip("torch"), pytest.importorskip("torch._dynamo")
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode, dynamic: plain(f, backend="eager", dynamic=dynamic))
    dynamo.reset()
    dynamo.utils.counters.clear()
    decoder = torch_decode.Decoder(torch, {**vars(TOY), "layers": 3, "n_kv_heads": 2}, 40, "cpu")
    with torch.inference_mode():
        forms = decoder.attention_forms()

        def logits(form: str, context: int) -> Any:
            decoder.position.fill_(context - 1)
            return decoder.step(forms[form], context)[0]

        asked = [("matmul", 1), ("sdpa", 9), ("matmul", 40), ("sdpa", 40)]
        expected = [logits(*question) for question in asked]
        decoder.compile()
        assert all(torch.allclose(logits(*q), e, rtol=1e-4) for q, e in zip(asked, expected, strict=True))
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 3


def weights_of(decoder: Any, config: ModelConfig, name: str) -> np.ndarray:
    """One tensor of the peer under its Hugging Face name."""
    rest = name.split(".")
    if rest[1] != "layers":
        whole = {"model.embed_tokens.weight": decoder.embed, "model.norm.weight": decoder.final_norm}
        return whole.get(name, decoder.head).numpy()
    layer, part, kind = decoder.layers[int(rest[2])], rest[-2], rest[-1]
    suffix = "_bias" if kind == "bias" else ""
    width, kv, ffn = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim, config.ffn
    rows = {
        "q_proj": ("qkv", 0, width), "k_proj": ("qkv", width, width + kv), "v_proj": ("qkv", width + kv, None),
        "gate_proj": ("gate_up", 0, ffn), "up_proj": ("gate_up", ffn, None),
        "o_proj": ("o", 0, None), "down_proj": ("down", 0, None),
    }  # fmt: skip
    if part in rows:
        table, start, end = rows[part]
        return layer[table + suffix][start:end].numpy()
    if part in ("q_norm", "k_norm"):
        return layer["head_norm"][0 if part == "q_norm" else config.n_heads].numpy()
    return layer["attn_norm" if part == "input_layernorm" else "mlp_norm"].numpy()


def test_the_package_does_not_import_a_peer() -> None:
    import subprocess

    code = "import sys, amk, amk.bench, amk.bench_verb, amk.report.page; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
