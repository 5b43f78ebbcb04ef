"""Quantised models: the quantiser against its definition, the model from checkpoint to verdict, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amk
from amk.checkpoint import Checkpoint
from amk.embedded import EMBEDDED, EmbeddedModel, open_model
from amk.oracle import Oracle, round_to, synthetic_kv, to_float64
from amk.quantize import QuantizedSource, dequantize, loss_of, quantize
from amk.verdict import Verdict
from amk.weight_plan import weight_plan

DTYPES = ("f32", "f16", "bf16")


def stored(values, dtype):
    return round_to(np.asarray(values), dtype)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(DTYPES), st.sampled_from([64, 128]), st.integers(0, 2**32), st.floats(-3, 1))
def test_the_quantiser_is_nearest_to_its_scale(dtype, group, seed, exponent):
    random = np.random.default_rng(seed)
    values = stored(random.standard_normal(group * 5) * 10.0**exponent, dtype)
    wide = to_float64(values, dtype).reshape(-1, group)
    q, scales = quantize(values, dtype, group)
    assert q.dtype == np.int8 and scales.dtype == values.dtype and scales.shape == (5,)
    assert -127 <= q.min() and q.max() <= 127 and np.abs(q.reshape(-1, group)).max(axis=1).min() >= 126
    scale = to_float64(scales, dtype)[:, None]
    ulp = {"f32": 2.0**-23, "f16": 2.0**-9, "bf16": 2.0**-8}[dtype]  # f16: a scale may be subnormal
    assert np.allclose(scale[:, 0], np.abs(wide).max(axis=1) / 127, rtol=ulp)
    got = to_float64(dequantize(q, scales, dtype, group), dtype).reshape(-1, group)
    assert np.array_equal(got, q.reshape(-1, group) * scale)  # exact
    assert np.abs(got - wide).max() <= (0.5 + 127 * ulp) * scale.max()
    inner = np.abs(wide) <= 126.5 * scale  # not held back
    assert np.all(np.abs(got - wide)[inner] <= 0.5001 * np.broadcast_to(scale, wide.shape)[inner])


def test_a_group_of_zeros_and_one_too_small_for_a_scale():
    values = np.concatenate([np.zeros(64), np.full(64, 2.0**-24), np.ones(64)]).astype(np.float16)
    q, scales = quantize(values, "f16", 64)
    assert not q[:128].any() and not scales[:2].any() and (q[128:] == 127).all()


def test_a_known_answer():
    row = np.zeros(64, np.float32)
    row[:6] = [127.0, -127.0, 0.5, 1.5, -2.5, 63.49]  # ties to even
    q, scales = quantize(row, "f32", 64)
    assert scales.tolist() == [1.0] and q[:7].tolist() == [127, -127, 0, 2, -2, 63, 0]


def reference_weights(source, group):
    """The operands, quantised whole, from the base's own table."""
    base = source.base.weights()
    out = dict(base)
    if source.base.config.tied:
        out["lm_head"] = base["embed"]
    for name in list(out):
        if name.rpartition(".")[2] in ("wqkv", "wo", "w_gdn_in", "w_gdn_out", "w_gate_up", "w_down", "lm_head"):
            matrix = out[name]
            q, scales = quantize(matrix.reshape(-1), base.dtype, group)
            out[name] = q.reshape(matrix.shape)
            out[name + "_scale"] = scales.reshape(len(matrix), -1)
    return out


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_the_operands(name):
    source = open_model(name, "int8", 64)
    weights, want = source.weights(), reference_weights(source, 64)
    assert set(weights) == set(want)
    for operand, array in want.items():
        assert weights[operand].dtype == array.dtype and np.array_equal(weights[operand], array), operand
    assert weights.digest == open_model(name, "int8", 64).weights().digest
    assert weights.digest != weights.plain_digest and source.config.weight_group == 64 and not source.config.tied
    if not source.base.config.tied:
        assert weights.plain_digest == source.base.weights().digest


def test_chunks_do_not_show(monkeypatch):
    whole = open_model("toy-qwen3", "int8", 64).weights()
    monkeypatch.setattr("amk.checkpoint._CHUNK_BYTES", 1 << 11)
    cut = open_model("toy-qwen3", "int8", 64).weights(hashed=False)
    assert all(np.array_equal(whole[name], cut[name]) for name in whole)


def test_raw_is_what_the_integers_stand_for():
    source = open_model("toy-qwen3", "int8", 64)
    weights = source.weights()
    for name, parts in weight_plan(source.config).items():
        got = np.concatenate([to_float64(source.raw(part.tensor), "bf16") for part in parts])
        want = to_float64(weights[name], "bf16") if weights[name].dtype != np.int8 else None
        if want is None:
            scale = to_float64(weights[name + "_scale"], "bf16")
            want = weights[name] * np.repeat(scale, 64, axis=1)
        assert np.array_equal(got, want), name


@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_a_checkpoint(tmp_path, family):
    pytest.importorskip("transformers")
    from families import build_checkpoint

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    build_checkpoint(tmp_path / "model", family, sharded=True, hidden_size=64, intermediate_size=192, **heads)
    with Checkpoint.open(tmp_path / "model") as base:
        source = QuantizedSource(base, "int8", 64)
        weights, want = source.weights(), reference_weights(source, 64)
        assert set(weights) == set(want) and all(np.array_equal(weights[name], want[name]) for name in want)
        assert source.name == "model+int8-g64"
        shard = next((tmp_path / "model").glob("*.safetensors"))
        shard.write_bytes(shard.read_bytes())
        with pytest.raises(amk.InputError, match="written to while being read"):
            source.weights()


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_the_judge_agrees_and_says_what_is_lost(name, tmp_path, monkeypatch):
    monkeypatch.setenv("AMK_CACHE_DIR", str(tmp_path))
    plain = amk.evaluate(name, "h200", device="cpu", max_seq=48)
    verdict = amk.evaluate(name, "h200", device="cpu", max_seq=48, quantize="int8", group=64)
    assert verdict.correct and verdict.model == f"{name}+int8-g64" and verdict.quantize == "int8-g64"
    loss = verdict.quantize_loss
    assert loss["steps"] == len(verdict.positions) + verdict.decode_steps
    assert 0 < loss["rel_err_mean"] <= loss["rel_err_max"] < 0.1 and 0 < loss["kl_mean"] <= loss["kl_max"] < 0.01
    assert verdict.provenance["weights_digest"] != plain.provenance["weights_digest"]
    assert verdict.provenance["image_hash"] != plain.provenance["image_hash"]
    assert verdict.bound_us < plain.bound_us and verdict.weight_mb < plain.weight_mb + 0.1
    assert plain.quantize is None and plain.quantize_loss == {}
    assert "quantised int8-g64: against the plain model" in verdict.to_text()
    again = amk.evaluate(name, "h200", device="cpu", max_seq=48, quantize="int8", group=64)  # from the cache
    assert again.quantize_loss == loss


class _Wrong:
    """A quantised source whose machine gets one matrix with its scales a row off."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def weights(self, **options):
        weights = self._source.weights(**options)
        weights._arrays["layers.0.w_down_scale"] = np.roll(weights["layers.0.w_down_scale"], 1, axis=0)
        return weights


def test_scales_of_other_rows_are_not_let_pass(monkeypatch):
    wrong = lambda *asked: _Wrong(open_model(*asked))  # noqa: E731
    monkeypatch.setattr("amk.embedded.open_model", wrong)
    verdict = amk.evaluate("toy-2L", "h200", device="cpu", max_seq=32, quantize="int8", group=64)
    assert verdict.valid and verdict.correct is False


def test_the_loss_is_that_of_two_oracles():
    source = open_model("toy-2L", "int8", 64)
    tokens, positions = (3, 9), (5, 0)
    history = lambda layer: synthetic_kv(source.config, 6, 1, layer)  # noqa: E731
    a = Oracle(source.base.config, source.base.raw).probe(tokens, positions, history)
    b = Oracle(source.config, source.raw).probe(tokens, positions, history)
    loss = loss_of(a, b)
    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in (a, b))
    assert np.isclose(loss["kl_mean"], np.mean((p * np.log(p / q)).sum(axis=-1)))
    assert np.isclose(
        loss["rel_err_max"], max(np.abs(y - x).max() / np.abs(x).max() for x, y in zip(a, b, strict=True))
    )
    assert loss["top1_agreement"] == np.mean(a.argmax(axis=-1) == b.argmax(axis=-1))
    other = loss_of(a, a[:, ::-1])
    assert other["top1_agreement"] == 0.0 and other["kl_mean"] > loss["kl_mean"]


def test_generation_is_that_of_the_quantised_oracle():
    source = open_model("toy", "int8", 64)
    oracle, tokens = Oracle(source.config, source.raw), [1]
    for _ in range(6):
        tokens.append(int(oracle.prefill(tokens)[-1].argmax()))
    with amk.generate("toy", [1], device="cpu", max_new_tokens=6, stop_at_eos=False, quantize="int8", group=64) as said:
        assert [token.token for token in said] == tokens[1:] and said.quantize == "int8-g64"


def test_a_program_of_a_quantised_model_as_data():
    source = open_model("toy-gqa", "int8")
    program = amk.lower(source.config, amk.ScheduleConfig.default(), amk.TARGETS["h200"], 64)
    again = amk.Program.from_json(program.to_json())
    assert again.validate(source.config).ok and again.pack().hash == program.pack().hash
    report = again.validate(EMBEDDED["toy-gqa"])
    assert not report.ok and report.rejections[0].code == "V17"
    assert program.meta["model"]["weight_group"] == 128
    data = json.loads(program.to_json())
    task = next(t for t in data["tasks"] if t["op"] == "GEMV_TILE")
    assert task["params"]["qdtype"] == 6 and task["params"]["group"] == 128
    task["params"]["group"] = 64
    assert amk.Program.from_dict(data).validate().rejections[0].code == "V4"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"quantize": "int4"}, "quantize: expected int8, or nothing, got 'int4'"),
        ({"quantize": "int8", "group": 32}, "group: expected 64 or 128, got 32"),
        ({"quantize": "int8", "group": True}, "group: expected 64 or 128"),
        ({"group": 64}, "group: expected it together with quantize"),
    ],
)
def test_misuse(options, match):
    with pytest.raises(amk.InputError, match=match):
        open_model("toy", **options)
    with pytest.raises(amk.InputError, match=match):
        amk.evaluate("toy", "h200", device="cpu", **options)


def test_rows_that_are_no_whole_groups():
    with pytest.raises(amk.UnsupportedModel, match="whole groups of 128, got hidden_size = 64"):
        open_model("toy", "int8")


def test_a_weight_that_is_not_finite(monkeypatch):
    def poisoned(self, name, start, out):
        out[:] = 0.5
        if name.endswith("down_proj.weight") and start == 0:
            out[7] = np.inf

    monkeypatch.setattr(EmbeddedModel, "_read_range", poisoned)
    with pytest.raises(amk.InputError, match="down_proj.weight': expected finite values, .* at flat index 7"):
        open_model("toy", "int8", 64).weights()


def test_a_verdict_of_a_plain_model_has_no_loss():
    verdict = amk.evaluate("toy", "h200", device="cpu", max_seq=16)
    with pytest.raises(amk.InternalError, match="only a quantised model"):
        replace(verdict, quantize_loss={"steps": 1})
    assert isinstance(verdict, Verdict)


def test_commands(tmp_path, capsys):
    from amk.cli import main

    output = tmp_path / "out"
    code = main(["compile", "toy-gqa", "--gpu", "h200", "--quantize", "int8", "--output", str(output), "--json"])
    data = json.loads(capsys.readouterr().out)
    assert code == 0 and data["quantize"] == "int8-g128"
    assert json.loads((output / "report.json").read_text())["quantize"] == "int8-g128"
    bench = ["bench", "toy", "--gpu", "h200", "--device", "cpu", "--contexts", "1,8", "--quantize", "int8"]
    code = main([*bench, "--group", "64", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert code == 0 and data["quantize"] == "int8-g64"
    assert [row["verdict"]["quantize"] for row in data["rows"]] == ["int8-g64"] * 2
    generate = ["generate", "toy", "--device", "cpu", "--quantize", "int8", "--group", "64", "--max-new-tokens", "2"]
    assert main([*generate, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantize"] == "int8-g64"
    assert main(["eval", "toy", "--device", "cpu", "--group", "64", "--json"]) == 2
