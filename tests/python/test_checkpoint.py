"""Checkpoint directories and embedded models: every byte in its place once, and nothing accepted that does not fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from amk.checkpoint import Checkpoint, Weights, WeightSource
from amk.embedded import EMBEDDED, EmbeddedModel, open_model
from amk.errors import AmkError, InputError, OutOfMemory, UnsupportedModel
from amk.model_config import rope_inv_freq
from amk.weight_plan import weight_plan
from families import FAMILIES, build_checkpoint, rewrite_config_in_v4_style

TORCH_VIEW = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
INDEX = "model.safetensors.index.json"


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().contiguous().view(TORCH_VIEW[tensor.dtype]).numpy()


def require_equal(weights: Weights, state: dict[str, torch.Tensor], source: WeightSource) -> None:
    """The canonical table against what transformers holds, bit for bit."""
    plan = weight_plan(source.config)
    assert set(weights) == {*plan, "rope_inv_freq"}
    used = set()
    for name, parts in plan.items():
        rows = [bits(state[part.tensor])[at : at + n] for part in parts for at, n in part.row_runs]
        expected = np.concatenate(rows).reshape(weights[name].shape)
        if parts[0].is_widened:
            expected = state[parts[0].tensor].detach().float().numpy()
        assert np.array_equal(weights[name].view(expected.dtype), expected), name
        used.update(part.tensor for part in parts)
    assert set(state) - used <= {"lm_head.weight"}  # tied
    assert np.array_equal(weights["rope_inv_freq"], rope_inv_freq(source.config))


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_bit_for_bit(family: str, dtype: torch.dtype, sharded: bool, tmp_path: Path) -> None:
    model = build_checkpoint(tmp_path, family, dtype=dtype, sharded=sharded)
    state = model.state_dict()
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.name == tmp_path.name and checkpoint.path == tmp_path
        require_equal(checkpoint.weights(), state, checkpoint)
        for name in checkpoint.tensor_names():
            raw = checkpoint.raw(name)
            assert raw.shape == tuple(state[name].shape)
            assert np.array_equal(raw.view(bits(state[name]).dtype), bits(state[name]))


@pytest.mark.parametrize("family", ["llama2", "qwen3"])
def test_all_biases(family: str, tmp_path: Path) -> None:
    biases = {"attention_bias": True} | ({"mlp_bias": True} if family == "llama2" else {})
    model = build_checkpoint(tmp_path, family, **biases)
    with Checkpoint.open(tmp_path) as checkpoint:
        weights = checkpoint.weights()
        assert ("layers.1.b_gate_up" in weights) == ("layers.1.b_down" in weights) == (family == "llama2")
        assert "layers.1.bqkv" in weights and "layers.1.bo" in weights
        require_equal(weights, model.state_dict(), checkpoint)


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    digests = []
    for name, sharded, seed in (("a", False, 0), ("b", True, 0), ("c", False, 1)):
        build_checkpoint(tmp_path / name, "llama3", sharded=sharded, seed=seed)
        if name == "b":
            rewrite_config_in_v4_style(tmp_path / name)
        with Checkpoint.open(tmp_path / name) as checkpoint:
            digests.append(checkpoint.weights().digest)
            assert digests[-1] == checkpoint.weights(check_finite=False).digest
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64
    edit_config(tmp_path / "a", lambda table: table["rope_parameters"].update(rope_theta=9.0))
    assert Checkpoint.open(tmp_path / "a").weights().digest != digests[0]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pristine")
    build_checkpoint(root / "single", "llama2", num_hidden_layers=1)
    build_checkpoint(root / "sharded", "llama2", sharded=True)
    build_checkpoint(root / "tied", "smollm", num_hidden_layers=1)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def single(pristine: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine["single"], tmp_path / "single"))


@pytest.fixture
def sharded(pristine: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine["sharded"], tmp_path / "sharded"))


@pytest.fixture
def tied(pristine: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine["tied"], tmp_path / "tied"))


def edit_config(directory: Path, edit: Callable[[dict[str, Any]], Any], name: str = "config.json") -> None:
    table = json.loads((directory / name).read_bytes())
    edit(table)
    (directory / name).write_text(json.dumps(table))


def edit_tensors(directory: Path, edit: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def load(directory: Path) -> Weights:
    with Checkpoint.open(directory) as checkpoint:
        return checkpoint.weights()


Q = "model.layers.0.self_attn.q_proj.weight"


def test_missing_and_extra_tensors(single: Path) -> None:
    edit_tensors(single, lambda t: t.pop(Q))
    with pytest.raises(InputError, match=f"missing.*{Q}"):
        load(single)
    edit_tensors(single, lambda t: t.update({Q: np.ones((64, 64), np.float32), "model.extra": np.ones(3, np.float32)}))
    with pytest.raises(InputError, match=r"besides.*model\.extra"):
        load(single)


def test_old_rotary_buffers_are_ignored(single: Path) -> None:
    before = load(single).digest
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(single, lambda t: t.update({name: np.ones(8, np.float16)}))
    assert load(single).digest == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.ones((64, 72), np.float32), r"expected f32 \[64, 64\], got F32 \[64, 72\]"),
        (np.ones(4096, np.float32), r"got F32 \[4096\]"),
        (np.ones((64, 64), np.float16), "expected f32.*got F16"),
        (np.ones((64, 64), np.int64), "expected f32.*got I64"),
    ],
)
def test_wrong_dtype_or_shape(single: Path, wrong: np.ndarray, message: str) -> None:
    edit_tensors(single, lambda t: t.update({Q: wrong}))
    with pytest.raises(InputError, match=message):
        load(single)
    edit_config(single, lambda table: table.pop("dtype"))
    with pytest.raises(InputError):
        load(single)


def test_dtype_comes_from_the_tensors_if_the_config_names_none(single: Path) -> None:
    before = load(single).digest
    edit_config(single, lambda table: table.pop("dtype"))
    assert load(single).digest == before
    edit_config(single, lambda table: table.update(dtype="bfloat16"))
    with pytest.raises(InputError, match=r"expected bf16.*got F32"):
        load(single)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_must_be_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build_checkpoint(tmp_path, "qwen2", dtype=dtype)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    model.save_pretrained(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        with pytest.raises(InputError, match=rf"layers\.1\.mlp\.up_proj\.weight.*flat index {3 * 64 + 5}$"):
            checkpoint.weights()
        assert checkpoint.weights(check_finite=False)["layers.1.w_gate_up"].shape == (320, 64)


def test_finite_scan_across_chunks(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(single)
    monkeypatch.setattr("amk.checkpoint._CHUNK_BYTES", 1000)
    after = load(single)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert before.digest != after.digest  # the chunk is part of the digest's definition
    edit_tensors(single, lambda t: t[Q].reshape(-1).__setitem__(4095, np.nan))
    with pytest.raises(InputError, match="flat index 4095"):
        load(single)


def test_tied_head(tied: Path) -> None:
    before = load(tied)
    assert "lm_head" not in before
    embed = "model.embed_tokens.weight"
    edit_tensors(tied, lambda t: t.update({"lm_head.weight": t[embed].copy()}))
    assert load(tied).digest == before.digest
    edit_tensors(tied, lambda t: t["lm_head.weight"].reshape(-1).__setitem__(-1, 7.0))
    with pytest.raises(UnsupportedModel, match="tie_word_embeddings") as caught:
        load(tied)
    assert caught.value.key == "tie_word_embeddings"
    edit_tensors(tied, lambda t: t.update({"lm_head.weight": np.ones((2, 2), np.float32)}))
    with pytest.raises(InputError, match=r"lm_head\.weight"):
        load(tied)
    edit_tensors(tied, lambda t: t.pop("lm_head.weight"))
    edit_config(tied, lambda table: table.update(tie_word_embeddings=False))
    with pytest.raises(InputError, match=r"lm_head.*tie_word_embeddings"):
        load(tied)


def test_truncated_files(single: Path) -> None:
    path = single / "model.safetensors"
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    lengths = [0, 7, 8, *range(9, 8 + header, 37), 8 + header, *range(9 + header, len(content), 9973), len(content) - 1]
    for length in lengths:
        os.truncate(path, length)
        with pytest.raises(InputError):
            Checkpoint.open(single)
        path.write_bytes(content)
    config = (single / "config.json").read_bytes()
    for length in range(len(config) - 1):
        (single / "config.json").write_bytes(config[:length])
        with pytest.raises(InputError):
            Checkpoint.open(single)


def test_file_that_shrinks_while_open(single: Path) -> None:
    with Checkpoint.open(single) as checkpoint:
        os.truncate(single / "model.safetensors", 100_000)
        with pytest.raises(InputError, match="truncated"):
            checkpoint.weights()


def test_file_that_is_rewritten_while_open(single: Path) -> None:
    with Checkpoint.open(single) as checkpoint:
        path = single / "model.safetensors"
        os.utime(path, ns=(0, 0))
        with pytest.raises(InputError, match="written to"):
            checkpoint.weights()


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", ".", "", "a\\b.safetensors",
     "x\0.safetensors", "pytorch_model.bin", ".hidden.safetensors", "n" * 300 + ".safetensors", 7,
     None, ["x.safetensors"]],
)  # fmt: skip
def test_index_names_must_be_plain(sharded: Path, shard: Any) -> None:
    edit_config(sharded, lambda t: t["weight_map"].update({Q: shard}), INDEX)
    with pytest.raises(InputError, match="plain file names"):
        load(sharded)


def test_index_against_shards(sharded: Path) -> None:
    original = (sharded / INDEX).read_bytes()
    shards = sorted(set(json.loads(original)["weight_map"].values()))
    assert len(shards) > 2
    other = next(name for name in shards if name != json.loads(original)["weight_map"][Q])
    edits: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda t: t["weight_map"].update({Q: other}), f"differs in '{Q}'"),
        (lambda t: t["weight_map"].pop(Q), f"differs in '{Q}'"),
        (lambda t: t["weight_map"].update({"model.extra": other}), r"differs in 'model\.extra'"),
        (lambda t: t["weight_map"].update({"model.extra": "absent.safetensors"}), "absent"),
        (lambda t: t["metadata"].update(total_size=1), "total_size"),
        (lambda t: t["metadata"].update(total_size=float(t["metadata"]["total_size"])), "total_size"),
        (lambda t: t.update(metadata=[1]), "metadata"),
        (lambda t: t.update(weight_map={}), "weight_map"),
        (lambda t: t.update(weight_map=[]), "weight_map"),
        (lambda t: t.pop("weight_map"), "weight_map"),
    ]
    for edit, message in edits:
        (sharded / INDEX).write_bytes(original)
        edit_config(sharded, edit, INDEX)
        with pytest.raises(InputError, match=message):
            load(sharded)
    for content in (b"", b"[]", original[:-3], original.replace(b'"metadata"', b'"weight_map": {}, "metadata"')):
        (sharded / INDEX).write_bytes(content)
        with pytest.raises(InputError):
            load(sharded)

    (sharded / INDEX).write_bytes(original)
    before = load(sharded).digest
    edit_config(sharded, lambda t: t.pop("metadata"), INDEX)
    shutil.copy(sharded / shards[0], sharded / "listed-by-nobody.safetensors")
    assert load(sharded).digest == before
    os.remove(sharded / shards[1])
    with pytest.raises(InputError, match=shards[1]):
        load(sharded)


def test_hub_cache_of_symbolic_links(sharded: Path, tmp_path: Path) -> None:
    links = tmp_path / "snapshot"
    links.mkdir()
    for path in sharded.iterdir():
        (links / path.name).symlink_to(path)
    assert load(links).digest == load(sharded).digest


def test_what_is_not_a_checkpoint(single: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", single / "config.json", "x" * 5000, "nul\0"):
        with pytest.raises(InputError):
            Checkpoint.open(path)
    os.rename(single / "model.safetensors", single / "weights")
    with pytest.raises(InputError, match="got neither"):
        Checkpoint.open(single)
    os.mkfifo(single / "model.safetensors")
    with pytest.raises(InputError, match="FIFO"):
        Checkpoint.open(single)
    os.remove(single / "model.safetensors")
    (single / "model.safetensors").symlink_to("absent")
    with pytest.raises(InputError, match="No such file"):
        Checkpoint.open(single)
    os.remove(single / "config.json")
    os.mkfifo(single / "config.json")
    with pytest.raises(InputError, match="FIFO"):
        Checkpoint.open(single)


def test_failures_leak_no_descriptor(sharded: Path) -> None:
    edit_config(sharded, lambda table: table.update(vocab_size=264))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(InputError, match="embed_tokens"):
            Checkpoint.open(sharded)
    assert len(os.listdir("/proc/self/fd")) == before


def test_out_of_memory_is_typed(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> np.ndarray:
        raise MemoryError

    with Checkpoint.open(single) as checkpoint:
        monkeypatch.setattr("amk.checkpoint.np.empty", no_memory)
        with pytest.raises(OutOfMemory, match="embed"):
            checkpoint.weights()


# Pinned: these models must be the same on every machine, for ever.
DIGESTS = {
    "toy": "38b809c4a4ea06dc9d1300cdf4bed8a4f7562de93883bd49a36b3dd4e3879431",
    "toy-2L": "93a198af1b0a50848d102343df08dbe28c3a3f0e698938745eb990f111725bd5",
    "toy-gqa": "b13b08d2e3d76a5e78e57faf0a5ae8b8509f0cd3580931886ed90dd28e9368a5",
    "toy-qwen3": "7a5c16f83343b0d5ac77d5cdf833e1fe90462fda24b64f7b0d1e322f84591e47",
    "toy-gdn": "9ecfb2ddad4d48b063e6a28793d24a2c33918585bec2492c20b76f772ad25df3",
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(name)
    assert model.name == name and isinstance(model, EmbeddedModel)
    weights = model.weights()
    assert weights.digest == DIGESTS[name]
    monkeypatch.setattr("amk.checkpoint._CHUNK_BYTES", 1000)
    again = model.weights()
    assert all(np.array_equal(weights[canonical], again[canonical]) for canonical in weights)
    plan = weight_plan(model.config)
    assert set(weights) == {*plan, "rope_inv_freq"}
    for canonical, parts in plan.items():
        rows = np.concatenate([model.raw(part.tensor)[at : at + n] for part in parts for at, n in part.row_runs])
        if parts[0].is_widened and rows.dtype == np.uint16:
            rows = (rows.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(weights[canonical], rows.reshape(weights[canonical].shape))
    assert model.tensor_names() == tuple(sorted({part.tensor for parts in plan.values() for part in parts}))
    norm = weights["final_norm"]
    values = (norm.astype(np.uint32) << 16).view(np.float32) if model.config.dtype == "bf16" else norm
    centre = 0.0 if model.config.norm_plus_one else 1.0
    assert np.all(np.abs(values - centre) <= 0.25) and np.std(values) > 0.05
    with pytest.raises(InputError, match="no tensor"):
        model.raw("lm_head.bias")


def test_open_model(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="toy, toy-2L, toy-gqa, toy-qwen3, toy-gdn"):
        open_model("toy-3L")
    for wrong in (7, None, b"toy"):
        with pytest.raises(AmkError):
            open_model(wrong)  # type: ignore[arg-type]
    assert isinstance(open_model(single), Checkpoint)
    assert isinstance(open_model(str(single)), Checkpoint)
    monkeypatch.chdir(single.parent)
    os.rename("single", "toy")
    assert isinstance(open_model("toy"), EmbeddedModel)
    assert isinstance(open_model("./toy"), Checkpoint)
