"""The GPU from Python, on a computer that has one: `pytest -m gpu`.

Without a device these tests are skipped and say so; with AMK_REQUIRE_GPU=1 that is a failure. AMK_TEST_CHECKPOINTS
names a directory of checkpoints made elsewhere (gpu_checkpoints.py), for machines without transformers.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amk
from amk import nvml
from amk.errors import InputError, NonFinite, Rejected, Unavailable
from amk.exam import LINEAR_NOISE_FACTOR, Questions, ask_oracle, noise_of
from amk.history import set_states, stored_history, stored_states
from amk.megakernel import device_count, device_uuid, read_bandwidth
from amk.oracle import error_limit, logit_error
from amk.oracle_cache import OracleCache
from gpu_checkpoints import EXPECTED, FAMILY_NAMES, MAX_SEQ, NAMES, build

pytestmark = pytest.mark.gpu
F32_LIMIT = 1e-5
KV_BLOCK = amk.ScheduleConfig.default().to_dict()["tiling"]["attention"]["kv_block"]
POSITIONS = (8191, 1023, KV_BLOCK, KV_BLOCK - 1, 17, 1, 0)
RELAUNCHES = 1000


def missing(reason: str) -> None:
    if os.environ.get("AMK_REQUIRE_GPU") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True, scope="module")
def _device(tmp_path_factory: pytest.TempPathFactory) -> Any:
    try:
        device_count()
    except Unavailable as reason:
        missing(f"no GPU: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("AMK_TEST_CHECKPOINTS")
    if given:
        assert {path.name for path in Path(given).iterdir()} >= {*NAMES, EXPECTED}, given
        return Path(given)
    try:
        import transformers  # noqa: F401
    except ImportError:
        missing("transformers is not installed, and AMK_TEST_CHECKPOINTS is not set")
    directory = tmp_path_factory.mktemp("checkpoints")
    build(directory)
    return directory


def open_both(model: Any, max_seq: int = MAX_SEQ, config: Any = None) -> tuple[Any, amk.ReferenceVM, amk.MegakernelVM]:
    source = amk.open_model(model)
    schedule = amk.ScheduleConfig.default() if config is None else amk.ScheduleConfig.from_dict(config)[0]
    image = amk.lower(source.config, schedule, "local", max_seq).pack()
    weights = source.weights()
    return source.config, amk.ReferenceVM(image, weights), amk.MegakernelVM(image, weights, guard=True)


HISTORY_SEED = 11


def fill(config: Any, rows: int, *machines: Any) -> None:
    for layer, (k, v) in stored_history(config, rows, HISTORY_SEED).items():
        for machine in machines:
            machine.set_kv(layer, k, v)
    for machine in machines:
        set_states(machine, stored_states(config, HISTORY_SEED))


def limits_of(model: Any, tokens: list[int], positions: list[int], max_seq: int) -> np.ndarray:
    """How far two machines may be apart at each step: each may differ from the exact answer by the judge's limit."""
    source = amk.open_model(model)
    config = source.config
    # In f32 both round the angle pos * f, to the same.
    limits = np.array([
        F32_LIMIT if config.dtype == "f32" else 2 * error_limit(config.dtype, config, position=pos) for pos in positions
    ])  # fmt: skip
    if config.has_state:
        asked = Questions(HISTORY_SEED, max_seq, tuple(tokens), tuple(positions), ())
        digest, cache = source.weights().digest, OracleCache()
        truth = ask_oracle(config, source.raw, digest, asked, cache, lambda _: None)
        noise = noise_of(config, source.raw, asked, truth, lambda _: None)
        limits = np.maximum(limits, 2 * LINEAR_NOISE_FACTOR * noise)
    return limits


# --- equal to the reference machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "toy", "toy-gqa", "toy-qwen3", "toy-gdn"])
def test_every_family_equals_the_reference(name: str, checkpoints: Path) -> None:
    embedded = name.startswith("toy")
    max_seq = 256 if embedded else MAX_SEQ
    model = name if embedded else checkpoints / name
    config, reference, gpu = open_both(model, max_seq)
    positions = sorted({min(pos, max_seq - 1) for pos in POSITIONS}, reverse=True)
    tokens = [(37 * pos + 5) % config.vocab for pos in positions]
    with reference, gpu:
        fill(config, max_seq, reference, gpu)
        for token, pos, limit in zip(tokens, positions, limits_of(model, tokens, positions, max_seq), strict=True):
            for machine in (reference, gpu):
                set_states(machine, stored_states(config, HISTORY_SEED))
            want, got = reference.step(token, pos), gpu.step(token, pos)
            error = logit_error(got.astype(np.float64), want.astype(np.float64))
            assert error <= limit, (pos, error, limit)
            assert gpu.next_token == int(np.argmax(got))
            for layer in stored_history(config, 0, HISTORY_SEED):
                for mine, theirs in zip(gpu.get_kv(layer, pos), reference.get_kv(layer, pos), strict=True):
                    assert np.array_equal(mine, theirs), "history was written to"


@pytest.mark.parametrize(
    "schedule",
    [
        {"tiling": {"gemv": {"N_tile": 8}, "attention": {"kv_block": 16}}},
        {"fusion_grouping": [], "page_allocation": "none", "sm_assignment": "load_balance"},
        {"tiling": {"gemv": {"N_tile": 128}, "attention": {"kv_block": 256}}, "page_allocation": "graph_color"},
        {
            "tiling": {"attention": {"kv_block": 256}},
            "fusion_grouping": [*amk.ScheduleConfig.default().fusion_grouping, "attention+combine"],
        },
    ],
    ids=["small tiles", "unfused", "large tiles", "without a combine"],
)
def test_other_schedules_equal_the_reference(schedule: dict[str, Any]) -> None:
    config, reference, gpu = open_both("toy-gqa", 256, schedule)
    with reference, gpu:
        fill(config, 256, reference, gpu)
        for pos in (255, 64, 15, 0):
            want, got = reference.step(9, pos), gpu.step(9, pos)
            assert logit_error(got.astype(float), want.astype(float)) <= 2 * error_limit("bf16", config, position=pos)


@pytest.mark.parametrize("model", ["toy", "toy-gqa"])
def test_decode_is_the_step_without_its_logits(model: str) -> None:
    config, reference, gpu = open_both(model, 64)
    with reference, gpu:
        token = 7
        for pos in range(24):
            chosen = gpu.decode(token, pos)
            assert chosen == gpu.next_token == int(np.argmax(gpu.read("logits")))
            assert chosen == int(np.argmax(gpu.step(token, pos)))
            token = (chosen + pos) % config.vocab
        with pytest.raises(InputError, match="token"):
            gpu.decode(config.vocab, 3)
        with pytest.raises(InputError, match="position"):
            gpu.decode(1, 64)
        before = gpu.step(7, 24)
        gpu.decode(9, 24)
        gpu.write("token", np.array([7], np.int32))
        gpu.relaunch()
        assert np.array_equal(gpu.read("logits"), before), "a token written after a decode is the one that counts"


def test_run_by_name_gives_what_step_gives() -> None:
    _, reference, gpu = open_both("toy", 64)
    with reference, gpu:
        out = gpu.run({"token": np.array([7], np.int32)}, pos=0)
        assert set(out) == set(reference.run({"token": np.array([7], np.int32)}, pos=0))
        assert np.array_equal(out["logits"], gpu.step(7, 0)) and out["next_token"][0] == gpu.next_token


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_greedy_generation_equals_the_oracle_token_for_token(family: str, checkpoints: Path) -> None:
    wanted = json.loads((checkpoints / EXPECTED).read_text(encoding="utf-8"))[family]
    prompt, tokens = wanted["prompt"], wanted["tokens"]
    options = {"gpu": "local", "device": "cuda:0", "max_new_tokens": len(tokens), "stop_at_eos": False}
    with amk.generate(checkpoints / f"{family}-f32", prompt, **options) as generation:
        assert [token.token for token in generation] == tokens and len(tokens) == 256


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_logits_that_are_no_numbers_are_never_handed_out(bad: float) -> None:
    source = amk.open_model("toy")
    image = amk.lower(source.config, amk.ScheduleConfig.default(), "local", 64).pack()
    weights = {name: array.copy() for name, array in source.weights().items()}
    weights["final_norm"][3] = bad
    for machine in (amk.ReferenceVM(image, weights), amk.MegakernelVM(image, weights)):
        with machine:
            for pos in (0, 1):
                with pytest.raises(NonFinite, match="logit"):
                    machine.step(7, pos)
            with pytest.raises(NonFinite, match="logit"):
                machine.run({"token": np.array([7], np.int32)}, pos=2)
    healthy = dict(source.weights())
    with amk.MegakernelVM(image, healthy) as gpu:
        assert np.isfinite(gpu.step(7, 0)).all()


# --- launching ------------------------------------------------------------------------------------------------------


def test_a_thousand_relaunches_give_the_same_bits() -> None:
    config, reference, gpu = open_both("toy-qwen3", 256)
    with reference, gpu:
        fill(config, 256, gpu)
        first = gpu.step(17, 200)
        for _ in range(RELAUNCHES):
            gpu.relaunch()
            assert gpu.read("logits").tobytes() == first.tobytes()


def test_a_state_moves_on_with_each_step_and_can_be_put_back() -> None:
    config, reference, gpu = open_both("toy-gdn", 256)
    with reference, gpu:
        fill(config, 256, reference, gpu)
        for machine in (reference, gpu):
            machine.step(17, 200)
        first = gpu.read("logits")
        for layer in stored_states(config, HISTORY_SEED):
            (conv, memory), (other_conv, other_memory) = gpu.get_state(layer), reference.get_state(layer)
            assert conv.shape == other_conv.shape and np.abs(memory - other_memory).max() < 0.1
            assert not np.array_equal(memory, stored_states(config, HISTORY_SEED)[layer][1])
        gpu.relaunch()
        assert gpu.read("logits").tobytes() != first.tobytes()
        for _ in range(RELAUNCHES // 10):
            set_states(gpu, stored_states(config, HISTORY_SEED))
            gpu.relaunch()
            assert gpu.read("logits").tobytes() == first.tobytes()
        gpu.reset_state()
        assert not any(part.any() for layer in stored_states(config, 0) for part in gpu.get_state(layer))


def test_time() -> None:
    _, reference, gpu = open_both("toy", 64)
    with reference, gpu:
        gpu.write("token", np.array([7], np.int32))
        us = gpu.time(5, 20)
        assert us.shape == (20,) and us.dtype == np.float64 and (us > 0).all() and (us < 1e5).all()


def test_launch_on_a_stream_and_in_a_graph() -> None:
    try:
        import torch
    except ImportError:
        missing("torch, which makes the streams here, is not installed")
    config, reference, gpu = open_both("toy", 64)
    with reference, gpu:
        fill(config, 64, reference, gpu)
        expected = {pos: gpu.step(7, pos) for pos in (9, 40)}  # in this order, row 9 of the second is the first's
        with pytest.raises(InputError, match="no step"):
            gpu.finish()
        stream = torch.cuda.Stream()
        for given in (stream, stream.cuda_stream, torch.cuda.current_stream(), None):
            gpu.launch(40, given)
            with pytest.raises(InputError, match="in flight"):
                gpu.read("logits")
            gpu.finish()
            assert np.array_equal(gpu.read("logits"), expected[40])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            gpu.launch(0, stream)
        for pos in (40, 9):
            gpu.aim(pos)
            graph.replay()
            torch.cuda.synchronize()
            gpu.finish()
            assert np.array_equal(gpu.read("logits"), expected[pos])


def test_refused_before_anything_is_launched() -> None:
    source = amk.open_model("toy")
    weights, schedule = source.weights(), amk.ScheduleConfig.default()
    image = amk.lower(source.config, schedule, "local", 64).pack()
    wide = replace(amk.TARGETS["h200"], name="wide", sm_count=1000)
    with pytest.raises(Rejected, match="V10"):
        amk.MegakernelVM(amk.lower(source.config, schedule, wide, 64).pack(), weights)
    verdict = amk.evaluate("toy", wide, device="cuda", max_seq=64)
    assert not verdict.valid and "V10" in verdict.rejected_reason and verdict.latency_us is None
    with pytest.raises(InputError, match="device"):
        amk.MegakernelVM(image, weights, device=99)
    with pytest.raises(Unavailable, match="cuda:99"):
        amk.evaluate("toy", "local", device="cuda:99")
    with pytest.raises(InputError, match="lm_head"):
        amk.MegakernelVM(image, {name: weights[name] for name in weights if name != "lm_head"})
    with amk.MegakernelVM(image, weights) as gpu:
        with pytest.raises(InputError, match="prepare"):
            gpu.launch(0)
        for token, pos in ((7, 64), (7, -1), (256, 0), (-1, 0)):
            with pytest.raises(InputError):
                gpu.step(token, pos)
        assert np.isfinite(gpu.step(7, 0)).all(), "a refused step leaves the machine usable"
    with pytest.raises(InputError, match="closed"):
        gpu.step(7, 0)


# --- a batch: consecutive tokens in a step ----------------------------------------------------------------------------

DENSE = [*(name for name in NAMES if not name.startswith("qwen3next")), "toy", "toy-gqa", "toy-qwen3"]


def images_of(source: Any, max_seq: int, *batches: int) -> list[amk.Image]:
    schedule = amk.ScheduleConfig.default()
    return [amk.lower(source.config, schedule, "local", max_seq, batch).pack(source.config) for batch in batches]


@pytest.mark.parametrize("batch", [2, 5, 16])
@pytest.mark.parametrize("name", DENSE)
def test_a_batch_equals_the_reference(name: str, batch: int, checkpoints: Path) -> None:
    max_seq = 256 if name.startswith("toy") else 2048
    source = amk.open_model(name if name.startswith("toy") else checkpoints / name)
    (image,), weights = images_of(source, max_seq, batch), source.weights()
    vocab, dtype = source.config.vocab, source.config.dtype
    with amk.ReferenceVM(image, weights) as reference, amk.MegakernelVM(image, weights, guard=True) as gpu:
        fill(source.config, max_seq, reference, gpu)
        for pos in (max_seq - batch, 1000, KV_BLOCK, KV_BLOCK - 1, 3, 0):  # history that no step before has written to
            if pos + batch > max_seq:
                continue
            tokens = [(37 * (pos + t) + 5) % vocab for t in range(batch)]
            want, got = reference.step_batch(tokens, pos), gpu.step_batch(tokens, pos)
            for t in range(batch):
                limit = F32_LIMIT if dtype == "f32" else 2 * error_limit(dtype, source.config, position=pos + t)
                assert logit_error(got[t].astype(np.float64), want[t].astype(np.float64)) <= limit, (pos, t)
            assert gpu.next_tokens == got.argmax(axis=-1).tolist() == gpu.decode_batch(tokens, pos).tolist()
            assert np.array_equal(gpu.logits_of(batch - 1), got[-1]) and np.array_equal(
                gpu.step_batch(tokens, pos), got
            )
            for layer in range(source.config.layers):
                for mine, theirs in zip(gpu.get_kv(layer, pos), reference.get_kv(layer, pos), strict=True):
                    assert np.array_equal(mine, theirs), "history was written to"


@pytest.mark.parametrize("family", [family for family in FAMILY_NAMES if family != "qwen3next"])
def test_a_prompt_in_blocks_is_continued_token_for_token(family: str, checkpoints: Path) -> None:
    wanted = json.loads((checkpoints / EXPECTED).read_text(encoding="utf-8"))[family]
    text = [*wanted["prompt"], *wanted["tokens"]]
    for count in (33, 64, 150):
        options: dict[str, Any] = {"max_new_tokens": len(text) - count, "stop_at_eos": False, "logprobs": count == 64}
        with amk.generate(checkpoints / f"{family}-f32", text[:count], gpu="local", device="cuda:0", **options) as said:
            assert said.prompt_block == 16 and [token.token for token in said] == text[count:]


def test_machines_on_a_device_share_or_say_why_not() -> None:
    source = amk.open_model("toy")
    one_image, four, other = (*images_of(source, 64, 1, 4), *images_of(source, 32, 4))
    with amk.ReferenceVM(one_image, source.weights()) as cpu, amk.MegakernelVM(one_image, source.weights()) as gpu:
        many = gpu.beside(four)
        gpu.beside(one_image).close()  # takes nothing with it
        with pytest.raises(InputError, match="kv.0.k has"):
            gpu.beside(other)
        with pytest.raises(InputError, match="MegakernelVM"):
            amk.MegakernelVM(four, {}, share=cpu)  # type: ignore[arg-type]
        expected = [cpu.step(token, pos) for pos, token in enumerate([3, 141, 59, 26, 5])][-1]
        many.step_batch([3, 141, 59, 26], 0)
        assert logit_error(gpu.step(5, 4).astype(float), expected.astype(float)) <= F32_LIMIT
        kept = many.step_batch([1, 2, 3, 4], 5)
    with many:  # after the one that it shares with
        assert np.array_equal(many.step_batch([1, 2, 3, 4], 5), kept)
        assert many.time(5, 3).shape == (3,)


@pytest.mark.parametrize("model", ["toy", "toy-gqa", "llama3-bf16", "qwen3-f32"])
def test_evaluate_measures_a_batch(model: str, checkpoints: Path) -> None:
    where = model if model.startswith("toy") else checkpoints / model
    for batch in (2, 16):
        verdict = amk.evaluate(where, "local", device="cuda", batch=batch)
        assert verdict.correct and verdict.latency_kind == "measured-gpu" and verdict.batch == batch, verdict.notes
        assert verdict.latency_per_token_us == pytest.approx(verdict.latency_us / batch)


# --- judged ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["toy", "toy-2L", "toy-gqa", "toy-qwen3", "toy-gdn", "llama3-bf16", "qwen3-f32"])
def test_evaluate_measures(model: str, checkpoints: Path) -> None:
    verdict = amk.evaluate(model if model.startswith("toy") else checkpoints / model, "local", device="cuda")
    assert verdict.correct and verdict.device == "cuda:0", verdict.notes
    assert verdict.latency_kind == "measured-gpu" and verdict.latency_us >= verdict.bound_us > 0, verdict.notes
    assert verdict.latency_p10_us <= verdict.latency_us <= verdict.latency_p90_us
    found = verdict.provenance
    assert found["device_uuid"] == device_uuid(0) and found["device_name"] == amk.resolve_target("local").name
    assert min(found["read_gb_per_s"]) > 100
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_the_command_line_takes_the_live_device() -> None:
    def run(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "amk", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, timeout=300)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return json.loads(done.stdout)

    live = amk.resolve_target("local").name
    found = run("doctor")
    assert found["gpu"]["name"] == live and found["gpu"]["devices"][0]["uuid"] == device_uuid(0)
    assert found["library"]["build"]["cuda"]["variants"]
    judged = run("eval", "toy", "--quiet")
    assert judged["device"] == "cuda:0" and judged["latency_kind"] == "measured-gpu"
    assert judged["gpu"] == found["gpu"]["devices"][0]["target"] or judged["gpu"] == live


@pytest.mark.parametrize("model", ["toy", "toy-gqa"])
def test_profile_then_explain(model: str) -> None:
    """The timeline of a real step, which the checks of `read_machine` hold for, in both forms."""
    from amk.explanation import explain
    from amk.profile import run_profile
    from amk.timeline import require_program
    from amk.trace import read_timeline, trace_bytes

    found = run_profile(model, "local", device="cuda", context=100, steps=5)
    timeline, summary = found.timeline, found.summary
    assert summary["latency_kind"] == timeline.kind == "measured-gpu" and summary["overhead"]["off_us"] > 0
    assert 0 < timeline.span_us <= 1.05 * timeline.step_us
    again = read_timeline(trace_bytes(timeline, found.program, compress=True), "t.json.gz")
    require_program(again, found.program, found.program.pack().hash)
    for each in (timeline, again):
        explained = explain(found.program, None, each)
        assert sum(explained.critical_path["us"].values()) == pytest.approx(explained.latency_us)
        assert explained.critical_path["signals"] > 0 and explained.waiting["total_us"] > 0


def test_what_the_driver_says() -> None:
    found = nvml.snapshot(device_uuid(0))
    assert found["driver_version"] == nvml.driver_version()
    if found["driver_version"] is not None:  # absent is null, never a guess
        assert found["name"] == amk.resolve_target("local").name and found["sm_clock_mhz"] > 0
    assert nvml.snapshot("GPU-00000000-0000-0000-0000-000000000000")["name"] is None


def test_read_bandwidth_is_that_of_memory() -> None:
    published = amk.resolve_target("local").hbm_gb_per_s
    assert 0.5 * published < read_bandwidth(0) < 1.05 * published


@pytest.mark.parametrize("model", ["toy-gqa", "toy-qwen3"])
def test_a_quantised_model(model: str) -> None:
    verdict = amk.evaluate(model, "local", device="cuda", max_seq=256, quantize="int8", group=64)
    assert verdict.correct and verdict.latency_kind == "measured-gpu" and verdict.quantize == "int8-g64", verdict.notes
    with amk.generate(model, [1], device="cpu", max_new_tokens=8, quantize="int8", group=64) as said:
        first = [token.token for token in said]
    with amk.generate(model, [1], device="cuda", max_new_tokens=8, quantize="int8", group=64) as said:
        assert [token.token for token in said][:2] == first[:2]


@pytest.mark.parametrize(("model", "config"), [("toy", None), ("toy-gqa", {"kernel_knobs": {"cpasync": 0}})])
def test_quantised_weights_that_cannot_stream_are_refused(model: str, config: Any) -> None:
    verdict = amk.evaluate(model, "local", config, device="cuda", max_seq=64, quantize="int8", group=64)
    assert not verdict.valid and "come through the ring alone" in str(verdict.rejected_reason)
