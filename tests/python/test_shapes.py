"""The full-size shapes: what the public models' configurations say, with weights made on the spot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import amk
from amk import embedded
from amk.embedded import SHAPES, ShapeModel
from amk.errors import InputError
from amk.model_config import parse_config
from amk.weight_plan import weight_plan

PUBLISHED = {"0.6B": 0.596e9, "1B": 1.236e9, "8B": 8.03e9}  # parameters, as the model cards say
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's size is no property of these tests."""
    monkeypatch.setattr(embedded, "_POOL_ELEMS", 65521)
    embedded._pool.cache_clear()
    yield
    embedded._pool.cache_clear()


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_size_of_its_model(name: str) -> None:
    config = amk.open_model(name).config
    count = sum(np.prod(part.shape, dtype=np.int64) for parts in weight_plan(config).values() for part in parts)
    assert count == pytest.approx(PUBLISHED[name], rel=0.002)
    program = amk.lower(config, amk.ScheduleConfig.default(), amk.TARGETS["h200"], 1024)
    assert program.validate().ok


def test_the_1b_shape_is_that_of_the_random_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    if not BENCHMARKS.exists():
        pytest.skip("no benchmarks/ beside the tests")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "make_checkpoint", raising=False)
    import make_checkpoint

    assert SHAPES["1B"] == parse_config(json.dumps(make_checkpoint.LLAMA_3_2_1B).encode(), "config.json", "")
    for name, table in make_checkpoint.SHAPES.items():  # dense and hybrid: it writes what a checkpoint must hold
        plan = weight_plan(parse_config(json.dumps(table).encode(), "config.json", ""))
        wanted = {part.tensor: part.shape for parts in plan.values() for part in parts}
        assert make_checkpoint.tensors(table) == wanted, name


def test_a_tensor_is_the_same_however_it_is_read() -> None:
    model = ShapeModel("1B")
    name = "model.layers.3.self_attn.k_proj.weight"
    whole = model.raw(name)
    assert whole.shape == (512, 2048) and whole.dtype == np.uint16
    assert np.array_equal(whole, ShapeModel("1B").raw(name))
    piece = np.empty(70001, np.uint16)  # longer than the pool, so it wraps more than once
    model._read_range(name, 1234, piece)
    assert np.array_equal(piece, whole.reshape(-1)[1234 : 1234 + piece.size])
    assert not np.array_equal(whole, model.raw("model.layers.4.self_attn.k_proj.weight"))
    assert len({row.tobytes() for row in whole}) == len(whole)


def test_values_keep_activations_at_unit_scale() -> None:
    model = ShapeModel("0.6B")

    def values(name: str) -> np.ndarray:
        return (model.raw(name).astype(np.uint32) << np.uint32(16)).view(np.float32)

    matrix = values("model.layers.0.mlp.down_proj.weight")
    assert float(matrix.var()) * matrix.shape[1] == pytest.approx(1.0, rel=0.05)
    norm = values("model.layers.0.input_layernorm.weight")
    assert 0.7 < norm.min() < 0.8 and 1.2 < norm.max() < 1.3


def test_a_name_is_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1B").mkdir()
    assert isinstance(amk.open_model("1B"), ShapeModel)
    with pytest.raises(InputError, match="config.json"):
        amk.open_model("./1B")
    with pytest.raises(InputError, match="0.6B, 1B, 8B"):
        amk.open_model("2B")
